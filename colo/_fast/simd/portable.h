/* The kernels in plain C: words of eight bytes, for CPUs without any of the other levels, and the reference for them. */
#pragma once
#include "../xbzrle.h"
#include "runs.h"

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
COLO_INLINE int colo_encode_words_portable(const uint64_t *differs, const uint8_t *page, int page_bytes,
                                           uint8_t *dst, int dlen)
{
    /* A run takes three bytes at least, so more of them than dlen / 3 cannot fit. */
    uint16_t positions[2 * (COLO_PAGE_BYTES_MAX / 3) + 2 + 64];
    const int words = page_bytes / 64;
    const unsigned limit = 2 * (unsigned)((dlen < page_bytes ? dlen : page_bytes) / 3) + 1;
    unsigned count = 0;
    uint64_t carry = 0;
    long changed = 0;

    for (int w = 0; w < words; w++) {
        uint64_t m = differs[w], t = m ^ (m << 1 | carry);
        carry = m >> 63;
        while (t) {
            positions[count++] = (uint16_t)(64 * w + __builtin_ctzll(t));
            t &= t - 1;
        }
        if (count > limit)
            return -1;
    }
    if (carry)
        positions[count++] = (uint16_t)page_bytes;
    if (!count)
        return 0;
    for (unsigned i = 0; i < count; i += 2)
        changed += (uint16_t)(positions[i + 1] - positions[i]);
    if (!changed) /* one run of 65536 */
        return -1;
    long spare = colo_spare(changed, count / 2, !carry, dlen);
    if (spare < 0)
        return -1;
    return colo_emit(positions, count / 2, page, page_bytes, dst, spare);
}

static int colo_xbzrle_encode_portable(const uint8_t *old_page, const uint8_t *new_page, int page_bytes,
                                       uint8_t *dst, int dlen)
{
    uint64_t differs[COLO_WORDS_MAX];

    if (dlen < 2)
        return -1;
    for (int w = 0; w < page_bytes / 64; w++)
        differs[w] = colo_differs_portable(old_page + 64 * w, new_page + 64 * w);
    return colo_encode_words_portable(differs, new_page, page_bytes, dst, dlen);
}

static int colo_xbzrle_step_portable(uint8_t *shadow, const uint8_t *live, const uint8_t *next_shadow,
                                     const uint8_t *next_live, uint8_t *snapshot, int page_bytes,
                                     uint8_t *dst, int dlen)
{
    uint64_t differs[COLO_WORDS_MAX];
    int encoded = -1;

    for (int w = 0; w < page_bytes / 64; w++) {
        memcpy(snapshot + 64 * w, live + 64 * w, 64);
        differs[w] = colo_differs_portable(shadow + 64 * w, snapshot + 64 * w);
    }
    if (dlen >= 2)
        encoded = colo_encode_words_portable(differs, snapshot, page_bytes, dst, dlen);
    for (int w = 0; w < page_bytes / 64; w++)
        if (differs[w])
            memcpy(shadow + 64 * w, snapshot + 64 * w, 64);
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

/* NH: sum over pairs of 32-bit words of (a + key_a)(b + key_b), modulo 2^64; twice, the key moved on for the second. For
 * two different pages fixed before the key is drawn, one sum is equal with probability at most 2^-32, both with 2^-64. */
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
        uint64_t *hash = hashes + COLO_HASH_WORDS * i;
        if (hash[0] != sum0 || hash[1] != sum1) {
            hash[0] = sum0;
            hash[1] = sum1;
            colo_set_bit(bitmap, first + i);
            dirty++;
        }
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
