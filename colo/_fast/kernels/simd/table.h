/* The table of kernels that every SIMD level fills in, and what each entry promises.
 *
 * Pages are 1 KiB to 64 KiB, a power of two. No entry needs alignment, allocates, or takes the GIL.
 * "differs" words: bit i of word w is set when byte 64 * w + i of the two pages differs.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>

#define COLO_PAGE_BYTES_MIN 1024
#define COLO_PAGE_BYTES_MAX 65536

/* Encoders may write (never read) this many bytes past dlen. */
#define COLO_XBZRLE_SLACK 64

/* Lengths on the wire have 14 bits. */
#define COLO_XBZRLE_RUN_MAX 0x3fff

/* A keyed page hash is two 64-bit sums; the second one uses the key moved on by this many bytes. */
#define COLO_HASH_KEY_SHIFT 64
#define COLO_HASH_WORDS 2

typedef struct colo_kernels {
    const char *name;

    /* Encode new_page against old_page into dst[0..dlen) (+ slack). Returns the encoded bytes, 0 when the pages are
     * equal, -1 when the encoding does not fit (or needs a run longer than COLO_XBZRLE_RUN_MAX). */
    int (*xbzrle_encode)(const uint8_t *old_page, const uint8_t *new_page, int page_bytes, uint8_t *dst, int dlen);

    /* Apply src[0..slen) to dst[0..dlen), the old page. Returns the bytes of the page covered, or -1 when src is
     * not a valid encoding for dlen bytes; dst may then have been changed in part. */
    int (*xbzrle_decode)(const uint8_t *src, int slen, uint8_t *dst, int dlen);

    /* The same verdict without touching a page. */
    int (*xbzrle_check)(const uint8_t *src, int slen, int dlen);

    /* The whole step for one page of memory that may be changing meanwhile: read live once into snapshot, encode
     * the snapshot against shadow, and make shadow equal to the snapshot by rewriting only its changed 64-byte
     * lines. Returns what xbzrle_encode does; snapshot and shadow are up to date in every case, also after -1.
     * next_shadow and next_live are the pair that follows (a few of its lines are prefetched), or NULL. */
    int (*xbzrle_step)(uint8_t *shadow, const uint8_t *live, const uint8_t *next_shadow, const uint8_t *next_live,
                       uint8_t *snapshot, int page_bytes, uint8_t *dst, int dlen);

    /* 1 when all n bytes are zero (also for n = 0), else 0. */
    int (*is_zero)(const void *p, size_t n);

    /* For each page i that differs between memory and shadow set bit first + i of bitmap (bit b is bit b % 64 of word
     * b / 64); no bit is cleared. Returns the number of pages that differ. */
    size_t (*scan)(const uint8_t *memory, const uint8_t *shadow, size_t pages, size_t page_bytes,
                   uint64_t *bitmap, size_t first);

    /* The same against two 64-bit words of keyed hash per page, which are replaced by those of memory. key has
     * page_bytes + COLO_HASH_KEY_SHIFT random bytes. */
    size_t (*scan_hash)(const uint8_t *memory, uint64_t *hashes, const uint8_t *key, size_t pages, size_t page_bytes,
                        uint64_t *bitmap, size_t first);
} colo_kernels;

#define COLO_INLINE static inline __attribute__((always_inline))
