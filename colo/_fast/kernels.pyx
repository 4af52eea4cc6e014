"""Chooses the table of SIMD kernels once, at import, by what the CPU has and what ``COLO_SIMD`` asks for."""
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
