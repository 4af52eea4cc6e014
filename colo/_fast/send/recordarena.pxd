from libc.stdint cimport uint8_t


cdef class RecordArena:
    cdef uint8_t *data
    cdef size_t used, room, touched
    cdef Py_ssize_t exports

    # Room for n bytes more at data + used: 0, or an errno.
    cdef int make_room(self, size_t n) noexcept nogil
