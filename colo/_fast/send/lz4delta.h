/* An LZ4 block of one page with the old page as its dictionary, by a match finder made for that case.
 *
 * liblz4 enters its dictionary anew for every page. Here the first place to look is the same place in the old page, which
 * needs no table; and old bytes are entered at every fourth position only: matches found late are extended backwards.
 * The block is plain LZ4: any decoder reads it. */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define COLO_LZ4_TABLE_BITS 11
#define COLO_LZ4_ENTER_EVERY 4
#define COLO_LZ4_SKIP_SHIFT 4      /* after 2^4 misses every second position is tried, and so on */
/* The format's: matches have 4 bytes at least, the last 5 bytes are literals, no match begins in the last 12. */
#define COLO_LZ4_MATCH_MIN 4
#define COLO_LZ4_LAST_LITERALS 5
#define COLO_LZ4_LAST_MATCH 12

static inline uint64_t colo_lz4_load64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap64(v);
#endif
    return v;
}

static inline uint32_t colo_lz4_load32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

/* Of five bytes. */
static inline uint32_t colo_lz4_slot(const uint8_t *p)
{
    return (uint32_t)((colo_lz4_load64(p) << 24) * 0x9e3779b185ebca87ULL >> (64 - COLO_LZ4_TABLE_BITS));
}

/* How many bytes from a[0..) and b[0..) are equal, a not past limit. Reads no further than that either. */
static inline size_t colo_lz4_equal(const uint8_t *a, const uint8_t *b, const uint8_t *limit)
{
    const uint8_t *const from = a;
    for (; a + 8 <= limit; a += 8, b += 8) {
        const uint64_t x = colo_lz4_load64(a) ^ colo_lz4_load64(b);
        if (x)
            return (size_t)(a - from) + ((unsigned)__builtin_ctzll(x) >> 3);
    }
    while (a < limit && *a == *b)
        a++, b++;
    return (size_t)(a - from);
}

static inline uint8_t *colo_lz4_put_length(uint8_t *d, size_t rest)
{
    for (; rest >= 255; rest -= 255)
        *d++ = 255;
    *d++ = (uint8_t)rest;
    return d;
}

static inline uint8_t *colo_lz4_put_literals(uint8_t *d, const uint8_t *from, size_t n)
{
    if (n >= 15) {
        *d++ = 0xf0;
        d = colo_lz4_put_length(d, n - 15);
    } else {
        *d++ = (uint8_t)(n << 4);
    }
    memcpy(d, from, n);
    return d + n;
}

/* pages: the old page, and the new one right behind it, of size (64 to 16384) bytes each. Returns the bytes written to
 * dst[0..room), or 0 when they would be more. */
static int colo_lz4_delta(const uint8_t *pages, int size, uint8_t *dst, int room)
{
    uint16_t table[1 << COLO_LZ4_TABLE_BITS];
    const uint8_t *const fresh = pages + size, *const end = fresh + size, *p = fresh, *literals = fresh;
    const uint8_t *const match_limit = end - COLO_LZ4_LAST_LITERALS, *const last = end - COLO_LZ4_LAST_MATCH;
    uint8_t *d = dst, *const d_end = dst + room;
    unsigned misses = 0;

    memset(table, 0, sizeof table);
    for (int at = 0; at + 8 <= size; at += COLO_LZ4_ENTER_EVERY)
        table[colo_lz4_slot(pages + at)] = (uint16_t)at;
    while (p < last) {
        const uint8_t *match = p - size;
        if (colo_lz4_load32(match) != colo_lz4_load32(p)) {
            uint16_t *const slot = &table[colo_lz4_slot(p)];
            match = pages + *slot;
            *slot = (uint16_t)(p - pages);
            if (colo_lz4_load32(match) != colo_lz4_load32(p)) {
                p += 1 + (misses++ >> COLO_LZ4_SKIP_SHIFT);
                continue;
            }
        }
        size_t n = COLO_LZ4_MATCH_MIN + colo_lz4_equal(p + COLO_LZ4_MATCH_MIN, match + COLO_LZ4_MATCH_MIN, match_limit);
        for (; p > literals && match > pages && p[-1] == match[-1]; n++)
            p--, match--;
        misses = 0;

        const size_t before = (size_t)(p - literals), rest = n - COLO_LZ4_MATCH_MIN;
        /* Token, offset, and both lengths at their longest. */
        if ((size_t)(d_end - d) < before + before / 255 + rest / 255 + 5)
            return 0;
        uint8_t *const token = d;
        d = colo_lz4_put_literals(d, literals, before);
        *d++ = (uint8_t)(p - match);
        *d++ = (uint8_t)((p - match) >> 8);
        if (rest >= 15) {
            *token |= 15;
            d = colo_lz4_put_length(d, rest - 15);
        } else {
            *token |= (uint8_t)rest;
        }
        p += n;
        literals = p;
        if (p < last)
            table[colo_lz4_slot(p - 2)] = (uint16_t)(p - 2 - pages);
    }
    const size_t tail = (size_t)(end - literals);
    if ((size_t)(d_end - d) < tail + tail / 255 + 2)
        return 0;
    return (int)(colo_lz4_put_literals(d, literals, tail) - dst);
}
