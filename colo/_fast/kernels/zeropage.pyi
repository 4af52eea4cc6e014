"""Pages of zeros: what QEMU's buffer_is_zero tells (util/bufferiszero.c), by a plain linear read."""

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

_Bytes = Buffer | NDArray[np.uint8]
_Words = Buffer | NDArray[np.uint64]

def is_zero(memory: _Bytes, *, level: str | None = None) -> bool:
    """Whether all bytes (any number of them, also none) are zero."""

def is_zero_pages(memory: _Bytes, page_bytes: int, bitmap: _Words, *, level: str | None = None) -> int:
    """Set bit i of ``bitmap`` (uint64 words, just as many as the pages need) for each page i that is all zeros; others
    stay as they are. Returns the number of zero pages. Raises ValueError for sizes that do not fit or buffers that overlap.
    """
