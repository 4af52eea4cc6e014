/* Copies a list of buffers one behind the other: records, of which most bytes are whole pages from all over memory. */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>

#include "pagecopy.h"

#define COLO_COLLECT_LONG_BYTES 1024

static inline void colo_collect(uint8_t *to, const struct iovec *iov, size_t count)
{
    uint8_t *target[4];
    const uint8_t *source[4];
    size_t length = 0;
    int waiting = 0;
    for (size_t i = 0; i < count; i++) {
        size_t n = iov[i].iov_len;
        if (n < COLO_COLLECT_LONG_BYTES) {
            memcpy(to, iov[i].iov_base, n);
        } else {
            if (waiting && n != length) { /* four of one length go together */
                while (waiting--)
                    memcpy(target[waiting], source[waiting], length);
                waiting = 0;
            }
            length = n;
            target[waiting] = to;
            source[waiting++] = iov[i].iov_base;
            if (waiting == 4) {
                colo_copy_four_anywhere(target, source, length);
                waiting = 0;
            }
        }
        to += n;
    }
    while (waiting--)
        memcpy(target[waiting], source[waiting], length);
    colo_stream_fence();
}
