/* XBZRLE on one page: (zrun length, nzrun length, nzrun bytes)*, lengths ULEB128 of at most 14 bits. */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Read a ULEB128 of one or two bytes; returns bytes used, or 0 when it is not one. */
static inline int colo_uleb14(const uint8_t *p, const uint8_t *end, uint32_t *value)
{
    if (p >= end)
        return 0;
    if (!(p[0] & 0x80)) {
        *value = p[0];
        return 1;
    }
    if (p + 1 >= end || (p[1] & 0x80))
        return 0;
    *value = (p[0] & 0x7f) | ((uint32_t)p[1] << 7);
    return 2;
}

/* Apply an encoding onto dst[0..dlen) (the old page), or with dst NULL only check it.
 * Returns the bytes of the page covered, or -1 when the encoding is not valid for a page of dlen bytes. */
static inline int colo_xbzrle_decode(const uint8_t *src, int slen, uint8_t *dst, int dlen)
{
    const uint8_t *p = src, *end = src + slen;
    int at = 0;
    while (p < end) {
        uint32_t run;
        int used = colo_uleb14(p, end, &run);
        if (!used || (p != src && run == 0))
            return -1;
        p += used;
        at += (int)run;
        if (at > dlen)
            return -1;
        used = colo_uleb14(p, end, &run);
        if (!used || run == 0)
            return -1;
        p += used;
        if (run > (uint32_t)(dlen - at) || run > (size_t)(end - p))
            return -1;
        if (dst)
            memcpy(dst + at, p, run);
        p += run;
        at += (int)run;
    }
    return at;
}
