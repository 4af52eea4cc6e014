"""Which pages of a block changed, for memory that nothing else tracks.

``bitmap`` is one bit per page of the whole block in uint64 words (bit p of the block is bit p % 64 of word p // 64), just as
many as the block needs. Bits of changed pages are set, none is cleared. Threads may share a block when the ranges they
look at start at multiples of 64 pages.
"""

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

_Bytes = Buffer | NDArray[np.uint8]
_Words = Buffer | NDArray[np.uint64]

def scan_shadow(
    memory: _Bytes,
    shadow: _Bytes,
    bitmap: _Words,
    page_bytes: int = 4096,
    *,
    first_page: int = 0,
    pages: int | None = None,
    level: str | None = None,
) -> int:
    """Compare ``pages`` pages of ``memory`` from ``first_page`` with ``shadow``. Returns how many differ. Raises ValueError
    for sizes that do not fit or buffers that overlap."""

def hash_key(page_bytes: int = 4096) -> bytes:
    """A fresh secret key for :func:`scan_hashes`, page_bytes + 64 bytes."""

def scan_hashes(
    memory: _Bytes,
    hashes: _Words,
    key: _Bytes,
    bitmap: _Words,
    page_bytes: int = 4096,
    *,
    first_page: int = 0,
    pages: int | None = None,
    level: str | None = None,
) -> int:
    """The same against ``hashes`` (two uint64 per page of the block), which are brought up to date. It reads half as much
    memory, and keeps 16 bytes per page instead of a copy.

    The hash is NH with a Toeplitz-shifted key, two sums of 64 bits. A changed page goes unseen with a probability of at
    most 2**-64 each time it is looked at, whatever the two contents are, as long as they do not depend on the key: so
    keep the key (of :func:`hash_key`) from the guest. At ten million changed pages per second that is once in some
    58,000 years. The first call after hashes were made of zeros reports nearly every page; take it as the base line.
    """
