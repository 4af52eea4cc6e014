"""Pages of zeros. See zeropage.pyi."""
from libc.stdint cimport uint8_t, uint64_t

from colo._fast.kernels cimport check_apart, check_page_bytes, colo_kernels, for_level, whole_pages


def is_zero(const uint8_t[::1] memory, *, level=None):
    cdef const colo_kernels *k = for_level(level)
    cdef Py_ssize_t size = memory.shape[0]
    cdef int zero
    if not size:
        return True
    cdef const uint8_t *p = &memory[0]
    with nogil:
        zero = k.is_zero(p, size)
    return bool(zero)


def is_zero_pages(const uint8_t[::1] memory, Py_ssize_t page_bytes, uint64_t[::1] bitmap, *, level=None):
    cdef const colo_kernels *k = for_level(level)
    check_page_bytes(page_bytes)
    cdef Py_ssize_t pages = whole_pages(memory.shape[0], page_bytes, "memory"), i, zeros = 0
    if bitmap.shape[0] != (pages + 63) // 64:
        raise ValueError(f"bitmap has {bitmap.shape[0]} words: {pages} pages take {(pages + 63) // 64}")
    if not pages:
        return 0
    cdef const uint8_t *p = &memory[0]
    cdef uint64_t *bits = &bitmap[0]
    check_apart(p, memory.shape[0], bits, 8 * bitmap.shape[0], "memory and bitmap")
    with nogil:
        for i in range(pages):
            if k.is_zero(p + i * page_bytes, page_bytes):
                bits[i // 64] |= <uint64_t>1 << (i % 64)
                zeros += 1
    return zeros
