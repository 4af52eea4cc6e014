"""Where may a section stream go on? What an item looks like, for readers that lost the place, or must pass over
a body that they cannot read."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING

from colo.errors import StreamError
from colo.stream.commands import payload_fits
from colo.stream.names import decode_name
from colo.wire import IDSTR_MAX_BYTES, ColoMessage, Command, SectionType

if TYPE_CHECKING:
    from colo._fast.receive.buffers import ReadBuffer

FOOTER_BYTES = 5
START_HEADER_MAX = 1 + 4 + 1 + IDSTR_MAX_BYTES + 4 + 4
"""Bytes of the longest START or FULL header."""
WINDOW_BYTES_MIN, WINDOW_BYTES = 1 << 10, 1 << 20
LOOK_BYTES_MAX = 16 << 30
"""How far an item is looked for: the longest body of a live section that is passed over."""
_COMMANDS = frozenset(Command)
_CHECKPOINT = ColoMessage.CHECKPOINT_REQUEST.to_bytes(4, "big")
_NAMED = rb"[\x01\x04].{4}[\x01-\xff]|\x00\x06.{4}\{"
"""START, FULL, or EOF with a vmdesc behind it."""


def header_ends(data: bytes | bytearray, at: int) -> int | None:
    """Where the body begins behind the START or FULL header at ``at``; None if there is none, or not all of it."""
    name_at = at + 6
    if len(data) < name_at:
        return None
    body = name_at + data[name_at - 1] + 8
    if len(data) < body:
        return None
    try:
        decode_name(bytes(data[name_at : body - 8]), where="", offset=None)
    except StreamError:
        return None
    return body


def item_starts(data: bytes, at: int, live: Collection[int], *, last: bool) -> bool:
    """Whether another item of the stream, or its end, can be at ``at``. ``live``: ids of live sections that may
    go on; ``last``: nothing comes behind ``data``."""
    if at >= len(data):
        return False
    kind = data[at]
    if kind in (SectionType.START, SectionType.FULL):
        return header_ends(data, at) is not None
    if kind in (SectionType.PART, SectionType.END):
        return int.from_bytes(data[at + 1 : at + 5], "big") in live and len(data) >= at + 5
    if kind == SectionType.COMMAND:
        number = int.from_bytes(data[at + 1 : at + 3], "big")
        length = int.from_bytes(data[at + 3 : at + 5], "big")
        return len(data) >= at + 5 and number in _COMMANDS and payload_fits(Command(number), length)
    if kind == SectionType.EOF:
        behind = data[at + 1 : at + 7]
        return (
            (not behind and last)
            or (behind[:1] == bytes((SectionType.VMDESCRIPTION,)) and behind[5:6] == b"{")
            or behind[:4] == _CHECKPOINT
        )
    return False


def pass_over_body(buf: ReadBuffer, section_id: int, live: Collection[int], *, footers: bool) -> bool:
    """Read past the body of a section, up to its footer (not past it), or, without ``footers``, up to where
    another item starts. False, at the end of the data, if neither comes.

    The footer's five bytes count only where another item can start behind them: a body may hold the same bytes.
    """
    mark = bytes((SectionType.FOOTER,)) + section_id.to_bytes(4, "big") if footers else b""
    return _seek(buf, mark, live)


def pass_to_item(buf: ReadBuffer, live: Collection[int]) -> bool:
    """Read on to the next place where an item with a name starts, or the stream ends: for a reader that lost
    its place. False, at the end of the data, if there is none."""
    return _seek(buf, b"", live)


def _seek(buf: ReadBuffer, mark: bytes, live: Collection[int]) -> bool:
    # One pattern for all, so that a window is gone through once, whatever is in it.
    ids = b"|".join(re.escape(number.to_bytes(4, "big")) for number in live)
    places = re.compile(
        re.escape(mark) if mark else _NAMED + (rb"|[\x02\x03](?:" + ids + rb")" if ids else b""), re.DOTALL
    )
    need = len(mark) + START_HEADER_MAX
    limit = buf.position + LOOK_BYTES_MAX
    size = WINDOW_BYTES_MIN  # most bodies are short
    while buf.position < limit and not buf.at_end():
        window = buf.peek(size)
        last = len(window) < size
        size = min(2 * size, WINDOW_BYTES)
        go_on = len(window) if last else len(window) - need
        at = -1
        while (found := places.search(window, at + 1)) is not None:
            at = found.start()
            if at > go_on:
                break
            if item_starts(window, at + len(mark), live, last=last):
                buf.skip(at)
                return True
        buf.skip(go_on)
    return False
