"""Times the kernels beside what memory allows, with nothing of Python in the loop. For benchmarks."""

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

_Bytes = Buffer | NDArray[np.uint8]
_Int32 = Buffer | NDArray[np.int32]

WORKS: tuple[str, ...]
"""``memcmp``, ``memcpy`` (each new page into one buffer), ``read one`` (new), ``read two`` (plain wide loads), and the
kernels by their names in ``simd/table.h``: ``encode``, ``step``, ``decode``, ``check``, ``is_zero``, ``scan``,
``scan_hash``."""

def time_pages(
    work: str,
    old: _Bytes,
    new: _Bytes,
    page_bytes: int = 4096,
    *,
    repeats: int = 1,
    warm_up_us: int = 0,
    level: str | None = None,
    arena: _Bytes | None = None,
    lengths: _Int32 | None = None,
) -> float:
    """Nanoseconds per page of doing ``work`` on all pairs, ``repeats`` times over, after passes over them that are not
    timed for ``warm_up_us`` microseconds.

    ``step`` and ``decode`` change ``old``. The latter, and ``check``, take encodings: page i's at the start of the i-th of
    equal shares of ``arena``, ``lengths`` (int32) says how many bytes. Raises ValueError for sizes that do not fit.
    """
