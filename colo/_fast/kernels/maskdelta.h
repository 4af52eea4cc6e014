/* Mask deltas: which bytes of a page changed as bit masks, then those bytes.
 *
 *     u8 changed[lines / 8]   a bit per line of 64 bytes that changed, line l at bit l % 8 of byte l / 8
 *     u8 fresh[lines / 8]     those of them that have a mask of their own; the others have that of the changed line before
 *     u64 masks[...]          little-endian, for each fresh line in order: bit i, byte i of the line changed; never 0
 *     u8 bytes[...]           the new bytes of all lines in order
 *
 * Many short runs (the mantissas of an array of floats) take two bytes each by XBZRLE, and a bit per byte here. */
#pragma once
#include "simd/portable.h"
#if defined(__x86_64__)
#include "simd/sse2.h"
#elif defined(__aarch64__)
#include "simd/neon.h"
#endif

#define COLO_MASK_LINES_MAX (16384 / 64)

static inline uint64_t colo_mask_of(const uint8_t *a, const uint8_t *b)
{
#if defined(__x86_64__)
    __m128i v[4];
    for (int k = 0; k < 4; k++)
        v[k] = colo_load128(b + 16 * k);
    return colo_unequal_sse2(a, v);
#elif defined(__aarch64__)
    uint8x16_t v[4];
    uint64_t word;
    for (int k = 0; k < 4; k++)
        v[k] = vld1q_u8(b + 16 * k);
    colo_store_unequal_neon(&word, a, v);
    return word;
#else
    return colo_differs_portable(a, b);
#endif
}

static inline void colo_mask_put64(uint8_t *d, uint64_t v)
{
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap64(v);
#endif
    memcpy(d, &v, 8);
}

static inline uint64_t colo_mask_get64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap64(v);
#endif
    return v;
}

/* Take the lowest run of ones off the mask: its start and its length. */
static inline unsigned colo_mask_run(uint64_t *mask, unsigned *start)
{
    const unsigned from = (unsigned)__builtin_ctzll(*mask);
    const uint64_t after = ~(*mask >> from);        /* shifted-in zeros: a run to the top ends there */
    const unsigned n = after ? (unsigned)__builtin_ctzll(after) : 64;

    *mask = from + n < 64 ? *mask & ~0ULL << (from + n) : 0;
    *start = from;
    return n;
}

/* Returns the bytes written to dst[0..room), 0 when they would be more. May write 16 bytes past them. */
static int colo_mask_encode(const uint8_t *old_page, const uint8_t *new_page, int page_bytes, uint8_t *dst, int room)
{
    const int lines = page_bytes / 64, bitmap_bytes = lines / 8;
    uint64_t masks[COLO_MASK_LINES_MAX], before = 0;
    uint8_t *d = dst + 2 * bitmap_bytes;
    long size = 2 * bitmap_bytes;

    if (size > room)
        return 0;
    memset(dst, 0, (size_t)size);
    for (int l = 0; l < lines; l++) {
        const uint64_t mask = masks[l] = colo_mask_of(old_page + 64 * l, new_page + 64 * l);
        if (!mask)
            continue;
        size += __builtin_popcountll(mask) + (mask == before ? 0 : 8);
        if (size > room)
            return 0;
        dst[l / 8] |= (uint8_t)(1 << l % 8);
        if (mask != before) {
            dst[bitmap_bytes + l / 8] |= (uint8_t)(1 << l % 8);
            colo_mask_put64(d, mask);
            d += 8;
        }
        before = mask;
    }
    for (int l = 0; l < lines; l++) {
        const uint8_t *line = new_page + 64 * l;
        const int inside = 64 * l + 64 + 16 <= page_bytes;
        for (uint64_t mask = masks[l]; mask;) {
            unsigned start;
            const unsigned n = colo_mask_run(&mask, &start);
            if (inside)
                colo_copy_over(d, line + start, n);
            else
                memcpy(d, line + start, n);
            d += n;
        }
    }
    return (int)size;
}

/* Apply src[0..length) to page, the old one. Returns 0, or -1 with the page untouched when it is no mask delta. */
static int colo_mask_decode(const uint8_t *src, int length, uint8_t *page, int page_bytes)
{
    const int lines = page_bytes / 64, bitmap_bytes = lines / 8;
    const uint8_t *const changed = src, *const fresh = src + bitmap_bytes, *at = src + 2 * bitmap_bytes;
    uint64_t masks[COLO_MASK_LINES_MAX], mask = 0;
    long left = (long)length - 2 * bitmap_bytes, bytes = 0;

    if (left < 0)
        return -1;
    for (int l = 0; l < lines; l++) {
        const int is_changed = changed[l / 8] >> l % 8 & 1, is_fresh = fresh[l / 8] >> l % 8 & 1;
        masks[l] = 0;
        if (is_fresh) {
            if (!is_changed || left < 8)
                return -1;
            mask = colo_mask_get64(at);
            at += 8;
            left -= 8;
        }
        if (!is_changed)
            continue;
        if (!mask)
            return -1;
        masks[l] = mask;
        bytes += __builtin_popcountll(mask);
    }
    if (bytes != left)
        return -1;
    for (int l = 0; l < lines; l++)
        for (mask = masks[l]; mask;) {
            unsigned start;
            const unsigned n = colo_mask_run(&mask, &start);
            colo_copy_exact(page + 64 * l + start, at, n);
            at += n;
        }
    return 0;
}
