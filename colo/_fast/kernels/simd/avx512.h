/* AVX-512 with VBMI2: byte masks of 64, positions by compress, headers of 16 runs at a time. */
#pragma once
#if defined(__x86_64__)
#include <immintrin.h>
#include "avx2.h"

#define COLO_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,avx512vpopcntdq," \
                                          "avx2,bmi,bmi2,popcnt")))
#define COLO_AVX512_INLINE COLO_INLINE COLO_AVX512

COLO_AVX512_INLINE __m512i colo_bytes_0_to_63(void)
{
    return _mm512_set_epi8(
        63, 62, 61, 60, 59, 58, 57, 56, 55, 54, 53, 52, 51, 50, 49, 48, 47, 46, 45, 44, 43, 42, 41, 40, 39, 38, 37, 36,
        35, 34, 33, 32, 31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 9, 8, 7,
        6, 5, 4, 3, 2, 1, 0);
}

/* Write the positions of the bits of t, plus base. Always writes 32 of them, and 64 when dense or there are that
 * many. */
COLO_AVX512_INLINE void colo_flatten_avx512(uint16_t *at, uint64_t t, unsigned base, int both_halves)
{
    const __m512i add = _mm512_set1_epi16((short)base);
    __m512i packed = _mm512_maskz_compress_epi8(t, colo_bytes_0_to_63());

    _mm512_storeu_si512(at, _mm512_add_epi16(_mm512_cvtepu8_epi16(_mm512_castsi512_si256(packed)), add));
    if (both_halves)
        _mm512_storeu_si512(at + 32, _mm512_add_epi16(_mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(packed, 1)), add));
}

/* Write runs [0, runs) 16 at a time: the lengths are the differences of neighbouring positions. All of them may be
 * copied 16 bytes at a time. Returns NULL when they do not fit. */
COLO_AVX512_INLINE uint8_t *colo_emit_avx512(const uint16_t *positions, unsigned runs, const uint8_t *page,
                                             int page_bytes, uint8_t *d, long *spare)
{
    uint32_t heads[16];
    uint8_t sizes[16];

    for (unsigned r = 0; r < runs; r += 16) {
        const uint16_t *p = positions + 2 * r;
        const unsigned here = runs - r < 16 ? runs - r : 16;
        const __mmask32 valid = _bzhi_u32(~0u, 2 * here);
        __m512i lengths = _mm512_sub_epi16(_mm512_loadu_si512(p), _mm512_loadu_si512(p - 1));
        const __mmask32 wide = _mm512_mask_cmpgt_epu16_mask(valid, lengths, _mm512_set1_epi16(0x7f));

        if (__builtin_expect(!wide, 1)) {
            /* (z, n) as two bytes each. */
            uint16_t heads16[16];
            _mm256_storeu_si256((__m256i *)heads16, _mm512_cvtepi16_epi8(lengths));
            if (here == 16) {
                #pragma GCC unroll 16
                for (unsigned k = 0; k < 16; k++) {
                    const unsigned n = heads16[k] >> 8;
                    __builtin_memcpy(d, heads16 + k, 2);
                    colo_copy_over(d + 2, page + p[2 * k], n);
                    d += 2 + n;
                }
            } else {
                for (unsigned k = 0; k < here; k++) {
                    const unsigned n = heads16[k] >> 8;
                    __builtin_memcpy(d, heads16 + k, 2);
                    colo_copy_over(d + 2, page + p[2 * k], n);
                    d += 2 + n;
                }
            }
            continue;
        }
        *spare -= (long)_mm_popcnt_u32(wide);
        if (*spare < 0)
            return NULL;
        if (page_bytes > COLO_XBZRLE_RUN_MAX
            && _mm512_mask_cmpgt_epu16_mask(valid, lengths, _mm512_set1_epi16(COLO_XBZRLE_RUN_MAX)))
            return NULL;
        /* Each u16 length v becomes its wire bytes: v, or (v & 0x7f | 0x80) | v >> 7 << 8. */
        const __m512i low7 = _mm512_set1_epi16(0x7f);
        __m512i high = _mm512_andnot_si512(_mm512_set1_epi16(0xff), _mm512_slli_epi16(lengths, 1));
        __m512i wire = _mm512_or_si512(_mm512_and_si512(lengths, low7), high);
        wire = _mm512_mask_or_epi32(wire, 0xffff, wire, _mm512_maskz_set1_epi16(wide, 0x80));
        /* z's bytes, then n's right behind them. */
        __m512i z_wire = _mm512_and_si512(wire, _mm512_set1_epi32(0xffff)), n_wire = _mm512_srli_epi32(wire, 16);
        __m512i twos = _mm512_maskz_set1_epi16(wide, 1);
        __m512i z_two = _mm512_and_si512(twos, _mm512_set1_epi32(1));
        __m512i z_bits = _mm512_slli_epi32(_mm512_add_epi32(z_two, _mm512_set1_epi32(1)), 3);
        __m512i size = _mm512_add_epi32(_mm512_add_epi32(z_two, _mm512_srli_epi32(twos, 16)), _mm512_set1_epi32(2));
        _mm512_storeu_si512(heads, _mm512_or_si512(z_wire, _mm512_sllv_epi32(n_wire, z_bits)));
        _mm_storeu_si128((__m128i *)sizes, _mm512_cvtepi32_epi8(size));
        for (unsigned k = 0; k < here; k++) {
            const unsigned start = p[2 * k], n = (uint16_t)(p[2 * k + 1] - start);
            __builtin_memcpy(d, heads + k, 4);
            d += sizes[k];
            colo_copy_over(d, page + start, n);
            d += n;
        }
    }
    return d;
}

