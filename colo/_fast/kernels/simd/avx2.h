/* AVX2: 32-byte compares and movemask, headers of 8 runs at a time. Also everything AVX-512 gains nothing on. */
#pragma once
#if defined(__x86_64__)
#include <immintrin.h>
#include "portable.h"

#define COLO_AVX2 __attribute__((target("avx2,bmi,bmi2,popcnt")))
#define COLO_AVX2_INLINE COLO_INLINE COLO_AVX2
/* Keeps the compiler from joining neighbouring stores of two bytes into a vector, which takes more work than it saves. */
#define COLO_ONE_BY_ONE(stored) __asm__("" : "+m"(stored))

COLO_AVX2_INLINE __m256i colo_load256(const void *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}

COLO_AVX2_INLINE void colo_store256(void *p, __m256i v)
{
    _mm256_storeu_si256((__m256i *)p, v);
}

/* Which of 64 bytes are equal, as the two halves of a word: joining them would cost more than a second store. */
COLO_AVX2_INLINE void colo_equal_bytes_avx2(uint64_t *word, __m256i a0, __m256i b0, __m256i a1, __m256i b1)
{
    const int low = _mm256_movemask_epi8(_mm256_cmpeq_epi8(a0, b0));
    const int high = _mm256_movemask_epi8(_mm256_cmpeq_epi8(a1, b1));
    __builtin_memcpy(word, &low, 4);
    __builtin_memcpy((uint8_t *)word + 4, &high, 4);
}

/* A bit per word of words[0..64) or fewer that is not all ones; count is a multiple of 4. */
COLO_AVX2_INLINE uint64_t colo_changed_lines_avx2(const uint64_t *words, int count)
{
    uint64_t bits = 0;
    for (int w = 0; w < count; w += 4) {
        __m256i ones = _mm256_cmpeq_epi64(colo_load256(words + w), _mm256_set1_epi64x(-1));
        bits |= (uint64_t)(~_mm256_movemask_pd(_mm256_castsi256_pd(ones)) & 0xf) << w;
    }
    return bits;
}

