/* Steps of a transformer for a few places at a time, as generation takes them: see native_library.py, which compiles this.
 *
 * Such a step reads every weight once, so its time is the time of reading them. Each row of the input is computed by
 * itself and in one order, whatever rows are beside it and however many threads there are: a sample has the same bits
 * in every batch. Loops over places leave padding out instead of masking it, for the same reason.
 */

#include "linear.h"

typedef struct {
    const float *weight, *bias; /* [width] or NULL */
    double epsilon;
    int64_t root_mean_square, present;
} Norm;

typedef struct {
    Norm self_norm, cross_norm, feed_forward_norm; /* of the width */
    Norm self_queries, self_keys, cross_queries;   /* per head */
    Linear self_input, self_output, cross_input, cross_output, expand, contract;
    int64_t again; /* whether `again` of the sequence is added to the input */
} Block;

typedef struct {
    const Block *blocks;
    Norm norm;
    int64_t depth, width, heads, hidden, gated, cross;
} Stack;

typedef struct {
    void *keys, *values;                       /* [depth, batch, heads, capacity, head width] */
    const void *cross_keys, *cross_values;     /* [depth, batch, heads, cross_capacity, head width] */
    const int64_t *cross_lengths;              /* [batch] */
    const int32_t *order;                      /* [batch, capacity], the places that are no padding, or NULL for all */
    const int64_t *ranks;                      /* [batch, capacity], how many of them come up to a place */
    const float *added;                        /* [1 or batch, capacity, width], positions to add, or NULL */
    const float *again;                        /* [batch, capacity, width], added again at the input of blocks, or NULL */
    const float *rotations;                    /* [1 or batch, capacity, head width / 2, cosine and sine], or NULL */
    const int32_t *numbers;                    /* [1 or batch, capacity], position numbers, or NULL */
    const float *biases;                       /* [heads, distances], by the distance of two numbers; 0 is in the middle */
    int64_t batch, capacity, cross_capacity, half, shared_positions, distances;
} Sequence;

/* The bias of scores: by the distance from a query's number to those of the keys. Without `biases`, there is none. */
typedef struct {
    const float *biases;
    const int32_t *numbers;
    int32_t number;
} Bias;

static void normalize(const Norm *norm, const float *x, float *out, int64_t width) {
    vector total = {0}, squares = {0};
    float mean = 0, square = 0;
    int64_t i;
    if (!norm->root_mean_square) {
        for (i = 0; i + LANES <= width; i += LANES) total += *(const loaded *)(x + i);
        for (mean = sum(total); i < width; i++) mean += x[i];
        mean /= width;
    }
    for (i = 0; i + LANES <= width; i += LANES) {
        vector centered = *(const loaded *)(x + i) - mean;
        squares += centered * centered;
    }
    for (square = sum(squares); i < width; i++) square += (x[i] - mean) * (x[i] - mean);
    float scale = 1.0f / sqrtf(square / width + (float)norm->epsilon);
    for (i = 0; i < width; i++) {
        float value = (x[i] - mean) * scale;
        if (norm->weight) value *= norm->weight[i];
        out[i] = norm->bias ? value + norm->bias[i] : value;
    }
}

INLINE float dot(const float *q, const void *keys, int64_t at, int64_t width, int kind) {
    vector total = {0};
    int64_t i;
    for (i = 0; i + LANES <= width; i += LANES) total += *(const loaded *)(q + i) * load(keys, at + i, kind);
    float value = sum(total);
    for (; i < width; i++) value += q[i] * load_one(keys, at + i, kind);
    return value;
}

#define SOON 32 /* places between those that are read and those that are fetched into the cache */

/* Fetches `count` numbers from place i on. */
INLINE void fetch(const void *from, int64_t i, int64_t count, int kind) {
    int64_t size = kind == FLOAT ? 4 : 2;
    for (int64_t j = 0; j < count * size; j += 64) __builtin_prefetch((const char *)from + i * size + j, 0, 2);
}

/* The i-th of the places that `order` lists, or of all. */
INLINE int64_t place_at(const int32_t *order, int64_t i) { return order ? order[i] : i; }

