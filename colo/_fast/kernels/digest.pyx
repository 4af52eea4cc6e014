"""A digest of the bytes of a checkpoint, at memory speed. See digest.h for what it finds."""
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

from colo._fast.kernels.kernels cimport for_level

import hashlib

cdef bytes KEY = hashlib.shake_256(b"colo: digest of a checkpoint, version 1").digest(COLO_DIGEST_KEY_BYTES)


cdef class StreamDigest:
    """A running digest: whatever pieces the bytes come in, the same bytes give the same digest.

    The same on every machine and SIMD level. Both ends of a connection keep one per checkpoint. ``simd``: see
    :mod:`colo._fast.kernels.kernels`. One user at a time.
    """

    def __init__(self, *, simd=None):
        self.d.kernels = for_level(simd)
        memcpy(self.d.key, <const uint8_t *>KEY, COLO_DIGEST_KEY_BYTES)
        colo_digest_reset(&self.d)

    def update(self, const uint8_t[::1] data not None):
        """Take further bytes."""
        if data.shape[0]:
            with nogil:
                colo_digest_update(&self.d, &data[0], data.shape[0])

    def reset(self):
        """Begin anew."""
        colo_digest_reset(&self.d)

    @property
    def length_bytes(self):
        """Bytes taken since the begin."""
        return self.d.length_bytes

    @property
    def value(self):
        """The digest of all bytes so far, an integer of 128 bits; further ones may follow."""
        cdef uint64_t words[2]
        colo_digest_value(&self.d, words)
        return (<object>words[0]) << 64 | words[1]
