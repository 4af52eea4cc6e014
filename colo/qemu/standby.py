"""The stand-by: a QEMU that waits with ``-incoming defer`` over the shared RAM file until it is needed.

Everything that can be done beforehand is: it is started, checked against the primary's stream, its
capabilities are set, and it already listens on a unix socket. A takeover is then: connect, write the
composed stream, shut down the writing side, and see it run.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from colo.errors import QemuError, QemuUnsupported, StandbyError, StandbyRefused
from colo.qemu.capabilities import MigrationSettings
from colo.qemu.command_line import StandbyCommand
from colo.qemu.process import QemuProcess, unix_path
from colo.qemu.qmp import EventSubscription, QmpCommandError, QmpError, QmpEvent, QmpLost, QmpTimeout
from colo.qemu.ram_blocks import RamBlock, block_differences, ram_blocks, shared_addresses, sharing_differences

QMP_NAME, INCOMING_NAME = "qmp", "in"
"""The sockets in a stand-by's directory: short, as an address has room for 107 bytes of path."""
LOCK_RETRY_S = 0.1
"""Between two tries to run a VM whose disks another QEMU still holds."""


@dataclass(frozen=True)
class LoadReport:
    """How the stand-by took the stream, in milliseconds.

    ``accepted_ms`` and ``loaded_ms``: from :meth:`Standby.connect` to the connection taken, and to the
    stream loaded and the VM started, by QEMU's own event timestamps. ``running_ms``: from there to QMP's
    confirmation that it runs. ``total_ms``: from :meth:`Standby.connect` to that confirmation.
    ``status`` is QEMU's: not ``running`` where the VM ran and stopped again at once (an I/O error, a guest asleep).
    """

    accepted_ms: float | None
    loaded_ms: float
    running_ms: float
    total_ms: float
    status: str = "running"


