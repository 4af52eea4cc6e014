/* The kernels in plain C: words of eight bytes, for CPUs without any of the other levels, and the reference for
 * them. */
#pragma once
#include "../xbzrle.h"
#include "runs.h"

#define COLO_PREFETCH_LINES 8

COLO_INLINE uint64_t colo_load64(const void *p)
{
    uint64_t v;
    __builtin_memcpy(&v, p, 8);
    return v;
}

/* One bit per non-zero byte of x, lowest byte first. */
COLO_INLINE uint64_t colo_nonzero_bytes(uint64_t x)
{
    const uint64_t low7 = 0x7f7f7f7f7f7f7f7fULL;
    uint64_t high = (((x & low7) + low7) | x) & ~low7;
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    high = __builtin_bswap64(high);
#endif
    return ((high >> 7) * 0x0102040810204080ULL) >> 56;
}

COLO_INLINE uint64_t colo_differs_portable(const uint8_t *a, const uint8_t *b)
{
    uint64_t x[8], any = 0, word = 0;

    for (int k = 0; k < 8; k++) {
        x[k] = colo_load64(a + 8 * k) ^ colo_load64(b + 8 * k);
        any |= x[k];
    }
    if (!any)
        return 0;
    for (int k = 0; k < 8; k++)
        word |= colo_nonzero_bytes(x[k]) << (8 * k);
    return word;
}

/* Encode from differs words, with no instruction beyond the baseline. */
COLO_INLINE int colo_encode_words(const uint64_t *differs, const uint8_t *page, int page_bytes, uint8_t *dst, int dlen)
{
    uint16_t list[COLO_LIST_LENGTH], *const positions = list + 1;
    uint64_t transitions[COLO_WORDS_MAX], nonzero[(COLO_WORDS_MAX + 63) / 64], any = 0, carry = 0;
    const int words = page_bytes / 64;

    if (dlen < 2)
        return -1;
    for (int g = 0; g < words; g += 64)
        any |= nonzero[g / 64] = colo_transitions(differs + g, transitions + g, words - g < 64 ? words - g : 64, &carry);
    if (!any)
        return 0;
    const int ends_changed = (int)carry;
    const int count = colo_flatten(transitions, nonzero, page_bytes, ends_changed, dlen, positions);
    if (count < 0)
        return -1;
    const unsigned runs = (unsigned)count / 2;
    const long changed = colo_changed(positions, runs), spare = colo_spare(changed, runs, !ends_changed, dlen);
    if (spare < 0 || !changed)
        return -1;
    if (runs < COLO_FEW_RUNS)
        return colo_emit_few(positions, runs, page, page_bytes, dst, changed, spare);
    uint8_t *end = colo_emit(positions, 0, runs, page, page_bytes, dst, spare);
    return end ? (int)(end - dst) : -1;
}

/* Bring the shadow up to date, given its differs words. */
COLO_INLINE void colo_refresh(uint8_t *shadow, const uint8_t *snapshot, const uint64_t *differs, int page_bytes)
{
    for (int g = 0; g < page_bytes / 64; g += 64) {
        uint64_t lines = 0;
        for (int w = 0; w < 64 && g + w < page_bytes / 64; w++)
            lines |= (uint64_t)(differs[g + w] != 0) << w;
        for (; lines; lines &= lines - 1) {
            const int at = 64 * (g + (int)colo_lowest_bit(lines));
            memcpy(shadow + at, snapshot + at, 64);
        }
    }
}

/* Start the next pair on its way while this one is encoded: what follows these lines the CPU fetches by itself. Between
 * looking at a page and writing down its runs, memory would stand idle. An encoder that is not told which pair is next
 * takes it to be the one behind this in memory, as it is in a batch; a line fetched in vain does no harm. */
COLO_INLINE void colo_prefetch_next(const uint8_t *next_shadow, const uint8_t *next_live)
{
    if (next_live)
        for (int k = 0; k < COLO_PREFETCH_LINES; k++) {
            __builtin_prefetch(next_live + 64 * k);
            __builtin_prefetch(next_shadow + 64 * k);
        }
}

static int colo_xbzrle_encode_portable(const uint8_t *old_page, const uint8_t *new_page, int page_bytes,
                                       uint8_t *dst, int dlen)
{
    uint64_t differs[COLO_WORDS_MAX];

    for (int w = 0; w < page_bytes / 64; w++)
        differs[w] = colo_differs_portable(old_page + 64 * w, new_page + 64 * w);
    colo_prefetch_next(old_page + page_bytes, new_page + page_bytes);
    return colo_encode_words(differs, new_page, page_bytes, dst, dlen);
}

