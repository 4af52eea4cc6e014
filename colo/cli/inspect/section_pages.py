"""The pages of ``ram`` sections, counted by block, with target pages of whatever size the stream has."""

from __future__ import annotations

from collections.abc import Sequence

from colo._fast.kernels.ramblock import RamBlock
from colo._fast.receive.buffers import ReadBuffer
from colo._fast.receive.pagedecoder import PageDecoder
from colo._fast.receive.ramsurvey import EOS, BlockCounts, RamSurvey
from colo._fast.receive.staging import Staging
from colo.errors import StreamError
from colo.survey.page_size import TRIAL_BYTES, is_page_size, shown_by_records
from colo.wire import TARGET_PAGE_BYTES, RamFlag

__all__ = ["COUNTS", "EOS", "SectionPages"]

COUNTS = ("zero_pages", "normal_pages", "xbzrle_pages", "compressed_pages")
_SMALLEST_MASK = 0x3FF


class SectionPages:
    """Decodes bodies of ``ram`` sections in ``buf``; ``page_bytes`` is the page size as far as it is known."""

    def __init__(self, buf: ReadBuffer, page_bytes: int | None = None) -> None:
        self.page_bytes = page_bytes
        self.notes: list[str] = []
        self.blocks: Sequence[RamBlock | BlockCounts] = []
        self._buf = buf
        self._said_by = "the vmdesc" if page_bytes is not None else ""
        self._lengths: list[tuple[str, int]] = []
        self._decoder: PageDecoder | RamSurvey | None = None
        self._mapped = False

    def state(self, page_bytes: int, said_by: str) -> None:
        """The stream states its page size. What was assumed before, and differs, is told."""
        if not is_page_size(page_bytes):
            self.notes.append(f"{said_by} says pages of {page_bytes} bytes, which cannot be")
        elif self.page_bytes is None:
            self.page_bytes, self._said_by = page_bytes, said_by
        elif self.page_bytes != page_bytes:
            note = f"{said_by} says pages of {page_bytes} bytes, {self._said_by or 'the records'} {self.page_bytes}"
            if note not in self.notes:
                self.notes.append(note)

    def decode(self) -> int:
        """As :meth:`PageDecoder.decode`: up to the end of the body (EOS) or to a MEM_SIZE record (its total)."""
        buf = self._buf
        while True:
            value = int.from_bytes(buf.peek(8), "big")
            if value & _SMALLEST_MASK == RamFlag.MEM_SIZE:
                buf.read_u64()
                return value - RamFlag.MEM_SIZE
            if value == RamFlag.EOS:
                buf.read_u64()
                return EOS
            if value == RamFlag.HOOK:
                buf.read_u64()
                self._note_once("RDMA's marks: the pages came by RDMA, beside this stream")
                continue
            if value == RamFlag.MULTIFD_FLUSH:
                buf.read_u64()
                self._note_once("multifd's marks: the pages came on other channels, beside this stream")
                continue
            if self._decoder is None:
                self._choose()
            assert self._decoder is not None
            return self._decoder.decode(buf)

    def _note_once(self, note: str) -> None:
        if note not in self.notes and not self._mapped:
            self.notes.append(note)

    def _choose(self) -> None:
        if self.page_bytes is None:
            shown = shown_by_records(self._buf.peek(TRIAL_BYTES), self._lengths)
            self.page_bytes = shown or TARGET_PAGE_BYTES
            if shown not in (None, TARGET_PAGE_BYTES):
                self._said_by = "the records show"
        if self.page_bytes == TARGET_PAGE_BYTES:
            self._decoder = PageDecoder(Staging(), immediate=True)
        else:
            self._decoder = RamSurvey(self.page_bytes)
            self.notes.append(f"target pages of {self.page_bytes} bytes: read here, not served by sessions")
        self._begin_decoder()

    def set_blocks(self, lengths: list[tuple[str, int]]) -> None:
        """The blocks as announced: idstr and used length in bytes."""
        self._lengths = lengths
        self.blocks = [BlockCounts(*each) for each in lengths]
        if self._decoder is not None:
            self._begin_decoder()

    def _begin_decoder(self) -> None:
        if isinstance(self._decoder, RamSurvey):
            self._decoder.set_blocks(self._lengths)
            self.blocks = self._decoder.blocks
        elif self._decoder is not None:
            uneven = next((each for each in self._lengths if each[1] % TARGET_PAGE_BYTES), None)
            if uneven is not None:
                raise StreamError(
                    f"block '{uneven[0]}' of {uneven[1]} bytes has no whole pages of {TARGET_PAGE_BYTES}",
                    where="ram MEM_SIZE",
                    offset=self._buf.position,
                    value=uneven[1],
                )
            blocks = [RamBlock(*each) for each in self._lengths]
            self.blocks = blocks
            self._decoder.set_blocks(blocks)

    def begin(self) -> None:
        """A checkpoint begins over the same blocks."""
        if isinstance(self._decoder, PageDecoder):
            self._decoder.set_blocks([block for block in self.blocks if isinstance(block, RamBlock)])

    def count_mapped(self, pages: list[tuple[int, int]]) -> None:
        """The pages of each block that lie in the file, and those that are zero."""
        self._mapped = True
        counted = [BlockCounts(*each) for each in self._lengths]
        for block, (normal, zero) in zip(counted, pages, strict=True):
            block.normal_pages, block.zero_pages = normal, zero
        self.blocks = counted

    def clear_counts(self) -> None:
        """Count from zero again."""
        for block in self.blocks:
            if isinstance(block, RamBlock):
                block.clear_counts()
            else:
                for name in COUNTS:
                    setattr(block, name, 0)

    def totals(self) -> dict[str, int]:
        """Pages of all blocks by kind."""
        counts = [block.counts for block in self.blocks]
        return {name: sum(count[name] for count in counts) for name in COUNTS}
