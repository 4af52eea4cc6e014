"""A QEMU under QMP: one that already runs (:class:`Qemu`), or one of our own (:class:`QemuProcess`).

A QEMU that we start dies with us, whatever way we die: a small watcher process holds the reading end of a
pipe, and kills when the pipe closes before it was told to let go. (The kernel's parent-death signal would
fire when the *thread* that started QEMU ends, and could not be called off when the VM is handed to the
user.)
"""

from __future__ import annotations

import collections
import contextlib
import io
import os
import resource
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Self, cast

from colo.errors import QemuError, StorageError
from colo.forked import keep_from_children
from colo.private import UNIX_PATH_MAX_BYTES, PrivateDirectory
from colo.qemu.qmp import QmpConnection, QmpError, QmpLost, QmpTimeout
from colo.qemu.quirks import Quirks, Version, quirks_of
from colo.qemu.replies import reply_string
from colo.text import printable

OUTPUT_KEPT_LINES = 200
OUTPUT_LINE_MAX_BYTES = 1000
MONITOR_ID = "colo-qmp"
"""Id of the character device and monitor that :class:`QemuProcess` adds to a command line."""

_WATCHER = 'read -r word; [ "$word" = release ] || kill -KILL "$1" 2>/dev/null'


def private_directory(path: str | os.PathLike[str]) -> Path:
    """Make ``path`` a directory that only we can enter (0700), parents as they come.

    :raises QemuError: others can enter it, or change what is on the way to it; it is not ours; it cannot be made.
    """
    _open_private(path).close()
    return Path(path)


def _open_private(path: str | os.PathLike[str]) -> PrivateDirectory:
    try:
        return PrivateDirectory.open(path)
    except StorageError as error:
        raise QemuError(f"QEMU's sockets must stay private: {error}") from error


def unix_path(path: Path) -> str:
    """``path`` as a unix socket's address. :raises QemuError: if it is too long for one."""
    if len(os.fsencode(path)) > UNIX_PATH_MAX_BYTES:
        raise QemuError(
            f"{path} is too long for a unix socket ({UNIX_PATH_MAX_BYTES} bytes): use a shorter directory"
        )
    return str(path)


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

        :raises QmpError: as :meth:`colo.qemu.qmp.QmpConnection.connect`.
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
        if self._pidfd is None:
            return not self.qmp.lost
        # Readable when all of its threads are gone: a zombie's others, its processors, may still be ending.
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        return not poller.poll(0)

    @property
    def signallable(self) -> bool:
        """Whether its process is known here, so that it can be killed whatever its monitor says."""
        return self._pidfd is not None

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the very process we attached to, never to one that got its pid later.

        :raises QemuError: the process is not on this machine, or it may not be signalled.
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
        """SIGKILL, and wait until it is gone. :raises QemuError: if it is not gone by then, or unknown."""
        self.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + timeout_s
        while self.alive():
            if time.monotonic() > deadline:
                raise QemuError(f"QEMU (pid {self.pid}) is not gone {timeout_s:.1f} s after SIGKILL")
            time.sleep(0.002)

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


