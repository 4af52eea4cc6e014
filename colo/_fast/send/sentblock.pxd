from libc.stdint cimport uint64_t

from colo._fast.kernels.bitmap cimport DirtyBitmap
from colo._fast.send.pagecache cimport RememberedPages
from colo._fast.send.ramrecords cimport colo_ram_block


cdef class SentBlock:
    cdef colo_ram_block c
    cdef Py_buffer memory
    cdef bint held                      # whether the buffer is exported for us
    cdef object bitmap
    cdef RememberedPages remembered

    cdef int open(self, str idstr, memory, DirtyBitmap bitmap, RememberedPages cache, uint64_t address, uint64_t age,
                  bint detect_zero) except -1
    cdef void close(self)
