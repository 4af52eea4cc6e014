"""Reads a section stream item by item. Bodies of live sections are left to the consumer, which has the same
buffer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType

from colo._fast.receive.buffers import ReadBuffer
from colo.errors import LimitExceeded, StreamError
from colo.limits import DEFAULT_LIMITS, StreamLimits
from colo.magic import what_is
from colo.stream.commands import read_command
from colo.stream.configuration import read_configuration
from colo.stream.devices import read_devices, read_vmdesc_if_any
from colo.stream.mapped_ram import CAPABILITY as MAPPED_RAM
from colo.stream.names import read_name
from colo.stream.sections import (
    CommandItem,
    DeviceSection,
    DeviceState,
    EndOfStream,
    FileHeader,
    Item,
    LiveSection,
    Packaged,
)
from colo.wire import FILE_MAGIC, FILE_VERSION, RAM_IDSTR, RAM_VERSION, TARGET_PAGE_BYTES, Command, SectionType

_NOT_HERE = {
    SectionType.SUBSECTION: "a subsection outside a vmstate",
    SectionType.VMDESCRIPTION: "a vmdesc before EOF",
    SectionType.CONFIGURATION: "CONFIGURATION, which only follows the file header",
    SectionType.FOOTER: "a footer outside a section",
}
WITHOUT_LIVE_SECTION = {
    "dirty-bitmap": "switch the capability dirty-bitmaps off",
    "block": "switch the capability block off (and migrate without blk or inc): mirror the disks",
}
"""What to do about live sections that a capability brings."""


class StreamReader:
    """Iterate over the items of a whole migration stream: file header, CONFIGURATION, then sections up to
    EOF.

    After a :class:`LiveSection` the consumer must read its body from ``buf`` before it asks for the next
    item; the footer is then read and checked. All other items come whole. The last item is
    :class:`EndOfStream`. ::

        for item in StreamReader(buf):
            if isinstance(item, LiveSection):
                decoder.decode(buf)

    Raises :class:`StreamError` with section, offset and value for whatever breaks the format; errors of the
    channel pass through. Only the live sections named in ``live_names`` are served: others are refused by
    name, since their bodies cannot be delimited. QEMU: migration/savevm.c:qemu_loadvm_state_main.
    """

    def __init__(
        self,
        buf: ReadBuffer,
        limits: StreamLimits = DEFAULT_LIMITS,
        *,
        live_names: Collection[str] = (RAM_IDSTR,),
    ) -> None:
        self.buf = buf
        self.limits = limits
        self._live_names = live_names
        self._live: dict[int, LiveSection] = {}
        self._ended: set[int] = set()
        self._restartable: set[int] = set()
        self._devices: list[DeviceSection] = []
        self._packaged = False
        self._has_header = True
        self._may_have_vmdesc = True

    @classmethod
    def live_state(
        cls,
        buf: ReadBuffer,
        limits: StreamLimits = DEFAULT_LIMITS,
        *,
        live_names: Collection[str] = (RAM_IDSTR,),
        started: Mapping[int, LiveSection] = MappingProxyType({}),
    ) -> StreamReader:
        """A reader of one COLO checkpoint's live state: no header, from the first section or command to EOF.

        ``started``: the live sections of the stream before (:attr:`live_sections`). A checkpoint may go on
        with those (QEMU 7.2 sends nothing but an END) or start them anew. Nothing is read, or waited for,
        behind the EOF.
        """
        reader = cls(buf, limits, live_names=live_names)
        reader._has_header = reader._may_have_vmdesc = False
        reader._live.update(started)
        reader._restartable = set(started)
        return reader

    @classmethod
    def packaged(
        cls,
        buf: ReadBuffer,
        limits: StreamLimits = DEFAULT_LIMITS,
        *,
        live_names: Collection[str] = (RAM_IDSTR,),
    ) -> StreamReader:
        """A reader of a stream that PACKAGED wrapped: no header; the end of the data, or EOF, ends it."""
        reader = cls.live_state(buf, limits, live_names=live_names)
        reader._packaged = True
        return reader

    @property
    def live_sections(self) -> Mapping[int, LiveSection]:
        """START of each live section so far, by section id."""
        return MappingProxyType(self._live)

    def __iter__(self) -> Iterator[Item]:
        if self._has_header:
            yield self._read_header()
            if self.buf.peek(1) == bytes((SectionType.CONFIGURATION,)):
                self.buf.skip(1)
                configuration = read_configuration(self.buf, self.limits)
                if MAPPED_RAM in configuration.capabilities:
                    raise StreamError(
                        "the pages lie at fixed places of a file (capability mapped-ram), which is not served: switch it "
                        "off at the source (colo inspect reads it)",
                        where="CONFIGURATION",
                        offset=configuration.offset,
                        value=MAPPED_RAM,
                    )
                yield configuration
        while True:
            item = self._read_item()
            yield item
            if isinstance(item, LiveSection):
                self._read_footer(item)
            elif isinstance(item, CommandItem) and item.command is Command.PACKAGED:
                yield self._read_packaged(item)
            elif isinstance(item, DeviceState) and item.complete:
                yield EndOfStream(item.offset + len(item.blob) - 1, item.vmdesc)
                return
            elif isinstance(item, EndOfStream):
                return

    def _read_header(self) -> FileHeader:
        offset = self.buf.position
        magic = self.buf.read_u32()
        if magic != FILE_MAGIC:
            raise StreamError(
                what_is(magic.to_bytes(4, "big"))
                or f"{magic:#010x} is not the magic of a migration stream ({FILE_MAGIC:#010x}, 'QEVM')",
                where="file header",
                offset=offset,
                value=magic,
            )
        version = self.buf.read_u32()
        if version != FILE_VERSION:
            raise StreamError(
                f"version {version}, only {FILE_VERSION} is known",
                where="file header",
                offset=offset + 4,
                value=version,
            )
        return FileHeader(offset, version)

    def _read_item(self) -> Item:
        buf = self.buf
        offset = buf.position
        if self._packaged and buf.at_end():
            return EndOfStream(offset, None)
        kind = buf.peek(1)[0] if not buf.at_end() else buf.read_u8()
        if kind == SectionType.FULL:
            return self._read_devices()
        buf.skip(1)
        if kind == SectionType.EOF:
            return EndOfStream(
                offset, read_vmdesc_if_any(buf, self.limits) if self._may_have_vmdesc else None
            )
        if kind == SectionType.START:
            return self._read_start(offset)
        if kind in (SectionType.PART, SectionType.END):
            return self._read_continuation(SectionType(kind), offset)
        if kind == SectionType.COMMAND:
            return read_command(buf)
        raise StreamError(
            _NOT_HERE[SectionType(kind)] if kind in _NOT_HERE else f"unknown section type {kind:#04x}",
            where="section",
            offset=offset,
            value=kind,
        )

    def _read_start(self, offset: int) -> LiveSection:
        section_id = self.buf.read_u32()
        idstr = read_name(self.buf, f"START of section {section_id}")
        section = LiveSection(
            offset, SectionType.START, section_id, idstr, self.buf.read_u32(), self.buf.read_u32()
        )
        self._check_start(section, f"START of section {section_id} '{idstr}'")
        self._live[section_id] = section
        return section

    def _check_start(self, section: LiveSection, where: str) -> None:
        idstr, offset = section.idstr, section.offset
        if idstr not in self._live_names:
            raise StreamError(
                f"live section '{idstr}' is not served; only {', '.join(sorted(self._live_names))}: "
                + WITHOUT_LIVE_SECTION.get(idstr, "take the device that sends it out of the VM"),
                where=where,
                offset=offset,
                value=idstr,
            )
        if len(self._live) >= self.limits.device_sections:
            raise LimitExceeded(
                f"more than {self.limits.device_sections} live sections", where=where, offset=offset, value=idstr
            )
        if section.section_id in self._restartable:
            self._restartable.discard(section.section_id)
            del self._live[section.section_id]
        self._refuse_reuse(section.section_id, where, offset)
        if any(
            live.idstr == idstr and live.instance_id == section.instance_id for live in self._live.values()
        ):
            raise StreamError("started twice", where=where, offset=offset, value=idstr)
        if idstr == RAM_IDSTR and section.version_id != RAM_VERSION:
            raise StreamError(
                f"version {section.version_id}, only {RAM_VERSION} is known",
                where=where,
                offset=offset,
                value=section.version_id,
            )

    def _read_continuation(self, kind: SectionType, offset: int) -> LiveSection:
        section_id = self.buf.read_u32()
        start = self._live.get(section_id)
        where = f"{kind.name} of section {section_id}"
        if start is None:
            raise StreamError(
                "no such live section was started", where=where, offset=offset, value=section_id
            )
        if section_id in self._ended:
            raise StreamError(
                f"'{start.idstr}' has ended before", where=where, offset=offset, value=section_id
            )
        if kind is SectionType.END:
            self._ended.add(section_id)
        return LiveSection(offset, kind, section_id, start.idstr, start.instance_id, start.version_id)

    def _read_footer(self, section: LiveSection) -> None:
        offset = self.buf.position
        where = f"{section.type.name} of section {section.section_id} '{section.idstr}'"
        kind = self.buf.read_u8()
        if kind != SectionType.FOOTER:
            none = kind in (SectionType.PART, SectionType.END) and section.type is SectionType.START
            raise StreamError(
                "the sections have no footers, as with machine types up to 2.3, which is not served: take a newer machine "
                "type (colo inspect reads it)"
                if none
                else f"byte {kind:#04x} where the footer ({SectionType.FOOTER:#04x}) should be",
                where=where,
                offset=offset,
                value=kind,
            )
        section_id = self.buf.read_u32()
        if section_id != section.section_id:
            raise StreamError(
                f"footer of section {section_id}, expected one of section {section.section_id}",
                where=where,
                offset=offset,
                value=section_id,
            )

    def _read_devices(self) -> DeviceState:
        # Once all live sections have ended only EOF can follow: device data has fewer ways to look like an
        # end.
        live = self._live.keys() - self._ended
        state = read_devices(
            self.buf,
            self.limits,
            live=live if live or not self._live or self._packaged else None,
            earlier=self._devices,
            packaged=self._packaged,
            may_have_vmdesc=self._may_have_vmdesc,
        )
        self._check_page_size(state)
        for section in state.sections:
            offset = state.offset + section.offset
            where = f"device section {section.section_id} '{section.idstr}'"
            self._refuse_reuse(section.section_id, where, offset)
        if len(self._devices) + len(state.sections) > self.limits.device_sections:
            raise LimitExceeded(
                f"more than {self.limits.device_sections} device sections",
                where="device state",
                offset=state.offset,
                value=len(self._devices) + len(state.sections),
            )
        self._devices += state.sections
        return state

    def _check_page_size(self, state: DeviceState) -> None:
        """The vmdesc states the target's page size, and is often the only one that does."""
        size = state.vmdesc.page_size if state.vmdesc is not None else None
        if size not in (None, TARGET_PAGE_BYTES):
            raise StreamError(
                f"the vmdesc says target pages of {size} bytes; only {TARGET_PAGE_BYTES} is served",
                where="VMDESCRIPTION",
                offset=state.vmdesc.offset if state.vmdesc is not None else None,
                value=size,
            )

    def _refuse_reuse(self, section_id: int, where: str, offset: int) -> None:
        if section_id in self._live or any(section_id == device.section_id for device in self._devices):
            raise StreamError(
                f"section id {section_id} is in use", where=where, offset=offset, value=section_id
            )

    def _read_packaged(self, item: CommandItem) -> Packaged:
        if self._packaged:
            raise StreamError(
                "PACKAGED inside PACKAGED", where="COMMAND PACKAGED", offset=item.offset, value=item.value
            )
        if item.value > self.limits.device_state_bytes:
            raise LimitExceeded(
                f"{item.value} bytes, at most {self.limits.device_state_bytes}",
                where="COMMAND PACKAGED",
                offset=item.offset,
                value=item.value,
            )
        start = self.buf.position
        inner = StreamReader.packaged(
            ReadBuffer.from_bytes(self.buf.read_exact(item.value)), self.limits, live_names=()
        )
        inner._live, inner._ended, inner._devices = self._live, set(self._live), self._devices
        try:
            items = tuple(inner)
        except StreamError as error:
            raise type(error)(
                error.detail,
                where=f"in PACKAGED at byte {start}: {error.where}",
                offset=None if error.offset is None else start + error.offset,
                value=error.value,
            ) from None
        return Packaged(start, item.value, items)
