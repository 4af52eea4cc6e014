/* NEON on ARM64: byte masks by weights and pairwise adds, as there is no movemask; sized for a Cortex-A72. */
#pragma once
#if defined(__aarch64__)
#include <arm_neon.h>
#include "portable.h"

/* Keeps the compiler from turning a tree of ORs into one serial chain. */
#define COLO_KEEP(v) __asm__("" : "+w"(v))

/* A byte has weight 1 << (its place in its group of 8): bytes that differ keep it, three rounds of adding
 * neighbours bring 64 bytes together into one word. */
COLO_INLINE void colo_store_unequal_neon(uint64_t *differs, const uint8_t *a, const uint8x16_t *b)
{
    const uint8x16_t weights = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201ULL));
    uint8x16_t m[4];

    for (int k = 0; k < 4; k++)
        m[k] = vbicq_u8(weights, vceqq_u8(vld1q_u8(a + 16 * k), b[k]));
    uint8x16_t sum = vpaddq_u8(vpaddq_u8(m[0], m[1]), vpaddq_u8(m[2], m[3]));
    vst1_u8((uint8_t *)differs, vget_low_u8(vpaddq_u8(sum, sum)));
}

COLO_INLINE int colo_any_neon(uint64x2_t v)
{
    return (vgetq_lane_u64(v, 0) | vgetq_lane_u64(v, 1)) != 0;
}

COLO_INLINE int colo_all_equal_neon(const uint64_t *differs, int words)
{
    uint64x2_t any0 = vdupq_n_u64(0), any1 = any0;

    for (int w = 0; w < words; w += 8) {
        any0 = vorrq_u64(any0, vorrq_u64(vld1q_u64(differs + w), vld1q_u64(differs + w + 2)));
        any1 = vorrq_u64(any1, vorrq_u64(vld1q_u64(differs + w + 4), vld1q_u64(differs + w + 6)));
    }
    return !colo_any_neon(vorrq_u64(any0, any1));
}

COLO_INLINE int colo_encode_words_neon(const uint64_t *differs, const uint8_t *page, int page_bytes,
                                       uint8_t *dst, int dlen)
{
    if (dlen < 2)
        return -1;
    if (colo_all_equal_neon(differs, page_bytes / 64))
        return 0;
    return colo_encode_words(differs, page, page_bytes, dst, dlen);
}

static int colo_xbzrle_encode_neon(const uint8_t *old_page, const uint8_t *new_page, int page_bytes,
                                   uint8_t *dst, int dlen)
{
    uint64_t differs[COLO_WORDS_MAX];

    for (int w = 0; w < page_bytes / 64; w++) {
        uint8x16_t b[4];
        for (int k = 0; k < 4; k++)
            b[k] = vld1q_u8(new_page + 64 * w + 16 * k);
        colo_store_unequal_neon(differs + w, old_page + 64 * w, b);
    }
    colo_prefetch_next(old_page + page_bytes, new_page + page_bytes);
    return colo_encode_words_neon(differs, new_page, page_bytes, dst, dlen);
}

static int colo_xbzrle_step_neon(uint8_t *shadow, const uint8_t *live, const uint8_t *next_shadow,
                                 const uint8_t *next_live, uint8_t *snapshot, int page_bytes,
                                 uint8_t *dst, int dlen)
{
    uint64_t differs[COLO_WORDS_MAX];

    for (int w = 0; w < page_bytes / 64; w++) {
        uint8x16_t b[4];
        for (int k = 0; k < 4; k++) {
            b[k] = vld1q_u8(live + 64 * w + 16 * k);
            vst1q_u8(snapshot + 64 * w + 16 * k, b[k]);
        }
        colo_store_unequal_neon(differs + w, shadow + 64 * w, b);
    }
    colo_prefetch_next(next_shadow, next_live);
    if (colo_all_equal_neon(differs, page_bytes / 64))
        return dlen < 2 ? -1 : 0;
    const int encoded = colo_encode_words(differs, snapshot, page_bytes, dst, dlen);
    colo_refresh(shadow, snapshot, differs, page_bytes);
    return encoded;
}

