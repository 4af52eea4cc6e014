# What the sender remembers of the receiver's pages, as the page encoder sees it.
from libc.stdint cimport uint8_t, uint64_t

from colo._fast.kernels.bitmap cimport DirtyBitmap


cdef extern from "pagecache.h" nogil:
    enum:
        COLO_CACHE_LIFETIME
    ctypedef struct colo_cache_slot:
        uint64_t address
        uint64_t age
    ctypedef struct colo_cache_counts:
        uint64_t hits, misses, unchanged, overflows, refused, evicted, encoded_bytes
    ctypedef struct colo_page_cache:
        colo_cache_slot *slots
        uint8_t *data
        size_t nslots
        size_t page_bytes
        colo_cache_counts counts
    ctypedef struct colo_shadow:
        uint8_t *data
        uint64_t *valid
        size_t pages
        size_t page_bytes
        colo_cache_counts counts
    void colo_cache_counts_move(colo_cache_counts *to, colo_cache_counts *source)
    uint8_t *colo_cache_find(colo_page_cache *c, uint64_t address, uint64_t age)
    uint8_t *colo_cache_insert(colo_page_cache *c, uint64_t address, uint64_t age)
    size_t colo_cache_index(const colo_page_cache *c, uint64_t address)
    void colo_cache_clear(colo_page_cache *c)
    size_t colo_cache_used(const colo_page_cache *c)
    void colo_cache_move(colo_page_cache *to, const colo_page_cache *source)


cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *mutex, const void *attributes)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)


cdef int check_page_bytes(Py_ssize_t page_bytes) except -1


cdef class RememberedPages:
    """Held by an encoder during each of its calls, so that nothing moves under it."""
    cdef pthread_mutex_t mutex
    cdef bint mutex_made
    cdef unsigned long holder
    cdef readonly Py_ssize_t page_bytes

    cdef int hold(self) except -1
    cdef void release(self) noexcept
    cdef colo_cache_counts *counts(self) noexcept


cdef class PageCache(RememberedPages):
    cdef colo_page_cache cache

    cdef int make(self, colo_page_cache *c, Py_ssize_t capacity_bytes) except -1
    cdef void unmake(self, colo_page_cache *c) noexcept


cdef class ShadowCache(RememberedPages):
    cdef colo_shadow shadow
    cdef readonly DirtyBitmap valid
    cdef Py_buffer view
    cdef bint viewed
    cdef Py_ssize_t mapped_bytes
