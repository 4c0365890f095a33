/* Rounded weights, in the order in which linear layers read them: one stream of lines, which processors fetch ahead.
 *
 * LANES outputs are a panel. Its weights are stored input by input, and those of an output for SIDE inputs side by
 * side: [panels, inputs / SIDE, LANES, SIDE]. Each lane of a sum is then one output, and nothing is left to add up.
 */

#pragma once

#include "numbers.h"

#define HALF_SIDE 2
#define SMALLEST 1.17549435e-38f /* floats below it have fewer digits */
#define BYTE_STEP 8 /* multiple of inputs of bytes, some of them zeros at the end */

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define BYTE_SIDE 4
#define ZERO 128 /* the instruction multiplies unsigned with signed bytes, so that this much is added to weights */
typedef int8_t byte;
#else
#define BYTE_SIDE 2
#define ZERO 0
typedef int16_t byte;
#endif

INLINE int64_t rounded_up(int64_t number, int64_t multiple) { return (number + multiple - 1) / multiple * multiple; }

/* Number of inputs for which there is room. */
INLINE int64_t stored_inputs(int64_t inputs, int64_t kind) {
    return rounded_up(inputs, kind == BYTE ? BYTE_STEP : HALF_SIDE);
}

/* Bytes that the weights of a layer take. */
int64_t partita_size(int64_t outputs, int64_t inputs, int64_t kind) {
    return rounded_up(outputs, LANES) * stored_inputs(inputs, kind) * (kind == BYTE ? 1 : 2);
}

/* Rounds weights, [outputs, inputs], of which bytes have a scale per output: the largest of it is 127. An output with
 * a weight that is no number is no number. */
void partita_round(const float *weight, int64_t outputs, int64_t inputs, int64_t kind, void *rounded, float *scales) {
    int64_t room = stored_inputs(inputs, kind), side = kind == BYTE ? BYTE_SIDE : HALF_SIDE;
    int64_t all = rounded_up(outputs, LANES);
#ifdef _OPENMP
#pragma omp parallel for
#endif
    for (int64_t n = 0; n < all; n++) {
        const float *row = weight + n * inputs;
        uint32_t bits = 0;
        for (int64_t i = 0; kind == BYTE && n < outputs && i < inputs; i++) {
            uint32_t here = bits_of(row[i]) & 0x7fffffff;
            bits = here > bits ? here : bits;
        }
        int odd = bits >= bits_of(INFINITY);
        float scale = float_of(bits) / 127 > SMALLEST ? float_of(bits) / 127 : SMALLEST;
        if (kind == BYTE) scales[n] = odd ? NAN : scale;
        for (int64_t i = 0; i < room; i++) {
            int64_t at = ((n / LANES * room + i / side * side) * LANES) + n % LANES * side + i % side;
            float value = n < outputs && i < inputs && !odd ? row[i] : 0;
            if (kind == BYTE)
                ((uint8_t *)rounded)[at] = (uint8_t)((int32_t)rintf(value / scale) + ZERO);
            else
                ((uint16_t *)rounded)[at] = to_half(value);
        }
    }
}

/* Rounds a row to bytes, with zeros up to `room`, and returns the size of one, which is no number if one of the row is
 * infinite or none. A row of numbers so small that 127 times the inverse of the largest overflows is zero. `total` is
 * the sum of what ZERO adds to the products of the row with any output. */
static float round_row(const float *x, byte *out, int64_t width, int64_t room, int32_t *total) {
    uint32_t bits = 0;
    int32_t sum = 0;
    for (int64_t i = 0; i < width; i++) { /* magnitudes are in the order of their bits, which compilers vectorize */
        uint32_t here = bits_of(x[i]) & 0x7fffffff;
        bits = here > bits ? here : bits;
    }
    int odd = bits >= bits_of(INFINITY); /* to convert such a number to an integer is undefined */
    float most = float_of(bits), inverse = most > 4e-37f && !odd ? 127.0f / most : 0;
    for (int64_t i = 0; i < width; i++) {
        int32_t here = odd ? 0 : (int32_t)rintf(x[i] * inverse);
        out[i] = (byte)here;
        sum += here;
    }
    memset(out + width, 0, (room - width) * sizeof(byte));
    *total = sum * ZERO;
    return odd ? NAN : most / 127.0f;
}

#define AHEAD 8192 /* bytes between the weights that are read and those that are fetched into the cache */

/* Adds products of BYTE_SIDE weights of each output of a panel with those numbers of a row. */
INLINE integers add_products(integers sums, const void *weight, const byte *x) {
#if ZERO
    int32_t side;
    memcpy(&side, x, sizeof side);
    return (integers)_mm512_dpbusd_epi32((__m512i)sums, _mm512_loadu_si512(weight), _mm512_set1_epi32(side));
#elif defined(__AVX2__) && LANES == 8
    int32_t side;
    memcpy(&side, x, sizeof side);
    __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)weight));
    return (integers)_mm256_add_epi32((__m256i)sums, _mm256_madd_epi16(wide, _mm256_set1_epi32(side)));
#else
    const int8_t *pairs = weight;
    for (int n = 0; n < LANES; n++) sums[n] += (int32_t)pairs[2 * n] * x[0] + (int32_t)pairs[2 * n + 1] * x[1];
    return sums;
#endif
}

/* Products of a panel of bytes with `rows` rows. */
INLINE void byte_panel(const uint8_t *weight, const byte *x, const int32_t *totals, const float *sizes, int64_t room,
                       int rows, vector *out) {
    integers even[ROWS], odd[ROWS]; /* more sums than one, since each waits for its last product */
    for (int m = 0; m < rows; m++) even[m] = (integers){0} - totals[m], odd[m] = (integers){0};
    for (int64_t i = 0; i < room; i += 2 * BYTE_SIDE) {
        const uint8_t *line = weight + i * LANES, *next = line + BYTE_SIDE * LANES;
        __builtin_prefetch(line + AHEAD, 0, 2);
        __builtin_prefetch(next + AHEAD, 0, 2);
        for (int m = 0; m < rows; m++) {
            even[m] = add_products(even[m], line, x + m * room + i);
            odd[m] = add_products(odd[m], next, x + m * room + i + BYTE_SIDE);
        }
    }
    for (int m = 0; m < rows; m++) out[m] = __builtin_convertvector(even[m] + odd[m], vector) * sizes[m];
}

/* Products of a panel of halves with `rows` rows. */
INLINE void half_panel(const uint16_t *weight, const float *x, int64_t width, int rows, vector *out) {
    vector even[ROWS], odd[ROWS];
    int64_t i;
    for (int m = 0; m < rows; m++) even[m] = odd[m] = (vector){0};
    for (i = 0; i + HALF_SIDE <= width; i += HALF_SIDE) {
        words pair = *(const loaded_words *)(weight + i * LANES);
        vector first = (vector)(pair << 16), second = (vector)(pair & 0xffff0000);
        __builtin_prefetch((const char *)(weight + i * LANES) + AHEAD, 0, 2);
        for (int m = 0; m < rows; m++) {
            even[m] += first * x[m * width + i];
            odd[m] += second * x[m * width + i + 1];
        }
    }
    if (i < width) {
        vector last = (vector)(*(const loaded_words *)(weight + i * LANES) << 16);
        for (int m = 0; m < rows; m++) even[m] += last * x[m * width + i];
    }
    for (int m = 0; m < rows; m++) out[m] = even[m] + odd[m];
}
