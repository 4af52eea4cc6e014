/* From "differs" words to XBZRLE bytes: what all SIMD levels share.
 *
 * A page's changes are a list of sorted u16 positions, (start, end) of each run of changed bytes. In a 64 KiB page
 * an end at 65536 wraps to 0; differences modulo 2^16 still give the length, save for the one run that fills the page,
 * which is too long for the wire anyway.
 */
#pragma once
#include <string.h>
#include "table.h"

#define COLO_WORDS_MAX (COLO_PAGE_BYTES_MAX / 64)

COLO_INLINE void colo_copy16(uint8_t *dst, const uint8_t *src)
{
    __builtin_memcpy(dst, src, 16);
}

COLO_INLINE void colo_copy32(uint8_t *dst, const uint8_t *src)
{
    __builtin_memcpy(dst, src, 32);
}

/* Copy n bytes; may write up to 16 bytes past dst + n, and reads 16 bytes from src at least. */
COLO_INLINE void colo_copy_over(uint8_t *dst, const uint8_t *src, unsigned n)
{
    colo_copy16(dst, src);
    if (n > 16) {
        if (n > 32) {
            for (unsigned k = 0; k + 32 < n; k += 32)
                colo_copy32(dst + k, src + k);
            colo_copy32(dst + n - 32, src + n - 32);
        } else {
            colo_copy16(dst + n - 16, src + n - 16);
        }
    }
}

/* Both lengths of a run as they go on the wire, first byte lowest; *bytes says how many they take. Long zero runs
 * come in no order a branch predictor could learn, so only the long changed runs, rare beside the copy they bring,
 * get a branch. */
COLO_INLINE uint32_t colo_head(uint32_t z, uint32_t n, unsigned *bytes)
{
    uint32_t z_long = z >= 0x80, z_wire = z_long ? ((z & 0x7f) | 0x80 | z >> 7 << 8) : z, n_wire = n;

    *bytes = 2 + z_long;
    if (__builtin_expect(n >= 0x80, 0)) {
        n_wire = (n & 0x7f) | 0x80 | n >> 7 << 8;
        ++*bytes;
    }
    return z_wire | n_wire << (8 << z_long);
}

COLO_INLINE void colo_put32(uint8_t *d, uint32_t v)
{
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap32(v);
#endif
    __builtin_memcpy(d, &v, 4);
}

/* For each byte: the positions of its bits, and how many there are. Filled once, before any table is handed out. */
static uint8_t colo_bit_positions[256][8];
static uint8_t colo_bit_counts[256];

static void colo_fill_tables(void)
{
    for (int v = 0; v < 256; v++) {
        int n = 0;
        for (int i = 0; i < 8; i++)
            if (v >> i & 1)
                colo_bit_positions[v][n++] = (uint8_t)i;
        colo_bit_counts[v] = (uint8_t)n;
    }
}

/* Append the positions of the bits of t; up to 8 more are written. */
COLO_INLINE uint16_t *colo_flatten_bytes(uint16_t *at, uint64_t t, unsigned base)
{
    for (int k = 0; k < 64; k += 8) {
        const uint8_t *bits = colo_bit_positions[t >> k & 0xff];
        for (int i = 0; i < 8; i++)
            at[i] = (uint16_t)(base + k + bits[i]);
        at += colo_bit_counts[t >> k & 0xff];
    }
    return at;
}

COLO_INLINE unsigned colo_lowest_bit(uint64_t t)
{
    return (unsigned)__builtin_ctzll(t);
}

/* Transitions: a bit at each start and each end of a run. Returns a bit per word of a group of up to 64 that has any.
 * carry says whether the byte before changed, and then whether the last one did. */
COLO_INLINE uint64_t colo_transitions(const uint64_t *differs, uint64_t *transitions, int words, uint64_t *carry)
{
    uint64_t bits = 0;
    for (int w = 0; w < words; w++) {
        uint64_t t = differs[w] ^ (differs[w] << 1 | *carry);
        *carry = differs[w] >> 63;
        transitions[w] = t;
        bits |= (uint64_t)(t != 0) << w;
    }
    return bits;
}

/* A list of positions has one zero before it, and room for what is written past its end. */
#define COLO_LIST_LENGTH (1 + COLO_PAGE_BYTES_MAX + 128)