/* Attention of one query over `count` places, those that `order` lists or the first ones. */
INLINE void attend(const float *q, const void *keys, const void *values, int64_t offset, const int32_t *order,
                   int64_t count, int64_t width, Bias bias, float *scores, float *out, int kind) {
    float most = -INFINITY, scale = 1.0f / sqrtf((float)width);
    for (int64_t i = 0; i < count; i++) {
        int64_t soon = i + SOON;
        if (soon < count)
            fetch(keys, offset + place_at(order, soon) * width, width, kind);
        else if (soon < 2 * count)
            fetch(values, offset + place_at(order, soon - count) * width, width, kind);
        scores[i] = dot(q, keys, offset + place_at(order, i) * width, width, kind) * scale;
        if (bias.biases) scores[i] += bias.biases[bias.number - bias.numbers[place_at(order, i)]];
        most = scores[i] > most ? scores[i] : most;
    }
    for (int64_t i = 0; i < count; i++) scores[i] = exponential(scores[i] - most);
    vector parts = {0};
    int64_t i = 0, d = 0;
    for (; i + LANES <= count; i += LANES) parts += *(const loaded *)(scores + i);
    float total = sum(parts);
    for (; i < count; i++) total += scores[i];
#define PART(SIZE)                                                                          \
    for (; d + (SIZE) * LANES <= width; d += (SIZE) * LANES) {                              \
        vector mixed[SIZE];                                                                 \
        for (int j = 0; j < (SIZE); j++) mixed[j] = (vector){0};                            \
        for (i = 0; i < count; i++) {                                                       \
            int64_t at = offset + place_at(order, i) * width + d, soon = i + SOON;          \
            if (soon < count) fetch(values, offset + place_at(order, soon) * width + d, (SIZE) * LANES, kind); \
            for (int j = 0; j < (SIZE); j++) mixed[j] += scores[i] * load(values, at + j * LANES, kind); \
        }                                                                                   \
        for (int j = 0; j < (SIZE); j++) *(loaded *)(out + d + j * LANES) = mixed[j] / total; \
    }
    PART(4)
    PART(1)
    for (; d < width; d++) {
        float mixed = 0;
        for (i = 0; i < count; i++)
            mixed += scores[i] * load_one(values, offset + place_at(order, i) * width + d, kind);
        out[d] = mixed / total;
    }
}

static void attention(const float *q, const void *keys, const void *values, int64_t offset, const int32_t *order,
                      int64_t count, int64_t width, Bias bias, float *scores, float *out, int64_t half) {
    if (count == 0)
        memset(out, 0, width * sizeof(float));
    else if (half)
        attend(q, keys, values, offset, order, count, width, bias, scores, out, HALF);
    else
        attend(q, keys, values, offset, order, count, width, bias, scores, out, FLOAT);
}

static void rotate(float *x, const float *rotations, int64_t width) {
    for (int64_t i = 0; i < width; i += 2) {
        float a = x[i], b = x[i + 1], cosine = rotations[i], sine = rotations[i + 1];
        x[i] = a * cosine - b * sine;
        x[i + 1] = b * cosine + a * sine;
    }
}

static void self_attention(const Stack *stack, const Sequence *sequence, int64_t index, int64_t places, int64_t start,
                           const Scratch *scratch) {
    const Block *block = stack->blocks + index;
    int64_t heads = stack->heads, width = stack->width / heads, rows = sequence->batch * places;
    int64_t capacity = sequence->capacity;
    for (int64_t task = thread(); task < rows * heads; task += threads()) {
        int64_t row = task / heads, head = task % heads, sample = row / places, place = start + row % places;
        float *q = scratch->wide + row * 3 * stack->width + head * width, *k = q + stack->width, *v = k + stack->width;
        if (block->self_queries.present) normalize(&block->self_queries, q, q, width);
        if (block->self_keys.present) normalize(&block->self_keys, k, k, width);
        if (sequence->rotations) {
            int64_t at = ((sequence->shared_positions ? 0 : sample) * capacity + place) * width;
            rotate(q, sequence->rotations + at, width);
            rotate(k, sequence->rotations + at, width);
        }
        int64_t to = (((index * sequence->batch + sample) * heads + head) * capacity + place) * width;
        for (int64_t i = 0; i < width; i++) {
            store_one(sequence->keys, to + i, k[i], sequence->half ? HALF : FLOAT);
            store_one(sequence->values, to + i, v[i], sequence->half ? HALF : FLOAT);
        }
        int64_t first = place < SOON ? place : SOON;
        fetch(sequence->keys, to - place * width, first * width, sequence->half ? HALF : FLOAT);
    }
    BARRIER
    for (int64_t task = thread(); task < rows * heads; task += threads()) {
        int64_t row = task / heads, head = task % heads, sample = row / places, place = start + row % places;
        const int32_t *order = sequence->order ? sequence->order + sample * capacity : 0;
        int64_t count = order ? sequence->ranks[sample * capacity + place] : place + 1;
        Bias bias = {0};
        if (sequence->biases) {
            bias.biases = sequence->biases + head * sequence->distances + sequence->distances / 2;
            bias.numbers = sequence->numbers + (sequence->shared_positions ? 0 : sample * capacity);
            bias.number = bias.numbers[place];
        }
        attention(scratch->wide + row * 3 * stack->width + head * width, sequence->keys, sequence->values,
                  ((index * sequence->batch + sample) * heads + head) * capacity * width, order, count, width, bias,
                  scratch->scores + thread() * (capacity + sequence->cross_capacity),
                  scratch->mixed + row * stack->width + head * width, sequence->half);
    }
    BARRIER
}

