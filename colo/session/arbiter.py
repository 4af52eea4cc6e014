"""Who may run: the interface of an arbiter, and the three kinds there are.

The VM's *generation* counts its takeovers. It begins at 0, held by the first primary; a side that wants to
run the VM after a loss claims the next one. An arbiter lets exactly one claim of each generation win. Who
loses, or later finds its generation gone, stops its VM; who cannot find out does not start it.

``file:DIR``
    A directory on storage that both sides can reach (:mod:`colo.session.file_arbiter`): a file that only
    one of two renames can move.
``exec:COMMAND``
    The user's fencing script; its exit code decides.
``none``
    Nobody is asked. Both sides can then run at once.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import tempfile
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from colo.errors import ArbitrationError, ArbitrationLost

EXEC_TIMEOUT_S = 30.0
GENERATION_MAX = 10**15


@dataclass(frozen=True, slots=True)
class Claim:
    """A won generation: who may run the VM, and since when (``time_s``, Unix time)."""

    generation: int
    role: str
    token: str
    host: str
    pid: int
    time_s: float


class Arbiter(ABC):
    """Decides who may run. One object per side and VM; its methods may be called from any thread."""

    @abstractmethod
    def claim(self, generation: int, *, reason: str = "") -> Claim:
        """Take the VM over from ``generation``: the claim that is returned holds ``generation + 1``.

        :param reason: for humans and the fencing script: "reset", "silence", "requested", …
        :raises ArbitrationLost: ``generation`` is over: somebody (also this side, earlier) has claimed from
            it.
        :raises ArbitrationError: it could not be decided. The VM must not be started; trying again is
            allowed.
        """

    @abstractmethod
    def current(self) -> int:
        """The generation that holds now.

        :raises ArbitrationError: it cannot be told.
        """

    def still_holds(self, generation: int) -> bool:
        """Is ``generation``, which this side holds, still the one that may run?

        :raises ArbitrationError: it cannot be told; who gets this must not let anything out.
        """
        return self.current() == generation

    def close(self) -> None:  # noqa: B027 - most have nothing to let go of
        """Let go of what the arbiter uses. The generation stays as it is."""

    def __enter__(self) -> Arbiter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def arbiter_from_uri(uri: str, *, role: str = "", create: bool = False) -> Arbiter:
    """The arbiter that ``uri`` names: ``file:DIR``, ``exec:COMMAND`` or ``none``.

    :param role: "primary" or "secondary", for humans and the fencing script.
    :param create: for ``file:``, make generation.0 if there is none. Exactly one side should, so that a
        share that is not mounted on the other one is noticed.
    :raises ArbitrationError: the URI names no arbiter, or the arbiter cannot work (no directory, wrong
        modes, …).
    """
    kind, colon, rest = uri.partition(":")
    if kind == "file" and rest:
        from colo.session.file_arbiter import FileArbiter

        return FileArbiter(rest, role=role, create=create)
    if kind == "exec" and rest.strip():
        return ExecArbiter(rest, role=role)
    if kind == "none" and not colon:
        return NoArbiter(role=role)
    raise ArbitrationError(
        f"{uri!r} names no arbiter: use file:DIR (a directory that both sides can reach), exec:COMMAND "
        "(a fencing script), or none (both sides may then run at once)"
    )


def check_generation(generation: int) -> None:
    """:raises ValueError: no generation can have this number."""
    if (
        isinstance(generation, bool)
        or not isinstance(generation, int)
        or not 0 <= generation < GENERATION_MAX
    ):
        raise ValueError(f"a generation is an integer from 0 to {GENERATION_MAX - 1}, got {generation!r}")


def new_claim(generation: int, role: str, token: str) -> Claim:
    """A claim of this process, made now."""
    return Claim(generation, role, token, socket.gethostname()[:64], os.getpid(), time.time())


class NoArbiter(Arbiter):
    """Every claim wins, on both sides. Warns when it is made."""

    def __init__(self, *, role: str = "") -> None:
        self._role = role
        self._current = 0
        self._lock = threading.Lock()
        warnings.warn(
            "arbiter none: when the link is cut, both sides can run the VM at once and damage what they "
            "share (disks, addresses); use file:DIR or exec:COMMAND wherever that matters",
            RuntimeWarning,
            stacklevel=2,
        )

    def claim(self, generation: int, *, reason: str = "") -> Claim:
        check_generation(generation)
        with self._lock:
            if generation < self._current:
                raise ArbitrationLost(f"generation {generation} is over: this side holds {self._current}")
            self._current = generation + 1
        return new_claim(generation + 1, self._role, secrets.token_hex(16))

    def current(self) -> int:
        return self._current


class ExecArbiter(Arbiter):
    """Asks the user's fencing script: exit 0 means the other side is fenced and this one may run, 1 that
    this side has lost, anything else (a signal, a timeout) that it could not be decided.

    ``/bin/sh`` runs the command in a process group of its own, which is killed when ``timeout_s`` has
    passed. Its environment holds COLO_GENERATION (claimed from), COLO_NEXT_GENERATION, COLO_ROLE,
    COLO_REASON, COLO_HOST and COLO_PID. The script is asked once per generation that this side claims, and
    never to find out whether it still holds: a fenced side does not run to ask.
    """

    def __init__(
        self,
        command: str,
        *,
        role: str = "",
        timeout_s: float = EXEC_TIMEOUT_S,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        if not command.strip():
            raise ArbitrationError("exec: names no command: give the fencing script, as exec:COMMAND")
        self._command = command
        self._role = role
        self._timeout_s = timeout_s
        self._environment = dict(environment or {})
        self._current = 0
        self._lock = threading.Lock()

    def claim(self, generation: int, *, reason: str = "") -> Claim:
        check_generation(generation)
        with self._lock:
            if generation < self._current:
                raise ArbitrationLost(f"generation {generation} is over: {self._current} has begun")
            status, output = self._run(generation, reason)
            said = f"; it said: {output}" if output else ""
            if status == 1:
                self._current = generation + 1
                raise ArbitrationLost(f"the fencing command refused generation {generation + 1}{said}")
            if status != 0:
                how = f"was killed by signal {-status}" if status < 0 else f"exited with {status}"
                raise ArbitrationError(
                    f"the fencing command {how} (0 wins, 1 loses), so nobody takes over: "
                    f"{self._command}{said}"
                )
            self._current = generation + 1
        return new_claim(generation + 1, self._role, secrets.token_hex(16))

    def current(self) -> int:
        return self._current

    def _run(self, generation: int, reason: str) -> tuple[int, str]:
        environment = {
            **os.environ,
            **self._environment,
            "COLO_GENERATION": str(generation),
            "COLO_NEXT_GENERATION": str(generation + 1),
            "COLO_ROLE": self._role,
            "COLO_REASON": reason.replace("\0", " "),
            "COLO_HOST": socket.gethostname(),
            "COLO_PID": str(os.getpid()),
        }
        # A file, not a pipe: a child that the script leaves behind would hold a pipe open for ever.
        with tempfile.TemporaryFile() as output:
            try:
                process = subprocess.Popen(
                    ["/bin/sh", "-c", self._command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )
            except OSError as error:
                raise ArbitrationError(f"the fencing command could not be started: {error}") from error
            try:
                status = process.wait(self._timeout_s)
            except subprocess.TimeoutExpired:
                raise ArbitrationError(
                    f"the fencing command took longer than {self._timeout_s:g} s and was killed, so nobody "
                    f"takes over: {self._command}"
                ) from None
            finally:
                if process.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            size = output.seek(0, os.SEEK_END)
            output.seek(max(0, size - 500))
            return status, output.read().decode(errors="replace").strip()
