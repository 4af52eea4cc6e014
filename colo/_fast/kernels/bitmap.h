/* Dirty bitmaps: page n is bit n % 64 of word n / 64. Bits past the last page are ignored on reading and
 * written as 0. */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline size_t colo_bitmap_words(size_t pages)
{
    return (pages + 63) / 64;
}

static inline uint64_t colo_bitmap_tail_mask(size_t pages)
{
    return pages % 64 ? ((uint64_t)1 << (pages % 64)) - 1 : ~(uint64_t)0;
}

static inline int colo_bitmap_test(const uint64_t *words, size_t page)
{
    return (int)(words[page / 64] >> (page % 64)) & 1;
}

/* First page >= from whose bit is set (flip = 0) or clear (flip = ~0), or pages when there is none. */
static inline size_t colo_bitmap_next(const uint64_t *words, size_t pages, size_t from, uint64_t flip)
{
    if (from >= pages)
        return pages;
    size_t at = from / 64, last = (pages - 1) / 64;
    uint64_t word = (words[at] ^ flip) & (~(uint64_t)0 << (from % 64));
    while (!word) {
        if (at == last)
            return pages;
        word = words[++at] ^ flip;
    }
    size_t page = at * 64 + (size_t)__builtin_ctzll(word);
    return page < pages ? page : pages;
}

static inline size_t colo_bitmap_next_set(const uint64_t *words, size_t pages, size_t from)
{
    return colo_bitmap_next(words, pages, from, 0);
}

static inline size_t colo_bitmap_next_clear(const uint64_t *words, size_t pages, size_t from)
{
    return colo_bitmap_next(words, pages, from, ~(uint64_t)0);
}

/* Set (value 1) or clear (0) pages first .. first + count - 1. */
static inline void colo_bitmap_fill(uint64_t *words, size_t first, size_t count, int value)
{
    while (count) {
        size_t bit = first % 64, here = 64 - bit < count ? 64 - bit : count;
        uint64_t mask = (here == 64 ? ~(uint64_t)0 : ((uint64_t)1 << here) - 1) << bit;
        if (value)
            words[first / 64] |= mask;
        else
            words[first / 64] &= ~mask;
        first += here;
        count -= here;
    }
}

/* Bits in a word without a popcnt instruction: the x86-64 baseline has none, and this form is vectorised. */
static inline uint64_t colo_word_bits(uint64_t v)
{
    v -= (v >> 1) & 0x5555555555555555ULL;
    v = (v & 0x3333333333333333ULL) + ((v >> 2) & 0x3333333333333333ULL);
    v = (v + (v >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
    v += v >> 8;
    v += v >> 16;
    return (v + (v >> 32)) & 0x7f;
}

static inline size_t colo_bitmap_count(const uint64_t *words, size_t pages)
{
    size_t full = pages / 64, total = 0;
    for (size_t i = 0; i < full; i++)
        total += colo_word_bits(words[i]);
    if (pages % 64)
        total += colo_word_bits(words[full] & colo_bitmap_tail_mask(pages));
    return total;
}

static inline size_t colo_bitmap_count_range(const uint64_t *words, size_t first, size_t count)
{
    size_t total = 0;
    while (count && first % 64) {
        size_t bit = first % 64, here = 64 - bit < count ? 64 - bit : count;
        total += colo_word_bits((words[first / 64] >> bit) & (((uint64_t)1 << here) - 1));
        first += here;
        count -= here;
    }
    return count ? total + colo_bitmap_count(words + first / 64, count) : total;
}

static inline size_t colo_leb128_put(uint8_t *dst, uint64_t value)
{
    size_t n = 0;
    for (; value >= 0x80; value >>= 7)
        dst[n++] = (uint8_t)(value | 0x80);
    dst[n++] = (uint8_t)value;
    return n;
}

/* Bytes used, or 0 when there is no number of at most 63 bits, in its shortest form, before end. */
static inline size_t colo_leb128_get(const uint8_t *p, const uint8_t *end, uint64_t *value)
{
    uint64_t v = 0;
    for (size_t n = 0; n < 9 && p + n < end; n++) {
        v |= (uint64_t)(p[n] & 0x7f) << (7 * n);
        if (!(p[n] & 0x80)) {
            if (n && !p[n])
                return 0;
            *value = v;
            return n + 1;
        }
    }
    return 0;
}

/* Write the set runs as (pages skipped, pages set) pairs of LEB128; -1 when they take more than room bytes.
 * */
static inline ptrdiff_t colo_bitmap_put_runs(const uint64_t *words, size_t pages, uint8_t *dst, size_t room)
{
    size_t used = 0, end = 0;
    for (;;) {
        size_t start = colo_bitmap_next_set(words, pages, end);
        if (start == pages)
            return (ptrdiff_t)used;
        uint8_t pair[20];
        size_t n = colo_leb128_put(pair, start - end);
        end = colo_bitmap_next_clear(words, pages, start);
        n += colo_leb128_put(pair + n, end - start);
        if (n > room - used)
            return -1;
        memcpy(dst + used, pair, n);
        used += n;
    }
}

/* Set the runs written by colo_bitmap_put_runs in an all-clear bitmap. Returns -1, or the offset of the first
 * bad byte. */
static inline ptrdiff_t colo_bitmap_get_runs(uint64_t *words, size_t pages, const uint8_t *src, size_t len)
{
    const uint8_t *p = src, *end = src + len;
    size_t at = 0;
    while (p < end) {
        uint64_t skip, set;
        const uint8_t *pair = p;
        size_t n = colo_leb128_get(p, end, &skip);
        if (!n || (at && !skip) || skip > pages - at)
            return pair - src;
        p += n;
        at += skip;
        n = colo_leb128_get(p, end, &set);
        if (!n || !set || set > pages - at)
            return p - src;
        p += n;
        colo_bitmap_fill(words, at, set, 1);
        at += set;
    }
    return -1;
}
