/* XBZRLE on one page: (zrun length, nzrun length, nzrun bytes)*, lengths ULEB128 of at most 14 bits.
 * What decoders accept and return is QEMU's migration/xbzrle.c:xbzrle_decode_buffer. */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Copy n in 1..3 bytes: first, middle and last byte cover all of them. */
static inline __attribute__((always_inline)) void colo_copy_3(uint8_t *dst, const uint8_t *src, unsigned n)
{
    uint8_t a = src[0], b = src[n >> 1], c = src[n - 1];
    dst[0] = a;
    dst[n >> 1] = b;
    dst[n - 1] = c;
}

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
        colo_copy_3(dst, src, n);
    }
}

/* Two records of a zero run of 1..127 and one byte, as a little-endian word: with this taken off, no bit of the mask
 * is left; save for a second zero run that begins with 0x80: its length has two bytes. */
#define COLO_TWO_SINGLES 0x0000000101000101ULL
#define COLO_TWO_SINGLES_MASK 0x000000ff8000ff80ULL
#define COLO_SECOND_IS_LONG 0x0000000080000000ULL

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

/* One record with lengths of any kind, from p. Returns what follows it, or NULL when it is not valid; dst NULL:
 * check only. */
static __attribute__((noinline)) const uint8_t *colo_xbzrle_record(const uint8_t *p, const uint8_t *end, int first,
                                                uint8_t *dst, uint32_t dlen, uint32_t *at)
{
    uint32_t z, n;
    int used = colo_get_length(p, end - p, &z);

    if (!used || (z == 0 && !first))
        return NULL;
    p += used;
    used = colo_get_length(p, end - p, &n);
    if (!used || n == 0)
        return NULL;
    p += used;
    /* Neither sum can wrap: *at <= dlen, and z and n have 14 bits. */
    if (z + n > dlen - *at || n > (size_t)(end - p))
        return NULL;
    *at += z;
    if (dst)
        memcpy(dst + *at, p, n);
    *at += n;
    return p + n;
}

/* Records of lengths that no guess gets right: wait for each. Stops at the first that has a long length, or near
 * the end. */
static inline __attribute__((always_inline)) const uint8_t *colo_xbzrle_short_records(
    const uint8_t *p, const uint8_t *end, uint8_t *dst, uint32_t dlen, uint32_t *at)
{
    while (end - p >= 4) {
        const uint32_t z = p[0], n = p[1];
        if (z - 1 >= 127 || n - 1 >= 127)
            break;
        if (n + 2 > (size_t)(end - p) || z + n > dlen - *at)
            return NULL;
        if (dst)
            colo_copy_exact(dst + *at + z, p + 2, n);
        *at += z + n;
        p += 2 + n;
    }
    return p;
}

/* Where the next record starts depends on this one's length, and waiting for that load is most of the work. So the
 * common lengths are guessed, by branches the CPU predicts: one byte, and as many as in the record before. */
