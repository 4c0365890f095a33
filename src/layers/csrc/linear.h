/* Linear layers of few rows, in the time that reading the weights takes. */

#pragma once

#include "rounded.h"
#ifdef _OPENMP
#include <omp.h>
#endif

#define COLUMNS 4 /* outputs of a linear layer of floats that are computed together */

typedef struct {
    const void *weight;  /* floats [outputs, inputs], or rounded numbers in panels */
    const float *scales; /* [outputs] of bytes, with room for whole panels */
    const float *bias;   /* [outputs] or NULL */
    int64_t outputs, inputs, kind;
} Linear;

typedef struct {
    float *normed, *mixed, *wide, *scores, *scales; /* [rows, ...], scores [threads, capacity] */
    byte *bytes;                                    /* [rows, widest input] */
    int32_t *totals;                                /* [rows] */
} Scratch;

static int thread(void) {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

static int threads(void) {
#ifdef _OPENMP
    return omp_get_num_threads();
#else
    return 1;
#endif
}

#ifdef _OPENMP
#define BARRIER _Pragma("omp barrier")
#else
#define BARRIER
#endif

/* Products of `columns` outputs with `rows` rows of numbers, one sum for each pair. */
INLINE void products(const float *weight, const float *x, int64_t width, int columns, int rows,
                     float out[COLUMNS][ROWS]) {
    vector sums[COLUMNS][ROWS];
    for (int n = 0; n < columns; n++)
        for (int m = 0; m < rows; m++) sums[n][m] = (vector){0};
    int64_t i;
    for (i = 0; i + LANES <= width; i += LANES)
        for (int n = 0; n < columns; n++) {
            vector w = *(const loaded *)(weight + n * width + i);
            __builtin_prefetch(weight + (COLUMNS + n) * width + i, 0, 2);
            for (int m = 0; m < rows; m++) sums[n][m] += w * *(const loaded *)(x + m * width + i);
        }
    for (int n = 0; n < columns; n++)
        for (int m = 0; m < rows; m++) {
            float value = sum(sums[n][m]);
            for (int64_t j = i; j < width; j++) value += weight[n * width + j] * x[m * width + j];
            out[n][m] = value;
        }
}

INLINE void write_one(const Linear *layer, float value, float *to, int64_t n, int add) {
    if (layer->bias) value += layer->bias[n];
    to[n] = add ? to[n] + value : value;
}

/* Outputs from n on, COLUMNS of a layer of floats or one, of `rows` rows from m on. */
INLINE void column_tile(const Linear *layer, const float *x, float *out, int64_t n, int64_t m, int columns, int rows,
                        int add) {
    float made[COLUMNS][ROWS];
    products((const float *)layer->weight + n * layer->inputs, x + m * layer->inputs, layer->inputs, columns, rows, made);
    for (int j = 0; j < rows; j++)
        for (int i = 0; i < columns; i++) write_one(layer, made[i][j], out + (m + j) * layer->outputs, n + i, add);
}

/* The panel of outputs from n on, of `rows` rows from m on. */
INLINE void panel_tile(const Linear *layer, const float *x, float *out, int64_t n, int64_t m, int rows, int add,
                       const Scratch *scratch) {
    int64_t room = stored_inputs(layer->inputs, layer->kind), count = layer->outputs - n;
    vector made[ROWS];
    if (layer->kind == BYTE) {
        byte_panel((const uint8_t *)layer->weight + n * room, scratch->bytes + m * room, scratch->totals + m,
                   scratch->scales + m, room, rows, made);
        for (int j = 0; j < rows; j++) made[j] *= *(const loaded *)(layer->scales + n);
    } else {
        half_panel((const uint16_t *)layer->weight + n * room, x + m * layer->inputs, layer->inputs, rows, made);
    }
    for (int j = 0; j < rows; j++) {
        float *to = out + (m + j) * layer->outputs;
        if (count >= LANES) {
            loaded *place = (loaded *)(to + n);
            if (layer->bias) made[j] += *(const loaded *)(layer->bias + n);
            if (add) made[j] += *place;
            *place = made[j];
        } else {
            for (int i = 0; i < count; i++) write_one(layer, made[j][i], to, n + i, add);
        }
    }
}

INLINE void tile(const Linear *layer, const float *x, float *out, int64_t n, int64_t m, int rows, int add,
                 const Scratch *scratch) {
    if (layer->kind != FLOAT)
        panel_tile(layer, x, out, n, m, rows, add, scratch);
    else if (n + COLUMNS <= layer->outputs)
        column_tile(layer, x, out, n, m, COLUMNS, rows, add);
    else
        for (; n < layer->outputs; n++) column_tile(layer, x, out, n, m, 1, rows, add);
}

/* A linear layer of all rows, computed by all threads; it ends with a barrier. Rows as bytes are made before. */
static void linear(const Linear *layer, const float *x, float *out, int64_t rows, int add, const Scratch *scratch) {
    int64_t width = layer->inputs, room = stored_inputs(width, BYTE);
    if (layer->kind == BYTE) {
        for (int64_t m = thread(); m < rows; m += threads())
            scratch->scales[m] =
                round_row(x + m * width, scratch->bytes + m * room, width, room, scratch->totals + m);
        BARRIER
    }
    int64_t size = layer->kind == FLOAT ? COLUMNS : LANES, groups = (layer->outputs + size - 1) / size;
    int64_t most = layer->kind == FLOAT && ROWS > 4 ? 4 : ROWS; /* rows whose sums there are registers for */
    for (int64_t group = groups * thread() / threads(); group < groups * (thread() + 1) / threads(); group++)
        for (int64_t m = 0, taken; m < rows; m += taken) {
            int64_t left = rows - m, n = group * size;
            taken = left >= most ? most : left < 4 ? left : 4;
            switch (taken) {
            case 1: tile(layer, x, out, n, m, 1, add, scratch); break;
            case 2: tile(layer, x, out, n, m, 2, add, scratch); break;
            case 3: tile(layer, x, out, n, m, 3, add, scratch); break;
            case 4: tile(layer, x, out, n, m, 4, add, scratch); break;
            default: panel_tile(layer, x, out, n, m, ROWS, add, scratch);
            }
        }
    BARRIER
}