/* Lists all transitions, or returns -1 when they are more than dlen bytes can hold: each run takes three. */
COLO_INLINE int colo_flatten(const uint64_t *transitions, const uint64_t *nonzero, int page_bytes, int ends_changed,
                             int dlen, uint16_t *positions)
{
    const int words = page_bytes / 64, most = 2 * (dlen / 3) + 1;
    uint16_t *at = positions;

    positions[-1] = 0;
    for (int g = 0; g < words; g += 64) {
        for (uint64_t bits = nonzero[g / 64]; bits; bits &= bits - 1) {
            const int w = g + (int)colo_lowest_bit(bits);
            uint64_t t = transitions[w];
            uint16_t *const first = at;
            for (int k = 0; k < 4; k++) {
                *at = (uint16_t)(64 * w + colo_lowest_bit(t | 1ULL << 63));
                at += t != 0;
                t &= t - 1;
            }
            if (t)
                at = colo_flatten_bytes(first, transitions[w], 64 * (unsigned)w);
            if (__builtin_expect(at - positions > most, 0))
                return -1;
        }
    }
    if (ends_changed)
        *at++ = (uint16_t)page_bytes;
    return (int)(at - positions);
}

/* Changed bytes; 0 for the one run of 65536. */
COLO_INLINE long colo_changed(const uint16_t *positions, unsigned runs)
{
    unsigned changed = 0;
    for (unsigned r = 0; r < runs; r++)
        changed += (uint16_t)(positions[2 * r + 1] - positions[2 * r]);
    return (long)changed;
}

/* Bytes that dlen leaves over when every length takes one byte: below zero, the page overflows. A page that ends
 * equal needs room for two more bytes, as QEMU's encoder checks for a next run before it finds that there is none. */
COLO_INLINE long colo_spare(long changed, long runs, int ends_equal, int dlen)
{
    return (long)dlen - changed - 2 * runs - (ends_equal ? 2 : 0);
}

/* Runs that start in the page's last 15 bytes are copied exactly: 16 bytes would be read past the page. */
COLO_INLINE unsigned colo_wide_runs(const uint16_t *positions, unsigned runs, int page_bytes)
{
    while (runs && positions[2 * (runs - 1)] > page_bytes - 16)
        runs--;
    return runs;
}

COLO_INLINE uint8_t *colo_emit_run(const uint16_t *position, const uint8_t *page, uint8_t *d, int exact)
{
    const unsigned start = position[0], z = (uint16_t)(start - position[-1]), n = (uint16_t)(position[1] - start);
    unsigned bytes;

    colo_put32(d, colo_head(z, n, &bytes));
    d += bytes;
    if (!exact)
        colo_copy_over(d, page + start, n);
    else
        for (unsigned k = 0; k < n; k++)
            d[k] = page[start + k];
    return d + n;
}

/* Write runs [r, runs), d at the end of those before, with as many two-byte lengths as spare (at least 0) allows. */
COLO_INLINE uint8_t *colo_emit(const uint16_t *positions, unsigned r, unsigned runs, const uint8_t *page,
                               int page_bytes, uint8_t *d, long spare)
{
    const unsigned wide = colo_wide_runs(positions, runs, page_bytes);

    for (; r < runs; r++) {
        unsigned z = (uint16_t)(positions[2 * r] - positions[2 * (int)r - 1]);
        unsigned n = (uint16_t)(positions[2 * r + 1] - positions[2 * r]);

        spare -= (z >= 0x80) + (n >= 0x80);
        if (spare < 0 || (page_bytes > COLO_XBZRLE_RUN_MAX && (z > COLO_XBZRLE_RUN_MAX || n > COLO_XBZRLE_RUN_MAX)))
            return NULL;
        d = colo_emit_run(positions + 2 * r, page, d, r >= wide);
    }
    return d;
}

/* The same for fewer than 16 runs, and as free of branches that depend on the page as can be: two runs at a time,
 * an odd one followed by an empty run that is taken off again. positions has room for it. Sizes are checked at the
 * end: two-byte lengths of so few runs stay within the slack. */
#define COLO_FEW_RUNS 16
COLO_INLINE int colo_emit_few(uint16_t *positions, unsigned runs, const uint8_t *page, int page_bytes,
                              uint8_t *dst, long changed, long spare)
{
    if (page_bytes > COLO_XBZRLE_RUN_MAX || positions[2 * runs - 2] > page_bytes - 16) {
        uint8_t *end = colo_emit(positions, 0, runs, page, page_bytes, dst, spare);
        return end ? (int)(end - dst) : -1;
    }
    const unsigned last_end = positions[2 * runs - 1], padded = (runs + 1) & ~1u;
    uint8_t *d = dst;
    positions[2 * runs] = positions[2 * runs + 1] = 0;
    for (unsigned r = 0; r < padded; r += 2)
        for (unsigned k = 0; k < 2; k++)
            d = colo_emit_run(positions + 2 * (r + k), page, d, 0);
    /* The empty run took two bytes, and a third when the way back to 0 was long. */
    long made_up = padded > runs ? 2 + ((uint16_t)-last_end >= 0x80) : 0;
    long size = d - dst - made_up;
    return size - changed - 2 * (long)runs > spare ? -1 : (int)size;
}