static void cross_attention(const Stack *stack, const Sequence *sequence, int64_t index, int64_t places,
                            const Scratch *scratch) {
    const Block *block = stack->blocks + index;
    int64_t heads = stack->heads, width = stack->width / heads, rows = sequence->batch * places;
    for (int64_t task = thread(); task < rows * heads; task += threads()) {
        int64_t row = task / heads, head = task % heads, sample = row / places;
        float *q = scratch->wide + row * stack->width + head * width;
        if (block->cross_queries.present) normalize(&block->cross_queries, q, q, width);
        attention(q, sequence->cross_keys, sequence->cross_values,
                  ((index * sequence->batch + sample) * heads + head) * sequence->cross_capacity * width, 0,
                  sequence->cross_lengths[sample], width, (Bias){0},
                  scratch->scores + thread() * (sequence->capacity + sequence->cross_capacity),
                  scratch->mixed + row * stack->width + head * width, sequence->half);
    }
    BARRIER
}

/* The activation of the hidden places of all rows. */
static void activate(const Stack *stack, int64_t rows, const float *wide, float *out) {
    int64_t hidden = stack->hidden, blocks = (hidden + LANES - 1) / LANES;
    for (int64_t m = 0; m < rows; m++) {
        int64_t begin = blocks * thread() / threads() * LANES, end = blocks * (thread() + 1) / threads() * LANES;
        if (end > hidden) end = hidden;
        const float *from = wide + m * hidden * (stack->gated ? 2 : 1);
        if (stack->gated)
            for (int64_t i = begin; i < end; i++) out[m * hidden + i] = silu(from[i]) * from[hidden + i];
        else
            for (int64_t i = begin; i < end; i++) out[m * hidden + i] = gelu(from[i]);
    }
    BARRIER
}

static void normalize_rows(const Norm *norm, const float *x, float *out, int64_t rows, int64_t width) {
    for (int64_t m = thread(); m < rows; m += threads()) normalize(norm, x + m * width, out + m * width, width);
    BARRIER
}

static void run_stack(const Stack *stack, const Sequence *sequence, float *x, int64_t places, int64_t start,
                      const Scratch *scratch) {
    int64_t rows = sequence->batch * places, width = stack->width;
    if (sequence->added) {
        for (int64_t m = thread(); m < rows; m += threads()) {
            int64_t at = (sequence->shared_positions ? 0 : m / places) * sequence->capacity + start + m % places;
            for (int64_t i = 0; i < width; i++) x[m * width + i] += sequence->added[at * width + i];
        }
        BARRIER
    }
    for (int64_t index = 0; index < stack->depth; index++) {
        const Block *block = stack->blocks + index;
        if (sequence->again && block->again) {
            for (int64_t m = thread(); m < rows; m += threads()) {
                int64_t at = m / places * sequence->capacity + start + m % places;
                for (int64_t i = 0; i < width; i++) x[m * width + i] += sequence->again[at * width + i];
            }
            BARRIER
        }
        normalize_rows(&block->self_norm, x, scratch->normed, rows, width);
        linear(&block->self_input, scratch->normed, scratch->wide, rows, 0, scratch);
        self_attention(stack, sequence, index, places, start, scratch);
        linear(&block->self_output, scratch->mixed, x, rows, 1, scratch);
        if (stack->cross) {
            normalize_rows(&block->cross_norm, x, scratch->normed, rows, width);
            linear(&block->cross_input, scratch->normed, scratch->wide, rows, 0, scratch);
            cross_attention(stack, sequence, index, places, scratch);
            linear(&block->cross_output, scratch->mixed, x, rows, 1, scratch);
        }
        normalize_rows(&block->feed_forward_norm, x, scratch->normed, rows, width);
        linear(&block->expand, scratch->normed, scratch->wide, rows, 0, scratch);
        activate(stack, rows, scratch->wide, scratch->normed);
        linear(&block->contract, scratch->normed, x, rows, 1, scratch);
    }
    normalize_rows(&stack->norm, x, x, rows, width);
}

/* The next `places` places of all samples, in place: x is [batch, places, width]. */
void partita_step(const Stack *stack, const Sequence *sequence, float *x, int64_t places, int64_t start,
                  const Scratch *scratch, int64_t cores) {
#ifdef _OPENMP
#pragma omp parallel num_threads(cores)
#endif
    run_stack(stack, sequence, x, places, start, scratch);
}

/* A linear layer: x is [rows, inputs], out [rows, outputs]. */
void partita_linear(const Linear *layer, const float *x, float *out, int64_t rows, const Scratch *scratch,
                    int64_t cores) {
#ifdef _OPENMP
#pragma omp parallel num_threads(cores)
#endif
    linear(layer, x, out, rows, 0, scratch);
}