COLO_AVX512_INLINE int colo_encode_words_avx512(const uint64_t *differs, const uint8_t *page, int page_bytes,
                                                uint8_t *dst, int dlen)
{
    uint16_t list[COLO_LIST_LENGTH], *const positions = list + 1, *at = positions;
    uint64_t transitions[COLO_WORDS_MAX + 8], nonzero[(COLO_WORDS_MAX + 63) / 64], any = 0;
    const int words = page_bytes / 64;
    __m512i previous = _mm512_setzero_si512(), changed_sum = previous, count_sum = previous;

    if (dlen < 2)
        return -1;
    /* transitions[w] has a bit at each start and end of a run, nonzero a bit for each word of them that has any. */
    for (int g = 0; g < words; g += 64) {
        uint64_t bits = 0;
        for (int w = g; w < words && w < g + 64; w += 8) {
            __m512i m = _mm512_loadu_si512(differs + w);
            __m512i t = _mm512_xor_si512(m, _mm512_shldi_epi64(m, _mm512_alignr_epi64(m, previous, 7), 1));
            _mm512_storeu_si512(transitions + w, t);
            bits |= (uint64_t)_mm512_test_epi64_mask(t, t) << (w - g);
            changed_sum = _mm512_add_epi64(changed_sum, _mm512_popcnt_epi64(m));
            count_sum = _mm512_add_epi64(count_sum, _mm512_popcnt_epi64(t));
            previous = m;
        }
        any |= nonzero[g / 64] = bits;
    }
    if (!any)
        return 0;
    const long changed = _mm512_reduce_add_epi64(changed_sum), count = _mm512_reduce_add_epi64(count_sum);
    const int ends_changed = _mm512_movepi64_mask(previous) >> 7;
    const unsigned runs = (unsigned)(count + ends_changed) / 2;
    long spare = colo_spare(changed, runs, !ends_changed, dlen);
    if (spare < 0 || (page_bytes == 65536 && changed == 65536))
        return -1;

    list[0] = 0;
    if (page_bytes == 4096 && count <= words) {
        /* Two words at a time; one past the last is empty, as transitions[64] is. */
        uint64_t bits = nonzero[0];
        transitions[64] = 0;
        do {
            for (int k = 0; k < 2; k++, bits &= bits - 1) {
                const unsigned w = (unsigned)_tzcnt_u64(bits);
                uint64_t t = transitions[w];
                const int n = (int)_mm_popcnt_u64(t);
                /* Past the last bit tzcnt gives 64: written, then written over. */
                at[0] = (uint16_t)(64 * w + _tzcnt_u64(t));
                t &= t - 1;
                at[1] = (uint16_t)(64 * w + _tzcnt_u64(t));
                if (__builtin_expect(n > 2, 0))
                    colo_flatten_avx512(at, transitions[w], 64 * w, n > 32);
                at += n;
            }
        } while (bits);
    } else {
        for (int g = 0; g < words; g += 64) {
            uint64_t bits = nonzero[g / 64];
            if (count <= 6 * words) {
                for (; bits; bits &= bits - 1) {
                    const int w = g + (int)_tzcnt_u64(bits), n = (int)_mm_popcnt_u64(transitions[w]);
                    const uint64_t t = transitions[w];
                    __m512i packed = _mm512_maskz_compress_epi8(t, colo_bytes_0_to_63());
                    __m128i first = _mm_cvtepu8_epi16(_mm512_castsi512_si128(packed));
                    _mm_storeu_si128((__m128i *)at, _mm_add_epi16(first, _mm_set1_epi16((short)(64 * w))));
                    if (__builtin_expect(n > 8, 0))
                        colo_flatten_avx512(at, t, 64 * (unsigned)w, n > 32);
                    at += n;
                }
            } else if (count <= 20 * words) {
                for (; bits; bits &= bits - 1) {
                    const int w = g + (int)_tzcnt_u64(bits), n = (int)_mm_popcnt_u64(transitions[w]);
                    colo_flatten_avx512(at, transitions[w], 64 * (unsigned)w, n > 32);
                    at += n;
                }
            } else {
                for (; bits; bits &= bits - 1) {
                    const int w = g + (int)_tzcnt_u64(bits);
                    colo_flatten_avx512(at, transitions[w], 64 * (unsigned)w, 1);
                    at += _mm_popcnt_u64(transitions[w]);
                }
            }
        }
    }
    *at = (uint16_t)page_bytes;

    if (runs < COLO_FEW_RUNS)
        return colo_emit_few(positions, runs, page, page_bytes, dst, changed, spare);
    const unsigned wide = colo_wide_runs(positions, runs, page_bytes);
    uint8_t *d = colo_emit_avx512(positions, wide, page, page_bytes, dst, &spare);
    if (d)
        d = colo_emit(positions, wide, runs, page, page_bytes, d, spare);
    return d ? (int)(d - dst) : -1;
}

