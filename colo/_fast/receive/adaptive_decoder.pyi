"""Decodes what AdaptiveCodec and XBZRLE made of pages, from a peer that is not trusted."""

from typing_extensions import Buffer

class AdaptiveDecoder:
    """Decodes what AdaptiveCodec and XBZRLE made; safe on any input."""

    @property
    def page_bytes(self) -> int: ...
    def __init__(self, page_bytes: int = 4096) -> None: ...
    def apply(self, records: Buffer, memory: Buffer) -> tuple[int, int]:
        """Apply RAM records of one block to ``memory`` up to EOS or the end; returns (bytes used, pages).
        Raises Truncated, StreamError or Unsupported; pages before the bad record are then applied."""
