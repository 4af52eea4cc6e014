"""A digest of the bytes of a checkpoint, at memory speed: it finds damage, not deceit."""

from typing_extensions import Buffer

class StreamDigest:
    """A running digest: whatever pieces the bytes come in, the same bytes give the same digest, on every machine."""

    def __init__(self, *, simd: str | None = None) -> None: ...
    def update(self, data: Buffer) -> None:
        """Take further bytes."""
    def reset(self) -> None:
        """Begin anew."""
    @property
    def length_bytes(self) -> int:
        """Bytes taken since the begin."""
    @property
    def value(self) -> int:
        """The digest of all bytes so far, an integer of 128 bits; further ones may follow."""
