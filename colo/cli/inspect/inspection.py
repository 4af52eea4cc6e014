"""Reads a stream from end to end and keeps what is worth telling, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from colo._fast.receive.buffers import ReadBuffer
from colo._fast.receive.ramsurvey import PAGE_BYTES_MIN
from colo.cli.inspect.checkpoints import Checkpoints
from colo.cli.inspect.section_pages import COUNTS, EOS, SectionPages
from colo.errors import ColoError, LimitExceeded, StreamError
from colo.stream import (
    DEFAULT_LIMITS,
    CommandItem,
    Configuration,
    DeviceSection,
    DeviceState,
    EndOfStream,
    FileHeader,
    Item,
    LiveSection,
    Packaged,
    RamBlockInfo,
    StreamLimits,
    Vmdesc,
    parse_mem_size,
)
from colo.stream.commands import meaning_of
from colo.stream.mapped_ram import CAPABILITY as MAPPED_RAM
from colo.stream.mapped_ram import MappedBlock, read_mapped_block
from colo.survey.survey import SurveyReader
from colo.vmdesc.field_values import walk_fields
from colo.vmdesc.records import VmdescStruct
from colo.wire import RAM_IDSTR, ColoMessage, Command, SectionType

ADVISE_BYTES = 16
"""POSTCOPY_ADVISE's payload: the host's page sizes, the target's page size."""
ROWS_MAX = 4096
"""PARTs of live sections, and commands, that are listed: those of a long stream would fill memory."""
TRAILING_BYTES_MAX = 1 << 40
"""Bytes behind the end that are counted, which in a file is no work."""


