"""Dirty pages by a keyed 128-bit hash of each page: half the reading of a shadow copy and 16 bytes per
page, and a chance to miss.

The hash is NH under a random key drawn at each start. For two different contents of a page, chosen without
knowledge of the key, it is equal with probability at most 2^-64: at 25,000 dirty pages a checkpoint and 20
checkpoints a second a miss is expected once in more than a million years. The key must stay secret from
whoever runs in the VM: a guest that learnt it could write a page and keep its hash. Because a miss, however
rare, is a silent difference, this tracker is never chosen by itself.

The decision is by content, and there is no shadow to send from: keep the VM paused from the harvest until
the pages are copied.
"""
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memset

from colo._fast.kernels cimport kernels
from colo._fast.trackers.base cimport BlockTracker

import os

from colo._fast.trackers.base import ProcessMemory
from colo.errors import Unsupported


cdef class HashTracker(BlockTracker):
    """Dirty pages of one block by a keyed hash per page; see the module's text for the odds."""

    name = "hash"
    atomic = True
    by_content = True

    cdef bytes key
    cdef bytearray store
    cdef uint64_t *hashes

    def __init__(self, memory, *, block="ram", size_t page_bytes=4096):
        if isinstance(memory, ProcessMemory):
            raise Unsupported(f"{block}: hash reads memory of this process; map the other's here first")
        super().__init__(memory, block=block, page_bytes=page_bytes)

    cdef int begin(self) except -1:
        self.key = os.urandom(self.page_bytes + kernels.COLO_HASH_KEY_SHIFT)
        self.store = bytearray(8 * kernels.COLO_HASH_WORDS * self.pages)
        self.hashes = <uint64_t *><char *>self.store
        with nogil:
            memset(self.found, 0, 8 * self.words)
        self.find(self.found)
        return 0

    cdef int find(self, uint64_t *found) except -1:
        cdef const uint8_t *key = <const uint8_t *><const char *>self.key
        with nogil:
            kernels.active().scan_hash(self.base, self.hashes, key, self.pages, self.page_bytes, found, 0)
        return 0

    cdef int end(self) except -1:
        self.key = None
        self.store = None
        self.hashes = NULL
        return 0