static int colo_is_zero_neon(const void *p, size_t n)
{
    const uint8_t *at = p, *const end = at + n;

    if (n < 128 || colo_load64(at))
        return colo_is_zero_portable(p, n);
    for (; at < end; at += 128) {
        if (end - at < 128)
            at = end - 128;
        uint8x16_t v[4];
        for (int k = 0; k < 4; k++) {
            v[k] = vorrq_u8(vld1q_u8(at + 32 * k), vld1q_u8(at + 32 * k + 16));
            COLO_KEEP(v[k]);
        }
        uint8x16_t low = vorrq_u8(v[0], v[1]), high = vorrq_u8(v[2], v[3]);
        COLO_KEEP(low);
        if (colo_any_neon(vreinterpretq_u64_u8(vorrq_u8(low, high))))
            return 0;
    }
    return 1;
}

static size_t colo_scan_neon(const uint8_t *memory, const uint8_t *shadow, size_t pages, size_t page_bytes,
                             uint64_t *bitmap, size_t first)
{
    size_t dirty = 0;

    for (size_t i = 0; i < pages; i++) {
        const uint8_t *a = memory + i * page_bytes, *b = shadow + i * page_bytes;
        for (size_t at = 0; at < page_bytes; at += 128) {
            uint8x16_t v[4];
            for (int k = 0; k < 4; k++) {
                const size_t here = at + 32 * (size_t)k;
                v[k] = vorrq_u8(veorq_u8(vld1q_u8(a + here), vld1q_u8(b + here)),
                                veorq_u8(vld1q_u8(a + here + 16), vld1q_u8(b + here + 16)));
                COLO_KEEP(v[k]);
            }
            if (colo_any_neon(vreinterpretq_u64_u8(vorrq_u8(vorrq_u8(v[0], v[1]), vorrq_u8(v[2], v[3]))))) {
                colo_set_bit(bitmap, first + i);
                dirty++;
                break;
            }
        }
    }
    return dirty;
}

COLO_INLINE uint32x4_t colo_load_words_neon(const uint8_t *p)
{
    return vreinterpretq_u32_u8(vld1q_u8(p));
}

/* Four pairs of 32-bit words: the lower ones of each 64 bits times the upper ones. */
COLO_INLINE uint64x2_t colo_nh_neon(uint64x2_t sum, const uint32x4_t *m, const uint8_t *key)
{
    uint32x4_t a = vaddq_u32(m[0], colo_load_words_neon(key)), b = vaddq_u32(m[1], colo_load_words_neon(key + 16));
    uint32x4_t low = vuzp1q_u32(a, b), high = vuzp2q_u32(a, b);
    sum = vmlal_u32(sum, vget_low_u32(low), vget_low_u32(high));
    return vmlal_high_u32(sum, low, high);
}

static size_t colo_scan_hash_neon(const uint8_t *memory, uint64_t *hashes, const uint8_t *key, size_t pages,
                                  size_t page_bytes, uint64_t *bitmap, size_t first)
{
    size_t dirty = 0;

    for (size_t i = 0; i < pages; i++) {
        const uint8_t *page = memory + i * page_bytes;
        uint64x2_t sum0 = vdupq_n_u64(0), sum1 = sum0;
        for (size_t k = 0; k < page_bytes; k += 32) {
            const uint32x4_t m[2] = {colo_load_words_neon(page + k), colo_load_words_neon(page + k + 16)};
            sum0 = colo_nh_neon(sum0, m, key + k);
            sum1 = colo_nh_neon(sum1, m, key + k + COLO_HASH_KEY_SHIFT);
        }
        dirty += colo_note_hash(hashes + COLO_HASH_WORDS * i, vaddvq_u64(sum0), vaddvq_u64(sum1), bitmap, first + i);
    }
    return dirty;
}

static const colo_kernels colo_kernels_neon = {
    .name = "neon",
    .xbzrle_encode = colo_xbzrle_encode_neon,
    .xbzrle_decode = colo_xbzrle_decode_portable,
    .xbzrle_check = colo_xbzrle_check_portable,
    .xbzrle_step = colo_xbzrle_step_neon,
    .is_zero = colo_is_zero_neon,
    .scan = colo_scan_neon,
    .scan_hash = colo_scan_hash_neon,
};
#endif
