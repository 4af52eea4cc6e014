from colo._fast.kernels.digest import StreamDigest
from colo._fast.kernels.ramblock import RamBlock
from colo._fast.receive.adaptive_decoder import AdaptiveDecoder
from colo._fast.receive.buffers import ReadBuffer
from colo._fast.receive.staging import Staging

EOS: int

class PageDecoder:
    bytes_decoded: int
    immediate: bool
    def __init__(self, staging: Staging, *, immediate: bool = False) -> None: ...
    def set_digest(self, digest: StreamDigest | None) -> None:
        """Add the bytes of all pages' records from now on to ``digest``; None: to none any more."""
    def set_codec(self, codec: AdaptiveDecoder | None) -> None:
        """Take pages in the encodings of an AdaptiveCodec too, from the next :meth:`set_blocks` on, outside
        ``immediate``; None: refuse them. Only where that was agreed with the sender."""
    def set_blocks(self, blocks: list[RamBlock]) -> None: ...
    def decode(self, buffer: ReadBuffer) -> int: ...
