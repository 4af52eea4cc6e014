/* XBZRLE on one page: (zrun length, nzrun length, nzrun bytes)*, lengths ULEB128 of at most 14 bits.
 * What decoders accept and return is QEMU's migration/xbzrle.c:xbzrle_decode_buffer. */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Copy n in 1..127 bytes, touching nothing outside [dst, dst + n) and [src, src + n). */
static inline __attribute__((always_inline)) void colo_copy_exact(uint8_t *dst, const uint8_t *src, unsigned n)
{
    if (n >= 16) {
        unsigned k = 0;
        for (; k + 16 < n; k += 16)
            __builtin_memcpy(dst + k, src + k, 16);
        __builtin_memcpy(dst + n - 16, src + n - 16, 16);
    } else if (n >= 8) {
        uint64_t a, b;
        __builtin_memcpy(&a, src, 8);
        __builtin_memcpy(&b, src + n - 8, 8);
        __builtin_memcpy(dst, &a, 8);
        __builtin_memcpy(dst + n - 8, &b, 8);
    } else if (n >= 4) {
        uint32_t a, b;
        __builtin_memcpy(&a, src, 4);
        __builtin_memcpy(&b, src + n - 4, 4);
        __builtin_memcpy(dst, &a, 4);
        __builtin_memcpy(dst + n - 4, &b, 4);
    } else {
        /* 1, 2 or 3: first, middle and last byte cover all of them. */
        uint8_t a = src[0], b = src[n >> 1], c = src[n - 1];
        dst[0] = a;
        dst[n >> 1] = b;
        dst[n - 1] = c;
    }
}

/* Read a ULEB128 of one or two bytes from p[0..left); returns the bytes used, 0 when it is not one. */
static inline int colo_get_length(const uint8_t *p, ptrdiff_t left, uint32_t *value)
{
    if (left < 1)
        return 0;
    *value = p[0] & 0x7f;
    if (!(p[0] & 0x80))
        return 1;
    if (left < 2 || (p[1] & 0x80))
        return 0;
    *value |= (uint32_t)p[1] << 7;
    return 2;
}

/* dst NULL: check only. */
static inline __attribute__((always_inline)) int colo_xbzrle_walk(const uint8_t *src, int slen, uint8_t *dst, int dlen)
{
    const uint8_t *p = src, *const end = src + slen;
    int at = 0;

    while (p < end) {
        uint32_t z, n;
        if (end - p >= 2 && (z = p[0], n = p[1], n - 1 < 127) && (z - 1 < 127 || (z == 0 && p == src))) {
            p += 2;
        } else {
            int used = colo_get_length(p, end - p, &z);
            if (!used || (z == 0 && p != src))
                return -1;
            p += used;
            used = colo_get_length(p, end - p, &n);
            if (!used || n == 0)
                return -1;
            p += used;
        }
        /* Neither sum can wrap: at <= dlen, and z and n have 14 bits. */
        if (z + n > (uint32_t)(dlen - at) || n > (uint32_t)(end - p))
            return -1;
        at += (int)z;
        if (dst) {
            if (n < 128)
                colo_copy_exact(dst + at, p, n);
            else
                memcpy(dst + at, p, n);
        }
        at += (int)n;
        p += n;
    }
    return at;
}

static int colo_xbzrle_decode_portable(const uint8_t *src, int slen, uint8_t *dst, int dlen)
{
    return colo_xbzrle_walk(src, slen, dst, dlen);
}

static int colo_xbzrle_check_portable(const uint8_t *src, int slen, int dlen)
{
    return colo_xbzrle_walk(src, slen, NULL, dlen);
}
