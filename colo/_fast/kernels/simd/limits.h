/* What memory itself allows: plain reads of one stream and of two, as wide as the CPU has them. For measuring only. */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "dispatch.h"

static uint64_t colo_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* The optimiser may assume nothing about memory, nor drop what led here. */
#define COLO_OPAQUE(v) __asm__ volatile("" : : "r"(v) : "memory")

COLO_INLINE uint64_t colo_read_plain(const uint8_t *a, const uint8_t *b, size_t n)
{
    uint64_t any = 0;
    for (size_t at = 0; at < n; at += 64)
        for (size_t k = at; k < at + 64; k += 8)
            any |= colo_load64(a + k) | (b ? colo_load64(b + k) : 0);
    return any;
}

#if defined(__x86_64__)
COLO_AVX2_INLINE uint64_t colo_read_wide(const uint8_t *a, const uint8_t *b, size_t n)
{
    __m256i any[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (size_t at = 0; at < n; at += 128)
        for (int k = 0; k < 4; k++) {
            any[k] = _mm256_or_si256(any[k], colo_load256(a + at + 32 * k));
            if (b)
                any[k] = _mm256_or_si256(any[k], colo_load256(b + at + 32 * k));
        }
    return colo_sum_lanes_avx2(_mm256_or_si256(_mm256_or_si256(any[0], any[1]), _mm256_or_si256(any[2], any[3])));
}

static COLO_AVX2 uint64_t colo_read_one_wide(const uint8_t *a, size_t n)
{
    return colo_read_wide(a, NULL, n);
}

static COLO_AVX2 uint64_t colo_read_two_wide(const uint8_t *a, const uint8_t *b, size_t n)
{
    return colo_read_wide(a, b, n);
}
#endif

static uint64_t colo_read_one(const uint8_t *a, size_t n)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2"))
        return colo_read_one_wide(a, n);
#endif
    return colo_read_plain(a, NULL, n);
}

static uint64_t colo_read_two(const uint8_t *a, const uint8_t *b, size_t n)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2"))
        return colo_read_two_wide(a, b, n);
#endif
    return colo_read_plain(a, b, n);
}
