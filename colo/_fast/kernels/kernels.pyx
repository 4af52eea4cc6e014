"""Chooses the table of SIMD kernels once, at import, by what the CPU has and what ``COLO_SIMD`` asks for."""
from libc.stdint cimport uintptr_t

import os
import warnings


cdef extern from "simd/dispatch.h" nogil:
    enum:
        COLO_LEVELS_MAX
    int colo_levels(const colo_kernels **levels)


cdef const colo_kernels *_levels[COLO_LEVELS_MAX]
cdef int _count = colo_levels(_levels)
cdef const colo_kernels *_active = _levels[_count - 1]


def levels():
    """Names of the SIMD levels this build and CPU have, slowest first; the last is the default."""
    cdef int i
    return tuple(_levels[i].name.decode() for i in range(_count))


def active_level():
    """Name of the level in use when none is asked for."""
    return _active.name.decode()


cdef const colo_kernels *active() noexcept nogil:
    return _active


cdef const colo_kernels *for_level(object level) except NULL:
    cdef int i
    if level is None:
        return _active
    for i in range(_count):
        if _levels[i].name.decode() == level:
            return _levels[i]
    raise ValueError(f"SIMD level {level!r} is not one of those this machine has: {', '.join(levels())}")


cdef int check_page_bytes(Py_ssize_t page_bytes) except -1:
    if not COLO_PAGE_BYTES_MIN <= page_bytes <= COLO_PAGE_BYTES_MAX or page_bytes & (page_bytes - 1):
        raise ValueError(f"page_bytes is {page_bytes}: it must be a power of two from "
                         f"{COLO_PAGE_BYTES_MIN} to {COLO_PAGE_BYTES_MAX}")
    return 0


cdef Py_ssize_t whole_pages(Py_ssize_t size_bytes, Py_ssize_t page_bytes, str name) except -1:
    if size_bytes % page_bytes:
        raise ValueError(f"{name} has {size_bytes} bytes: not a whole number of pages of {page_bytes}")
    return size_bytes // page_bytes


cdef int check_apart(const void *a, Py_ssize_t a_bytes, const void *b, Py_ssize_t b_bytes, str names) except -1:
    if a_bytes and b_bytes and <uintptr_t>a < <uintptr_t>b + b_bytes and <uintptr_t>b < <uintptr_t>a + a_bytes:
        raise ValueError(f"{names} overlap in memory: give buffers that are apart")
    return 0


def _choose(asked):
    """Take the level ``asked`` for, or keep the best one and warn: an import must not fail over a tuning variable."""
    global _active
    if not asked:
        return
    try:
        _active = for_level(asked)
    except ValueError as error:
        warnings.warn(f"COLO_SIMD ignored, {active_level()} in use: {error}", RuntimeWarning, stacklevel=3)


_choose(os.environ.get("COLO_SIMD"))