static inline __attribute__((always_inline)) int colo_xbzrle_walk(const uint8_t *src, int slen,
                                                                  uint8_t *dst, int dlen_int)
{
    const uint8_t *p = src, *const end = src + slen;
    const uint32_t dlen = dlen_int > 0 ? (uint32_t)dlen_int : 0;
    uint32_t at = 0, last = 16, surprises = 0;
    size_t last_step = 16;

    while (p < end) {
        uint32_t z, n, head = 2;
        if (__builtin_expect(end - p < 4, 0))
            goto any;
        z = p[0];
        n = p[1];
        /* A zero run of 1..127, then 1..3 bytes: there are most of these, so two are taken at once. */
        if (n - 1 < 3 && z - 1 < 127) {
            uint64_t v;
            uint32_t z2, n2;
            if (end - p < 10)
                goto one;
            __builtin_memcpy(&v, p, 8);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
            v = __builtin_bswap64(v);
#endif
            if (!(((v - COLO_TWO_SINGLES) & COLO_TWO_SINGLES_MASK) | (v & COLO_SECOND_IS_LONG))) {
                /* One byte each. */
                const uint32_t first = at + z, second = first + 1 + (uint8_t)(v >> 24);
                if (__builtin_expect(second >= dlen, 0))
                    return -1;
                if (dst) {
                    dst[first] = p[2];
                    dst[second] = p[5];
                }
                at = second + 1;
                p += 6;
                continue;
            }
            const uint8_t *q = p + 2 + n;
            z2 = q[0];
            n2 = q[1];
            if ((n2 - 1 < 3) & (z2 - 1 < 127)) {
                const uint32_t first = at + z, second = first + n + z2;
                if (__builtin_expect(second + n2 > dlen, 0))
                    return -1;
                if (dst) {
                    colo_copy_3(dst + first, p + 2, n);
                    colo_copy_3(dst + second, q + 2, n2);
                }
                at = second + n2;
                p = q + 2 + n2;
                continue;
            }
one:
            if (n + 2 > (size_t)(end - p) || at + z + n > dlen)
                return -1;
            at += z;
            if (dst)
                colo_copy_3(dst + at, p + 2, n);
            at += n;
            p += n + 2;
            surprises++;
            continue;
        }
        if (z - 1 >= 127) {
            if (z < 0x80 || n > 0x7f)
                goto any;
            z = (z & 0x7f) | n << 7;
            n = p[2];
            if (z == 0)
                goto any;
            if (n == 1) {
                at += z;
                if (at >= dlen)
                    return -1;
                if (dst)
                    dst[at] = p[3];
                at++;
                p += 4;
                continue;
            }
            head = 3;
        }
        if (n == last) {
            if (last_step + head > (size_t)(end - p) || z + n > dlen - at)
                return -1;
            at += z;
            if (dst)
                colo_copy_exact(dst + at, p + head, n);
            at += n;
            p += head + last_step;
            continue;
        }
        if (n - 1 < 127) {
            if (n + head > (size_t)(end - p) || z + n > dlen - at)
                return -1;
            at += z;
            if (dst)
                colo_copy_exact(dst + at, p + head, n);
            at += n;
            p += head + n;
            last = n;
            /* The same value, but not for the compiler, which would wait for n instead of guessing it. */
            last_step = n;
            __asm__("" : "+r"(last_step));
            if (++surprises < 32 || surprises * 32 < (size_t)(p - src))
                continue;
            /* More than about every eighth length was a new one: guessing costs more than it saves. */
            p = colo_xbzrle_short_records(p, end, dst, dlen, &at);
            if (!p)
                return -1;
            if (p == end)
                break;
        } else if (n >= 0x80 && end - p > 4 && p[head] < 0x80) {
            n = (n & 0x7f) | (uint32_t)p[head] << 7;
            head++;
            if (n == 0 || n + head > (size_t)(end - p) || z + n > dlen - at)
                return -1;
            at += z;
            if (dst)
                memcpy(dst + at, p + head, n);
            at += n;
            p += head + n;
            continue;
        }
any:
        p = colo_xbzrle_record(p, end, p == src, dst, dlen, &at);
        if (!p)
            return -1;
    }
    return (int)at;
}

/* Very many changed pages are one record. Returns what decoding does, or -2 when src is not exactly one, or not for sure. */
static inline __attribute__((always_inline)) int colo_xbzrle_single(const uint8_t *src, int slen,
                                                                    uint8_t *dst, int dlen)
{
    if (slen < 3)
        return -2;
    const uint32_t long_z = src[0] >> 7, z = (src[0] & 0x7f) | (long_z ? (uint32_t)src[1] << 7 : 0);
    uint32_t n = src[1 + long_z], head = 2 + long_z;

    if (n & 0x80) {
        if (head >= (uint32_t)slen || src[head] & 0x80)
            return -2;
        n = (n & 0x7f) | (uint32_t)src[head++] << 7;
    }
    if (head + n != (uint32_t)slen || n == 0 || (long_z && src[1] & 0x80))
        return -2;
    if (dlen < 0 || z + n > (uint32_t)dlen)
        return -1;
    if (dst) {
        if (n == 1)
            dst[z] = src[head];
        else
            memcpy(dst + z, src + head, n);
    }
    return (int)(z + n);
}

static __attribute__((noinline)) int colo_xbzrle_decode_records(const uint8_t *src, int slen, uint8_t *dst, int dlen)
{
    return colo_xbzrle_walk(src, slen, dst, dlen);
}

static __attribute__((noinline)) int colo_xbzrle_check_records(const uint8_t *src, int slen, int dlen)
{
    return colo_xbzrle_walk(src, slen, NULL, dlen);
}

static int colo_xbzrle_decode_portable(const uint8_t *src, int slen, uint8_t *dst, int dlen)
{
    const int single = colo_xbzrle_single(src, slen, dst, dlen);
    return single == -2 ? colo_xbzrle_decode_records(src, slen, dst, dlen) : single;
}

static int colo_xbzrle_check_portable(const uint8_t *src, int slen, int dlen)
{
    const int single = colo_xbzrle_single(src, slen, NULL, dlen);
    return single == -2 ? colo_xbzrle_check_records(src, slen, dlen) : single;
}
