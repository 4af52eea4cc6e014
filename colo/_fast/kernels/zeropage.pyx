"""Pages of zeros. See zeropage.pyi."""
from libc.stdint cimport uint8_t, uint64_t

from colo._fast.kernels.kernels cimport check_apart, check_page_bytes, colo_kernels, for_level, whole_pages
from colo._fast.kernels.views cimport Views, release, take


def is_zero(memory, *, level=None):
    cdef const colo_kernels *k = for_level(level)
    cdef Views views
    cdef Py_ssize_t size
    cdef const uint8_t *p
    cdef int zero
    views.count = 0
    try:
        p = <const uint8_t *>take(&views, memory, c"B", False, "memory", &size)
        with nogil:
            zero = k.is_zero(p, size)
        return bool(zero)
    finally:
        release(&views)


def is_zero_pages(memory, Py_ssize_t page_bytes, bitmap, *, level=None):
    cdef const colo_kernels *k = for_level(level)
    check_page_bytes(page_bytes)
    cdef Views views
    cdef Py_ssize_t size, words, pages, i, zeros = 0
    cdef const uint8_t *p
    cdef uint64_t *bits
    views.count = 0
    try:
        p = <const uint8_t *>take(&views, memory, c"B", False, "memory", &size)
        bits = <uint64_t *>take(&views, bitmap, c"Q", True, "bitmap", &words)
        pages = whole_pages(size, page_bytes, "memory")
        if words != (pages + 63) // 64:
            raise ValueError(f"bitmap has {words} words: {pages} pages take {(pages + 63) // 64}")
        check_apart(p, size, bits, 8 * words, "memory and bitmap")
        with nogil:
            for i in range(pages):
                if k.is_zero(p + i * page_bytes, page_bytes):
                    bits[i // 64] |= <uint64_t>1 << (i % 64)
                    zeros += 1
        return zeros
    finally:
        release(&views)
