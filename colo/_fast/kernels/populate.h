/* Memory that is backed before it is used, so that using it takes no page fault. */
#pragma once
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14; an older one refuses, and the memory comes at its first use */
#endif

/* start: on a page of the host. In steps, because the kernel holds the lock of the whole address space for each: a thread
 * that allocates meanwhile waits for one huge page, not for all of them. */
static inline void colo_populate(uint8_t *start, size_t n)
{
    const size_t step = (size_t)2 << 20;
    for (size_t at = 0; at < n; at += step)
        if (madvise(start + at, n - at < step ? n - at : step, MADV_POPULATE_WRITE))
            return;
}
