/* What the sender remembers of the receiver's pages: a bounded, direct-mapped cache, or a whole shadow copy.
 *
 * The cache behaves as QEMU's (migration/page_cache.c): one slot per page address, and a slot used during the
 * last COLO_CACHE_LIFETIME checkpoints is not given to another page. So a page cached during one checkpoint
 * also cannot be evicted before its bytes, gathered straight from the cache, have been sent.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define COLO_CACHE_LIFETIME 2
#define COLO_CACHE_EMPTY (~(uint64_t)0)

typedef struct colo_cache_slot {
    uint64_t address;
    uint64_t age;
} colo_cache_slot;

typedef struct colo_cache_counts {
    uint64_t hits, misses, unchanged, overflows, refused, evicted, encoded_bytes;
} colo_cache_counts;

typedef struct colo_page_cache {
    colo_cache_slot *slots;
    uint8_t *data;
    size_t nslots;
    size_t page_bytes;
    colo_cache_counts counts;
} colo_page_cache;

typedef struct colo_shadow {
    uint8_t *data;
    uint64_t *valid;       /* bit set: data holds what the receiver holds */
    size_t pages;
    size_t page_bytes;
    colo_cache_counts counts;
} colo_shadow;

/* Add *from to *to and set it to 0. */
static inline void colo_cache_counts_move(colo_cache_counts *to, colo_cache_counts *from)
{
    to->hits += from->hits;
    to->misses += from->misses;
    to->unchanged += from->unchanged;
    to->overflows += from->overflows;
    to->refused += from->refused;
    to->evicted += from->evicted;
    to->encoded_bytes += from->encoded_bytes;
    memset(from, 0, sizeof *from);
}

static inline size_t colo_cache_index(const colo_page_cache *c, uint64_t address)
{
    return (size_t)(address / c->page_bytes) & (c->nslots - 1);
}

/* The cached page, made young again, or NULL. */
static inline uint8_t *colo_cache_find(colo_page_cache *c, uint64_t address, uint64_t age)
{
    size_t i = colo_cache_index(c, address);
    if (c->slots[i].address != address)
        return NULL;
    c->slots[i].age = age;
    return c->data + i * c->page_bytes;
}

/* Room for a page that is not cached, or NULL when its slot holds another page that is still young. */
static inline uint8_t *colo_cache_insert(colo_page_cache *c, uint64_t address, uint64_t age)
{
    size_t i = colo_cache_index(c, address);
    colo_cache_slot *slot = &c->slots[i];
    if (slot->address != COLO_CACHE_EMPTY && slot->address != address) {
        if (slot->age + COLO_CACHE_LIFETIME > age) {
            c->counts.refused++;
            return NULL;
        }
        c->counts.evicted++;
    }
    slot->address = address;
    slot->age = age;
    return c->data + i * c->page_bytes;
}

static inline void colo_cache_clear(colo_page_cache *c)
{
    for (size_t i = 0; i < c->nslots; i++)
        c->slots[i].address = COLO_CACHE_EMPTY;
}

static inline size_t colo_cache_used(const colo_page_cache *c)
{
    size_t used = 0;
    for (size_t i = 0; i < c->nslots; i++)
        used += c->slots[i].address != COLO_CACHE_EMPTY;
    return used;
}

/* Move the entries of one cache into another, empty one; of two that meet in a slot the younger stays. */
static inline void colo_cache_move(colo_page_cache *to, const colo_page_cache *from)
{
    for (size_t i = 0; i < from->nslots; i++) {
        const colo_cache_slot *old = &from->slots[i];
        if (old->address == COLO_CACHE_EMPTY)
            continue;
        size_t j = colo_cache_index(to, old->address);
        if (to->slots[j].address != COLO_CACHE_EMPTY && to->slots[j].age >= old->age)
            continue;
        to->slots[j] = *old;
        memcpy(to->data + j * to->page_bytes, from->data + i * from->page_bytes, from->page_bytes);
    }
}
