/* Linear layers of few rows, in the time that reading the weights takes. */

#pragma once

#include "numbers.h"
#ifdef _OPENMP
#include <omp.h>
#endif

typedef struct {
    const void *weight;   /* [outputs, inputs], row by row: float, bfloat16 or int8 */
    const float *scales;  /* [outputs] of int8 weights */
    const int32_t *sums;  /* [outputs], sums of the int8 weights of a row */
    const float *bias;    /* [outputs] or NULL */
    int64_t outputs, inputs, kind;
} Linear;

typedef struct {
    float *normed, *mixed, *wide, *scores, *scales; /* [rows, ...], scores [threads, capacity] */
    byte *bytes;                                    /* [rows, widest input] */
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

/* Rounds a row to bytes and returns the size of one, which is no number if one of the row is infinite or none. A row
 * of numbers so small that 127 times the inverse of the largest overflows is zero. */
static float round_row(const float *x, byte *out, int64_t width) {
    float most = 0;
    int32_t odd = 0;
    for (int64_t i = 0; i < width; i++) {
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
        odd |= !(fabsf(x[i]) < INFINITY);
    }
    float inverse = most > 4e-37f ? 127.0f / most : 0;
    if (odd) /* to convert such a number to an integer is undefined */
        memset(out, ZERO, width);
    else
        for (int64_t i = 0; i < width; i++) out[i] = (byte)((int32_t)rintf(x[i] * inverse) + ZERO);
    return odd ? NAN : most / 127.0f;
}

/* Products of `columns` rows of weights with `rows` rows of numbers, one sum for each pair. */
INLINE void products(const void *weight, const float *x, int64_t width, int columns, int rows, int kind,
                     float out[COLUMNS][COLUMNS]) {
    vector sums[COLUMNS][COLUMNS];
    int size = kind == FLOAT ? 4 : 2;
    for (int n = 0; n < columns; n++)
        for (int m = 0; m < rows; m++) sums[n][m] = (vector){0};
    int64_t i;
    for (i = 0; i + LANES <= width; i += LANES)
        for (int n = 0; n < columns; n++) {
            vector w = load(weight, n * width + i, kind);
            __builtin_prefetch((const char *)weight + ((COLUMNS + n) * width + i) * size, 0, 2);
            for (int m = 0; m < rows; m++) sums[n][m] += w * *(const loaded *)(x + m * width + i);
        }
    for (int n = 0; n < columns; n++)
        for (int m = 0; m < rows; m++) {
            float value = sum(sums[n][m]);
            for (int64_t j = i; j < width; j++) value += load_one(weight, n * width + j, kind) * x[m * width + j];
            out[n][m] = value;
        }
}

INLINE void byte_products(const int8_t *weight, const byte *x, int64_t width, int columns, int rows,
                          int32_t out[COLUMNS][COLUMNS]) {
    int64_t i = 0;
#if ZERO
    __m512i sums[COLUMNS][COLUMNS];
    for (int n = 0; n < columns; n++)
        for (int m = 0; m < rows; m++) sums[n][m] = _mm512_setzero_si512();
    for (; i + 64 <= width; i += 64)
        for (int n = 0; n < columns; n++) {
            __m512i w = _mm512_loadu_si512(weight + n * width + i);
            __builtin_prefetch(weight + (COLUMNS + n) * width + i);
            for (int m = 0; m < rows; m++)
                sums[n][m] = _mm512_dpbusd_epi32(sums[n][m], _mm512_loadu_si512(x + m * width + i), w);
        }
    for (int n = 0; n < columns; n++)
        for (int m = 0; m < rows; m++) out[n][m] = _mm512_reduce_add_epi32(sums[n][m]);
#elif defined(__AVX2__)
    __m256i sums[COLUMNS][COLUMNS];
    for (int n = 0; n < columns; n++)
        for (int m = 0; m < rows; m++) sums[n][m] = _mm256_setzero_si256();
    for (; i + 16 <= width; i += 16)
        for (int n = 0; n < columns; n++) {
            __m256i w = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(weight + n * width + i)));
            __builtin_prefetch(weight + (COLUMNS + n) * width + i);
            for (int m = 0; m < rows; m++) {
                __m256i v = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(x + m * width + i)));
                sums[n][m] = _mm256_add_epi32(sums[n][m], _mm256_madd_epi16(v, w));
            }
        }
    for (int n = 0; n < columns; n++)
        for (int m = 0; m < rows; m++) {
            int32_t lanes[8], total = 0;
            memcpy(lanes, &sums[n][m], sizeof lanes);
            for (int j = 0; j < 8; j++) total += lanes[j];
            out[n][m] = total;
        }
