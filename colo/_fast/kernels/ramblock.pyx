"""A RAM block as the core sees it: a name, a length, memory, and what is known of each page."""
from libc.errno cimport ENXIO, errno
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

import os

from colo.wire import IDSTR_MAX_BYTES, TARGET_PAGE_BYTES

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <unistd.h>
    """
    long lseek(int fd, long offset, int whence) noexcept nogil
    int SEEK_DATA, SEEK_HOLE


cdef class RamBlock:
    """One RAM block (QEMU's RAMBlock) of ``used_length`` bytes, a multiple of the target page (4096).

    ``memory`` is a writable contiguous buffer of at least ``used_length`` bytes, or None for a block whose pages are
    only counted. ``fd`` is the file behind ``memory`` when pages without storage there must be allocated before they
    are written (a shared mapping of a sparse file would otherwise end in SIGBUS on a full disk); -1 means all of it
    has storage.
    """

    def __init__(self, str idstr, uint64_t used_length, *, memory=None, int fd=-1):
        cdef uint8_t[::1] writable
        if self.c.present != NULL:
            raise RuntimeError("RamBlock is already initialised")
        self.name = idstr.encode()
        if not 1 <= len(self.name) <= IDSTR_MAX_BYTES:
            raise ValueError(f"a RAM block's name has 1 to {IDSTR_MAX_BYTES} bytes, not {len(self.name)}")
        if used_length == 0 or used_length % TARGET_PAGE_BYTES:
            raise ValueError(f"RAM block {idstr}: {used_length} bytes are not whole pages of {TARGET_PAGE_BYTES}")
        self.idstr = idstr
        self.c.name = self.name
        self.c.name_bytes = len(self.name)
        self.c.fd = fd
        if memory is not None:
            writable = memoryview(memory).cast("B")
            if <uint64_t>writable.shape[0] < used_length:
                raise ValueError(f"RAM block {idstr}: {writable.shape[0]} bytes of memory for {used_length}")
            self.c.memory = &writable[0]
            self.view = writable
        self.exporter = memory
        self.c.used_length = used_length
        self.words = (used_length // TARGET_PAGE_BYTES + 63) // 64
        self.c.present = <uint64_t *>calloc(self.words, 8)
        self.c.received = <uint64_t *>calloc(self.words, 8)
        self.c.zero = <uint64_t *>calloc(self.words, 8)
        if self.c.present == NULL or self.c.zero == NULL or self.c.received == NULL:
            raise MemoryError(f"no memory for the page bitmaps of RAM block {idstr}")
        if fd < 0:
            memset(self.c.present, 0xFF, self.words * 8)
        else:
            memset(self.c.zero, 0xFF, self.words * 8)

    def __dealloc__(self):
        free(self.c.present)
        free(self.c.zero)
        free(self.c.received)

    def __repr__(self):
        return f"RamBlock({self.idstr!r}, {self.used_length})"

    @property
    def used_length(self):
        """Bytes in use, whole target pages."""
        return self.c.used_length

    @property
    def memory_buffer(self):
        """The buffer given as ``memory``, or None."""
        return self.exporter

    @property
    def pages(self):
        """Target pages in the block."""
        return self.c.used_length // TARGET_PAGE_BYTES

    @property
    def present_pages(self):
        """Pages that have storage."""
        return min(self.count(self.c.present), self.pages)

    @property
    def received_pages(self):
        """Pages that have come at least once."""
        return self.count(self.c.received)

    @property
    def counts(self):
        """Records since :meth:`clear_counts`: pages by kind, and the encoded bytes of those that were encoded."""
        return {
            "zero_pages": self.c.zero_pages, "normal_pages": self.c.normal_pages,
            "xbzrle_pages": self.c.xbzrle_pages, "xbzrle_bytes": self.c.xbzrle_bytes,
            "compressed_pages": self.c.compressed_pages, "compressed_bytes": self.c.compressed_bytes,
        }

    def clear_counts(self):
        """Set the counts to zero."""
        self.c.zero_pages = self.c.normal_pages = self.c.xbzrle_pages = self.c.compressed_pages = 0
        self.c.xbzrle_bytes = self.c.compressed_bytes = 0

    def copy_zero_bits(self, uint64_t[::1] words not None):
        """Set bit n of ``words`` where page n is known to be zero, and clear the others; one bit for each page."""
        cdef size_t i
        if <size_t>words.shape[0] != self.words:
            raise ValueError(f"{words.shape[0]} words for {self.pages} pages; {self.words} are needed")
        for i in range(self.words):
            words[i] = self.c.zero[i]
        if self.pages % 64:
            words[self.words - 1] &= (<uint64_t>1 << (self.pages % 64)) - 1

    def note_storage(self):
        """Learn from the file behind the block which pages have storage; all others are zero. Before it is written to."""
        cdef long at = 0, end
        cdef uint64_t page
        cdef long length = <long>self.c.used_length
        cdef int code = 0
        if self.c.fd < 0:
            return
        with nogil:
            while at < length:
                at = lseek(self.c.fd, at, SEEK_DATA)
                if at < 0:
                    code = errno if errno != ENXIO else 0   # ENXIO: holes to the end
                    break
                end = lseek(self.c.fd, at, SEEK_HOLE)
                if end < 0:
                    code = errno
                    break
                if end > length:
                    end = length
                for page in range(<uint64_t>at // 4096, (<uint64_t>end + 4095) // 4096):
                    set_bit(self.c.present, page)
                    clear_bit(self.c.zero, page)
                at = end
        if code:
            raise OSError(code, os.strerror(code))

    def adopt(self, RamBlock other):
        """Take over what ``other`` (the same block at another length) knows of the pages both have."""
        cdef uint64_t page, pages = min(self.c.used_length, other.c.used_length) // TARGET_PAGE_BYTES
        cdef uint64_t mask
        cdef size_t i
        for i in range((pages + 63) // 64):
            page = <uint64_t>i * 64
            mask = ~<uint64_t>0 if pages - page >= 64 else (<uint64_t>1 << (pages - page)) - 1
            self.c.present[i] |= other.c.present[i] & mask
            self.c.received[i] = other.c.received[i] & mask
            # All of a new block counts as zero, which what the other holds may not be.
            self.c.zero[i] = (self.c.zero[i] & ~mask) | (other.c.zero[i] & mask)

    cdef uint64_t count(self, const uint64_t *words):
        cdef uint64_t total = 0, word
        cdef size_t i
        for i in range(self.words):
            word = words[i]
            while word:
                word &= word - 1
                total += 1
        return total
