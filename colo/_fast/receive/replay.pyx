"""A committed checkpoint's entries brought onto the image: storage for every page first, then the pages, in the order they came.

Replaying is idempotent (XBZRLE replaces bytes, it does not add them): one cut short is repeated from the start.
"""
from libc.errno cimport ENOSYS, EOPNOTSUPP, errno
from libc.stdint cimport uint8_t, uint64_t, uintptr_t
from libc.string cimport memcpy

from colo._fast.kernels.kernels cimport active
from colo._fast.kernels.ramblock cimport clear_bit, ram_block, set_bit, test_bit
from colo._fast.receive.redolog cimport STAGED_PAGE, STAGED_XBZRLE, STAGED_ZERO, staged_entry

cdef extern from "wire_numbers.h":
    const uint64_t WIRE_PAGE_BYTES
    const int WIRE_PAGE_BITS

cdef extern from "pagecopy.h":
    void colo_copy_four(uint8_t **to, const uint8_t **source, size_t n) noexcept nogil
    void colo_copy_four_anywhere(uint8_t **to, const uint8_t **source, size_t n) noexcept nogil
    void colo_zero_stream(uint8_t *to, size_t n) noexcept nogil
    void colo_stream_fence() noexcept nogil

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    #include <unistd.h>
    int fallocate(int fd, int mode, off_t offset, off_t length);
    """
    int fallocate(int fd, int mode, long offset, long length) noexcept nogil
    ssize_t pwrite(int fd, const void *data, size_t n, long offset) noexcept nogil

cdef uint8_t zero_page[4096]


cdef int give_storage(const staged_entry *entries, size_t count, ram_block **blocks, int *bad_block,
                      uint64_t *bad_offset) noexcept nogil:
    cdef size_t i
    cdef const staged_entry *e
    cdef ram_block *b = NULL
    cdef uint64_t start = 0, end = 0
    cdef int code, block = -1
    for i in range(count):
        e = &entries[i]
        if e.kind == STAGED_ZERO or test_bit(blocks[e.block].present, e.page_offset >> WIRE_PAGE_BITS):
            continue
        if e.block == block and e.page_offset == end:
            end += WIRE_PAGE_BYTES
            continue
        if end > start:
            code = allocate(b, start, end)
            if code:
                bad_block[0] = block
                bad_offset[0] = start
                return code
        block = e.block
        b = blocks[block]
        start = e.page_offset
        end = start + WIRE_PAGE_BYTES
    if end > start:
        code = allocate(b, start, end)
        if code:
            bad_block[0] = block
            bad_offset[0] = start
            return code
    return 0


cdef void replay_entries(const staged_entry *entries, size_t count, ram_block **blocks, const uint8_t *log,
                         const uint8_t *made) noexcept nogil:
    cdef size_t i = 0
    cdef uint64_t page
    cdef const staged_entry *e
    cdef ram_block *b
    while i < count:
        e = &entries[i]
        b = blocks[e.block]
        if b.memory == NULL:
            pass
        elif e.kind == STAGED_PAGE:
            if i + 4 <= count and four_ascending_pages(e):
                replay_four(e, b, log)
                i += 4
                continue
            memcpy(b.memory + e.page_offset, log + e.data, WIRE_PAGE_BYTES)
            clear_bit(b.zero, e.page_offset >> WIRE_PAGE_BITS)
        elif e.kind == STAGED_ZERO:
            page = e.page_offset >> WIRE_PAGE_BITS
            for page in range(page, page + e.length):
                if not test_bit(b.zero, page):
                    colo_zero_stream(b.memory + (page << WIRE_PAGE_BITS), WIRE_PAGE_BYTES)
                    set_bit(b.zero, page)
        elif e.kind == STAGED_XBZRLE:
            active().xbzrle_decode(log + e.data, <int>e.length, b.memory + e.page_offset, <int>WIRE_PAGE_BYTES)
            clear_bit(b.zero, e.page_offset >> WIRE_PAGE_BITS)
        else:
            memcpy(b.memory + e.page_offset, made + e.data, WIRE_PAGE_BYTES)
            clear_bit(b.zero, e.page_offset >> WIRE_PAGE_BITS)
        i += 1
    colo_stream_fence()


cdef inline void replay_four(const staged_entry *e, ram_block *b, const uint8_t *log) noexcept nogil:
    cdef uint8_t *to[4]
    cdef const uint8_t *source[4]
    cdef int k
    for k in range(4):
        to[k] = b.memory + e[k].page_offset
        source[k] = log + e[k].data
        clear_bit(b.zero, e[k].page_offset >> WIRE_PAGE_BITS)
    if <uintptr_t>b.memory & 63:
        colo_copy_four_anywhere(to, source, WIRE_PAGE_BYTES)
    else:
        colo_copy_four(to, source, WIRE_PAGE_BYTES)


cdef inline bint four_ascending_pages(const staged_entry *e) noexcept nogil:
    """Whether e[0..4) are raw pages of one block, no page twice, so that their order does not matter."""
    cdef int k
    for k in range(1, 4):
        if e[k].kind != STAGED_PAGE or e[k].block != e[0].block or e[k].page_offset <= e[k - 1].page_offset:
            return False
    return True


cdef int allocate(ram_block *b, uint64_t start, uint64_t end) noexcept nogil:
    """Storage for [start, end) of a sparse block; 0 or an errno. Where the file system cannot allocate, write zeros."""
    cdef uint64_t at
    if b.fd >= 0 and fallocate(b.fd, 0, <long>start, <long>(end - start)) != 0:
        if errno != EOPNOTSUPP and errno != ENOSYS:
            return errno
        at = start
        while at < end:
            if pwrite(b.fd, zero_page, 4096, <long>at) != 4096:
                return errno
            at += WIRE_PAGE_BYTES
    for at in range(start >> WIRE_PAGE_BITS, end >> WIRE_PAGE_BITS):
        set_bit(b.present, at)
    return 0
