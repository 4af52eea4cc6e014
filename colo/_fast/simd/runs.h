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

/* Copy n >= 1 bytes; may write up to 15 bytes past dst + n, and reads 16 bytes from src at least. */
COLO_INLINE void colo_copy_over(uint8_t *dst, const uint8_t *src, unsigned n)
{
    colo_copy16(dst, src);
    if (n > 16) {
        unsigned k = 16;
        for (; k + 16 < n; k += 16)
            colo_copy16(dst + k, src + k);
        colo_copy16(dst + n - 16, src + n - 16);
    }
}

COLO_INLINE uint8_t *colo_put_length(uint8_t *d, unsigned n)
{
    if (n < 0x80) {
        *d = (uint8_t)n;
        return d + 1;
    }
    d[0] = (uint8_t)(n | 0x80);
    d[1] = (uint8_t)(n >> 7);
    return d + 2;
}

/* Bytes that dlen leaves over when every length takes one byte: below zero, the page overflows. A page that ends equal
 * needs room for two more bytes, as QEMU's encoder checks for a next run before it finds that there is none. */
COLO_INLINE long colo_spare(long changed, long runs, int ends_equal, int dlen)
{
    return (long)dlen - changed - 2 * runs - (ends_equal ? 2 : 0);
}

/* Write the runs. spare is what colo_spare gave, at least 0: each two-byte length takes one from it. */
COLO_INLINE int colo_emit(const uint16_t *positions, unsigned runs, const uint8_t *page, int page_bytes,
                          uint8_t *dst, long spare)
{
    uint8_t *d = dst;
    unsigned previous_end = 0, wide = runs, r = 0;

    /* Runs that start in the page's last 15 bytes are copied exactly: 16 bytes would be read past the page. */
    while (wide && positions[2 * (wide - 1)] > page_bytes - 16)
        wide--;
    for (; r < runs; r++) {
        unsigned start = positions[2 * r], end = positions[2 * r + 1];
        unsigned z = (uint16_t)(start - previous_end), n = (uint16_t)(end - start);

        previous_end = end;
        if (__builtin_expect((z | n) < 0x80, 1)) {
            uint16_t head = (uint16_t)(z | n << 8);
            d[0] = (uint8_t)head;
            d[1] = (uint8_t)(head >> 8);
            d += 2;
        } else {
            spare -= (z >= 0x80) + (n >= 0x80);
            if (spare < 0 || z > COLO_XBZRLE_RUN_MAX || n > COLO_XBZRLE_RUN_MAX)
                return -1;
            d = colo_put_length(d, z);
            d = colo_put_length(d, n);
        }
        if (r < wide)
            colo_copy_over(d, page + start, n);
        else
            for (unsigned k = 0; k < n; k++)
                d[k] = page[start + k];
        d += n;
    }
    return (int)(d - dst);
}
