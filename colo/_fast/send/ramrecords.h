/* Turns dirty pages of one RAM block into records of the ram section (wire.py), gathered for sending.
 *
 * Small things (headers, fill bytes, encoded pages) are written to an arena; raw pages are only pointed to:
 * into guest memory, or into the cache or shadow copy when one is kept, so that the bytes sent are the bytes
 * remembered even while the guest writes. Every page is looked at once.
 */
#pragma once
#include <sys/uio.h>

#include "bitmap.h"
#include "pagecache.h"
#include "simd/table.h"
#include "wire_numbers.h"

#define COLO_NAME_ROOM 256     /* u8 length + 255 bytes */

enum colo_page_kind {
    COLO_KIND_ZERO, COLO_KIND_PAGE, COLO_KIND_XBZRLE, COLO_KIND_LZ4_DELTA, COLO_KIND_ZSTD_DELTA,
    COLO_KIND_LZ4_PAGE, COLO_KIND_ZSTD_PAGE, COLO_KIND_MASK_DELTA, COLO_KIND_UNCHANGED, COLO_KINDS
};

typedef struct colo_record_counts {
    uint64_t pages[COLO_KINDS];
    uint64_t bytes[COLO_KINDS];   /* whole records: header, name and all */
} colo_record_counts;

/* Compresses one page beyond XBZRLE. xbzrle_bytes: what XBZRLE gave, or -1; old_page: NULL when there is
 * none. Returns the bytes written to dst[0..room) and the wire's encoding byte, or 0 to keep XBZRLE or send
 * the page raw. */
typedef struct colo_page_codec {
    int (*compress)(void *state, const uint8_t *old_page, const uint8_t *new_page, int page_bytes,
                    int xbzrle_bytes, uint8_t *dst, int room, int *encoding);
    void *state;
    int floor_bytes;              /* XBZRLE results up to this are kept without asking */
} colo_page_codec;

typedef struct colo_ram_block {
    const uint8_t *memory;
    size_t pages;
    size_t page_bytes;
    const uint64_t *dirty;        /* NULL: every page */
    colo_shadow *shadow;          /* at most one of shadow and cache */
    colo_page_cache *cache;
    uint64_t address;             /* the block's address as the cache's key */
    uint64_t age;
    const colo_kernels *kernels;
    int detect_zero;
    uint8_t name[COLO_NAME_ROOM]; /* as on the wire */
    size_t name_bytes;
} colo_ram_block;

/* Records that wait to be sent. */
typedef struct colo_records {
    uint8_t *arena;
    size_t used, room;
    struct iovec *iov;
    size_t first, count, max;     /* iov[first..count) is not sent yet */
    uint64_t bytes;               /* made since the records were last reset */
    int outside;                  /* iov points outside the arena: send before the caller gets control back */
    int named;                    /* the block's name has been written: records carry CONTINUE */
    uint8_t *snapshot;            /* one page */
    colo_page_codec codec;        /* compress NULL: none */
    colo_record_counts counts;
    colo_cache_counts remembered; /* of the cache or shadow copy, kept apart since threads share those */
} colo_records;

static inline void colo_put_u64(uint8_t *p, uint64_t value)
{
    value = __builtin_bswap64(value);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    value = __builtin_bswap64(value);
#endif
    memcpy(p, &value, 8);
}

static inline size_t colo_record_worst_bytes(size_t page_bytes)
{
    return 8 + COLO_NAME_ROOM + 3 + page_bytes + COLO_XBZRLE_SLACK;
}

/* Account for n bytes just written at arena[used]. */
static inline void colo_records_wrote(colo_records *r, size_t n)
{
    uint8_t *at = r->arena + r->used;
    struct iovec *last = r->count > r->first ? &r->iov[r->count - 1] : NULL;
    if (last && (uint8_t *)last->iov_base + last->iov_len == at)
        last->iov_len += n;
    else
        r->iov[r->count++] = (struct iovec){at, n};
    r->used += n;
    r->bytes += n;
}

static inline void colo_records_point(colo_records *r, const uint8_t *page, size_t n)
{
    r->iov[r->count++] = (struct iovec){(void *)page, n};
    r->bytes += n;
    r->outside = 1;
}

static inline void colo_records_reset(colo_records *r)
{
    r->used = r->first = r->count = 0;
    r->outside = 0;
}

static inline size_t colo_record_head(colo_records *r, const colo_ram_block *b, size_t page, uint64_t flag)
{
    uint8_t *at = r->arena + r->used;
    if (r->named) {
        colo_put_u64(at, (uint64_t)page * b->page_bytes | flag | WIRE_RAM_CONTINUE);
        return 8;
    }
    colo_put_u64(at, (uint64_t)page * b->page_bytes | flag);
    memcpy(at + 8, b->name, b->name_bytes);
    r->named = 1;
    return 8 + b->name_bytes;
}

