"""What a kept checkpoint is of, and what it takes to run it: said in a file beside it, for who finds it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from colo.errors import StorageError
from colo.wire import IDSTR_MAX_BYTES, TARGET_PAGE_BYTES

DESCRIPTION_MAX_BYTES = 4 << 20
BLOCKS_MAX = 4096
TEXT_MAX = 4096
ARGUMENTS_MAX = 65536


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """The session that keeps it."""

    standby: tuple[str, ...] | None = None
    """The stand-by's command line, as it was given."""
    share_ram: bool = True
    arbiter: str = ""
    """Its URI."""
    arbiter_id: str = ""
    vm: str = ""
    """The VM's name, as the arbiter has it."""
    uuid: str = ""
    listen: str = ""
    host: str = ""
    boot_id: str = ""
    pid: int = 0
    start_ticks: int = 0
    lease_ms: int = 0
    """The longest lease that it promised."""

    @classmethod
    def of_this_process(cls, **facts: Any) -> Self:
        """With the process's own filled in."""
        pid = os.getpid()
        return cls(host=socket.gethostname()[:64], boot_id=boot_id(), pid=pid, start_ticks=start_ticks(pid) or 0, **facts)

    @property
    def alive(self) -> bool:
        """Whether that session's process still runs here."""
        return self.boot_id == boot_id() and self.start_ticks != 0 and start_ticks(self.pid) == self.start_ticks


@dataclass(frozen=True, slots=True)
class Description:
    """Machine type, RAM blocks (idstr, bytes) and session of a kept checkpoint."""

    machine: str
    blocks: tuple[tuple[str, int], ...]
    session: SessionFacts

    def encode(self) -> bytes:
        """Raises StorageError when it is larger than :data:`DESCRIPTION_MAX_BYTES`."""
        data = json.dumps({"machine": self.machine, "blocks": self.blocks, "session": asdict(self.session)}).encode()
        if len(data) > DESCRIPTION_MAX_BYTES:
            raise StorageError(
                f"the description of the checkpoint has {len(data)} bytes, {DESCRIPTION_MAX_BYTES} are allowed: a shorter "
                "stand-by command line is needed")
        return data

    @property
    def total_bytes(self) -> int:
        """Of RAM."""
        return sum(length for _, length in self.blocks)


def decode_description(data: bytes) -> Description:
    """Raises StorageError (without a file's name) for anything that :meth:`Description.encode` does not make."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StorageError(f"no JSON: {error}") from None
    found = _mapping(value, "machine", "blocks", "session")
    session = _mapping(found["session"], *SessionFacts.__dataclass_fields__)
    blocks = found["blocks"]
    if not isinstance(blocks, list) or not 1 <= len(blocks) <= BLOCKS_MAX:
        raise StorageError(f"its list of RAM blocks is none of 1 to {BLOCKS_MAX}")
    standby = session["standby"]
    if standby is not None:
        if not isinstance(standby, list) or not 1 <= len(standby) <= ARGUMENTS_MAX:
            raise StorageError("its stand-by's command line is no list of arguments")
        standby = tuple(_text(each, "an argument", DESCRIPTION_MAX_BYTES) for each in standby)
        if any("\0" in each for each in standby):
            raise StorageError("an argument of its stand-by's command line has a NUL in it")
    numbers: dict[str, Any] = {name: _number(session[name], name) for name in ("pid", "start_ticks", "lease_ms")}
    texts: dict[str, Any] = {
        name: _text(session[name], name) for name in ("arbiter", "arbiter_id", "vm", "uuid", "listen", "host", "boot_id")}
    facts = SessionFacts(standby=standby, share_ram=_of(bool, session["share_ram"], "share_ram"), **numbers, **texts)
    pairs = tuple(_block(each) for each in blocks)
    if len({idstr for idstr, _ in pairs}) != len(pairs):
        raise StorageError("two of its RAM blocks have one name")
    return Description(_text(found["machine"], "machine", 255), pairs, facts)


def _block(value: object) -> tuple[str, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise StorageError("a RAM block is not a name and a length")
    idstr, length = _text(value[0], "a RAM block's name", IDSTR_MAX_BYTES), _number(value[1], "a RAM block's length")
    if not idstr or len(idstr.encode(errors="replace")) > IDSTR_MAX_BYTES or not length or length % TARGET_PAGE_BYTES:
        raise StorageError(f"the RAM block {idstr!r} of {length} bytes is none")
    return idstr, length


def _mapping(value: object, *names: str) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != set(names):
        raise StorageError(f"it has not the entries {', '.join(names)}")
    return value


def _of(kind: type, value: Any, what: str) -> Any:
    if type(value) is not kind:
        raise StorageError(f"{what} is no {kind.__name__}")
    return value


def _text(value: Any, what: str, most: int = TEXT_MAX) -> str:
    text: str = _of(str, value, what)
    try:
        if len(text.encode()) > most:
            raise StorageError(f"{what} is longer than {most} bytes")
    except UnicodeEncodeError:
        raise StorageError(f"{what} is no text") from None
    return text


def _number(value: Any, what: str) -> int:
    number: int = _of(int, value, what)
    if not 0 <= number < 2**63:
        raise StorageError(f"{what} is {number}")
    return number


def boot_id() -> str:
    """Of the running kernel; empty if it cannot be told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def start_ticks(pid: int) -> int | None:
    """When a process began, in clock ticks since the boot: with its pid, what tells it from all others. None: it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


DIFFERENCES_SHOWN = 8
"""Blocks that an error names."""


def block_differences(announced: Mapping[str, int], here: Mapping[str, int]) -> str:
    """Which RAM blocks, of name and length in bytes, differ, and how: for an error. "" when none does."""
    words = [
        f"'{name}' has {announced[name]} bytes there and {here[name]} here"
        for name in announced
        if name in here and announced[name] != here[name]
    ]
    words += [f"'{name}' ({announced[name]} bytes) is not here" for name in announced if name not in here]
    words += [f"'{name}' ({here[name]} bytes) is only here" for name in here if name not in announced]
    more = f"; and {len(words) - DIFFERENCES_SHOWN} more" if len(words) > DIFFERENCES_SHOWN else ""
    return "; ".join(words[:DIFFERENCES_SHOWN]) + more