/* Write runs [0, runs), all of which may be copied 16 bytes at a time. Returns NULL when they do not fit. */
COLO_AVX2_INLINE uint8_t *colo_emit_avx2(const uint16_t *positions, unsigned runs, const uint8_t *page, int page_bytes,
                                         uint8_t *d, long *spare)
{
    uint32_t heads[8], sizes[8];

    for (unsigned r = 0; r < runs; r += 8) {
        const uint16_t *p = positions + 2 * r;
        const unsigned here = runs - r < 8 ? runs - r : 8;
        __m256i lengths = _mm256_sub_epi16(colo_load256(p), colo_load256(p - 1));
        const __m256i small = _mm256_cmpeq_epi16(_mm256_min_epu16(lengths, _mm256_set1_epi16(0x7f)), lengths);
        const uint32_t valid = here < 8 ? (1u << 4 * here) - 1 : ~0u;
        const uint32_t wide = ~(uint32_t)_mm256_movemask_epi8(small) & valid;

        if (!wide) {
            __m256i bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(lengths, lengths), 0x08);
            uint16_t heads16[8];
            _mm_storeu_si128((__m128i *)heads16, _mm256_castsi256_si128(bytes));
            if (here == 8) {
                for (unsigned k = 0; k < 8; k++) {
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
        *spare -= (long)_mm_popcnt_u32(wide) / 2;
        if (*spare < 0)
            return NULL;
        if (page_bytes > COLO_XBZRLE_RUN_MAX) {
            __m256i most = _mm256_min_epu16(lengths, _mm256_set1_epi16(COLO_XBZRLE_RUN_MAX));
            if (~(uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi16(most, lengths)) & valid)
                return NULL;
        }
        /* Each u16 length v becomes its wire bytes: v, or (v & 0x7f | 0x80) | v >> 7 << 8. */
        const __m256i high = _mm256_andnot_si256(_mm256_set1_epi16(0xff), _mm256_slli_epi16(lengths, 1));
        __m256i wire = _mm256_or_si256(_mm256_and_si256(lengths, _mm256_set1_epi16(0x7f)), high);
        wire = _mm256_or_si256(wire, _mm256_andnot_si256(small, _mm256_set1_epi16(0x80)));
        /* z's bytes, then n's right behind them. */
        const __m256i twos = _mm256_add_epi16(small, _mm256_set1_epi16(1));
        const __m256i z_two = _mm256_and_si256(twos, _mm256_set1_epi32(1));
        const __m256i z_bits = _mm256_slli_epi32(_mm256_add_epi32(z_two, _mm256_set1_epi32(1)), 3);
        const __m256i z_wire = _mm256_and_si256(wire, _mm256_set1_epi32(0xffff));
        colo_store256(heads, _mm256_or_si256(z_wire, _mm256_sllv_epi32(_mm256_srli_epi32(wire, 16), z_bits)));
        const __m256i more = _mm256_add_epi32(z_two, _mm256_srli_epi32(twos, 16));
        colo_store256(sizes, _mm256_add_epi32(more, _mm256_set1_epi32(2)));
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

/* equal[w] has a bit for each equal byte; equal[-1] is all ones, so that each word finds the top bit of the one before. */
COLO_AVX2_INLINE int colo_encode_words_avx2(const uint64_t *equal, const uint8_t *page, int page_bytes,
                                            uint8_t *dst, int dlen)
{
    uint16_t list[COLO_LIST_LENGTH], *const positions = list + 1;
    uint64_t transitions[COLO_WORDS_MAX], nonzero[(COLO_WORDS_MAX + 63) / 64], any = 0;
    const int words = page_bytes / 64, ends_changed = !(equal[words - 1] >> 63);

    if (dlen < 2)
        return -1;
    for (int g = 0; g < words; g += 64) {
        uint64_t none = 0;
        for (int w = g; w < words && w < g + 64; w += 4) {
            __m256i m = colo_load256(equal + w), before = colo_load256(equal + w - 1);
            __m256i t = _mm256_xor_si256(m, _mm256_or_si256(_mm256_slli_epi64(m, 1), _mm256_srli_epi64(before, 63)));
            colo_store256(transitions + w, t);
            __m256i zero = _mm256_cmpeq_epi64(t, _mm256_setzero_si256());
            none |= (uint64_t)(unsigned)_mm256_movemask_pd(_mm256_castsi256_pd(zero)) << (w - g);
        }
        any |= nonzero[g / 64] = ~none & (words - g < 64 ? (1ULL << (words - g)) - 1 : ~0ULL);
    }
    if (!any)
        return 0;

    const int most = 2 * (dlen / 3) + 1;
    uint16_t *at = positions;
    list[0] = 0;
    for (int g = 0; g < words; g += 64) {
        for (uint64_t bits = nonzero[g / 64]; bits; bits &= bits - 1) {
            const unsigned w = (unsigned)g + (unsigned)_tzcnt_u64(bits);
            uint64_t t = transitions[w];
            const int n = (int)_mm_popcnt_u64(t);
            if (n <= 4) {
                /* Past the last bit tzcnt gives 64: written, then written over. */
                for (int k = 0; k < 4; k++, t &= t - 1) {
                    at[k] = (uint16_t)(64 * w + _tzcnt_u64(t));
                    COLO_ONE_BY_ONE(at[k]);
                }
            } else if (n <= 8) {
                for (int k = 0; k < 8; k++, t &= t - 1) {
                    at[k] = (uint16_t)(64 * w + _tzcnt_u64(t));
                    COLO_ONE_BY_ONE(at[k]);
                }
            } else {
                colo_flatten_bytes(at, t, 64 * w);
            }
            at += n;
            if (__builtin_expect(at - positions > most, 0))
                return -1;
        }
    }
    if (ends_changed)
        *at++ = (uint16_t)page_bytes;

    const unsigned runs = (unsigned)(at - positions) / 2;
    const long changed = colo_changed(positions, runs);
    long spare = colo_spare(changed, runs, !ends_changed, dlen);
    if (spare < 0 || !changed)
        return -1;
    if (runs < COLO_FEW_RUNS)
        return colo_emit_few(positions, runs, page, page_bytes, dst, changed, spare);
    const unsigned wide = colo_wide_runs(positions, runs, page_bytes);
    uint8_t *d = colo_emit_avx2(positions, wide, page, page_bytes, dst, &spare);
    if (d)
        d = colo_emit(positions, wide, runs, page, page_bytes, d, spare);
    return d ? (int)(d - dst) : -1;
}

/* A plain encoder compares COLO_BLOCK_LINES lines of 64 bytes of both streams at once, asks for as many behind them
 * meanwhile, and notes the block when any of them changed: the rest of a sparse page's way is scalar code on a few lines.
 * Looking at all words of the page again would have to wait until the last of them is out of the store buffer, with
 * the pages of cold memory behind it not yet asked for. */
#define COLO_BLOCK_LINES 8
#define COLO_FEW_BLOCKS 4
#define COLO_FEW_LINES 16
#define COLO_BLOCKS_MAX (COLO_WORDS_MAX / COLO_BLOCK_LINES)

/* One stream's next block, also past the page's end: in a batch the next page lies there. */
COLO_INLINE void colo_prefetch_block(const uint8_t *page)
{
    for (int k = COLO_BLOCK_LINES; k < 2 * COLO_BLOCK_LINES; k++)
        __builtin_prefetch(page + 64 * k);
}

/* Whether that many changed lines can be written without a look at sizes: in 64 bytes are at most 32 runs, so a line
 * takes no more than 128 bytes of dst; and no run is longer than the wire allows. */
COLO_INLINE int colo_are_few(unsigned lines, int page_bytes, int dlen)
{
    return lines <= COLO_FEW_LINES && 128 * (int)lines + 64 <= dlen && page_bytes <= COLO_XBZRLE_RUN_MAX + 1;
}

/* Encode from the changed lines of a page, few of them (and one at least): differs[k] is the word of line lines[k]. */
COLO_AVX2_INLINE int colo_encode_lines_avx2(const uint16_t *lines, const uint64_t *differs, unsigned count,
                                            const uint8_t *page, int page_bytes, uint8_t *dst)
{
    uint8_t *d = dst;
    unsigned before = 0;

    for (unsigned k = 0; k < count; k++) {
        unsigned base = 64 * lines[k];
        uint64_t m = differs[k];
        do {
            /* The lowest run of the word, taken out of it. */
            const unsigned start = base + (unsigned)_tzcnt_u64(m);
            const uint64_t filled = m | (m - 1);
            unsigned end = base + (unsigned)_tzcnt_u64(~filled), bytes;
            m &= filled + 1;
            /* It may go on in the next line, and the next. */
            while (__builtin_expect(end == base + 64, 0) && k + 1 < count && lines[k + 1] == lines[k] + 1
                   && (differs[k + 1] & 1)) {
                base += 64;
                m = differs[++k];
                end = base + (unsigned)_tzcnt_u64(~m);
                m &= m + 1;
            }
            colo_put32(d, colo_head(start - before, end - start, &bytes));
            d += bytes;
            if (__builtin_expect(start > (unsigned)page_bytes - 16, 0))
                for (unsigned i = 0; i < end - start; i++)
                    d[i] = page[start + i];
            else
                colo_copy_over(d, page + start, end - start);
            d += end - start;
            before = end;
        } while (m);
    }
    return (int)(d - dst);
}

/* Of its own, so that what a sparse page needs of the stack and of the instruction cache stays small. */
static COLO_AVX2 __attribute__((noinline)) int colo_encode_dense_avx2(const uint64_t *equal, const uint8_t *page,
                                                                      int page_bytes, uint8_t *dst, int dlen)
{
    if (page_bytes == 4096)
        return colo_encode_words_avx2(equal, page, 4096, dst, dlen);
    return colo_encode_words_avx2(equal, page, page_bytes, dst, dlen);
}

COLO_AVX2_INLINE int colo_encode_avx2_of(const uint8_t *old_page, const uint8_t *new_page, int page_bytes,
                                         uint8_t *dst, int dlen)
{
    uint64_t words[1 + COLO_WORDS_MAX], *const equal = words + 1;
    uint16_t blocks[COLO_BLOCKS_MAX + 1];
    unsigned changed_blocks = 0;

    words[0] = ~0ULL;
    for (int w = 0; w < page_bytes / 64; w += COLO_BLOCK_LINES) {
        const uint8_t *a = old_page + 64 * w, *b = new_page + 64 * w;
        int all = -1;

        colo_prefetch_block(a);
        colo_prefetch_block(b);
        for (int q = 0; q < 2 * COLO_BLOCK_LINES; q += COLO_BLOCK_LINES) {
            __m256i half[COLO_BLOCK_LINES];
            for (int k = 0; k < COLO_BLOCK_LINES; k++)
                half[k] = colo_load256(b + 32 * (q + k));
            for (int k = 0; k < COLO_BLOCK_LINES; k++) {
                const int same = _mm256_movemask_epi8(_mm256_cmpeq_epi8(colo_load256(a + 32 * (q + k)), half[k]));
                __builtin_memcpy((uint8_t *)(equal + w) + 4 * (q + k), &same, 4);
                all &= same;
            }
        }
        blocks[changed_blocks] = (uint16_t)w;
        changed_blocks += all != -1;
    }
    if (changed_blocks <= COLO_FEW_BLOCKS && dlen >= 2) {
        uint16_t lines[COLO_FEW_BLOCKS * COLO_BLOCK_LINES + 1];
        uint64_t differs[COLO_FEW_BLOCKS * COLO_BLOCK_LINES + 1];
        unsigned count = 0;

        if (!changed_blocks)
            return 0;
        for (unsigned i = 0; i < changed_blocks; i++)
            for (unsigned w = blocks[i]; w < blocks[i] + COLO_BLOCK_LINES; w++) {
                /* By halves, as they were stored: a word made of two stores cannot be had before both have left. */
                uint32_t low, high;
                __builtin_memcpy(&low, equal + w, 4);
                __builtin_memcpy(&high, (const uint8_t *)(equal + w) + 4, 4);
                lines[count] = (uint16_t)w;
                differs[count] = ~(low | (uint64_t)high << 32);
                count += (low & high) != ~0u;
            }
        if (colo_are_few(count, page_bytes, dlen))
            return colo_encode_lines_avx2(lines, differs, count, new_page, page_bytes, dst);
    }
    return colo_encode_dense_avx2(equal, new_page, page_bytes, dst, dlen);
}

static COLO_AVX2 int colo_xbzrle_encode_avx2(const uint8_t *old_page, const uint8_t *new_page, int page_bytes,
                                             uint8_t *dst, int dlen)
{
    if (page_bytes == 4096)
        return colo_encode_avx2_of(old_page, new_page, 4096, dst, dlen);
    return colo_encode_avx2_of(old_page, new_page, page_bytes, dst, dlen);
}

COLO_AVX2_INLINE int colo_step_avx2_of(uint8_t *shadow, const uint8_t *live, const uint8_t *next_shadow,
                                       const uint8_t *next_live, uint8_t *snapshot, int page_bytes,
                                       uint8_t *dst, int dlen)
{
    uint64_t words[1 + COLO_WORDS_MAX], *const equal = words + 1;

    words[0] = ~0ULL;
    for (int w = 0; w < page_bytes / 64; w++) {
        const uint8_t *a = shadow + 64 * w;
        __m256i b0 = colo_load256(live + 64 * w), b1 = colo_load256(live + 64 * w + 32);
        colo_store256(snapshot + 64 * w, b0);
        colo_store256(snapshot + 64 * w + 32, b1);
        colo_equal_bytes_avx2(equal + w, colo_load256(a), b0, colo_load256(a + 32), b1);
    }
    colo_prefetch_next(next_shadow, next_live);
    const int encoded = colo_encode_words_avx2(equal, snapshot, page_bytes, dst, dlen);
    if (!encoded)
        return 0;
    for (int g = 0; g < page_bytes / 64; g += 64) {
        uint64_t lines = colo_changed_lines_avx2(equal + g, page_bytes / 64 - g < 64 ? page_bytes / 64 - g : 64);
        for (; lines; lines &= lines - 1) {
            const size_t at = 64 * ((size_t)g + _tzcnt_u64(lines));
            colo_store256(shadow + at, colo_load256(snapshot + at));
            colo_store256(shadow + at + 32, colo_load256(snapshot + at + 32));
        }
    }
    return encoded;
}

static COLO_AVX2 int colo_xbzrle_step_avx2(uint8_t *shadow, const uint8_t *live, const uint8_t *next_shadow,
                                           const uint8_t *next_live, uint8_t *snapshot, int page_bytes,
                                           uint8_t *dst, int dlen)
{
    if (page_bytes == 4096)
        return colo_step_avx2_of(shadow, live, next_shadow, next_live, snapshot, 4096, dst, dlen);
    return colo_step_avx2_of(shadow, live, next_shadow, next_live, snapshot, page_bytes, dst, dlen);
}

/* The first word tells most pages that are not zero; from there on a plain linear read is what memory likes best. */
static COLO_AVX2 int colo_is_zero_avx2(const void *p, size_t n)
{
    const uint8_t *at = p, *const end = at + n;

    if (n < 128)
        return colo_is_zero_portable(p, n);
    if (colo_load64(at))
        return 0;
    for (; end - at >= 128; at += 128) {
        __m256i any = _mm256_or_si256(_mm256_or_si256(colo_load256(at), colo_load256(at + 32)),
                                      _mm256_or_si256(colo_load256(at + 64), colo_load256(at + 96)));
        if (!_mm256_testz_si256(any, any))
            return 0;
    }
    if (at < end) {
        at = end - 128;
        __m256i any = _mm256_or_si256(_mm256_or_si256(colo_load256(at), colo_load256(at + 32)),
                                      _mm256_or_si256(colo_load256(at + 64), colo_load256(at + 96)));
        return _mm256_testz_si256(any, any);
    }
    return 1;
}

COLO_AVX2_INLINE int colo_equal_avx2(const uint8_t *a, const uint8_t *b, size_t page_bytes)
{
    for (size_t at = 0; at < page_bytes; at += 256) {
        __m256i any = _mm256_setzero_si256();
        for (size_t k = at; k < at + 256; k += 32)
            any = _mm256_or_si256(any, _mm256_xor_si256(colo_load256(a + k), colo_load256(b + k)));
        if (!_mm256_testz_si256(any, any))
            return 0;
    }
    return 1;
}

static COLO_AVX2 size_t colo_scan_avx2(const uint8_t *memory, const uint8_t *shadow, size_t pages, size_t page_bytes,
                                       uint64_t *bitmap, size_t first)
{
    size_t dirty = 0;

    for (size_t i = 0; i < pages; i++) {
        if (!colo_equal_avx2(memory + i * page_bytes, shadow + i * page_bytes, page_bytes)) {
            colo_set_bit(bitmap, first + i);
            dirty++;
        }
    }
    return dirty;
}

COLO_AVX2_INLINE uint64_t colo_sum_lanes_avx2(__m256i v)
{
    __m128i two = _mm_add_epi64(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    return (uint64_t)_mm_cvtsi128_si64(_mm_add_epi64(two, _mm_unpackhi_epi64(two, two)));
}

COLO_AVX2_INLINE __m256i colo_nh_avx2(__m256i sum, __m256i m, __m256i key)
{
    __m256i v = _mm256_add_epi32(m, key);
    return _mm256_add_epi64(sum, _mm256_mul_epu32(v, _mm256_srli_epi64(v, 32)));
}

static COLO_AVX2 size_t colo_scan_hash_avx2(const uint8_t *memory, uint64_t *hashes, const uint8_t *key, size_t pages,
                                            size_t page_bytes, uint64_t *bitmap, size_t first)
{
    size_t dirty = 0;

    for (size_t i = 0; i < pages; i++) {
        const uint8_t *page = memory + i * page_bytes;
        __m256i sum0 = _mm256_setzero_si256(), sum1 = sum0, sum2 = sum0, sum3 = sum0;
        for (size_t k = 0; k < page_bytes; k += 64) {
            __m256i low = colo_load256(page + k), high = colo_load256(page + k + 32);
            sum0 = colo_nh_avx2(sum0, low, colo_load256(key + k));
            sum1 = colo_nh_avx2(sum1, low, colo_load256(key + k + COLO_HASH_KEY_SHIFT));
            sum2 = colo_nh_avx2(sum2, high, colo_load256(key + k + 32));
            sum3 = colo_nh_avx2(sum3, high, colo_load256(key + k + 32 + COLO_HASH_KEY_SHIFT));
        }
        dirty += colo_note_hash(hashes + COLO_HASH_WORDS * i, colo_sum_lanes_avx2(_mm256_add_epi64(sum0, sum2)),
                                colo_sum_lanes_avx2(_mm256_add_epi64(sum1, sum3)), bitmap, first + i);
    }
    return dirty;
}

static const colo_kernels colo_kernels_avx2 = {
    .name = "avx2",
    .xbzrle_encode = colo_xbzrle_encode_avx2,
    .xbzrle_decode = colo_xbzrle_decode_portable,
    .xbzrle_check = colo_xbzrle_check_portable,
    .xbzrle_step = colo_xbzrle_step_avx2,
    .is_zero = colo_is_zero_avx2,
    .scan = colo_scan_avx2,
    .scan_hash = colo_scan_hash_avx2,
};
#endif
