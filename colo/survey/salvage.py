"""Device sections whose bytes do not fit together: as many of them as can be told apart, with what is wrong.

For people who look into a stream; a session refuses such a stream as a whole. Guided by the vmdesc where there
is one, otherwise by what looks like the header of a section.
"""

from __future__ import annotations

import re
from collections import deque
from typing import NamedTuple

from colo.errors import StreamError
from colo.limits import StreamLimits
from colo.stream.names import encode_name
from colo.stream.resync import FOOTER_BYTES, header_ends
from colo.stream.sections import DeviceSection
from colo.vmdesc.document import parse_vmdesc
from colo.vmdesc.records import Vmdesc
from colo.wire import SectionType

_VMDESC = re.compile(rb"\x06(.{4})\{", re.DOTALL)
_HEADER = re.compile(rb"\x04.{4}[\x02-\xff]", re.DOTALL)
_DEVICE_NAME = re.compile(r"[\x21-\x7e]+( [\x21-\x7e]+)*")
_VMDESC_TRIES = 8
_MISSING_MAX = 32
"""Devices looked for in vain: each is a search through all that is left."""
_ID_STEP_MAX = 4096
"""Section ids count up; without footers a header with a far one is taken for data."""


class Salvaged(NamedTuple):
    """``sections`` in the order of the stream, what is wrong with them by their index, and the other problems.
    ``end`` is the offset behind the last section and its EOF, if there is one."""

    sections: list[DeviceSection]
    wrong: dict[int, StreamError]
    problems: list[StreamError]
    vmdesc: Vmdesc | None
    end: int


def find_vmdesc(data: bytes | bytearray, base: int, limits: StreamLimits) -> tuple[int, Vmdesc] | None:
    """The last text in ``data`` that is a whole vmdesc: the offset of its type byte, and what it says."""
    found: deque[tuple[int, int]] = deque(maxlen=_VMDESC_TRIES)
    for match in _VMDESC.finditer(data):
        length = int.from_bytes(match[1], "big")
        end = match.start() + 5 + length
        if 2 <= length <= limits.vmdesc_bytes and end <= len(data) and data[end - 1] == ord("}"):
            found.append((match.start(), end))
    for start, end in reversed(found):
        try:
            return start, parse_vmdesc(bytes(data[start + 5 : end]), offset=base + start + 5, limits=limits)
        except StreamError:
            continue
    return None


def salvage(
    data: bytes | bytearray, base: int, limits: StreamLimits, *, vmdesc: Vmdesc | None, footers: bool, skip: int = 0
) -> Salvaged:
    """The sections in ``data``, which begins with a FULL section at offset ``base`` of the stream and may hold more
    than the run, a vmdesc for example, which is used if none is given. ``skip`` devices of the vmdesc were in an
    earlier run."""
    problems: list[StreamError] = []
    end = len(data)
    if vmdesc is None and (found := find_vmdesc(data, base, limits)) is not None:
        end, vmdesc = found
    starts = _headers(data, end, footers) if vmdesc is None else _listed(data, end, vmdesc, problems, base, footers, skip)
    starts = starts[: limits.device_sections]
    if vmdesc is None and footers:
        end = _end_of_last(data, starts)
    whole = end
    if end and data[end - 1] == SectionType.EOF:
        end -= 1
    sections: list[DeviceSection] = []
    wrong: dict[int, StreamError] = {}
    mark = FOOTER_BYTES if footers else 0
    for i, start in enumerate(starts):
        body = header_ends(data, start)
        assert body is not None
        behind = starts[i + 1] if i + 1 < len(starts) else end
        stop = max(body, behind - mark)
        section = _section(data, start, body, stop)
        sections.append(section)
        error = _what_is_wrong(data, base, section, vmdesc, footers)
        if error is not None:
            wrong[i] = error
    return Salvaged(sections, wrong, problems, vmdesc, whole)


def _section(data: bytes | bytearray, start: int, body: int, stop: int) -> DeviceSection:
    number = int.from_bytes
    return DeviceSection(
        number(data[start + 1 : start + 5], "big"),
        bytes(data[start + 6 : body - 8]).decode(),
        number(data[body - 8 : body - 4], "big"),
        number(data[body - 4 : body], "big"),
        body,
        stop - body,
    )