class Standby:
    """A stand-by QEMU: :meth:`start`, :meth:`check`, :meth:`prepare`; :meth:`connect`, :meth:`finish`.

    ``command`` is what :func:`colo.qemu.command_line.derive_standby` made, or a command line as it is.
    """

    def __init__(self, command: StandbyCommand | Sequence[str], work_dir: str | os.PathLike[str]) -> None:
        if not isinstance(command, StandbyCommand):
            command = StandbyCommand(tuple(command))
        self.command = command
        self.work_dir = Path(work_dir)
        self.incoming_path = self.work_dir / INCOMING_NAME
        self.shared_blocks: tuple[str, ...] = ()
        """The RAM blocks over shared files, whose pages the stream must leave out; known after
        :meth:`prepare`.
        """
        self.block_addresses: dict[str, int] = {}
        """For the stream's MEM_SIZE entries under x-ignore-shared; known after :meth:`prepare`."""
        self.vm_name = self.vm_uuid = ""
        """By which its VM is known (``-name``, ``-uuid``), "" where it is not; after :meth:`start`."""
        self._process: QemuProcess | None = None
        self._events: EventSubscription | None = None
        self._settings: MigrationSettings | None = None
        self._connected_at_ns = 0
        self._connected_at_us = 0
        self._handed_over = False
        self.may_have_run = False
        """Whether its VM may have run: then the RAM that it shares is not the checkpoint's any more."""

    @property
    def process(self) -> QemuProcess:
        """The QEMU. Raises StandbyError when it was not started."""
        if self._process is None:
            raise StandbyError("the stand-by is not started: call start() first")
        return self._process

    def start(self, timeout_s: float = 20.0) -> Self:
        """Start QEMU with its sockets in ``work_dir`` (0700); ``-incoming defer`` is added if missing.

        Raises StandbyError when QEMU did not start; its own words are in the message.
        """
        arguments = list(self.command.argv)
        if "-incoming" not in arguments and "--incoming" not in arguments:
            arguments += ["-incoming", "defer"]
        elif "defer" not in arguments:
            raise StandbyError(
                "the stand-by's command line must say `-incoming defer`, or nothing about -incoming"
            )
        try:
            self._process = QemuProcess.start(
                arguments, self.work_dir, timeout_s=timeout_s, socket_name=QMP_NAME
            )
        except QemuError as error:
            raise StandbyError(f"the stand-by did not start: {error}") from error
        try:
            status = self.process.status()
            if status != "inmigrate":
                raise StandbyError(
                    f"the stand-by's status is {status!r}, not `inmigrate`: it does not wait for a stream"
                )
            self.vm_name, self.vm_uuid = self.process.name, self.process.uuid
        except QemuError as error:
            self.close()
            raise self._explained(error) from error
        return self

    # Beforehand

    def ram_blocks(self) -> list[RamBlock]:
        """Its RAM blocks. Raises StandbyError when it does not answer, or in a form that is not known."""
        try:
            return ram_blocks(self.process)
        except QmpError as error:
            raise self._explained(error) from error

    def check(self, machine_type: str, blocks: Sequence[tuple[str, int]]) -> None:
        """Compare it with the primary's stream, before it is needed.

        ``blocks`` are the stream's RAM blocks (idstr, used_length in bytes). That the blocks which the
        command shares really are maps of their files is checked too.

        Raises StandbyError, which says everything that differs, and what to do about it.
        """
        try:
            ours = self.process.machine_type
            differences = []
            if ours != machine_type:
                differences.append(
                    f"its machine is {ours}, the primary's is {machine_type}: give it -machine {machine_type}"
                )
            differences += block_differences(blocks, {block.idstr: block for block in self.ram_blocks()})
            for idstr, path in self.command.shared.items():
                differences += sharing_differences(self.process, idstr, path)
        except QmpError as error:
            raise self._explained(error) from error
        if differences:
            raise StandbyError("the stand-by does not fit the primary: " + "; ".join(differences))

    def prepare(self, *, share_ram: bool = True, activate: bool = True) -> None:
        """Set capabilities and start listening, so that a takeover only has to connect and write.

        With ``share_ram``, and if the command shares RAM blocks, their pages will not be expected in the
        stream: see :attr:`shared_blocks`. Every other capability is off, whatever the command line says
        (``-global migration.…``). Without ``activate``, disks stay inactive, and unlocked, until `cont`.

        Raises StandbyError when QEMU refused, or died.
        Raises QemuUnsupported when its version cannot leave shared RAM out of the stream.
        """
        qmp = self.process.qmp
        ignore_shared = share_ram and bool(self.command.shared)
        capabilities = {"events": True, "x-ignore-shared": ignore_shared, "late-block-activate": not activate}
        if ignore_shared and not self.process.quirks.has_ignore_shared:
            raise QemuUnsupported(
                f"QEMU {self.process.version} has no x-ignore-shared: send all pages instead"
            )
        self.incoming_path.unlink(missing_ok=True)
        try:
            self._settings = MigrationSettings.take(self.process, capabilities, refuse=False)
            self._events = qmp.subscribe("MIGRATION", "RESUME", "STOP", "SHUTDOWN", "GUEST_PANICKED")
            if ignore_shared:
                self.block_addresses = shared_addresses(self.process, self.ram_blocks())
                self.shared_blocks = tuple(self.command.shared)
            qmp.execute("migrate-incoming", {"uri": f"unix:{unix_path(self.incoming_path)}"})
        except QmpError as error:
            raise self._explained(error) from error

    # The takeover

    def connect(self) -> socket.socket:
        """The connected (blocking) socket to write the composed stream into; the caller closes it.

        Raises StandbyError when it died, or :meth:`prepare` was not called.
        """
        if self._events is None:
            raise StandbyError("the stand-by is not prepared: call prepare() first")
        # Without -S it runs as soon as it has loaded, and may die before it has said so.
        self.may_have_run = "-S" not in self.command.argv
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connected_at_us = time.time_ns() // 1000
        self._connected_at_ns = time.monotonic_ns()
        try:
            channel.connect(str(self.incoming_path))
        except OSError as error:
            channel.close()
            raise self._explained(QmpLost(f"the stand-by takes no connection: {error.strerror}")) from error
        return channel

    def await_loaded(self, timeout_s: float = 5.0) -> tuple[QmpEvent | None, QmpEvent]:
        """Wait until the stream is loaded: the event of its connection taken, if there was one, and that of its end.

        With ``-S`` the VM does not run by then.

        Raises StandbyError when QEMU refused the stream (its own words are in the message), died, or had not
            loaded it within ``timeout_s`` seconds.
        """
        deadline = time.monotonic() + timeout_s
        try:
            return self._await_loaded(deadline)
        except QmpTimeout as error:
            raise StandbyError(
                f"the stand-by had not loaded the stream after {timeout_s:.1f} s: {self._progress()}{self._said()}"
            ) from error
        except QmpError as error:
            raise self._explained(error) from error

    def _await_loaded(self, deadline: float) -> tuple[QmpEvent | None, QmpEvent]:
        assert self._events is not None
        accepted: QmpEvent | None = None
        while True:
            event = self._events.get(deadline - time.monotonic())
            if event.name == "RESUME":
                self.may_have_run = True
                return accepted, event
            if event.name == "MIGRATION":
                state = event.data.get("status")
                accepted = accepted or (event if state == "active" else None)
                if state == "failed":
                    raise StandbyError(f"the stand-by refused the stream{self._said()}")
                if state == "completed":
                    return accepted, event

    def finish(
        self, timeout_s: float = 5.0, *, before_run: Callable[[], None] = lambda: None,
        telling: Callable[[bool], None] = lambda told: None,
    ) -> LoadReport:
        """Wait until the stream is loaded and the VM runs; ``cont`` it if it was started with ``-S``.

        ``before_run`` is called when it is loaded, before it runs (with ``-S``). ``telling(True)`` is called before each
        ``cont``, ``telling(False)`` when QEMU refused it: it is tried again while there is time, since another QEMU that
        is about to end may still hold a disk of the VM's.

        Raises StandbyRefused when QEMU would not run the VM. That is an answer: no processor of it has started.
        Raises StandbyError when QEMU refused the stream (its own words are in the message), died, or was not
            running within ``timeout_s`` seconds.
        """
        deadline = time.monotonic() + timeout_s
        try:
            accepted, loaded = self._await_loaded(deadline)
            before_run()
            status = self._await_running(deadline, telling)
        except QmpTimeout as error:
            raise StandbyError(
                f"the stand-by was not running {timeout_s:.1f} s after the stream: "
                f"{self._progress()}{self._said()}"
            ) from error
        except QmpError as error:
            raise self._explained(error) from error
        total_ms = (time.monotonic_ns() - self._connected_at_ns) / 1e6
        if status != "running" and not self.may_have_run:
            raise StandbyError(f"the stand-by loaded the stream, but its status is {status!r}{self._said()}")
        loaded_ms = min(total_ms, (loaded.timestamp_us - self._connected_at_us) / 1e3)
        return LoadReport(
            accepted_ms=None if accepted is None else (accepted.timestamp_us - self._connected_at_us) / 1e3,
            loaded_ms=loaded_ms,
            running_ms=total_ms - loaded_ms,
            total_ms=total_ms,
            status=status,
        )

    def _await_running(self, deadline: float, telling: Callable[[bool], None]) -> str:
        qmp = self.process.qmp
        continued = False
        while True:
            status = qmp.record("query-status", timeout_s=max(0.05, deadline - time.monotonic())).string("status")
            if status == "running" or (status not in ("inmigrate", "paused", "finish-migrate", "prelaunch")):
                return status
            if status in ("paused", "prelaunch") and not continued:
                telling(True)
                self.may_have_run = True  # until it says that it did not
                try:
                    qmp.execute("cont", timeout_s=max(0.05, deadline - time.monotonic()))
                except QmpCommandError as error:
                    self.may_have_run = False
                    telling(False)
                    if time.monotonic() + LOCK_RETRY_S >= deadline:
                        raise StandbyRefused(f"the stand-by loaded the checkpoint, but does not run it: {error}") from error
                    time.sleep(LOCK_RETRY_S)
                    continue
                continued = True
                continue
            if time.monotonic() > deadline:
                return status
            time.sleep(0.001)

    def hand_over(self) -> tuple[Path, int]:
        """The VM is the user's from here: it outlives us, its monitor is free; (QMP socket path, pid).

        Its migration settings are as they were, so that it can be migrated, or protected in its turn.
        """
        pid = self.process.pid
        assert pid is not None
        self._handed_over = True
        if self._settings is not None:
            self._settings.restore()
        self.process.release()
        self.process.detach()
        self.incoming_path.unlink(missing_ok=True)
        return self.process.qmp_path, pid

    # The end

    @property
    def alive(self) -> bool:
        """Whether its process still runs (to be asked from time to time while it waits)."""
        return self._process is not None and self._process.alive()

    def output(self) -> list[str]:
        """The last lines it wrote to its standard output and error."""
        return self._process.output if self._process is not None else []

    def close(self) -> None:
        """End it, unless it was handed over; leaves no process and no socket. Idempotent."""
        if self._handed_over or self._process is None:
            return
        self._process.kill()
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
            information = self.process.qmp.record("query-migrate", timeout_s=0.5)
            reason = information.string("error-desc", "")
            status = information.string("status", "not begun")
        except QmpError:
            return "its monitor does not answer"
        return f"its migration is {status!r}" + (f" ({reason})" if reason else "")
