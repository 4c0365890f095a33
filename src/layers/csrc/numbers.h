/* Vectors of floats, numbers of 16 bits, and functions that compilers vectorize. */

#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#ifdef __AVX512F__
#define LANES 16
#define ROWS 8 /* maximum number of rows of a linear layer that are computed together */
#else
#define LANES 8
#define ROWS 4
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float vector __attribute__((vector_size(4 * LANES)));
typedef float loaded __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint32_t loaded_words __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t integers __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

enum { FLOAT = 0, HALF = 1, BYTE = 2 };

INLINE float sum(vector v) {
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)v);
#else
    float lanes[LANES];
    memcpy(lanes, &v, sizeof v);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
#endif
}

INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

INLINE float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE float from_half(uint16_t half) { return float_of((uint32_t)half << 16); }

INLINE uint16_t to_half(float value) {
    uint32_t bits = bits_of(value);
    if (value != value) return 0x7fc0; /* rounding would make it a number */
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

/* The numbers from place i of an array of floats or halves. */
INLINE vector load(const void *from, int64_t i, int kind) {
    if (kind == FLOAT) return *(const loaded *)((const float *)from + i);
    const uint16_t *place = (const uint16_t *)from + i;
#ifdef __AVX512F__ /* compilers take four instructions to widen the numbers */
    return (vector)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)place)), 16);
#else
    return (vector)(__builtin_convertvector(*(const halves *)place, words) << 16);
#endif
}

INLINE float load_one(const void *from, int64_t i, int kind) {
    return kind == FLOAT ? ((const float *)from)[i] : from_half(((const uint16_t *)from)[i]);
}

INLINE void store_one(void *to, int64_t i, float value, int kind) {
    if (kind == FLOAT)
        ((float *)to)[i] = value;
    else
        ((uint16_t *)to)[i] = to_half(value);
}

/* Exponential of numbers up to 0, to 2e-7 of its value (Cephes' expf); written so that compilers vectorize it. */
INLINE float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    float n = rintf(x * 1.44269504f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * float_of((uint32_t)((int32_t)(n > -127.0f ? n : -127.0f) + 127) << 23); /* also if x is no number */
}

/* x times the normal distribution function, whose error is below 1e-7 (Abramowitz and Stegun 7.1.26). */
INLINE float gelu(float x) {
    float a = fabsf(x) * 0.70710678f;
    float t = 1.0f / (1.0f + 0.3275911f * a);
    float p = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
    float tail = 0.5f * p * exponential(-a * a);
    return x * (x > 0 ? 1.0f - tail : tail);
}

INLINE float silu(float x) {
    float e = exponential(-fabsf(x));
    return x * (x > 0 ? 1.0f : e) / (1.0f + e);
}