class QemuProcess(Qemu):
    """A QEMU of our own: started by us, ends with us, unless it is :meth:`released <release>`."""

    def __init__(
        self,
        qmp: QmpConnection,
        process: subprocess.Popen[bytes],
        watcher: _Watcher,
        output: _Output,
        qmp_path: Path,
        directory: PrivateDirectory,
    ) -> None:
        super().__init__(qmp, process.pid)
        self.qmp_path = qmp_path
        self._directory = directory
        self._process = process
        self._watcher = watcher
        self._output = output
        self._lock = threading.Lock()

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        work_dir: str | os.PathLike[str],
        *,
        timeout_s: float = 20.0,
        socket_name: str = "qmp.sock",
        pass_fds: Sequence[int] = (),
    ) -> Self:
        """Start ``argv`` with a QMP monitor of ours on ``work_dir/socket_name`` and wait for its greeting.

        ``work_dir`` is made 0700 if it does not exist. QEMU gets a session of its own (Ctrl-C does not
        reach it), no standard input, private files (umask 077) and no core dumps; the last lines that it
        writes to standard output and error are kept for :attr:`output` and for error messages.

        :raises QemuError: the binary is missing, or QEMU ended, or said nothing in ``timeout_s`` seconds.
        """
        unix_path(Path(work_dir) / socket_name)  # others have to reach it by this name
        directory = _open_private(work_dir)
        try:
            return cls._start(argv, directory, socket_name, Path(work_dir) / socket_name, timeout_s, pass_fds)
        except BaseException:
            with contextlib.suppress(StorageError):
                directory.unlink(socket_name)
            directory.close()
            raise

    @classmethod
    def _start(
        cls,
        argv: Sequence[str],
        directory: PrivateDirectory,
        socket_name: str,
        qmp_path: Path,
        timeout_s: float,
        pass_fds: Sequence[int],
    ) -> Self:
        address = directory.address(socket_name)
        directory.unlink(socket_name)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            os.fchmod(listener.fileno(), 0o600)  # what bind() makes takes it over
            listener.bind(address)
            listener.listen(1)
            fd = listener.fileno()
            arguments = [
                *argv,
                "-chardev",
                f"socket,id={MONITOR_ID},fd={fd},server=on,wait=off",
                "-mon",
                f"chardev={MONITOR_ID},mode=control",
            ]
            try:
                process = subprocess.Popen(
                    arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=(fd, *pass_fds),
                    start_new_session=True,
                    umask=0o077,
                )
            except OSError as error:
                raise QemuError(f"cannot start {argv[0]}: {error.strerror}") from error
        assert process.stdout is not None
        output = _Output(process.stdout)
        watcher = _Watcher(process.pid)
        try:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(process.pid, resource.RLIMIT_CORE, (0, 0))
            qmp = cls._first_connection(process, address, output, timeout_s)
        except BaseException:
            process.kill()
            process.wait()
            watcher.dismiss()
            raise
        return cls(qmp, process, watcher, output, qmp_path, directory)

    @staticmethod
    def _first_connection(
        process: subprocess.Popen[bytes], address: str, output: _Output, timeout_s: float
    ) -> QmpConnection:
        # Our listening socket takes the connection before QEMU runs, so one attempt is enough; when QEMU
        # dies first, the attempt ends with it.
        try:
            return QmpConnection.connect(address, timeout_s)
        except QmpTimeout as error:
            raise QemuError(f"{error}{output.quoted()}") from None
        except QmpError as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1.0)
            raise QemuError(
                f"QEMU {_ending(process.returncode)} before it answered{output.quoted()}"
            ) from error

    @property
    def output(self) -> list[str]:
        """The last lines QEMU wrote to its standard output and error."""
        return self._output.lines()

    def said(self) -> str:
        """``; it said: …`` with its last lines other than warnings, or nothing: to end an error message."""
        return self._output.quoted()

    @property
    def returncode(self) -> int | None:
        """Its exit status as :mod:`subprocess` has it, or None while it runs."""
        self._reap(0)
        return self._process.returncode

    def alive(self) -> bool:
        """Whether it still runs."""
        return self.returncode is None

    def wait(self, timeout_s: float) -> int | None:
        """Wait until it has ended; its exit status, or None if it has not in ``timeout_s`` seconds."""
        self._reap(timeout_s)
        return self._process.returncode

    def _reap(self, timeout_s: float) -> None:
        with self._lock:
            if self._process.returncode is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(timeout_s) if timeout_s > 0 else self._process.poll()
            if self._process.returncode is not None:
                self._watcher.dismiss()
                self._remove_socket()
                self._directory.close()

    def explain(self, error: Exception) -> str:
        """``error`` in words, with what QEMU itself said and how it ended, if it did."""
        if isinstance(error, QmpLost):
            self.wait(1.0)
            if self._process.returncode is not None:
                return f"QEMU {_ending(self._process.returncode)}{self._output.quoted()}"
        return f"{error}{self._output.quoted()}"

    def stop_process(self, timeout_s: float = 2.0) -> None:
        """End it: QMP ``quit``, and SIGKILL if that has not ended it in ``timeout_s`` seconds. Idempotent."""
        if self.alive():
            with contextlib.suppress(QmpError):
                self.qmp.execute("quit", timeout_s=timeout_s)
            if self.wait(timeout_s) is None:
                self.kill()
        self._clean_up()

    def kill(self, timeout_s: float = 5.0) -> None:
        """SIGKILL at once, wait, and clean up. Idempotent."""
        with self._lock:
            if self._process.returncode is None:
                self._process.kill()
        if self.wait(timeout_s) is None:
            raise QemuError(f"QEMU (pid {self.pid}) is not gone {timeout_s:.1f} s after SIGKILL")
        self._clean_up()

    def _clean_up(self) -> None:
        self._remove_socket()
        self.detach()

    def _remove_socket(self) -> None:
        if self._directory.fd >= 0:
            with contextlib.suppress(StorageError):
                self._directory.unlink(self.qmp_path.name)

    def detach(self) -> None:
        """Close our QMP connection, which its monitor is then free of. Idempotent."""
        super().detach()
        if self._process.returncode is not None:  # else its socket is still to be removed, when it has ended
            self._directory.close()

    def release(self) -> None:
        """Let it outlive us: from here on it is the user's. Its monitor stays, free for another client."""
        self._watcher.dismiss()

    def retain(self) -> None:
        """Take :meth:`release` back: it ends with us again."""
        if not self._watcher.watching and self.alive():
            self._watcher = _Watcher(self._process.pid)

    def __exit__(self, *exc_info: object) -> None:
        if self._watcher.watching:
            self.stop_process()
        else:
            self.detach()


class _Watcher:
    """Kills a process when we are gone without having dismissed it."""

    def __init__(self, pid: int) -> None:
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHER, "colo-watcher", str(pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        keep_from_children(cast(io.IOBase, self._process.stdin))  # or a child of ours would hold the pipe when we are dead
        self.watching = True

    def dismiss(self) -> None:
        """End the watch without a kill. Idempotent."""
        if not self.watching:
            return
        self.watching = False
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(b"release\n")
            self._process.stdin.close()
        self._process.wait()


class _Output:
    """Reads a process's output so that it never blocks on it, and keeps the last lines."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._lines: collections.deque[str] = collections.deque(maxlen=OUTPUT_KEPT_LINES)
        self._thread = threading.Thread(
            target=self._read, args=(stream,), name="colo-qemu-output", daemon=True
        )
        self._thread.start()

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            while line := stream.readline(OUTPUT_LINE_MAX_BYTES):
                self._lines.append(printable(line.decode(errors="replace").rstrip()))

    def lines(self) -> list[str]:
        return list(self._lines)

    def quoted(self) -> str:
        """``; it said: …`` with the last lines, or nothing."""
        self._thread.join(0.1)  # what a dying QEMU wrote last may still be in the pipe
        said = [line for line in self.lines() if line and "warning: " not in line]
        return "; it said: " + " | ".join(said[-5:]) if said else ""


def _ending(returncode: int | None) -> str:
    if returncode is None:
        return "closed its monitor"
    if returncode < 0:
        return f"was killed by {signal.Signals(-returncode).name}"
    return f"ended with exit code {returncode}"


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
