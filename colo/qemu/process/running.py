"""A QEMU that runs, as its monitor and the kernel show it: whoever started it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from pathlib import Path
from typing import Self

from colo.errors import QemuError
from colo.qemu.qmp import QmpConnection
from colo.qemu.qmp.replies import reply_string
from colo.qemu.quirks import Quirks, Version, quirks_of


class Qemu:
    """A running QEMU, under the QMP connection ``qmp``."""

    def __init__(self, qmp: QmpConnection, pid: int | None) -> None:
        self.qmp = qmp
        self.pid = pid
        """Its process id if it runs on this machine, else None."""
        self.version = Version(*qmp.version)
        self._pidfd: int | None = None
        if pid is not None:
            with contextlib.suppress(OSError):
                self._pidfd = os.pidfd_open(pid)

    @classmethod
    def attach(cls, path: str | os.PathLike[str], timeout_s: float = 5.0) -> Self:
        """Connect to the QMP socket at ``path``.

        The process is known if QEMU made the socket itself, or was handed it with ``-chardev socket,fd=``
        by a parent that still is its parent (libvirt).

        Raises QmpError as :meth:`colo.qemu.qmp.QmpConnection.connect`.
        """
        qmp = QmpConnection.connect(path, timeout_s)
        return cls(qmp, _qemu_pid(qmp.peer_pid))

    @property
    def quirks(self) -> Quirks:
        """What is peculiar to its version."""
        return quirks_of(self.version)

    @property
    def accelerator(self) -> str:
        """``kvm`` or ``tcg`` (or another that is not KVM, which QMP does not tell from TCG)."""
        return "kvm" if self.qmp.record("query-kvm").flag("enabled", False) else "tcg"

    @property
    def machine_type(self) -> str:
        """The machine's name as in a migration stream, e.g. ``pc-i440fx-7.2``: never an alias."""
        name = reply_string(self.qmp.execute("qom-get", {"path": "/machine", "property": "type"}), "qom-get")
        return name.removesuffix("-machine")

    @property
    def name(self) -> str:
        """What ``-name`` says, or an empty string."""
        return self.qmp.record("query-name").string("name", "")

    @property
    def uuid(self) -> str:
        """The VM's UUID (``-uuid``), or "" where it has none."""
        uuid = self.qmp.record("query-uuid").string("UUID", "")
        return uuid if uuid.strip("0-") else ""

    def status(self, timeout_s: float = 10.0) -> str:
        """``running``, ``paused``, ``inmigrate``, ``colo``, … (QMP ``query-status``)."""
        return self.qmp.record("query-status", timeout_s=timeout_s).string("status")

    def command_line(self) -> list[str] | None:
        """Its argument list, as the kernel tells it; None if not on this machine or not ours to read."""
        if self.pid is None:
            return None
        try:
            raw = Path(f"/proc/{self.pid}/cmdline").read_bytes()
        except OSError:
            return None
        arguments = [os.fsdecode(argument) for argument in raw.split(b"\0")[:-1]]
        return _without_linker(arguments) or None

    def alive(self) -> bool:
        """Whether it still runs: by its process where that is known, else by its monitor."""
        return not self.wait_ended(0)

    def wait_ended(self, timeout_s: float) -> bool:
        """Wait until it does not run any more; whether that was so within ``timeout_s`` seconds."""
        if self._pidfd is None:
            return self.qmp.wait_lost(timeout_s)
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        return bool(poller.poll(max(0.0, timeout_s) * 1000))

    @property
    def end_fd(self) -> int | None:
        """Readable when all of its threads are gone (a zombie's others, its processors, may still be ending); None where its
        process is not known here."""
        return self._pidfd

    @property
    def signallable(self) -> bool:
        """Whether its process is known here, so that it can be killed whatever its monitor says."""
        return self._pidfd is not None

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the very process we attached to, never to one that got its pid later.

        Raises QemuError when the process is not on this machine, or it may not be signalled.
        """
        if self._pidfd is None:
            raise QemuError(
                "QEMU's process is not known (its QMP socket was made by another): stop it by hand"
            )
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return
        except PermissionError as error:
            raise QemuError(
                f"no permission to signal QEMU (pid {self.pid}): run as its user or root"
            ) from error

    def kill(self, timeout_s: float = 5.0) -> None:
        """SIGKILL, and wait until it is gone. Raises QemuError if it is not gone by then, or unknown."""
        self.send_signal(signal.SIGKILL)
        if not self.wait_ended(timeout_s):
            raise QemuError(f"QEMU (pid {self.pid}) is not gone {timeout_s:.1f} s after SIGKILL")

    def detach(self) -> None:
        """Close our QMP connection; QEMU lives on. Idempotent."""
        self.qmp.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.detach()


def _qemu_pid(pid: int | None) -> int | None:
    """The QEMU behind a socket's creator: itself, or the only child of a launcher that is one."""
    if pid is None:
        return None
    if _is_qemu(pid):
        return pid
    with contextlib.suppress(OSError):
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
        qemus = [child for child in children if _is_qemu(child)]
        if len(qemus) == 1:
            return qemus[0]
    return None


def _without_linker(arguments: list[str]) -> list[str]:
    """The command line as if the program had been started itself, not through a dynamic linker of its own."""
    if not arguments or not os.path.basename(arguments[0]).startswith(("ld-linux", "ld.so", "ld-musl")):
        return arguments
    rest = arguments[1:]
    name = None
    while rest and rest[0].startswith("--"):
        option = rest.pop(0)
        if option in ("--library-path", "--preload", "--audit", "--argv0", "--inhibit-rpath") and rest:
            operand = rest.pop(0)
            name = operand if option == "--argv0" else name
    return [name or rest[0], *rest[1:]] if rest else arguments


def _is_qemu(pid: int) -> bool:
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(
        b"qemu" in os.path.basename(argument) or b"kvm" in os.path.basename(argument)
        for argument in arguments[:5]
    )
