/* Several threads encode batches of one RAM block's pages; the caller's thread sends them in order, and
 * encodes too when nothing is ready to be sent.
 *
 * Batches are whole words of the bitmaps, so that threads never write to one word. The threads live for one
 * call only: that costs some tens of microseconds, against milliseconds of work, and leaves nothing to go
 * wrong after a fork.
 */
#pragma once
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

#include "ramrecords.h"

#define COLO_CREW_MAX 16
#define COLO_BATCH_PAGES 256
#define COLO_BATCH_ARENA_BYTES (1 << 20)

enum colo_batch_state { COLO_BATCH_FREE, COLO_BATCH_CLAIMED, COLO_BATCH_READY };

typedef struct colo_batch {
    colo_records records;
    uint64_t seen;
    int state;
} colo_batch;

typedef struct colo_crew {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    const colo_ram_block *block;
    colo_batch *batches;
    int nbatches, threads;
    size_t batch_pages;
    size_t next;                        /* page from which nothing is claimed yet */
    uint64_t claimed, sent;             /* batches since the call began */
    uint64_t sent_bytes, budget_bytes, worst_batch_bytes;
    int stop;
    colo_page_codec codecs[COLO_CREW_MAX];
    struct colo_crew_member { struct colo_crew *crew; int index; } members[COLO_CREW_MAX];
} colo_crew;

static inline void colo_crew_free(colo_crew *c)
{
    if (!c)
        return;
    for (int i = 0; c->batches && i < c->nbatches; i++) {
        free(c->batches[i].records.arena);
        free(c->batches[i].records.iov);
        free(c->batches[i].records.snapshot);
    }
    free(c->batches);
    pthread_mutex_destroy(&c->lock);
    pthread_cond_destroy(&c->changed);
    free(c);
}

static inline colo_crew *colo_crew_new(int threads, size_t page_bytes)
{
    colo_crew *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    size_t worst = colo_record_worst_bytes(page_bytes);
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->changed, NULL);
    c->threads = threads;
    c->batch_pages = COLO_BATCH_ARENA_BYTES / worst / 64 * 64;
    if (c->batch_pages < 64)
        c->batch_pages = 64;
    if (c->batch_pages > COLO_BATCH_PAGES)
        c->batch_pages = COLO_BATCH_PAGES;
    c->worst_batch_bytes = c->batch_pages * (8 + page_bytes) + COLO_NAME_ROOM;
    c->nbatches = 2 * threads;
    c->batches = calloc((size_t)c->nbatches, sizeof *c->batches);
    if (!c->batches) {
        colo_crew_free(c);
        return NULL;
    }
    for (int i = 0; i < c->nbatches; i++) {
        colo_records *r = &c->batches[i].records;
        /* Room before the first record for the block's name, should this batch be the first one sent. */
        r->room = COLO_NAME_ROOM + (c->batch_pages + 1) * worst;
        r->max = 2 * c->batch_pages + 2;
        r->arena = malloc(r->room);
        r->iov = calloc(r->max, sizeof *r->iov);
        r->snapshot = malloc(page_bytes);
        if (!r->arena || !r->iov || !r->snapshot) {
            colo_crew_free(c);
            return NULL;
        }
    }
    return c;
}

/* With the lock held: a batch to encode and its pages, or NULL. */
static inline colo_batch *colo_crew_claim(colo_crew *c, size_t *from, size_t *end)
{
    const colo_ram_block *b = c->block;
    if (c->stop || c->next >= b->pages || c->claimed - c->sent >= (uint64_t)c->nbatches)
        return NULL;
    if (c->budget_bytes - c->sent_bytes < (c->claimed - c->sent + 1) * c->worst_batch_bytes)
        return NULL;
    *from = c->next;
    if (!b->dirty) {
        *end = (c->next + c->batch_pages) / 64 * 64;
    } else {
        size_t first = colo_bitmap_next_set(b->dirty, b->pages, c->next), word = first / 64, pages = 0;
        for (; word < colo_bitmap_words(b->pages); word++) {
            size_t here = (size_t)colo_word_bits(b->dirty[word]);
            if (pages + here > c->batch_pages)
                break;
            pages += here;
        }
        *end = word * 64;
    }
    if (*end > b->pages)
        *end = b->pages;
    c->next = *end;
    colo_batch *batch = &c->batches[c->claimed++ % (uint64_t)c->nbatches];
    batch->state = COLO_BATCH_CLAIMED;
    return batch;
}

