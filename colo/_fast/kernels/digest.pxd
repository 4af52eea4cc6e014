from libc.stdint cimport uint8_t, uint64_t

from colo._fast.kernels.kernels cimport colo_kernels


cdef extern from "digest.h" nogil:
    enum:
        COLO_DIGEST_KEY_BYTES
    ctypedef struct colo_digest:
        const colo_kernels *kernels
        uint8_t *key
        uint64_t length_bytes
    void colo_digest_reset(colo_digest *d)
    void colo_digest_update(colo_digest *d, const uint8_t *p, size_t n)
    void colo_digest_value(const colo_digest *d, uint64_t *value)


cdef class StreamDigest:
    cdef colo_digest d