static inline void colo_record_count(colo_records *r, int kind, size_t bytes)
{
    r->counts.pages[kind]++;
    r->counts.bytes[kind] += bytes;
}

static inline void colo_record_zero(colo_records *r, const colo_ram_block *b, size_t page)
{
    size_t n = colo_record_head(r, b, page, WIRE_RAM_ZERO);
    r->arena[r->used + n++] = 0;
    colo_records_wrote(r, n);
    colo_record_count(r, COLO_KIND_ZERO, n);
}

static inline void colo_record_page(colo_records *r, const colo_ram_block *b, size_t page,
                                    const uint8_t *bytes)
{
    size_t n = colo_record_head(r, b, page, WIRE_RAM_PAGE);
    colo_records_wrote(r, n);
    colo_records_point(r, bytes, b->page_bytes);
    colo_record_count(r, COLO_KIND_PAGE, n + b->page_bytes);
}

static inline int colo_encoding_kind(int encoding)
{
    return encoding == WIRE_ENCODING_XBZRLE ? COLO_KIND_XBZRLE
         : encoding == WIRE_ENCODING_LZ4_DELTA ? COLO_KIND_LZ4_DELTA
         : encoding == WIRE_ENCODING_ZSTD_DELTA ? COLO_KIND_ZSTD_DELTA
         : encoding == WIRE_ENCODING_LZ4_PAGE ? COLO_KIND_LZ4_PAGE
         : encoding == WIRE_ENCODING_MASK_DELTA ? COLO_KIND_MASK_DELTA : COLO_KIND_ZSTD_PAGE;
}

/* A record whose n encoded bytes already lie at arena[used + 8 + COLO_NAME_ROOM + 3]. */
static inline void colo_record_encoded(colo_records *r, const colo_ram_block *b, size_t page, int encoding,
                                       size_t n)
{
    const uint8_t *encoded = r->arena + r->used + 8 + COLO_NAME_ROOM + 3;
    size_t head = colo_record_head(r, b, page, WIRE_RAM_XBZRLE);
    uint8_t *at = r->arena + r->used + head;
    at[0] = (uint8_t)encoding;
    at[1] = (uint8_t)(n >> 8);
    at[2] = (uint8_t)n;
    memmove(at + 3, encoded, n);
    colo_records_wrote(r, head + 3 + n);
    colo_record_count(r, colo_encoding_kind(encoding), head + 3 + n);
}

static inline uint8_t *colo_record_encoding_room(colo_records *r)
{
    return r->arena + r->used + 8 + COLO_NAME_ROOM + 3;
}

static inline int colo_encoding_room_bytes(const colo_ram_block *b)
{
    /* An encoding longer than this would make a record longer than the raw page's, and its length has 16
     * bits. */
    return (int)(b->page_bytes - 3 < 65535 ? b->page_bytes - 3 : 65535);
}

/* A page whose old copy, equal to the receiver's page, is known. */
static inline void colo_encode_delta(colo_records *r, const colo_ram_block *b, size_t page, uint8_t *old,
                                     const uint8_t *next_old, const uint8_t *next_live)
{
    colo_cache_counts *counts = &r->remembered;
    const uint8_t *live = b->memory + page * b->page_bytes;
    int size = (int)b->page_bytes, room = colo_encoding_room_bytes(b), n, encoding = WIRE_ENCODING_XBZRLE;
    uint8_t *dst = colo_record_encoding_room(r);
    counts->hits++;
    if (!r->codec.compress) {
        n = b->kernels->xbzrle_step(old, live, next_old, next_live, r->snapshot, size, dst, room);
    } else {
        /* The codec needs the old page too, so the fused step, which overwrites it, cannot be used. */
        memcpy(r->snapshot, live, b->page_bytes);
        n = b->kernels->xbzrle_encode(old, r->snapshot, size, dst, room);
        if (n < 0 || n > r->codec.floor_bytes) {
            int better = r->codec.compress(r->codec.state, old, r->snapshot, size, n, dst, room, &encoding);
            if (better)
                n = better;
        }
        if (n)
            memcpy(old, r->snapshot, b->page_bytes);
    }
    if (n == 0) {
        counts->unchanged++;
        colo_record_count(r, COLO_KIND_UNCHANGED, 0);
    } else if (n < 0) {
        counts->overflows++;
        colo_record_page(r, b, page, old);
    } else {
        counts->encoded_bytes += (uint64_t)n;
        colo_record_encoded(r, b, page, encoding, (size_t)n);
    }
}

/* A page with no old copy to encode against. stable: its bytes, which nothing changes while they are
 * compressed; raw: where to gather them from, which stays until they are sent. */