COLO_AVX512_INLINE int colo_encode_avx512_of(const uint8_t *old_page, const uint8_t *new_page, int page_bytes,
                                             uint8_t *dst, int dlen)
{
    uint64_t differs[COLO_WORDS_MAX];
    uint16_t blocks[COLO_BLOCKS_MAX + 1];
    unsigned changed_blocks = 0;

    for (int w = 0; w < page_bytes / 64; w += COLO_BLOCK_LINES) {
        const uint8_t *a = old_page + 64 * w, *b = new_page + 64 * w;
        __m512i line[COLO_BLOCK_LINES];
        uint64_t any = 0;

        colo_prefetch_block(a);
        for (int k = 0; k < COLO_BLOCK_LINES; k++)
            line[k] = _mm512_loadu_si512(b + 64 * k);
        colo_prefetch_block(b);
        for (int k = 0; k < COLO_BLOCK_LINES; k++)
            any |= differs[w + k] = _mm512_cmpneq_epi8_mask(_mm512_loadu_si512(a + 64 * k), line[k]);
        blocks[changed_blocks] = (uint16_t)w;
        changed_blocks += any != 0;
    }
    if (changed_blocks <= COLO_FEW_BLOCKS && dlen >= 2) {
        uint16_t lines[COLO_FEW_BLOCKS * COLO_BLOCK_LINES + 1];
        uint64_t few[COLO_FEW_BLOCKS * COLO_BLOCK_LINES + 1];
        unsigned count = 0;

        if (!changed_blocks)
            return 0;
        for (unsigned i = 0; i < changed_blocks; i++)
            for (unsigned w = blocks[i]; w < blocks[i] + COLO_BLOCK_LINES; w++) {
                lines[count] = (uint16_t)w;
                few[count] = differs[w];
                count += differs[w] != 0;
            }
        if (colo_are_few(count, page_bytes, dlen))
            return colo_encode_lines_avx2(lines, few, count, new_page, page_bytes, dst);
    }
    return colo_encode_words_avx512(differs, new_page, page_bytes, dst, dlen);
}