/* With the lock held, which is let go meanwhile. */
static inline void colo_crew_encode(colo_crew *c, colo_batch *batch, int member, size_t from, size_t end)
{
    pthread_mutex_unlock(&c->lock);
    colo_records *r = &batch->records;
    colo_records_reset(r);
    r->used = COLO_NAME_ROOM;
    r->bytes = 0;
    r->named = 1;
    r->codec = c->codecs[member];
    batch->seen = 0;
    colo_encode_pages(r, c->block, from, end, ~(uint64_t)0, &batch->seen);
    pthread_mutex_lock(&c->lock);
    batch->state = COLO_BATCH_READY;
    pthread_cond_broadcast(&c->changed);
}

static inline void *colo_crew_work(void *argument)
{
    struct colo_crew_member *me = argument;
    colo_crew *c = me->crew;
    size_t from, end;
    pthread_mutex_lock(&c->lock);
    while (!c->stop && c->next < c->block->pages) {
        colo_batch *batch = colo_crew_claim(c, &from, &end);
        if (batch)
            colo_crew_encode(c, batch, me->index, from, end);
        else
            pthread_cond_wait(&c->changed, &c->lock);
    }
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

/* Give the first record of a batch the block's name, in place of CONTINUE. */
static inline void colo_batch_name(colo_records *r, const colo_ram_block *b)
{
    uint8_t *head = r->arena + COLO_NAME_ROOM, *at = head - b->name_bytes;
    int flags = head[7], encoding = head[8];
    memcpy(at, head, 8);
    at[7] &= (uint8_t)~WIRE_RAM_CONTINUE;
    memcpy(at + 8, b->name, b->name_bytes);
    r->iov[0].iov_base = at;
    r->iov[0].iov_len += b->name_bytes;
    r->bytes += b->name_bytes;
    int kind = flags & WIRE_RAM_ZERO ? COLO_KIND_ZERO : flags & WIRE_RAM_PAGE ? COLO_KIND_PAGE
             : colo_encoding_kind(encoding);
    r->counts.bytes[kind] += b->name_bytes;
}

/* Move a sent batch's counts to the encoder's own records. */
static inline void colo_batch_account(colo_records *to, colo_batch *batch, uint64_t *seen)
{
    colo_records *r = &batch->records;
    for (int i = 0; i < COLO_KINDS; i++) {
        to->counts.pages[i] += r->counts.pages[i];
        to->counts.bytes[i] += r->counts.bytes[i];
    }
    memset(&r->counts, 0, sizeof r->counts);
    colo_cache_counts_move(&to->remembered, &r->remembered);
    to->bytes += r->bytes;
    *seen += batch->seen;
}

/* Encode with the whole crew from page *next on, until the block or the budget (less one batch) is used up.
 * send is called for each batch in order and returns 0 or a reason to stop, which is returned; what was
 * encoded and not sent is then lost. */
static inline int colo_crew_run(colo_crew *c, colo_records *to, const colo_ram_block *b, size_t *next,
                                uint64_t budget, uint64_t *seen, int (*send)(void *, colo_records *),
                                void *argument)
{
    pthread_t threads[COLO_CREW_MAX];
    int started = 0, status = 0;
    sigset_t all, before;
    size_t from, end;
    c->block = b;
    c->next = *next;
    c->claimed = c->sent = c->sent_bytes = 0;
    c->budget_bytes = budget;
    c->stop = 0;
    for (int i = 0; i < c->nbatches; i++)
        c->batches[i].state = COLO_BATCH_FREE;
    /* Python's signal handlers belong to the threads that Python knows. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (int i = 1; i < c->threads; i++) {
        c->members[started] = (struct colo_crew_member){c, i};
        /* With fewer threads than wished the work is done all the same. */
        if (pthread_create(&threads[started], NULL, colo_crew_work, &c->members[started]) == 0)
            started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_mutex_lock(&c->lock);
    while (!status) {
        colo_batch *first = &c->batches[c->sent % (uint64_t)c->nbatches], *batch;
        if (c->sent < c->claimed && first->state == COLO_BATCH_READY) {
            pthread_mutex_unlock(&c->lock);
            if (first->records.count) {
                if (!to->named)
                    colo_batch_name(&first->records, b);
                to->named = 1;
                status = send(argument, &first->records);
            }
            colo_batch_account(to, first, seen);
            pthread_mutex_lock(&c->lock);
            c->sent_bytes += first->records.bytes;
            first->state = COLO_BATCH_FREE;
            c->sent++;
            pthread_cond_broadcast(&c->changed);
        } else if ((batch = colo_crew_claim(c, &from, &end))) {
            colo_crew_encode(c, batch, 0, from, end);
        } else if (c->sent == c->claimed) {
            break;
        } else {
            pthread_cond_wait(&c->changed, &c->lock);
        }
    }
    c->stop = 1;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
    for (int i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    *next = c->next;
    return status;
}