static inline void colo_encode_fresh(colo_records *r, const colo_ram_block *b, size_t page,
                                     const uint8_t *stable, const uint8_t *raw)
{
    int encoding = 0, n = 0;
    if (r->codec.compress)
        n = r->codec.compress(r->codec.state, NULL, stable, (int)b->page_bytes, -1,
                              colo_record_encoding_room(r), colo_encoding_room_bytes(b), &encoding);
    if (n)
        colo_record_encoded(r, b, page, encoding, (size_t)n);
    else
        colo_record_page(r, b, page, raw);
}

/* The same for a page that is not remembered, straight from guest memory. */
static inline void colo_encode_live(colo_records *r, const colo_ram_block *b, size_t page)
{
    const uint8_t *live = b->memory + page * b->page_bytes;
    if (r->codec.compress)
        memcpy(r->snapshot, live, b->page_bytes);
    colo_encode_fresh(r, b, page, r->snapshot, live);
}

static inline void colo_encode_shadowed(colo_records *r, const colo_ram_block *b, size_t page, size_t next)
{
    colo_shadow *s = b->shadow;
    uint8_t *old = s->data + page * b->page_bytes;
    const uint8_t *live = b->memory + page * b->page_bytes;
    uint64_t bit = (uint64_t)1 << (page % 64);
    int valid = (s->valid[page / 64] & bit) != 0;
    if (b->detect_zero && b->kernels->is_zero(live, b->page_bytes)) {
        if (valid && b->kernels->is_zero(old, b->page_bytes)) {
            r->remembered.unchanged++;
            colo_record_count(r, COLO_KIND_UNCHANGED, 0);
            return;
        }
        memset(old, 0, b->page_bytes);
        s->valid[page / 64] |= bit;
        colo_record_zero(r, b, page);
    } else if (valid) {
        int more = next < b->pages;
        colo_encode_delta(r, b, page, old, more ? s->data + next * b->page_bytes : NULL,
                          more ? b->memory + next * b->page_bytes : NULL);
    } else {
        r->remembered.misses++;
        memcpy(old, live, b->page_bytes);
        s->valid[page / 64] |= bit;
        colo_encode_fresh(r, b, page, old, old);
    }
}

static inline void colo_encode_cached(colo_records *r, const colo_ram_block *b, size_t page, size_t next)
{
    colo_page_cache *c = b->cache;
    const uint8_t *live = b->memory + page * b->page_bytes;
    uint64_t address = b->address + (uint64_t)page * b->page_bytes;
    uint8_t *old = colo_cache_find(c, address, b->age);
    if (b->detect_zero && b->kernels->is_zero(live, b->page_bytes)) {
        if (old && b->kernels->is_zero(old, b->page_bytes)) {
            r->remembered.unchanged++;
            colo_record_count(r, COLO_KIND_UNCHANGED, 0);
            return;
        }
        if (!old)
            old = colo_cache_insert(c, address, b->age);
        if (old)
            memset(old, 0, b->page_bytes);
        colo_record_zero(r, b, page);
    } else if (old) {
        const uint8_t *next_old = NULL, *next_live = NULL;
        if (next < b->pages) {
            uint64_t next_address = b->address + (uint64_t)next * b->page_bytes;
            next_old = c->data + colo_cache_index(c, next_address) * b->page_bytes;
            next_live = b->memory + next * b->page_bytes;
        }
        colo_encode_delta(r, b, page, old, next_old, next_live);
    } else {
        r->remembered.misses++;
        old = colo_cache_insert(c, address, b->age);
        if (old) {
            memcpy(old, live, b->page_bytes);
            colo_encode_fresh(r, b, page, old, old);
        } else {
            colo_encode_live(r, b, page);
        }
    }
}

/* Add records of the dirty pages in from..end-1 until there is no room for another, or r->bytes reaches
 * limit_bytes. Returns the page to go on from, end when there is none; *seen grows by the pages looked at. */
static inline size_t colo_encode_pages(colo_records *r, const colo_ram_block *b, size_t from, size_t end,
                                       uint64_t limit_bytes, uint64_t *seen)
{
    size_t worst = colo_record_worst_bytes(b->page_bytes);
    size_t page = b->dirty ? colo_bitmap_next_set(b->dirty, end, from) : from;
    while (page < end && r->bytes < limit_bytes && r->room - r->used >= worst && r->max - r->count >= 2) {
        size_t next = b->dirty ? colo_bitmap_next_set(b->dirty, end, page + 1) : page + 1;
        if (b->shadow)
            colo_encode_shadowed(r, b, page, next < end ? next : b->pages);
        else if (b->cache)
            colo_encode_cached(r, b, page, next < end ? next : b->pages);
        else if (b->detect_zero && b->kernels->is_zero(b->memory + page * b->page_bytes, b->page_bytes))
            colo_record_zero(r, b, page);
        else
            colo_encode_live(r, b, page);
        ++*seen;
        page = next;
    }
    return page;
}
