"""Where do device sections end? They carry no length; this follows all readings of the bytes at once.

A section can end wherever a footer with its own id stands and what follows can open another item. Device data
may hold such bytes by chance, or because a guest put them there, so a single pass keeps every *possible*
section header, and the readings that connect the first header with the end are enumerated backwards from it.
Work is linear in the bytes, plus a bounded number of steps for the enumeration: hostile data is refused, not
followed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from colo.errors import LimitExceeded, StreamError, Truncated
from colo.limits import StreamLimits
from colo.stream.names import decode_name
from colo.stream.sections import DeviceSection
from colo.wire import RAM_IDSTR, SectionType

FOOTER_BYTES = 5
"""Type byte and section id."""
_READING_STEPS = 50_000
_CANDIDATES = 1 << 16
"""Footers of possibly open sections that are looked at: real data has hardly more than it has sections."""

_FULL_FOLLOWS = re.compile(rb"\x7e(?=.{4}\x04.{4}[^\x00])", re.DOTALL)
_ANY_FOLLOWS = re.compile(rb"\x7e(?=.{4}[\x00\x01\x02\x03\x04\x08])", re.DOTALL)


class _Header(NamedTuple):
    """A possible FULL section: offsets of its type byte and of its body."""

    offset: int
    body: int
    section_id: int
    idstr: str
    instance_id: int
    version_id: int


class End(NamedTuple):
    """A footer of a possibly open section, with a byte behind it that no FULL section starts with."""

    footer: int
    type: int

    @property
    def next(self) -> int:
        """Offset of the item that follows."""
        return self.footer + FOOTER_BYTES


class DeviceScan:
    """The readings of ``data``, a run of FULL sections that may still grow at its end.

    ``names``: only these idstrs are taken for a section's name, so that a forged header is seen through.
    ``base`` is added to offsets in errors.
    """

    def __init__(
        self,
        data: bytes | bytearray,
        limits: StreamLimits,
        *,
        names: Collection[str] | None = None,
        base: int = 0,
    ) -> None:
        self.data = data
        self.base = base
        self._limits = limits
        self._names = names
        self._headers: dict[int, list[_Header]] = {}
        self._first_body: dict[int, int] = {}
        self._last: _Header | None = None
        self._count = 0
        self._incomplete: list[int] = []
        self._candidates = 0
        self._from = 0

    # -- forwards: headers that can be reached

    def open_first(self) -> bool:
        """Take the header at offset 0; False if it is not all here yet. Raises StreamError if it is none."""
        data = self.data
        if data and data[0] != SectionType.FULL:
            raise self._error(f"section type {data[0]:#04x}, not FULL", 0, value=data[0])
        header = self._header_at(0, strict=True)
        if header is None:
            return False
        self._add(header)
        self._from = header.body
        return True

    def run_through(self) -> None:
        """Find every reachable header in ``data``, which is whole."""
        from_bytes = int.from_bytes
        data, bodies = self.data, self._first_body
        for match in _FULL_FOLLOWS.finditer(data, self._from):
            footer = match.start()
            if bodies.get(from_bytes(data[footer + 1 : footer + 5], "big"), footer + 1) <= footer:
                self._count_candidate(footer)
                header = self._header_at(footer + FOOTER_BYTES)
                if header is not None:
                    self._add(header)

    def find_end(self) -> End | None:
        """Go on through ``data`` to the next place where the run may end; None: not in what is here.

        What the caller reads while this returns None belongs to the run in every reading.
        """
        data = self.data
        for offset in [o for o in self._incomplete if self._try_header(o)]:
            self._incomplete.remove(offset)
        while True:
            match = _ANY_FOLLOWS.search(data, self._from)
            if match is None:
                self._from = max(self._from, len(data) - FOOTER_BYTES)
                return None
            footer = match.start()
            self._from = footer + 1
            section_id = int.from_bytes(data[footer + 1 : footer + 5], "big")
            if self._first_body.get(section_id, footer + 1) > footer:
                continue
            self._count_candidate(footer)
            kind = data[footer + FOOTER_BYTES]
            if kind != SectionType.FULL:
                return End(footer, kind)
            if not self._try_header(footer + FOOTER_BYTES):
                self._incomplete.append(footer + FOOTER_BYTES)

    def end_without_item(self) -> End | None:
        """The footer that is the very last of the data, behind which nothing comes; None if there is none."""
        footer = len(self.data) - FOOTER_BYTES
        section_id = int.from_bytes(self.data[footer + 1 :], "big")
        if self.data[footer] != SectionType.FOOTER or self._first_body.get(section_id, footer + 1) > footer:
            return None
        return End(footer, SectionType.FOOTER)

    def _try_header(self, offset: int) -> bool:
        """Add the header at ``offset`` if it is one. False: too little is here to tell."""
        data = self.data
        if len(data) < offset + 6 or len(data) < offset + 6 + data[offset + 5] + 8:
            return False
        header = self._header_at(offset)
        if header is not None:
            self._add(header)
        return True

    def _header_at(self, offset: int, *, strict: bool = False) -> _Header | None:
        """The FULL header at ``offset`` (whose type byte has been seen); None if it cannot be one.

        ``strict`` raises for what cannot be one, and returns None only where bytes are missing.
        """
        data = self.data
        name_at = offset + 6
        if len(data) < name_at:
            return None
        name_end = name_at + data[name_at - 1]
        body = name_end + 8
        if len(data) < body:
            return None
        try:
            idstr = decode_name(
                bytes(data[name_at:name_end]), where="FULL section", offset=self.base + name_at
            )
        except StreamError:
            if strict:
                raise
            return None
        if idstr == RAM_IDSTR or (self._names is not None and idstr not in self._names):
            if strict:
                raise self._error(f"a device named '{idstr}' is not expected here", offset, value=idstr)
            return None
        from_bytes = int.from_bytes
        return _Header(
            offset,
            body,
            from_bytes(data[offset + 1 : offset + 5], "big"),
            idstr,
            from_bytes(data[name_end : name_end + 4], "big"),
            from_bytes(data[name_end + 4 : body], "big"),
        )

    def _count_candidate(self, footer: int) -> None:
        self._candidates += 1
        if self._candidates > _CANDIDATES:
            raise self._error(
                f"more than {_CANDIDATES} places look like the end of a section",
                footer,
                kind=LimitExceeded,
                value=self._candidates,
            )

    def _add(self, header: _Header) -> None:
        if self._count == self._limits.device_sections:
            raise LimitExceeded(
                f"more than {self._count} device sections",
                where="device state",
                offset=self.base + header.offset,
                value=self._count + 1,
            )
        self._count += 1
        self._last = header
        self._headers.setdefault(header.section_id, []).append(header)
        self._first_body[header.section_id] = min(
            header.body, self._first_body.get(header.section_id, header.body)
        )

    # -- backwards: whole readings

    def readings(
        self, last_footer: int, accept: Callable[[DeviceSection, int], bool] | None = None
    ) -> Iterator[tuple[DeviceSection, ...]]:
        """Every way to read the run that ends with the footer at ``last_footer``; no section id occurs twice
        in one.

        ``accept`` is asked about each section, with the number of those behind it. Raises LimitExceeded if
        too much would have to be tried. (idstr, instance) may occur twice: QEMU's ``isapc`` has two
        ``isa-ide`` 0.
        """
        steps = 0
        taken: list[DeviceSection] = []
        ids: set[int] = set()
        untried = [self._ending_at(last_footer)]
        while untried:
            steps += 1
            if steps > _READING_STEPS:
                raise self._error(
                    f"the device data can be split into sections in too many ways ({steps - 1} steps tried)",
                    last_footer,
                    kind=LimitExceeded,
                    value=steps,
                )
            if not untried[-1]:
                untried.pop()
                if taken:
                    ids.remove(taken.pop().section_id)
                continue
            header, footer = untried[-1].pop()
            section = DeviceSection(
                header.section_id,
                header.idstr,
                header.instance_id,
                header.version_id,
                header.body,
                footer - header.body,
            )
            if section.section_id in ids or (accept is not None and not accept(section, len(taken))):
                continue
            if header.offset == 0:
                yield (section, *reversed(taken))
                continue
            taken.append(section)
            ids.add(section.section_id)
            untried.append(self._ending_at(header.offset - FOOTER_BYTES))

    def _ending_at(self, footer: int) -> list[tuple[_Header, int]]:
        """The sections that may end with this footer; the latest header comes last and is tried first."""
        section_id = int.from_bytes(self.data[footer + 1 : footer + 5], "big")
        return [(header, footer) for header in self._headers.get(section_id, ()) if header.body <= footer]

    # -- why not

    def unfinished(self) -> StreamError:
        """The error for data in which the furthest section found has no end."""
        last = self._last
        if last is None:
            return self._error("the header of a device section is cut off", len(self.data), kind=Truncated)
        where = f"device section {last.section_id} '{last.idstr}'"
        data = self.data
        for match in _ANY_FOLLOWS.finditer(data, last.body):
            footer = match.start()
            found = int.from_bytes(data[footer + 1 : footer + 5], "big")
            ends = data[footer + FOOTER_BYTES] == SectionType.EOF and footer + FOOTER_BYTES + 1 == len(data)
            if found != last.section_id and (
                ends
                or (
                    data[footer + FOOTER_BYTES] == SectionType.FULL
                    and self._header_at(footer + FOOTER_BYTES) is not None
                )
            ):
                return StreamError(
                    f"footer of section {found}, expected one of section {last.section_id}",
                    where=where,
                    offset=self.base + footer,
                    value=found,
                )
        return Truncated(
            f"no footer of section {last.section_id} with another section or EOF behind it follows the body, "
            f"which starts at byte {self.base + last.body}",
            where=where,
            offset=self.base + len(data),
        )

    def _error(
        self, message: str, offset: int, *, kind: type[StreamError] = StreamError, value: object = None
    ) -> StreamError:
        return kind(message, where="device state", offset=self.base + offset, value=value)
