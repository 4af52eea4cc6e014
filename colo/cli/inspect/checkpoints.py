"""The checkpoints in what a COLO primary sent: read in the order that the protocol's table has, and kept as plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from colo._fast.receive.buffers import ReadBuffer
from colo.cli.inspect.observer import Observer
from colo.cli.inspect.section_pages import SectionPages
from colo.errors import ProtocolError, StreamError
from colo.protocol import Event, Reads, State, command_event, decode_message, message_event, message_missing_bytes
from colo.stream import (
    CommandItem,
    DeviceCheck,
    DeviceSection,
    DeviceState,
    EndOfStream,
    Item,
    LiveSection,
    StreamLimits,
    StreamReader,
    check_device_blob,
)

MAY_END_IN = (State.IDLE, State.AWAIT_VMSTATE_SEND)
"""Between checkpoints, and when one was asked for and nothing of it sent."""


class Checkpoints:
    """Reads them from ``buf``, behind the initial stream, whose live sections were ``started`` and whose device sections
    ``first``. ``keep(item, row)`` keeps an item of live state, and raises StreamError for what is wrong in it."""

    def __init__(
        self, buf: ReadBuffer, limits: StreamLimits, pages: SectionPages, *, started: Mapping[int, LiveSection],
        first: Sequence[DeviceSection], keep: Callable[[Item, dict[str, Any]], None],
    ) -> None:
        self._buf = buf
        self._limits = limits
        self._pages = pages
        self._started = started
        self._check = DeviceCheck(first, limits) if first else None
        self._keep = keep
        self._observer = Observer()
        self._row: dict[str, Any] = {}

    def read(self, rows: list[dict[str, Any]]) -> None:
        """All that there are; ``rows`` grows meanwhile. Raises StreamError where the channel is damaged, or cut."""
        readers: dict[Reads, Callable[[list[dict[str, Any]]], None]] = {
            Reads.MESSAGE: self._read_message, Reads.STREAM: self._read_live_state, Reads.DEVICE: self._read_device_state,
        }
        while not (self._buf.at_end() and self._observer.state in MAY_END_IN):
            readers[self._observer.reads](rows)

    def _read_message(self, rows: list[dict[str, Any]]) -> None:
        offset, data = self._buf.position, b""
        while missing := message_missing_bytes(data):
            data += self._buf.read_exact(missing)
        message = decode_message(data, device_limit_bytes=self._limits.device_state_bytes, offset=offset)
        event = message_event(message.kind)
        self._observer.see(event, offset=offset)
        if event is Event.CHECKPOINT_REQUEST:
            self._pages.clear_counts()
            self._row = {"number": len(rows) + 1, "offset": offset, "commands": [], "sections": [], "ram_blocks": []}
            rows.append(self._row)
        elif event is Event.VMSTATE_SIZE:
            self._row["device_state_bytes"] = message.value

    def _read_live_state(self, rows: list[dict[str, Any]]) -> None:
        self._pages.begin()
        for item in StreamReader.live_state(self._buf, self._limits, started=self._started):
            if isinstance(item, DeviceState):
                raise StreamError(
                    "device sections among a checkpoint's live state", where="checkpoint", offset=item.offset)
            if isinstance(item, CommandItem):
                self._see_command(item)
            self._keep(item, self._row)
            if isinstance(item, EndOfStream):
                self._observer.see(Event.RAM_STAGED, offset=item.offset)
        self._row |= self._pages.totals()

    def _see_command(self, item: CommandItem) -> None:
        try:
            event = command_event(item.command, item.payload)
        except ProtocolError as error:
            raise StreamError(str(error), where="COLO channel", offset=item.offset, value=item.command.name) from error
        self._observer.see(event, offset=item.offset)

    def _read_device_state(self, rows: list[dict[str, Any]]) -> None:
        row, offset = self._row, self._buf.position
        blob = self._buf.read_exact(row["device_state_bytes"])
        try:
            sections = self._check.check(blob) if self._check else check_device_blob(blob, limits=self._limits)
        except StreamError as error:
            raise type(error)(
                error.detail, where=f"checkpoint {row['number']}, {error.where}",
                offset=None if error.offset is None else offset + error.offset, value=error.value) from None
        row["devices"] = len(sections)
        row["length_bytes"] = self._buf.position - row["offset"]
        self._observer.see(Event.DEVICE_RECEIVED, offset=self._buf.position)
