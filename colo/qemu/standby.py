"""The stand-by: a QEMU that waits with ``-incoming defer`` over the shared RAM file until it is needed.

Everything that can be done beforehand is: it is started, checked against the primary's stream, its
capabilities are set, and it already listens on a unix socket. A takeover is then: connect, write the
composed stream, shut down the writing side, and see it run.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from colo.errors import QemuError, QemuUnsupported, StandbyError
from colo.qemu.process import QemuProcess, private_directory, unix_path
from colo.qemu.qmp import EventSubscription, QmpError, QmpEvent, QmpLost, QmpTimeout

RESIZABLE_PREFIX = "/rom@"
"""Blocks under this name (firmware tables) are grown or shrunk by the incoming stream, up to their total."""


@dataclass(frozen=True)
class RamBlock:
    """One of the stand-by's RAM blocks, as ``info ramblock`` tells it."""

    idstr: str
    used_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class TakeoverReport:
    """A takeover's times, in milliseconds from :meth:`Standby.connect`.

    ``accepted_ms``: QEMU took the connection; ``loaded_ms``: the whole stream is loaded and the VM starts;
    ``running_ms``: QMP confirmed that it runs. The first two are by QEMU's own event timestamps.
    """

    accepted_ms: float | None
    loaded_ms: float
    running_ms: float
    qmp_path: Path
    pid: int


