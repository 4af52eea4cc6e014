/* SSE2: every x86-64 has it. */
#pragma once
#if defined(__x86_64__)
#include <emmintrin.h>
#include "portable.h"

COLO_INLINE __m128i colo_load128(const void *p)
{
    return _mm_loadu_si128((const __m128i *)p);
}

COLO_INLINE uint64_t colo_unequal_sse2(const uint8_t *a, const __m128i *b)
{
    uint64_t equal = 0;
    for (int k = 0; k < 4; k++)
        equal |= (uint64_t)(unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(colo_load128(a + 16 * k), b[k])) << (16 * k);
    return ~equal;
}

COLO_INLINE int colo_encode_sse2_of(const uint8_t *old_page, const uint8_t *new_page, int page_bytes,
                                    uint8_t *dst, int dlen)
{
    uint64_t differs[COLO_WORDS_MAX];

    for (int w = 0; w < page_bytes / 64; w++) {
        __m128i b[4];
        for (int k = 0; k < 4; k++)
            b[k] = colo_load128(new_page + 64 * w + 16 * k);
        differs[w] = colo_unequal_sse2(old_page + 64 * w, b);
    }
    colo_prefetch_next(old_page + page_bytes, new_page + page_bytes);
    return colo_encode_words(differs, new_page, page_bytes, dst, dlen);
}

static int colo_xbzrle_encode_sse2(const uint8_t *old_page, const uint8_t *new_page, int page_bytes,
                                   uint8_t *dst, int dlen)
{
    if (page_bytes == 4096)
        return colo_encode_sse2_of(old_page, new_page, 4096, dst, dlen);
    return colo_encode_sse2_of(old_page, new_page, page_bytes, dst, dlen);
}

static int colo_xbzrle_step_sse2(uint8_t *shadow, const uint8_t *live, const uint8_t *next_shadow,
                                 const uint8_t *next_live, uint8_t *snapshot, int page_bytes,
                                 uint8_t *dst, int dlen)
{
    uint64_t differs[COLO_WORDS_MAX];

    for (int w = 0; w < page_bytes / 64; w++) {
        __m128i b[4];
        for (int k = 0; k < 4; k++) {
            b[k] = colo_load128(live + 64 * w + 16 * k);
            _mm_storeu_si128((__m128i *)(snapshot + 64 * w + 16 * k), b[k]);
        }
        differs[w] = colo_unequal_sse2(shadow + 64 * w, b);
    }
    colo_prefetch_next(next_shadow, next_live);
    const int encoded = colo_encode_words(differs, snapshot, page_bytes, dst, dlen);
    if (encoded)
        colo_refresh(shadow, snapshot, differs, page_bytes);
    return encoded;
}

COLO_INLINE int colo_any_sse2(__m128i v)
{
    return _mm_movemask_epi8(_mm_cmpeq_epi8(v, _mm_setzero_si128())) != 0xffff;
}

static int colo_is_zero_sse2(const void *p, size_t n)
{
    const uint8_t *at = p, *const end = at + n;

    if (n < 128 || colo_load64(at))
        return colo_is_zero_portable(p, n);
    for (; at < end; at += 128) {
        if (end - at < 128)
            at = end - 128;
        __m128i any = _mm_setzero_si128();
        for (int k = 0; k < 128; k += 16)
            any = _mm_or_si128(any, colo_load128(at + k));
        if (colo_any_sse2(any))
            return 0;
    }
    return 1;
}

static size_t colo_scan_sse2(const uint8_t *memory, const uint8_t *shadow, size_t pages, size_t page_bytes,
                             uint64_t *bitmap, size_t first)
{
    size_t dirty = 0;

    for (size_t i = 0; i < pages; i++) {
        const uint8_t *a = memory + i * page_bytes, *b = shadow + i * page_bytes;
        for (size_t at = 0; at < page_bytes; at += 256) {
            __m128i any = _mm_setzero_si128();
            for (size_t k = at; k < at + 256; k += 16)
                any = _mm_or_si128(any, _mm_xor_si128(colo_load128(a + k), colo_load128(b + k)));
            if (colo_any_sse2(any)) {
                colo_set_bit(bitmap, first + i);
                dirty++;
                break;
            }
        }
    }
    return dirty;
}

COLO_INLINE __m128i colo_nh_sse2(__m128i sum, __m128i m, __m128i key)
{
    __m128i v = _mm_add_epi32(m, key);
    return _mm_add_epi64(sum, _mm_mul_epu32(v, _mm_srli_epi64(v, 32)));
}

static size_t colo_scan_hash_sse2(const uint8_t *memory, uint64_t *hashes, const uint8_t *key, size_t pages,
                                  size_t page_bytes, uint64_t *bitmap, size_t first)
{
    size_t dirty = 0;

    for (size_t i = 0; i < pages; i++) {
        const uint8_t *page = memory + i * page_bytes;
        __m128i sum0 = _mm_setzero_si128(), sum1 = sum0;
        for (size_t k = 0; k < page_bytes; k += 16) {
            sum0 = colo_nh_sse2(sum0, colo_load128(page + k), colo_load128(key + k));
            sum1 = colo_nh_sse2(sum1, colo_load128(page + k), colo_load128(key + k + COLO_HASH_KEY_SHIFT));
        }
        sum0 = _mm_add_epi64(sum0, _mm_unpackhi_epi64(sum0, sum0));
        sum1 = _mm_add_epi64(sum1, _mm_unpackhi_epi64(sum1, sum1));
        dirty += colo_note_hash(hashes + COLO_HASH_WORDS * i, (uint64_t)_mm_cvtsi128_si64(sum0),
                                (uint64_t)_mm_cvtsi128_si64(sum1), bitmap, first + i);
    }
    return dirty;
}

static const colo_kernels colo_kernels_sse2 = {
    .name = "sse2",
    .xbzrle_encode = colo_xbzrle_encode_sse2,
    .xbzrle_decode = colo_xbzrle_decode_portable,
    .xbzrle_check = colo_xbzrle_check_portable,
    .xbzrle_step = colo_xbzrle_step_sse2,
    .is_zero = colo_is_zero_sse2,
    .scan = colo_scan_sse2,
    .scan_hash = colo_scan_hash_sse2,
};
#endif
