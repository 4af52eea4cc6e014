/* Dirty bits that several threads set while one takes them: page n is bit n % 64 of word n / 64, every word
 * touched atomically. And the two questions a tracker asks about the memory under it. */
#pragma once
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* Linux 5.14 */
#endif

static inline void colo_words_mark(uint64_t *words, size_t first, size_t count)
{
    while (count) {
        size_t bit = first % 64, here = 64 - bit < count ? 64 - bit : count;
        uint64_t mask = (here == 64 ? ~(uint64_t)0 : ((uint64_t)1 << here) - 1) << bit;
        __atomic_fetch_or(&words[first / 64], mask, __ATOMIC_RELEASE);
        first += here;
        count -= here;
    }
}

/* The bits of src into dst; bits past the last page are dropped. */
static inline void colo_words_merge(uint64_t *dst, const uint64_t *src, size_t words, uint64_t tail_mask)
{
    for (size_t i = 0; i < words; i++) {
        uint64_t word = i + 1 == words ? src[i] & tail_mask : src[i];
        if (word)
            __atomic_fetch_or(&dst[i], word, __ATOMIC_RELEASE);
    }
}

/* out |= found | pending, leaving pending empty. Returns the pages in found | pending. */
static inline size_t colo_words_take(uint64_t *pending, const uint64_t *found, uint64_t *out, size_t words,
                                     uint64_t tail_mask)
{
    size_t count = 0;
    for (size_t i = 0; i < words; i++) {
        uint64_t word = found[i];
        if (__atomic_load_n(&pending[i], __ATOMIC_RELAXED))
            word |= __atomic_exchange_n(&pending[i], 0, __ATOMIC_ACQ_REL);
        if (i + 1 == words)
            word &= tail_mask;
        if (word) {
            out[i] |= word;
            count += (size_t)__builtin_popcountll(word);
        }
    }
    return count;
}

static inline void colo_words_clear(uint64_t *words, size_t count)
{
    for (size_t i = 0; i < count; i++)
        __atomic_store_n(&words[i], 0, __ATOMIC_RELAXED);
}

/* Is [base, base + length) of this process still mapped, and backed to its last byte? 0 when so; ENOMEM: a
 * part was unmapped; EFAULT: the file under it was made shorter (reading on would be SIGBUS). */
static inline int colo_memory_lost(const uint8_t *base, size_t length, size_t host_page_bytes)
{
    uintptr_t low = (uintptr_t)base & ~(uintptr_t)(host_page_bytes - 1);
    uintptr_t high = ((uintptr_t)base + length + host_page_bytes - 1) & ~(uintptr_t)(host_page_bytes - 1);
    /* MS_ASYNC starts no I/O on Linux: it only walks the mappings. */
    if (msync((void *)low, high - low, MS_ASYNC) && errno == ENOMEM)
        return ENOMEM;
    if (!madvise((void *)(high - host_page_bytes), host_page_bytes, MADV_POPULATE_READ))
        return 0;
    if (errno != EINVAL)
        return errno == EFAULT || errno == ENOMEM ? errno : 0;
    uint8_t byte; /* before 5.14: let the kernel read the last byte, which fails where we would be killed */
    struct iovec local = {&byte, 1}, remote = {(uint8_t *)base + length - 1, 1};
    return process_vm_readv(getpid(), &local, 1, &remote, 1, 0) < 0 && errno == EFAULT ? EFAULT : 0;
}