class Standby:
    """A stand-by QEMU: :meth:`start`, :meth:`check`, :meth:`prepare`; :meth:`connect`, :meth:`finish`."""

    def __init__(self, process: QemuProcess, work_dir: Path) -> None:
        self.process = process
        self.work_dir = work_dir
        self.incoming_path = work_dir / "incoming.sock"
        self.ignore_shared = False
        """Whether :meth:`prepare` switched x-ignore-shared on: the stream must say so too."""
        self._events: EventSubscription | None = None
        self._connected_at_ns = 0
        self._connected_at_us = 0
        self._handed_over = False

    @classmethod
    def start(cls, argv: Sequence[str], work_dir: str | os.PathLike[str], *, timeout_s: float = 20.0) -> Self:
        """Start ``argv`` with its sockets in ``work_dir`` (0700); ``-incoming defer`` is added if missing.

        :raises StandbyError: QEMU did not start; its own words are in the message.
        """
        arguments = list(argv)
        if "-incoming" not in arguments and "--incoming" not in arguments:
            arguments += ["-incoming", "defer"]
        elif "defer" not in arguments:
            raise StandbyError(
                "the stand-by's command line must say `-incoming defer`, or nothing about -incoming"
            )
        try:
            directory = private_directory(work_dir)
            process = QemuProcess.start(
                arguments, directory, timeout_s=timeout_s, socket_name="standby-qmp.sock"
            )
        except QemuError as error:
            raise StandbyError(f"the stand-by did not start: {error}") from error
        standby = cls(process, directory)
        try:
            status = process.status()
            if status != "inmigrate":
                raise StandbyError(
                    f"the stand-by's status is {status!r}, not `inmigrate`: it does not wait for a stream"
                )
        except QemuError as error:
            standby.close()
            raise standby._explained(error) from error
        return standby

    # Beforehand

    def ram_blocks(self) -> list[RamBlock]:
        """Its RAM blocks. :raises StandbyError: it does not answer, or in a form not known."""
        try:
            text = self.process.qmp.hmp("info ramblock")
        except QmpError as error:
            raise self._explained(error) from error
        blocks = parse_ramblocks(text)
        if not blocks:
            raise StandbyError(
                f"QEMU {self.process.version} answers `info ramblock` in an unknown form: {text[:200]!r}"
            )
        return blocks

    def check(
        self,
        machine_type: str,
        blocks: Sequence[tuple[str, int]],
        shared: Mapping[str, str | os.PathLike[str]] | None = None,
    ) -> None:
        """Compare it with the primary's stream, before it is needed.

        ``blocks`` are the stream's RAM blocks (idstr, used_length in bytes); ``shared`` maps those whose
        RAM is kept in a file to that file.

        :raises StandbyError: says everything that differs, and what to do about it.
        """
        try:
            ours = self.process.machine_type
            differences = []
            if ours != machine_type:
                differences.append(
                    f"its machine is {ours}, the primary's is {machine_type}: give it -machine {machine_type}"
                )
            differences += _block_differences(blocks, {block.idstr: block for block in self.ram_blocks()})
            for idstr, path in (shared or {}).items():
                differences += self._sharing_differences(idstr, Path(path))
        except QmpError as error:
            raise self._explained(error) from error
        if differences:
            raise StandbyError("the stand-by does not fit the primary: " + "; ".join(differences))

    def _sharing_differences(self, idstr: str, path: Path) -> list[str]:
        advice = (
            f"give it -object memory-backend-file,id={idstr},share=on,size=…,mem-path={path} as its memory"
        )
        backends = {str(entry.get("id")): entry for entry in self.process.qmp.execute("query-memdev")}
        backend = backends.get(idstr)
        if backend is None:
            return [f"its RAM block {idstr} is not in a file: {advice}"]
        if not backend.get("share"):
            return [f"its memory backend {idstr} is not shared: {advice}"]
        try:
            wanted = path.stat()
        except OSError as error:
            return [f"the RAM file {path}: {error.strerror}"]
        if not _maps_shared(self.process.pid, wanted.st_dev, wanted.st_ino):
            return [f"it does not map {path}: {advice}"]
        return []

    def block_addresses(self, idstrs: Sequence[str]) -> dict[str, int]:
        """The address that the stream's MEM_SIZE entry of each shared block must carry under x-ignore-shared.

        QEMU compares it with the memory region's offset in its container (migration/ram.c:parse_ramblock):
        0 for a machine's main memory, the place in the hot-plug window for a DIMM.

        :raises StandbyError: a block is in no address space that ``info mtree`` shows.
        """
        try:
            tree = self.process.qmp.hmp("info mtree")
        except QmpError as error:
            raise self._explained(error) from error
        addresses = {}
        for idstr in idstrs:
            address = region_offset(tree, idstr)
            if address is None:
                raise StandbyError(
                    f"`info mtree` of QEMU {self.process.version} does not show the RAM block {idstr}"
                )
            addresses[idstr] = address
        return addresses

    def prepare(self, *, ignore_shared: bool) -> None:
        """Set capabilities and start listening, so that a takeover only has to connect and write.

        :raises StandbyError: QEMU refused, or died.
        :raises QemuUnsupported: ``ignore_shared`` is asked of a version that does not have it.
        """
        qmp = self.process.qmp
        if ignore_shared and not self.process.quirks.has_ignore_shared:
            raise QemuUnsupported(
                f"QEMU {self.process.version} has no x-ignore-shared: send all pages instead"
            )
        capabilities = {"events": True, "x-ignore-shared": ignore_shared}
        if not self.process.quirks.has_ignore_shared:
            del capabilities["x-ignore-shared"]
        self.incoming_path.unlink(missing_ok=True)
        try:
            qmp.execute("migrate-set-capabilities", {"capabilities": capability_list(capabilities)})
            self._events = qmp.subscribe("MIGRATION", "RESUME", "STOP", "SHUTDOWN", "GUEST_PANICKED")
            qmp.execute("migrate-incoming", {"uri": f"unix:{unix_path(self.incoming_path)}"})
        except QmpError as error:
            raise self._explained(error) from error
        self.ignore_shared = ignore_shared

    # The takeover

    def connect(self) -> socket.socket:
        """The connected (blocking) socket to write the composed stream into; the caller closes it.

        :raises StandbyError: it died, or :meth:`prepare` was not called.
        """
        if self._events is None:
            raise StandbyError("the stand-by is not prepared: call prepare() first")
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connected_at_us = time.time_ns() // 1000
        self._connected_at_ns = time.monotonic_ns()
        try:
            channel.connect(str(self.incoming_path))
        except OSError as error:
            channel.close()
            raise self._explained(QmpLost(f"the stand-by takes no connection: {error.strerror}")) from error
        return channel

    def finish(self, timeout_s: float = 5.0) -> TakeoverReport:
        """Wait until the stream is loaded and the VM runs; ``cont`` it if it was started with ``-S``.

        :raises StandbyError: QEMU refused the stream (its own words are in the message), died, or was not
            running within ``timeout_s`` seconds.
        """
        assert self._events is not None
        deadline = time.monotonic() + timeout_s
        accepted: QmpEvent | None = None
        loaded: QmpEvent | None = None
        try:
            while loaded is None:
                event = self._events.get(deadline - time.monotonic())
                if event.name == "RESUME":
                    loaded = event
                elif event.name == "MIGRATION":
                    state = event.data.get("status")
                    accepted = accepted or (event if state == "active" else None)
                    if state == "failed":
                        raise StandbyError(f"the stand-by refused the stream{self._said()}")
                    if state == "completed":
                        loaded = event
            status = self._await_running(deadline)
        except QmpTimeout as error:
            raise StandbyError(
                f"the stand-by was not running {timeout_s:.1f} s after the stream: "
                f"{self._progress()}{self._said()}"
            ) from error
        except QmpError as error:
            raise self._explained(error) from error
        running_ms = (time.monotonic_ns() - self._connected_at_ns) / 1e6
        if status != "running":
            raise StandbyError(f"the stand-by loaded the stream, but its status is {status!r}{self._said()}")
        pid = self.process.pid
        assert pid is not None
        return TakeoverReport(
            accepted_ms=None if accepted is None else (accepted.timestamp_us - self._connected_at_us) / 1e3,
            loaded_ms=(loaded.timestamp_us - self._connected_at_us) / 1e3,
            running_ms=running_ms,
            qmp_path=self.process.qmp_path,
            pid=pid,
        )

    def _await_running(self, deadline: float) -> str:
        qmp = self.process.qmp
        continued = False
        while True:
            status = str(
                qmp.execute("query-status", timeout_s=max(0.05, deadline - time.monotonic()))["status"]
            )
            if status == "running" or (status not in ("inmigrate", "paused", "finish-migrate", "prelaunch")):
                return status
            if status in ("paused", "prelaunch") and not continued:
                qmp.execute("cont", timeout_s=max(0.05, deadline - time.monotonic()))
                continued = True
                continue
            if time.monotonic() > deadline:
                return status
            time.sleep(0.001)

    def hand_over(self) -> tuple[Path, int]:
        """The VM is the user's from here: it outlives us, its monitor is free; (QMP socket path, pid)."""
        pid = self.process.pid
        assert pid is not None
        self._handed_over = True
        self.process.release()
        self.process.detach()
        self.incoming_path.unlink(missing_ok=True)
        return self.process.qmp_path, pid

    # The end

    def alive(self) -> bool:
        """Whether its process still runs (to be asked from time to time while it waits)."""
        return self.process.alive()

    def close(self) -> None:
        """End it, unless it was handed over; leaves no process and no socket. Idempotent."""
        if self._handed_over:
            return
        self.process.kill()
        self.incoming_path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _explained(self, error: Exception) -> StandbyError:
        if isinstance(error, StandbyError):
            return error
        words = self.process.explain(error)
        return StandbyError(f"the stand-by failed: {words}")

    def _said(self) -> str:
        return self.process.said()

    def _progress(self) -> str:
        try:
            information: dict[str, Any] = self.process.qmp.execute("query-migrate", timeout_s=0.5)
        except QmpError:
            return "its monitor does not answer"
        reason = information.get("error-desc")
        return f"its migration is {information.get('status', 'not begun')!r}" + (
            f" ({reason})" if reason else ""
        )


