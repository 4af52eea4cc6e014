/* A digest of a stream of bytes at memory speed: whatever the pieces it comes in, the same bytes give the same digest.
 *
 * Blocks of 4096 bytes are hashed by the kernels' page hash (NH) under a key that both ends derive from the same text;
 * the blocks' hashes are chained. It finds damage (a changed bit, a lost or doubled piece), with odds of about 2^-64 for
 * missing some; it is no protection against somebody who wants to deceive: that is what TLS is for.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "simd/table.h"

#define COLO_DIGEST_BLOCK_BYTES 4096
#define COLO_DIGEST_KEY_BYTES (COLO_DIGEST_BLOCK_BYTES + COLO_HASH_KEY_SHIFT)

typedef struct colo_digest {
    uint64_t chain[2];
    uint64_t length_bytes;
    size_t pending;
    const colo_kernels *kernels;
    uint8_t key[COLO_DIGEST_KEY_BYTES];
    uint8_t block[COLO_DIGEST_BLOCK_BYTES];
} colo_digest;

static inline void colo_digest_reset(colo_digest *d)
{
    d->chain[0] = 0x9E3779B97F4A7C15u;
    d->chain[1] = 0xC2B2AE3D27D4EB4Fu;
    d->length_bytes = 0;
    d->pending = 0;
}

/* Full 64 x 64 -> 128 bit product, folded: every bit of the chain reaches every other within two steps. */
static inline uint64_t colo_digest_fold(uint64_t a, uint64_t b)
{
    __extension__ unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline void colo_digest_chain(colo_digest *d, uint64_t a, uint64_t b)
{
    uint64_t first = d->chain[0], second = d->chain[1];
    d->chain[0] = colo_digest_fold(first ^ a, 0x9FB21C651E98DF25u) + second;
    d->chain[1] = colo_digest_fold(second ^ b, 0xD6E8FEB86659FD93u) ^ (first << 32 | first >> 32);
}

static inline void colo_digest_block(colo_digest *d, const uint8_t *block)
{
    uint64_t hash[COLO_HASH_WORDS] = {0}, changed = 0;
    d->kernels->scan_hash(block, hash, d->key, 1, COLO_DIGEST_BLOCK_BYTES, &changed, 0);
    colo_digest_chain(d, hash[0], hash[1]);
}

static inline void colo_digest_update(colo_digest *d, const uint8_t *p, size_t n)
{
    d->length_bytes += n;
    if (d->pending) {
        size_t room = COLO_DIGEST_BLOCK_BYTES - d->pending, taken = n < room ? n : room;
        memcpy(d->block + d->pending, p, taken);
        d->pending += taken;
        p += taken;
        n -= taken;
        if (d->pending < COLO_DIGEST_BLOCK_BYTES)
            return;
        colo_digest_block(d, d->block);
        d->pending = 0;
    }
    for (; n >= COLO_DIGEST_BLOCK_BYTES; p += COLO_DIGEST_BLOCK_BYTES, n -= COLO_DIGEST_BLOCK_BYTES)
        colo_digest_block(d, p);
    if (n)
        memcpy(d->block, p, n);
    d->pending = n;
}

/* The digest of all bytes so far; more may follow. */
static inline void colo_digest_value(const colo_digest *d, uint64_t value[2])
{
    colo_digest end = *d;
    memset(end.block + end.pending, 0, COLO_DIGEST_BLOCK_BYTES - end.pending);
    if (end.pending)
        colo_digest_block(&end, end.block);
    colo_digest_chain(&end, d->length_bytes, ~d->length_bytes);
    colo_digest_chain(&end, 0, 0);
    value[0] = end.chain[0];
    value[1] = end.chain[1];
}
