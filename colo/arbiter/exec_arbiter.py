"""The arbiter ``exec:COMMAND``: the user's fencing script decides."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping

from colo.arbiter.arbiter import Claim
from colo.arbiter.forgetful import ForgetfulArbiter
from colo.arbiter.runner import Runner
from colo.errors import ArbitrationError, ArbitrationLost

TIMEOUT_S = 30.0


class ExecArbiter(ForgetfulArbiter):
    """Asks the user's fencing script: exit 0 means the other side is fenced and this one may run, 1 that
    this side has lost, anything else (a signal, a timeout) that it could not be decided.

    ``/bin/sh`` runs the command in a process group of its own, which is killed when ``timeout_s`` has
    passed. Its environment holds COLO_VM and COLO_UUID (empty if not known; a session for a QEMU
    asks that: :meth:`know_vm`), COLO_GENERATION (claimed from),
    COLO_NEXT_GENERATION, COLO_ROLE, COLO_REASON, COLO_HOST and COLO_PID (of the process that runs the VM). The
    script is asked once per generation that this side claims, and never to find out whether it still holds: a
    fenced side does not run to ask.
    """

    fences = True

    def __init__(
        self,
        command: str,
        *,
        role: str = "",
        vm: str = "",
        uuid: str = "",
        timeout_s: float = TIMEOUT_S,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        if not command.strip():
            raise ArbitrationError("exec: names no command: give the fencing script, as exec:COMMAND")
        super().__init__(role)
        self.uri = f"exec:{command}"
        self._command = command
        self._timeout_s = timeout_s
        self._environment = {
            **(environment or {}), "COLO_VM": vm.replace("\0", " "), "COLO_UUID": uuid.replace("\0", " ")}

    def know_vm(self, *, vm: str = "", uuid: str = "") -> None:
        for name, value in (("COLO_VM", vm), ("COLO_UUID", uuid)):
            if not self._environment[name]:
                self._environment[name] = value.replace("\0", " ")

    def claim(self, generation: int, *, reason: str = "", runner: Runner | None = None) -> Claim:
        runner = runner or Runner.of()
        with self._lock:
            self._check_standing(generation)
            status, output = self._run(generation, reason, runner)
            said = f"; it said: {output}" if output else ""
            if status == 1:
                self._lose(generation + 1)
                raise ArbitrationLost(f"the fencing command refused generation {generation + 1}{said}")
            if status != 0:
                how = f"was killed by signal {-status}" if status < 0 else f"exited with {status}"
                raise ArbitrationError(
                    f"the fencing command {how} (0 wins, 1 loses), so nobody takes over: "
                    f"{self._command}{said}"
                )
            return self._win(generation + 1, secrets.token_hex(16), reason, runner)

    def _run(self, generation: int, reason: str, runner: Runner) -> tuple[int, str]:
        environment = {
            **os.environ,
            **self._environment,
            "COLO_GENERATION": str(generation),
            "COLO_NEXT_GENERATION": str(generation + 1),
            "COLO_ROLE": self._role,
            "COLO_REASON": reason.replace("\0", " "),
            "COLO_HOST": socket.gethostname(),
            "COLO_PID": str(runner.pid),
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
            return status, "".join(
                c if c.isprintable() else " " for c in output.read().decode(errors="replace").strip())