def capability_list(capabilities: Mapping[str, bool]) -> list[dict[str, object]]:
    """``migrate-set-capabilities``' argument."""
    return [{"capability": name, "state": state} for name, state in capabilities.items()]


_RAMBLOCK = re.compile(
    r"^\s*(\S.*?)\s+\d+\s+[KMG]iB\s+0x[0-9a-f]+\s+0x([0-9a-f]+)\s+0x([0-9a-f]+)", re.MULTILINE
)


def parse_ramblocks(text: str) -> list[RamBlock]:
    """The blocks in what ``info ramblock`` prints (system/physmem.c:ram_block_format and its successors)."""
    return [RamBlock(found[1], int(found[2], 16), int(found[3], 16)) for found in _RAMBLOCK.finditer(text)]


_REGION = re.compile(r"^(\s*)([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, ([a-z/]+)\): (.*)$")


def region_offset(tree: str, name: str) -> int | None:
    """The offset of the memory region ``name`` in its container, or None, from ``info mtree``'s text."""
    parents: list[tuple[int, int]] = []
    for line in tree.splitlines():
        found = _REGION.match(line)
        if found is None:
            parents.clear()
            continue
        depth, start, label = len(found[1]), int(found[2], 16), found[5]
        while parents and parents[-1][0] >= depth:
            parents.pop()
        if label in {name, f"/objects/{name}"} or label.startswith(f"{name} ["):
            return start - (parents[-1][1] if parents else 0)
        parents.append((depth, start))
    return None


def _block_differences(blocks: Sequence[tuple[str, int]], ours: Mapping[str, RamBlock]) -> list[str]:
    differences = []
    for idstr, length in blocks:
        block = ours.get(idstr)
        if block is None:
            differences.append(
                f"it has no RAM block {idstr!r} (has: {', '.join(sorted(ours))}): give it the same devices"
            )
        elif length == block.used_bytes or (
            idstr.startswith(RESIZABLE_PREFIX) and length <= block.total_bytes
        ):
            continue
        else:
            differences.append(
                f"its RAM block {idstr!r} has {block.used_bytes} bytes, the primary's {length}: give "
                "it the same -m, firmware and devices"
            )
    known = {idstr for idstr, _length in blocks}
    extra = [name for name, block in ours.items() if name not in known and block.used_bytes]
    if extra:
        differences.append(
            f"it has RAM blocks the primary has not: {', '.join(sorted(extra))}: give it the same devices"
        )
    return differences


def _maps_shared(pid: int | None, device: int, inode: int) -> bool:
    """Whether process ``pid`` maps that file shared and writable (/proc/PID/maps)."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return False
    for line in lines:
        fields = line.split(maxsplit=5)
        major, minor = (int(number, 16) for number in fields[3].split(":"))
        if int(fields[4]) == inode and os.makedev(major, minor) == device and fields[1].startswith("rw-s"):
            return True
    return False