class Inspection:
    """What a stream holds. ``found`` grows while :meth:`read` goes on, so that an error leaves what came
    before.

    ``max_ram_bytes`` bounds the RAM a stream may announce (a bit per page is kept of it); ``device`` keeps
    only devices whose name contains it; ``page_bytes`` is the size of target pages where something outside of the stream
    tells it, which is believed before the records are asked.
    """

    def __init__(
        self,
        buf: ReadBuffer,
        *,
        max_ram_bytes: int = 1 << 40,
        device: str = "",
        limits: StreamLimits = DEFAULT_LIMITS,
        page_bytes: int | None = None,
    ) -> None:
        self.found: dict[str, Any] = {
            "header": None,
            "configuration": None,
            "commands": [],
            "sections": [],
            "ram_blocks": [],
            "devices": [],
            "vmdesc": None,
            "page_bytes": None,
            "checkpoints": [],
            "notes": [],
            "errors": [],
            "bytes": 0,
            "trailing_bytes": 0,
            "error": None,
        }
        self._buf = buf
        self._limits = limits
        self._max_ram_bytes = max_ram_bytes
        self._only = device
        self._reader = SurveyReader(buf, limits)
        self._pages = SectionPages(buf, page_bytes)
        self._capabilities: tuple[str, ...] = ()
        self._advised = False
        self._left_out = 0
        self._first: tuple[DeviceSection, ...] = ()

    def read(self) -> None:
        """Read all there is. Raises StreamError for what ends the reading: no header, a damaged checkpoint, a cut
        channel. What was wrong and could be passed over is in ``found["errors"]``."""
        try:
            try:
                for item in self._reader:
                    self._keep(item, self.found)
            finally:
                self._tell_problems()
            buf = self._buf
            if not buf.at_end() and buf.peek(4) == ColoMessage.CHECKPOINT_REQUEST.to_bytes(4, "big"):
                self._read_checkpoints()
            end = buf.position
            buf.skip_all(TRAILING_BYTES_MAX)
            self.found["trailing_bytes"] = buf.position - end
        finally:
            self.found["bytes"] = self._buf.position

    @property
    def first_problem(self) -> StreamError | None:
        """The first of the errors that were passed over."""
        return self._reader.problems[0] if self._reader.problems else None

    def _tell_problems(self) -> None:
        self.found["notes"] += [*self._reader.notes, *self._pages.notes]
        if self._left_out:
            self.found["notes"].append(f"{self._left_out} more parts of live sections and commands are not listed")
        self.found["page_bytes"] = self._pages.page_bytes
        self.found["errors"] = [problem_row(problem) for problem in self._reader.problems]

    def _keep(self, item: Item, into: dict[str, Any]) -> None:
        if isinstance(item, FileHeader):
            into["header"] = {"offset": item.offset, "version": item.version}
        elif isinstance(item, Configuration):
            self._capabilities = item.capabilities
            if item.page_bits is not None:
                self._pages.state(1 << item.page_bits, "CONFIGURATION")
            into["configuration"] = {
                "offset": item.offset,
                "machine": item.machine,
                "capabilities": list(item.capabilities),
                "page_bits": item.page_bits,
                "uuid": item.uuid.hex() if item.uuid else None,
            }
        elif isinstance(item, CommandItem):
            if item.command is Command.POSTCOPY_ADVISE and len(item.payload) == ADVISE_BYTES:
                self._advised = True
                self._pages.state(int.from_bytes(item.payload[8:], "big"), "POSTCOPY_ADVISE")
            if len(into["commands"]) >= ROWS_MAX:
                self._left_out += 1
                return
            into["commands"].append(
                {
                    "offset": item.offset,
                    "command": item.command.name,
                    "payload": item.payload.hex(),
                    "meaning": meaning_of(item),
                }
            )
        elif isinstance(item, Packaged):
            inner: dict[str, Any] = {
                "offset": item.offset,
                "length_bytes": item.length_bytes,
                "commands": [],
                "devices": [],
            }
            into.setdefault("packaged", []).append(inner)
            for wrapped in item.items:
                if not isinstance(wrapped, EndOfStream):
                    self._keep(wrapped, inner)
        elif isinstance(item, LiveSection):
            self._read_live(item, into)
        elif isinstance(item, DeviceState):
            self._keep_devices(item, into)
        else:
            into["end"] = item.offset

    def _read_live(self, section: LiveSection, into: dict[str, Any]) -> None:
        row: dict[str, Any] = {
            "offset": section.offset,
            "type": section.type.name,
            "id": section.section_id,
            "name": section.idstr,
            "instance": section.instance_id,
            "version": section.version_id,
            "served": section.idstr == RAM_IDSTR,
        }
        if section.type is not SectionType.PART or len(into["sections"]) < ROWS_MAX:
            into["sections"].append(row)
        else:
            self._left_out += 1
        start = self._buf.position
        if not row["served"]:
            self._reader.pass_over(section)
            row["length_bytes"] = self._buf.position - start
            return
        before = self._pages.totals()
        try:
            while (total := self._pages.decode()) != EOS:
                self._read_block_list(total, into)
                before = dict.fromkeys(COUNTS, 0)
        except LimitExceeded:
            raise
        except StreamError as error:
            row["error"] = str(error)
            self._reader.note(error)
            self._reader.pass_over(section)
        finally:
            row["length_bytes"] = self._buf.position - start
            now = self._pages.totals()
            row |= {name: now[name] - before[name] for name in COUNTS}
            for shown, block in zip(into["ram_blocks"], self._pages.blocks, strict=False):
                shown.update({name: block.counts[name] for name in COUNTS})

    def _read_block_list(self, total: int, into: dict[str, Any]) -> None:
        offset = self._buf.position
        if total > self._max_ram_bytes:
            raise LimitExceeded(
                f"{total} bytes of RAM, at most {self._max_ram_bytes} are taken (--max-ram)",
                where="ram MEM_SIZE",
                offset=offset,
                value=total,
            )
        mapped: list[MappedBlock] = []
        in_file = MAPPED_RAM in self._capabilities

        def read_mapped(info: RamBlockInfo) -> None:
            if in_file:
                mapped.append(read_mapped_block(self._buf, info))
                into["ram_blocks"].append(self._block_row(info, mapped[-1]))
                self._pages.state(mapped[-1].page_bytes, "mapped-ram")

        into["ram_blocks"] = []
        infos = parse_mem_size(
            self._buf,
            total,
            with_page_size=None if self._advised else False,
            with_address="x-ignore-shared" in self._capabilities,
            limits=self._limits,
            page_bytes=self._pages.page_bytes or PAGE_BYTES_MIN,
            on_block=read_mapped,
        )
        self._pages.set_blocks([(info.idstr, info.used_length) for info in infos])
        if in_file:
            self._pages.count_mapped([(block.normal_pages, block.zero_pages) for block in mapped])
        else:
            into["ram_blocks"] = [self._block_row(info) for info in infos]

    @staticmethod
    def _block_row(info: RamBlockInfo, mapped: MappedBlock | None = None) -> dict[str, Any]:
        row = {
            "name": info.idstr,
            "used_length": info.used_length,
            "page_size": info.page_size,
            "address": info.address,
        }
        if mapped is not None:
            row |= {
                "bitmap_offset": mapped.bitmap_offset,
                "pages_offset": mapped.pages_offset,
                "normal_pages": mapped.normal_pages,
                "zero_pages": mapped.zero_pages,
            }
        return row

    def _keep_devices(self, state: DeviceState, into: dict[str, Any]) -> None:
        vmdesc = state.vmdesc
        wrong = self._reader.wrong.get(state.offset, {})
        described: dict[int, VmdescStruct] = {}
        if vmdesc is not None:
            into["vmdesc"] = {
                "offset": vmdesc.offset,
                "length_bytes": len(vmdesc.text),
                "devices": len(vmdesc.devices),
            }
            if vmdesc.page_size is not None:
                self._pages.state(vmdesc.page_size, "the vmdesc")
            described = _described(vmdesc, state.sections)
        self._first += state.sections
        into["ambiguous"] = state.ambiguous
        for i, section in enumerate(state.sections):
            if self._only in section.idstr:
                row = _device_row(section, state, None if i in wrong else described.get(i))
                if i in wrong:
                    row["error"] = str(wrong[i])
                into["devices"].append(row)

    # -- a COLO channel

    def _read_checkpoints(self) -> None:
        Checkpoints(
            self._buf, self._limits, self._pages, started=self._reader.live_sections, first=self._first,
            keep=self._keep_of_checkpoint).read(self.found["checkpoints"])

    def _keep_of_checkpoint(self, item: Item, row: dict[str, Any]) -> None:
        """Nothing is passed over in a checkpoint: behind what is wrong its end cannot be found."""
        self._keep(item, row)
        if self._reader.problems:
            raise self._reader.problems[0]