def _listed(
    data: bytes | bytearray,
    end: int,
    vmdesc: Vmdesc,
    problems: list[StreamError],
    base: int,
    footers: bool,
    skip: int,
) -> list[int]:
    """The headers of the devices that the vmdesc lists, in its order: where the one before ends, or further on."""
    starts: list[int] = []
    at = missing = 0
    mark = FOOTER_BYTES if footers else 0
    for device in vmdesc.devices[skip:]:
        wanted = encode_name(device.idstr) + device.instance_id.to_bytes(4, "big")
        start = at if data.startswith(wanted, at + 5) and data[at : at + 1] == b"\x04" else -1
        low = starts[-1] + 1 if starts else 0
        while start < 0 and missing < _MISSING_MAX:
            name = data.find(wanted, low + 5, end)
            if name < 0:
                break
            if data[name - 5] == SectionType.FULL and (
                not footers or name == 5 or data[name - 10 : name - 9] == bytes((SectionType.FOOTER,))
            ):
                start = name - 5
            low = name - 4
        if start < 0 or header_ends(data, start) is None:
            missing += 1
            problems.append(
                StreamError(
                    "the vmdesc lists it, and it was not found",
                    where=f"device '{device.idstr}' instance {device.instance_id}",
                    offset=base + at,
                    value=device.key,
                )
            )
            continue
        starts.append(start)
        at = start + 5 + len(wanted) + 4 + device.state.size_bytes + mark
    return starts


def _headers(data: bytes | bytearray, end: int, footers: bool) -> list[int]:
    """What looks like a header: the first byte, and behind something like a footer; without those, where the
    section ids go on counting."""
    starts: list[int] = []
    ids: set[int] = set()
    largest = 0
    for match in _HEADER.finditer(data, 0, end):
        start = match.start()
        if footers and start and data[start - FOOTER_BYTES : start - FOOTER_BYTES + 1] != bytes((SectionType.FOOTER,)):
            continue
        body = header_ends(data, start)
        if body is None or (starts and start < (header_ends(data, starts[-1]) or 0)):
            continue
        number = int.from_bytes(data[start + 1 : start + 5], "big")
        if number in ids:
            continue
        if not footers and start:
            name = bytes(data[start + 6 : body - 8]).decode()
            version = int.from_bytes(data[body - 4 : body], "big")
            if not _DEVICE_NAME.fullmatch(name) or number > largest + _ID_STEP_MAX or version > 0xFFFF:
                continue
        ids.add(number)
        largest = max(largest, number)
        starts.append(start)
    return starts


def _end_of_last(data: bytes | bytearray, starts: list[int]) -> int:
    """Behind the footer of the last section: without it, all that is left is its body."""
    if not starts:
        return 0
    mark = bytes((SectionType.FOOTER,)) + bytes(data[starts[-1] + 1 : starts[-1] + 5])
    at = data.find(mark + bytes((SectionType.EOF,)), starts[-1])
    return at + FOOTER_BYTES + 1 if at >= 0 else len(data)


def _what_is_wrong(
    data: bytes | bytearray, base: int, section: DeviceSection, vmdesc: Vmdesc | None, footers: bool
) -> StreamError | None:
    where = f"device section {section.section_id} '{section.idstr}' instance {section.instance_id}"
    stop = section.offset + section.length_bytes
    if footers:
        footer = bytes(data[stop : stop + FOOTER_BYTES])
        if footer != bytes((SectionType.FOOTER,)) + section.section_id.to_bytes(4, "big"):
            found = int.from_bytes(footer[1:], "big")
            text = (
                f"footer of section {found}, expected one of section {section.section_id}"
                if len(footer) == FOOTER_BYTES and footer[0] == SectionType.FOOTER
                else "no footer ends it"
            )
            return StreamError(text, where=where, offset=base + stop, value=footer)
    if vmdesc is not None:
        device = next((device for device in vmdesc.devices if device.key == section.key), None)
        if device is not None and device.state.exact and device.state.size_bytes != section.length_bytes:
            return StreamError(
                f"{section.length_bytes} bytes, and the vmdesc has {device.state.size_bytes}",
                where=where,
                offset=base + section.offset,
                value=section.length_bytes,
            )
    return None
