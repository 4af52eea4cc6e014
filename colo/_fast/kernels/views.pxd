"""Buffers of a call, held until it ends: what a typed memoryview does, at a third of its cost per call.

Others do::

    cdef Views views
    views.count = 0
    try:
        source = <const uint8_t *>take(&views, arena, "B", False, "arena", &size)
        ...
    finally:
        release(&views)
"""
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS,
    PyBUF_FORMAT,
    PyBUF_WRITABLE,
    Py_buffer,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from libc.stdint cimport uintptr_t

cdef enum:
    VIEWS_MAX = 5

cdef struct Views:
    Py_buffer held[VIEWS_MAX]
    int count


# The memory of a C-contiguous buffer with one dimension and that item type (b"B" bytes, b"i" int32, b"Q" uint64), held by
# views, with the number of its items. What the object's own export raises, or ValueError for another shape or type.
cdef inline void *take(Views *views, object exporter, char kind, bint writable, str name,
                       Py_ssize_t *items) except? NULL:
    cdef Py_buffer *view = &views.held[views.count]
    PyObject_GetBuffer(exporter, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (PyBUF_WRITABLE if writable else 0))
    views.count += 1
    cdef const char *given = view.format
    if given == NULL:
        given = b"B"
    cdef const char *end = given
    if given[0] == c"@" or given[0] == c"=" or given[0] == c"<":
        end += 1
    cdef Py_ssize_t item_bytes = 1 if kind == c"B" else 4 if kind == c"i" else 8
    # C's long is one of the two others.
    cdef bint same = end[0] == kind or end[0] == (c"l" if kind == c"i" else c"L" if kind == c"Q" else kind)
    if view.ndim != 1:
        raise ValueError(f"{name} has {view.ndim} dimensions: give a flat buffer")
    if not same or end[1] or view.itemsize != item_bytes:
        raise ValueError(f"{name} has items of type {given.decode('ascii', 'replace')!r} ({view.itemsize} bytes): Buffer dtype "
                         f"mismatch, expected {'bytes' if item_bytes == 1 else f'integers of {item_bytes} bytes'}")
    if <uintptr_t>view.buf % <size_t>item_bytes:
        raise ValueError(f"{name} is misaligned: its items have {item_bytes} bytes, its address is not a multiple of that")
    items[0] = view.shape[0]
    return view.buf


cdef inline void release(Views *views) noexcept:
    while views.count:
        views.count -= 1
        PyBuffer_Release(&views.held[views.count])
