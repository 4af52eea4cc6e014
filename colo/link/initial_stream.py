"""An ordinary migration stream, read into RAM blocks: what a migration is, and what COLO begins with.

Pages go straight to where they belong, device state is kept aside as bytes; nothing of it is loaded here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from colo._fast.kernels.ramblock import RamBlock
from colo._fast.receive.buffers import ReadBuffer
from colo._fast.receive.pagedecoder import EOS, PageDecoder
from colo.errors import StreamError
from colo.memory import BlockImage
from colo.protocol.deadlines import Deadlines
from colo.stream import (
    CommandItem,
    Configuration,
    DeviceState,
    EndOfStream,
    FileHeader,
    LiveSection,
    RamBlockInfo,
    StreamLimits,
    StreamReader,
    parse_mem_size,
)
from colo.wire import SectionType

MINIMUM_BYTES = 64 << 10
"""The stream must move by so much in each span of ``epoch_s``: less is a trickle, not a copy."""


class RamSections:
    """The RAM sections of one stream, or of one checkpoint's live state: MEM_SIZE comes once, in a section's START, before
    any page; then the pages, decoded into the blocks that it announced.

    ``on_announced(blocks)`` is called when it came.
    """

    def __init__(
        self, buffer: ReadBuffer, decoder: PageDecoder, image: BlockImage, limits: StreamLimits, *,
        staged: Callable[[], int] = lambda: 0,
        on_announced: Callable[[list[RamBlockInfo]], None] = lambda blocks: None,
    ) -> None:
        self.blocks: list[RamBlock] = []
        """As announced; in the image once somebody commits them."""
        self.announced = False
        self._buffer = buffer
        self._decoder = decoder
        self._image = image
        self._limits = limits
        self._staged = staged
        self._on_announced = on_announced

    def begin(self, blocks: list[RamBlock]) -> None:
        """A checkpoint comes, of ``blocks`` until it announces others."""
        self.blocks, self.announced = blocks, False
        self._decoder.set_blocks(blocks)

    def decode(self, section: LiveSection) -> None:
        """One section's records, up to their end. Raises StreamError."""
        while (total := self._decoder.decode(self._buffer)) != EOS:
            self._announce(section, total)
        if not self.announced and section.type is SectionType.START:
            raise StreamError("pages without MEM_SIZE before them", where="ram section", offset=section.offset)

    def _announce(self, section: LiveSection, total: int) -> None:
        wrong = ""
        if section.type is not SectionType.START or self.announced:
            wrong = "a second MEM_SIZE, or one outside the section's START"
        elif self._staged():
            wrong = "MEM_SIZE behind pages of the same checkpoint"
        if wrong:
            raise StreamError(wrong, where="ram section", offset=self._buffer.position - 8, value=total)
        infos = parse_mem_size(self._buffer, total, limits=self._limits)
        self.blocks = self._image.announce((info.idstr, info.used_length) for info in infos)
        self._decoder.set_blocks(self.blocks)
        self.announced = True
        self._on_announced(infos)


class InitialStream:
    """Reads the stream in ``buffer``; :meth:`read` returns at its end.

    ``on_opened(configuration)``, ``on_command(item)`` and ``on_announced(configuration, blocks)`` are called as these come.
    ``between_s``: seconds that the sender may be silent between two sections, when more than ``progress_s``: who waits for
    leave to switch over has nothing to say.
    """

    def __init__(
        self,
        buffer: ReadBuffer,
        decoder: PageDecoder,
        image: BlockImage,
        *,
        deadlines: Deadlines,
        limits: StreamLimits,
        on_opened: Callable[[Configuration], None] = lambda configuration: None,
        on_command: Callable[[CommandItem], None] = lambda item: None,
        on_announced: Callable[[Configuration, list[RamBlockInfo]], None] = lambda configuration, blocks: None,
        between_s: float | None = None,
    ) -> None:
        self.configuration: Configuration | None = None
        self.live_sections: Mapping[int, LiveSection] = {}
        self.device_state: DeviceState | None = None
        self._buffer = buffer
        self._deadlines = deadlines
        self._limits = limits
        self._on_opened = on_opened
        self._on_command = on_command
        self._on_announced = on_announced
        self._between_s = between_s
        self._ram = RamSections(buffer, decoder, image, limits, on_announced=self._have_blocks)
        self._renewed_at = 0

    @property
    def blocks(self) -> list[RamBlock]:
        """As announced; in the image once somebody commits them."""
        return self._ram.blocks

    def read(self) -> DeviceState:
        """Returns the device state, whole. Raises StreamError for what breaks the format, and the channel's errors."""
        reader = StreamReader(self._buffer, self._limits)
        for item in reader:
            self._take(item)
            self._renew()
        if self.device_state is None or not self._ram.announced:
            what = "device state" if self.device_state is None else "RAM"
            raise StreamError(f"the stream ended without {what}", where="stream", offset=self._buffer.position)
        self.live_sections = reader.live_sections
        return self.device_state

    def _take(self, item: object) -> None:
        if isinstance(item, FileHeader):
            return
        if isinstance(item, Configuration):
            if "x-ignore-shared" in item.capabilities:
                raise StreamError(
                    "the primary leaves shared RAM out of the stream (capability x-ignore-shared); turn it off there",
                    where="CONFIGURATION", offset=item.offset, value=item.capabilities,
                )
            self.configuration = item
            self._on_opened(item)
        elif self.configuration is None:
            raise StreamError(
                "no CONFIGURATION: the machine type is not known (those up to 2.3 send none: take a newer one)",
                where="stream", offset=0)
        elif isinstance(item, CommandItem):
            self._on_command(item)
        elif isinstance(item, LiveSection):
            self._decode(item)
        elif isinstance(item, DeviceState):
            if self.device_state is not None or not item.complete:
                raise StreamError(
                    "device sections in more than one place", where="stream", offset=item.offset, value=None)
            self.device_state = item
        elif not isinstance(item, EndOfStream):
            raise StreamError("a PACKAGED stream has no place in this stream", where="stream", offset=self._buffer.position)

    def _decode(self, section: LiveSection) -> None:
        if self._between_s is not None:
            self._buffer.set_idle(self._deadlines.progress_s)
        self._ram.decode(section)

    def _have_blocks(self, infos: list[RamBlockInfo]) -> None:
        assert self.configuration is not None
        self._on_announced(self.configuration, infos)

    def _renew(self) -> None:
        """A long first copy is no fault, one that trickles is."""
        position = self._buffer.position
        if self._between_s is not None:
            # The next section may be long in coming; then it has its own time.
            self._buffer.set_deadline("initial", self._between_s + self._deadlines.epoch_s)
            self._buffer.set_idle(max(self._between_s, self._deadlines.progress_s))
            return
        if self._renewed_at == 0 or position - self._renewed_at >= MINIMUM_BYTES:
            self._renewed_at = position
            self._buffer.set_deadline("initial", self._deadlines.epoch_s)
        self._buffer.set_idle(self._deadlines.progress_s)