def problem_row(problem: ColoError) -> dict[str, Any]:
    """An error as plain data."""
    return {
        "message": str(problem),
        "where": getattr(problem, "where", ""),
        "offset": getattr(problem, "offset", None),
    }


def _described(vmdesc: Vmdesc, sections: Sequence[DeviceSection]) -> dict[int, VmdescStruct]:
    """What the vmdesc says of each section, by its place. The last of the listed devices are these; one that the
    stream lacks is passed over."""
    found: dict[int, VmdescStruct] = {}
    at = len(vmdesc.devices)
    for i in range(len(sections) - 1, -1, -1):
        behind = at
        while behind and vmdesc.devices[behind - 1].key != sections[i].key:
            behind -= 1
        if behind:
            at = behind - 1
            found[i] = vmdesc.devices[at].state
    return found


def _device_row(section: DeviceSection, state: DeviceState, described: VmdescStruct | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "offset": state.offset + section.offset,
        "id": section.section_id,
        "name": section.idstr,
        "instance": section.instance_id,
        "version": section.version_id,
        "length_bytes": section.length_bytes,
    }
    if described is not None:
        body = state.blob[section.offset : section.offset + section.length_bytes]
        fields = row["fields"] = []
        try:
            for field in walk_fields(described, body):
                fields.append(
                    {
                        "path": field.path,
                        "type": field.type,
                        "offset": field.offset,
                        "size": field.size_bytes,
                        "count": field.count,
                        "value": field.value,
                    }
                )
        except StreamError as error:
            row["fields_error"] = str(error)
    return row
