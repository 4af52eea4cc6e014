"""What the targets share: captured streams for seeds, and a rule for every error."""

from __future__ import annotations

import lzma
from pathlib import Path

from colo.errors import StreamError

VECTORS = Path(__file__).resolve().parents[2] / "vectors"


def offset_is_in(error: StreamError, data: bytes) -> None:
    """An error's offset must lie in the data, or at its end."""
    assert error.offset is None or 0 <= error.offset <= len(data), error


def vector(name: str) -> bytes:
    """The bytes of a captured stream."""
    return lzma.decompress((VECTORS / f"{name}.stream.xz").read_bytes())