static int colo_xbzrle_step_portable(uint8_t *shadow, const uint8_t *live, const uint8_t *next_shadow,
                                     const uint8_t *next_live, uint8_t *snapshot, int page_bytes,
                                     uint8_t *dst, int dlen)
{
    uint64_t differs[COLO_WORDS_MAX];

    for (int w = 0; w < page_bytes / 64; w++) {
        memcpy(snapshot + 64 * w, live + 64 * w, 64);
        differs[w] = colo_differs_portable(shadow + 64 * w, snapshot + 64 * w);
    }
    colo_prefetch_next(next_shadow, next_live);
    const int encoded = colo_encode_words(differs, snapshot, page_bytes, dst, dlen);
    if (encoded)
        colo_refresh(shadow, snapshot, differs, page_bytes);
    return encoded;
}

static int colo_is_zero_portable(const void *p, size_t n)
{
    const uint8_t *at = p, *end = at + n;

    for (; end - at >= 64; at += 64) {
        uint64_t any = 0;
        for (int k = 0; k < 8; k++)
            any |= colo_load64(at + 8 * k);
        if (any)
            return 0;
    }
    for (; at < end; at++)
        if (*at)
            return 0;
    return 1;
}

COLO_INLINE void colo_set_bit(uint64_t *bitmap, size_t bit)
{
    bitmap[bit / 64] |= 1ULL << (bit % 64);
}

static size_t colo_scan_portable(const uint8_t *memory, const uint8_t *shadow, size_t pages, size_t page_bytes,
                                 uint64_t *bitmap, size_t first)
{
    size_t dirty = 0;

    for (size_t i = 0; i < pages; i++) {
        if (memcmp(memory + i * page_bytes, shadow + i * page_bytes, page_bytes)) {
            colo_set_bit(bitmap, first + i);
            dirty++;
        }
    }
    return dirty;
}

/* Keep a page's new hash; returns 1, with the page's bit set, when it is another than before. */
COLO_INLINE size_t colo_note_hash(uint64_t *hash, uint64_t sum0, uint64_t sum1, uint64_t *bitmap, size_t bit)
{
    if (hash[0] == sum0 && hash[1] == sum1)
        return 0;
    hash[0] = sum0;
    hash[1] = sum1;
    colo_set_bit(bitmap, bit);
    return 1;
}

/* NH: sum over pairs of 32-bit words of (a + key_a)(b + key_b), modulo 2^64; twice, the key moved on for the
 * second. For two different pages fixed before the key is drawn, one sum is equal with probability at most 2^-32,
 * both with 2^-64. */
static size_t colo_scan_hash_portable(const uint8_t *memory, uint64_t *hashes, const uint8_t *key, size_t pages,
                                      size_t page_bytes, uint64_t *bitmap, size_t first)
{
    size_t dirty = 0;

    for (size_t i = 0; i < pages; i++) {
        const uint8_t *page = memory + i * page_bytes;
        uint64_t sum0 = 0, sum1 = 0;
        for (size_t k = 0; k < page_bytes; k += 8) {
            uint64_t m = colo_load64(page + k), k0 = colo_load64(key + k);
            uint64_t k1 = colo_load64(key + k + COLO_HASH_KEY_SHIFT);
            sum0 += (uint64_t)((uint32_t)m + (uint32_t)k0) * (uint32_t)((m >> 32) + (k0 >> 32));
            sum1 += (uint64_t)((uint32_t)m + (uint32_t)k1) * (uint32_t)((m >> 32) + (k1 >> 32));
        }
        dirty += colo_note_hash(hashes + COLO_HASH_WORDS * i, sum0, sum1, bitmap, first + i);
    }
    return dirty;
}

static const colo_kernels colo_kernels_portable = {
    .name = "portable",
    .xbzrle_encode = colo_xbzrle_encode_portable,
    .xbzrle_decode = colo_xbzrle_decode_portable,
    .xbzrle_check = colo_xbzrle_check_portable,
    .xbzrle_step = colo_xbzrle_step_portable,
    .is_zero = colo_is_zero_portable,
    .scan = colo_scan_portable,
    .scan_hash = colo_scan_hash_portable,
};