static COLO_AVX512 int colo_xbzrle_encode_avx512(const uint8_t *old_page, const uint8_t *new_page, int page_bytes,
                                                 uint8_t *dst, int dlen)
{
    if (page_bytes == 4096)
        return colo_encode_avx512_of(old_page, new_page, 4096, dst, dlen);
    return colo_encode_avx512_of(old_page, new_page, page_bytes, dst, dlen);
}

COLO_AVX512_INLINE int colo_step_avx512_of(uint8_t *shadow, const uint8_t *live, const uint8_t *next_shadow,
                                           const uint8_t *next_live, uint8_t *snapshot, int page_bytes,
                                           uint8_t *dst, int dlen)
{
    uint64_t differs[COLO_WORDS_MAX];

    for (int w = 0; w < page_bytes / 64; w++) {
        __m512i a = _mm512_loadu_si512(shadow + 64 * w), b = _mm512_loadu_si512(live + 64 * w);
        _mm512_storeu_si512(snapshot + 64 * w, b);
        _store_mask64((__mmask64 *)(differs + w), _mm512_cmpneq_epi8_mask(a, b));
    }
    colo_prefetch_next(next_shadow, next_live);
    const int encoded = colo_encode_words_avx512(differs, snapshot, page_bytes, dst, dlen);
    if (!encoded)
        return 0;
    for (int g = 0; g < page_bytes / 64; g += 64) {
        uint64_t lines = 0;
        for (int w = 0; w < 64 && g + w < page_bytes / 64; w += 8) {
            __m512i m = _mm512_loadu_si512(differs + g + w);
            lines |= (uint64_t)_mm512_test_epi64_mask(m, m) << w;
        }
        for (; lines; lines &= lines - 1) {
            const size_t at = 64 * ((size_t)g + _tzcnt_u64(lines));
            _mm512_storeu_si512(shadow + at, _mm512_loadu_si512(snapshot + at));
        }
    }
    return encoded;
}

static COLO_AVX512 int colo_xbzrle_step_avx512(uint8_t *shadow, const uint8_t *live, const uint8_t *next_shadow,
                                               const uint8_t *next_live, uint8_t *snapshot, int page_bytes,
                                               uint8_t *dst, int dlen)
{
    if (page_bytes == 4096)
        return colo_step_avx512_of(shadow, live, next_shadow, next_live, snapshot, 4096, dst, dlen);
    return colo_step_avx512_of(shadow, live, next_shadow, next_live, snapshot, page_bytes, dst, dlen);
}

static const colo_kernels colo_kernels_avx512 = {
    .name = "avx512",
    .xbzrle_encode = colo_xbzrle_encode_avx512,
    .xbzrle_decode = colo_xbzrle_decode_portable,
    .xbzrle_check = colo_xbzrle_check_portable,
    .xbzrle_step = colo_xbzrle_step_avx512,
    .is_zero = colo_is_zero_avx2,
    .scan = colo_scan_avx2,
    .scan_hash = colo_scan_hash_avx2,
};
#endif
