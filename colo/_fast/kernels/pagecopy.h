/* Copies and fills of memory that will not be read again soon.
 *
 * Pages of the image are written far behind the last level of cache and are next read by another process, if ever.
 * Non-temporal stores spare the read for ownership, and four pages at a time keep enough lines under way to reach what
 * one large memcpy reaches; page by page, memcpy takes twice as long. SSE2 is x86-64's baseline; elsewhere the C
 * library's copy is used (ARM64 cores stream long stores by themselves).
 * Copies are visible to other threads after colo_stream_fence(). */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <emmintrin.h>

static inline void colo_stream_line(uint8_t *to, const uint8_t *from)
{
    __m128i a = _mm_loadu_si128((const __m128i *)from), b = _mm_loadu_si128((const __m128i *)(from + 16));
    __m128i c = _mm_loadu_si128((const __m128i *)(from + 32)), d = _mm_loadu_si128((const __m128i *)(from + 48));
    _mm_stream_si128((__m128i *)to, a);
    _mm_stream_si128((__m128i *)(to + 16), b);
    _mm_stream_si128((__m128i *)(to + 32), c);
    _mm_stream_si128((__m128i *)(to + 48), d);
}
#endif

/* Copy four regions of n bytes; the targets are 64-byte aligned (anything less is slow, below 16 a fault) and disjoint, n is
 * a multiple of 64. */
static inline void colo_copy_four(uint8_t *const to[4], const uint8_t *const from[4], size_t n)
{
#if defined(__x86_64__)
    for (size_t i = 0; i < n; i += 64)
        for (int k = 0; k < 4; k++) {
            _mm_prefetch((const char *)from[k] + i + 256, _MM_HINT_T0);
            colo_stream_line(to[k] + i, from[k] + i);
        }
#else
    for (int k = 0; k < 4; k++)
        memcpy(to[k], from[k], n);
#endif
}

/* The same to targets of any alignment, n at least 128: whole lines are streamed, what is left at both ends is not. */
static inline void colo_copy_four_anywhere(uint8_t *const to[4], const uint8_t *const from[4], size_t n)
{
    uint8_t *target[4];
    const uint8_t *source[4];
    size_t head[4], lines = (n - 64) & ~(size_t)63;
    for (int k = 0; k < 4; k++) {
        head[k] = (size_t)(-(uintptr_t)to[k] & 63);
        memcpy(to[k], from[k], head[k]);
        target[k] = to[k] + head[k];
        source[k] = from[k] + head[k];
    }
    colo_copy_four(target, source, lines);
    for (int k = 0; k < 4; k++)
        memcpy(target[k] + lines, source[k] + lines, n - head[k] - lines);
}

/* Copy n bytes anywhere. */
static inline void colo_copy_stream(uint8_t *to, const uint8_t *from, size_t n)
{
    size_t head = (size_t)(-(uintptr_t)to & 63);
    if (n >= 65536) {
        size_t quarter = ((n - head) / 4) & ~(size_t)63;
        memcpy(to, from, head);
        to += head;
        from += head;
        uint8_t *const target[4] = {to, to + quarter, to + 2 * quarter, to + 3 * quarter};
        const uint8_t *const source[4] = {from, from + quarter, from + 2 * quarter, from + 3 * quarter};
        colo_copy_four(target, source, quarter);
        to += 4 * quarter;
        from += 4 * quarter;
        n -= head + 4 * quarter;
    }
    memcpy(to, from, n);
}

static inline void colo_zero_stream(uint8_t *to, size_t n) /* anywhere, n at least 64 */
{
#if defined(__x86_64__)
    __m128i zero = _mm_setzero_si128();
    size_t head = (size_t)(-(uintptr_t)to & 63), tail = (n - head) & 63;
    memset(to, 0, head);
    memset(to + n - tail, 0, tail);
    for (to += head, n -= head + tail; n; n -= 64, to += 64) {
        _mm_stream_si128((__m128i *)to, zero);
        _mm_stream_si128((__m128i *)(to + 16), zero);
        _mm_stream_si128((__m128i *)(to + 32), zero);
        _mm_stream_si128((__m128i *)(to + 48), zero);
    }
#else
    memset(to, 0, n);
#endif
}

static inline void colo_stream_fence(void)
{
#if defined(__x86_64__)
    _mm_sfence();
#endif
}
