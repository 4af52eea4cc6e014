"""Reads a stream from end to end and keeps what is worth telling, as plain data."""

from __future__ import annotations

from typing import Any

from colo._fast.buffers import ReadBuffer
from colo._fast.pagedecoder import EOS, PageDecoder
from colo._fast.ramblock import RamBlock
from colo._fast.staging import Staging
from colo.errors import LimitExceeded, StreamError
from colo.stream import (
    DEFAULT_LIMITS,
    CommandItem,
    Configuration,
    DeviceCheck,
    DeviceSection,
    DeviceState,
    EndOfStream,
    FileHeader,
    Item,
    LiveSection,
    Packaged,
    RamBlockInfo,
    StreamLimits,
    StreamReader,
    check_device_blob,
    parse_mem_size,
)
from colo.stream.fields import walk_fields
from colo.stream.vmdesc import VmdescStruct
from colo.wire import ColoMessage

COUNTS = ("zero_pages", "normal_pages", "xbzrle_pages", "compressed_pages")


class Inspection:
    """What a stream holds. ``found`` grows while :meth:`read` goes on, so that an error leaves what came
    before.

    ``max_ram_bytes`` bounds the RAM a stream may announce (a bit per page is kept of it); ``device`` keeps
    only devices whose name contains it.
    """

    def __init__(
        self,
        buf: ReadBuffer,
        *,
        max_ram_bytes: int = 1 << 40,
        device: str = "",
        limits: StreamLimits = DEFAULT_LIMITS,
    ) -> None:
        self.found: dict[str, Any] = {
            "header": None,
            "configuration": None,
            "commands": [],
            "sections": [],
            "ram_blocks": [],
            "devices": [],
            "vmdesc": None,
            "checkpoints": [],
            "bytes": 0,
            "trailing_bytes": 0,
            "error": None,
        }
        self._buf = buf
        self._limits = limits
        self._max_ram_bytes = max_ram_bytes
        self._only = device
        self._decoder = PageDecoder(Staging(), immediate=True)
        self._blocks: list[RamBlock] = []
        self._with_address = False
        self._first: tuple[DeviceSection, ...] = ()

    def read(self) -> None:
        """Read all there is. Raises StreamError at what is wrong."""
        try:
            reader = StreamReader(self._buf, self._limits)
            for item in reader:
                self._keep(item, self.found)
            if not self._buf.at_end() and self._buf.peek(4) == ColoMessage.CHECKPOINT_REQUEST.to_bytes(
                4, "big"
            ):
                self._read_checkpoints(reader)
            end = self._buf.position
            while not self._buf.at_end():
                self._buf.skip(self._buf.available)
            self.found["trailing_bytes"] = self._buf.position - end
        finally:
            self.found["bytes"] = self._buf.position

    def _keep(self, item: Item, into: dict[str, Any]) -> None:
        if isinstance(item, FileHeader):
            into["header"] = {"offset": item.offset, "version": item.version}
        elif isinstance(item, Configuration):
            self._with_address = "x-ignore-shared" in item.capabilities
            into["configuration"] = {
                "offset": item.offset,
                "machine": item.machine,
                "capabilities": list(item.capabilities),
                "page_bits": item.page_bits,
                "uuid": item.uuid.hex() if item.uuid else None,
            }
        elif isinstance(item, CommandItem):
            into["commands"].append(
                {"offset": item.offset, "command": item.command.name, "payload": item.payload.hex()}
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
        }
        into["sections"].append(row)
        before = self._totals()
        start = self._buf.position
        try:
            while (total := self._decoder.decode(self._buf)) != EOS:
                self._read_block_list(total, into)
                before = dict.fromkeys(COUNTS, 0)
        finally:
            row["length_bytes"] = self._buf.position - start
            now = self._totals()
            row |= {name: now[name] - before[name] for name in COUNTS}
            for shown, block in zip(into["ram_blocks"], self._blocks, strict=False):
                shown.update(block.counts)

    def _read_block_list(self, total: int, into: dict[str, Any]) -> None:
        offset = self._buf.position
        if total > self._max_ram_bytes:
            raise LimitExceeded(
                f"{total} bytes of RAM, at most {self._max_ram_bytes} are taken (--max-ram)",
                where="ram MEM_SIZE",
                offset=offset,
                value=total,
            )
        infos = parse_mem_size(self._buf, total, with_address=self._with_address, limits=self._limits)
        self._blocks = [RamBlock(info.idstr, info.used_length) for info in infos]
        self._decoder.set_blocks(self._blocks)
        into["ram_blocks"] = [self._block_row(info) for info in infos]

    @staticmethod
    def _block_row(info: RamBlockInfo) -> dict[str, Any]:
        return {
            "name": info.idstr,
            "used_length": info.used_length,
            "page_size": info.page_size,
            "address": info.address,
        }

    def _totals(self) -> dict[str, int]:
        counts = [block.counts for block in self._blocks]
        return {name: sum(count[name] for count in counts) for name in COUNTS}

    def _keep_devices(self, state: DeviceState, into: dict[str, Any]) -> None:
        vmdesc = state.vmdesc
        described: dict[int, VmdescStruct] = {}
        if vmdesc is not None:
            into["vmdesc"] = {
                "offset": vmdesc.offset,
                "length_bytes": len(vmdesc.text),
                "devices": len(vmdesc.devices),
            }
            behind = len(vmdesc.devices) - len(state.sections)
            described = {i: device.state for i, device in enumerate(vmdesc.devices[behind:])}
        self._first += state.sections
        into["ambiguous"] = state.ambiguous
        for i, section in enumerate(state.sections):
            if self._only in section.idstr:
                into["devices"].append(_device_row(section, state, described.get(i)))

    # -- a COLO channel

    def _read_checkpoints(self, reader: StreamReader) -> None:
        check = DeviceCheck(self._first, self._limits) if self._first else None
        while not self._buf.at_end():
            for block in self._blocks:
                block.clear_counts()
            row: dict[str, Any] = {
                "number": len(self.found["checkpoints"]) + 1,
                "offset": self._buf.position,
                "commands": [],
                "sections": [],
                "ram_blocks": [],
            }
            self._expect(ColoMessage.CHECKPOINT_REQUEST)
            self.found["checkpoints"].append(row)
            if self._buf.at_end():
                return  # asked for when the channel ended
            self._expect(ColoMessage.VMSTATE_SEND)
            if self._blocks:
                self._decoder.set_blocks(self._blocks)
            for item in StreamReader.live_state(self._buf, self._limits, started=reader.live_sections):
                if isinstance(item, DeviceState):
                    raise StreamError(
                        "device sections among a checkpoint's live state",
                        where="checkpoint",
                        offset=item.offset,
                    )
                self._keep(item, row)
            row |= self._totals()
            self._expect(ColoMessage.VMSTATE_SIZE)
            offset = self._buf.position
            size = self._buf.read_u64()
            if size > self._limits.device_state_bytes:
                raise LimitExceeded(
                    f"{size} bytes of device state, at most {self._limits.device_state_bytes}",
                    where="VMSTATE_SIZE",
                    offset=offset,
                    value=size,
                )
            blob = self._buf.read_exact(size)
            row["device_state_bytes"] = size
            try:
                sections = check.check(blob) if check else check_device_blob(blob, limits=self._limits)
            except StreamError as error:
                raise type(error)(
                    error.detail,
                    where=f"checkpoint {row['number']}, {error.where}",
                    offset=None if error.offset is None else offset + 8 + error.offset,
                    value=error.value,
                ) from None
            row["devices"] = len(sections)
            row["length_bytes"] = self._buf.position - row["offset"]

    def _expect(self, message: ColoMessage) -> None:
        offset = self._buf.position
        number = self._buf.read_u32()
        if number != message:
            raise StreamError(
                f"message {number}, expected {message.name} ({int(message)})",
                where="COLO channel",
                offset=offset,
                value=number,
            )


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
