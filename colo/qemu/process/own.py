"""A QEMU of our own: started with a monitor, read, and ended with us."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from colo.errors import QemuError, StorageError
from colo.private import PrivateDirectory
from colo.qemu.process.child import Output, Watcher, ending_words
from colo.qemu.process.directory import open_private, unix_path
from colo.qemu.process.running import Qemu
from colo.qemu.qmp import QmpConnection, QmpError, QmpLost, QmpTimeout

MONITOR_ID = "colo-qmp"
"""Id of the character device and monitor that :class:`QemuProcess` adds to a command line."""


class QemuProcess(Qemu):
    """A QEMU of our own: started by us, ends with us, unless it is :meth:`released <release>`."""

    def __init__(
        self,
        qmp: QmpConnection,
        process: subprocess.Popen[bytes],
        watcher: Watcher,
        output: Output,
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

        Raises QemuError when the binary is missing, or QEMU ended, or said nothing in ``timeout_s`` seconds.
        """
        unix_path(Path(work_dir) / socket_name)  # others have to reach it by this name
        directory = open_private(work_dir)
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
        output = Output(process.stdout)
        watcher = Watcher(process.pid)
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
        process: subprocess.Popen[bytes], address: str, output: Output, timeout_s: float
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
                f"QEMU {ending_words(process.returncode)} before it answered{output.quoted()}"
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

    def wait_ended(self, timeout_s: float) -> bool:
        """Wait until it does not run any more; whether that was so within ``timeout_s`` seconds."""
        super().wait_ended(timeout_s)  # not by waitpid, which others would have to wait for
        return not self.alive()

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
                return f"QEMU {ending_words(self._process.returncode)}{self._output.quoted()}"
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
            self._watcher = Watcher(self._process.pid)

    def __exit__(self, *exc_info: object) -> None:
        if self._watcher.watching:
            self.stop_process()
        else:
            self.detach()