#else
    for (int n = 0; n < columns; n++)
        for (int m = 0; m < rows; m++) {
            int32_t total = 0;
            for (; i < width; i++) total += (int32_t)weight[n * width + i] * x[m * width + i];
            out[n][m] = total;
            i = 0;
        }
    i = width;
#endif
    for (int n = 0; n < columns; n++)
        for (int m = 0; m < rows; m++)
            for (int64_t j = i; j < width; j++) out[n][m] += (int32_t)weight[n * width + j] * x[m * width + j];
}

INLINE void tile(const Linear *layer, const float *x, const byte *bytes, const float *scales, float *out, int64_t n0,
                 int columns, int rows, int add) {
    float made[COLUMNS][COLUMNS];
    int64_t width = layer->inputs;
    if (layer->kind == BYTE) {
        int32_t whole[COLUMNS][COLUMNS];
        byte_products((const int8_t *)layer->weight + n0 * width, bytes, width, columns, rows, whole);
        for (int n = 0; n < columns; n++)
            for (int m = 0; m < rows; m++)
                made[n][m] = (float)(whole[n][m] - ZERO * layer->sums[n0 + n]) * (layer->scales[n0 + n] * scales[m]);
    } else if (layer->kind == HALF) {
        products((const uint16_t *)layer->weight + n0 * width, x, width, columns, rows, HALF, made);
    } else {
        products((const float *)layer->weight + n0 * width, x, width, columns, rows, FLOAT, made);
    }
    for (int m = 0; m < rows; m++)
        for (int n = 0; n < columns; n++) {
            float value = layer->bias ? made[n][m] + layer->bias[n0 + n] : made[n][m];
            float *to = out + m * layer->outputs + n0 + n;
            *to = add ? *to + value : value;
        }
}

/* The share of this thread of the outputs `[begin, end)` of a linear layer. */
static void share(const Linear *layer, int64_t *begin, int64_t *end) {
    int64_t groups = (layer->outputs + COLUMNS - 1) / COLUMNS, t = thread(), all = threads();
    *begin = groups * t / all * COLUMNS;
    *end = groups * (t + 1) / all * COLUMNS;
    if (*end > layer->outputs) *end = layer->outputs;
}

/* A linear layer of all rows, computed by all threads; it ends with a barrier. Rows as bytes are made before. */
static void linear(const Linear *layer, const float *x, float *out, int64_t rows, int add, const Scratch *scratch) {
    int64_t begin, end, width = layer->inputs;
    if (layer->kind == BYTE) {
        for (int64_t m = thread(); m < rows; m += threads())
            scratch->scales[m] = round_row(x + m * width, scratch->bytes + m * width, width);
        BARRIER
    }
    share(layer, &begin, &end);
    for (int64_t n = begin; n < end;) {
        int columns = end - n >= COLUMNS ? COLUMNS : 1;
        for (int64_t m = 0; m < rows; m += COLUMNS) {
            const float *from = x + m * width, *scales = scratch->scales + m;
            const byte *bytes = scratch->bytes + m * width;
            float *to = out + m * layer->outputs;
#define CASE(ROWS)                                                               \
    if (columns == 1)                                                            \
        tile(layer, from, bytes, scales, to, n, 1, ROWS, add);                   \
    else                                                                         \
        tile(layer, from, bytes, scales, to, n, COLUMNS, ROWS, add);             \
    break;
            switch (rows - m) {
            case 1: CASE(1)
            case 2: CASE(2)
            case 3: CASE(3)
            default: CASE(COLUMNS)
            }
        }
        n += columns;
    }
    BARRIER
}
