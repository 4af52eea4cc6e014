"""The fence: a process of its own beside the VM's, which holds the lease and stops that process when it runs out.

It depends on nobody else: it renews whoever is dead, hung or frozen, and needs a guard (``colo protect``) only to be told
what
the arbiter decided. It imports little, locks its memory, asks for real-time priority, and does nothing in its loop that can
block. Started by :class:`colo.fence.fence.FenceHandle`::

    python -I fence_process.py PIDFD PID LISTENER LOOK     the VM's process, and two listening SOCK_SEQPACKET unix sockets:
                                                           for its guard, and for whoever wants to know how it stands

What it decides is in :class:`colo.protocol.fencing.Fence`; commands and answers are JSON objects, one a packet.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import socket
import struct
import sys
from typing import Any

if __name__ == "__main__":  # started by its path, without the user's environment: where the package is, it knows itself
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from colo.errors import Unsupported
from colo.fence.processes import Process
from colo.fence.watchdog import Watchdog
from colo.lease.clock import now_ns
from colo.lease.holding import Holding
from colo.protocol.fencing import Actions, Fence, FenceAction, FenceState
from colo.protocol.lease import lease_ns_of

COMMAND_BYTES_MAX = 16384
REALTIME_PRIORITY = 20
STOPPED_LOOK_NS = 10_000_000
"""How often a VM that was stopped is looked at: whether it still is."""
MCL_CURRENT_AND_FUTURE = 3
PR_SET_NAME, PR_SET_DUMPABLE = 15, 4


def harden() -> dict[str, bool]:
    """Lock memory, ask for real-time priority, stay out of the OOM killer's way: each if it is allowed; which were."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_NAME, b"colo-fence", 0, 0, 0)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    got = {"realtime": False, "unkillable": False}
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(REALTIME_PRIORITY))
        got["realtime"] = True
    if not got["realtime"]:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, -20)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("-1000")
        got["unkillable"] = True
    gc.collect()
    gc.freeze()
    gc.disable()
    got["locked"] = libc.mlockall(MCL_CURRENT_AND_FUTURE) == 0
    return got


def join_cgroup(pid: int) -> None:
    """Into the cgroup of ``pid``, if it may be: who kills or freezes that as a whole means the fence too."""
    with contextlib.suppress(OSError, IndexError):
        with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
            path = next(line.rstrip("\n").split(":", 2)[2] for line in file if line.startswith("0::"))
        with open(f"/sys/fs/cgroup{path}/cgroup.procs", "w", encoding="ascii") as file:
            file.write(str(os.getpid()))


class FenceProcess:
    """The fence's loop."""

    def __init__(
        self, process: Process, listener: socket.socket, look: socket.socket, hardened: dict[str, bool]
    ) -> None:
        self.process = process
        self.listener = listener
        self.look = look
        self.hardened = hardened
        self.holding: Holding | None = None
        self.guard: socket.socket | None = None
        self.notes: dict[str, Any] = {}
        """The guard's own, kept for the guard after it."""
        self.watchdog: Watchdog | None = None
        self.over = False
        self.vm_gone = False
        self.overshoot_us = 0
        """From the lease's end to the VM standing still, at the last time that it ran out."""

    # -- the loop

    def run(self) -> None:
        while not self.over:
            link = self.holding.link if self.holding is not None else None
            poller = select.poll()
            poller.register(self.listener, select.POLLIN)
            poller.register(self.look, select.POLLIN)
            if not self.vm_gone:
                poller.register(self.process.pidfd, select.POLLIN)
            if self.guard is not None:
                poller.register(self.guard, select.POLLIN)
            if link is not None and link.sock is not None:
                poller.register(link.sock, link.events)
            ready = {fd for fd, _ in poller.poll(self._timeout_ms())}
            if not self.vm_gone and self.process.pidfd in ready:
                self.vm_gone = True
                if self.holding is not None:
                    self._do(self.holding.fence.gone(now_ns()))
            if self.holding is not None:
                if link is not None and link.sock is not None and link.sock.fileno() in ready:
                    self._do(self.holding.hear(now_ns()))
                self._do(self.holding.tend(now_ns()))
                self._keep_stopped()
                self._pat_watchdog()
            if self.guard is not None and self.guard.fileno() in ready:
                self._hear_guard()
            if self.listener.fileno() in ready:
                self._new_guard()
            if self.look.fileno() in ready:
                self._show()
            if self.vm_gone and self.guard is None and self._nothing_to_prove():
                self.over = True
        if self.holding is not None:
            self.holding.link.drop()

    def _timeout_ms(self) -> float | None:
        if self.holding is None:
            return None
        now = now_ns()
        due = self.holding.due_ns(now)
        if self._is_stopped:
            due = min(due or sys.maxsize, now + STOPPED_LOOK_NS)
        return None if due is None else max(0.0, (due - now) / 1e6) + 0.05

    @property
    def _is_stopped(self) -> bool:
        """Whether the VM is not to execute, and its process is there."""
        if self.vm_gone or self.holding is None:
            return False
        return self.holding.fence.state in (FenceState.OVER, FenceState.STANDS)

    def _keep_stopped(self) -> None:
        """Anybody may send SIGCONT to a process that stands still: who thaws what he froze, without a thought of leases."""
        if self._is_stopped and not self.process.stands:
            self._stop_vm()
            self._tell()

    def _nothing_to_prove(self) -> bool:
        """The proof was sent, or time has proven the same."""
        holding = self.holding
        if holding is None or holding.over or not holding.has_proof:
            return True
        lease = holding.fence.lease
        return now_ns() > lease.end_ns + 2 * lease.lease_ns

    def _pat_watchdog(self) -> None:
        """All is well unless the VM runs on although it must not."""
        if self.watchdog is not None and self.holding is not None:
            stopped = self.holding.fence.state in (FenceState.OVER, FenceState.STANDS)
            if not stopped or self.process.stands:
                self.watchdog.well()

    # -- actions

    def _do(self, actions: Actions) -> None:
        for action in actions:
            if action is FenceAction.STOP_VM:
                self._stop_vm()
            elif action is FenceAction.CONTINUE_VM:
                self.process.go_on()
            elif action is FenceAction.KILL_VM:
                self.process.kill()
            elif action is FenceAction.CERTIFY:
                assert self.holding is not None
                self.holding.certify(stands=self.process.stands)
            else:
                self._tell()

    def _stop_vm(self) -> None:
        assert self.holding is not None
        stands = self.process.stop()
        end_ns = self.holding.fence.lease.end_ns
        self.overshoot_us = max(0, (now_ns() - end_ns) // 1000) if end_ns else 0
        if not stands:
            # It does not even stop: what cannot be stopped is ended, and the proof comes from its end.
            self.process.kill()

    # -- the guard

    def status(self) -> dict[str, Any]:
        holding = self.holding
        fence = holding.fence if holding else None
        return {
            "pid": self.process.pid, "fence_pid": os.getpid(), "vm_gone": self.vm_gone, "hardened": self.hardened,
            "connected": holding.link.met if holding else False, "taken": holding.taken if holding else 0,
            "returned": holding.returned if holding else 0, "said": holding.said if holding else "",
            "notice": holding.notice if holding else "", "notes": self.notes,
            "certified": holding.certified if holding else False, "overshoot_us": self.overshoot_us, "now_ns": now_ns(),
            "watchdog": self.watchdog is not None,
            "state": fence.state.name if fence else "", "certificate": fence.certificate.name if fence else "NONE",
            "reason": fence.reason if fence else "", "generation": fence.generation if fence else 0,
            "lease_end_ns": fence.lease.end_ns if fence else 0, "lease_ns": fence.lease.lease_ns if fence else 0,
            "wanted": fence.wanted if fence else False,
        }

    def _tell(self) -> None:
        self._answer({"event": self.status()})

    def _answer(self, answer: dict[str, Any]) -> None:
        if self.guard is None:
            return
        try:
            self.guard.send(json.dumps(answer).encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            pass  # a frozen guard reads the newest status when it asks
        except OSError:
            self._guard_gone()

    @staticmethod
    def _accept(listener: socket.socket) -> socket.socket | None:
        """Somebody of ours who connected."""
        try:
            sock, _ = listener.accept()
        except OSError:
            return None
        _, uid, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, os.geteuid()):
            sock.close()
            return None
        return sock

    def _show(self) -> None:
        """Tell who only looks, and be done with it: nothing that it sends is read."""
        sock = self._accept(self.look)
        if sock is not None:
            with sock, contextlib.suppress(OSError):
                sock.send(json.dumps(self.status()).encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def _new_guard(self) -> None:
        sock = self._accept(self.listener)
        if sock is None:
            return
        if self.guard is not None:
            self.guard.close()
        self.guard = sock
        if self.holding is not None:
            self._do(self.holding.fence.guard(True, now_ns()))

    def _guard_gone(self) -> None:
        if self.guard is not None:
            self.guard.close()
            self.guard = None
        if self.holding is not None:
            self._do(self.holding.fence.guard(False, now_ns()))
            if self.holding.fence.state in (FenceState.ALONE, FenceState.UNLEASED):
                self.over = True  # nobody could take the VM over, or nobody needs to be asked
        elif not self.vm_gone:
            self.over = True  # nothing was begun

    def _hear_guard(self) -> None:
        assert self.guard is not None
        try:
            data = self.guard.recv(COMMAND_BYTES_MAX, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._guard_gone()
            return
        try:
            command = json.loads(data)
            error = self._command(command)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as wrong:
            command, error = {}, f"{type(wrong).__name__}: {wrong}"
        self._answer({"answer": command.get("number", 0), "error": error, "status": self.status()})

    def _command(self, command: dict[str, Any]) -> str:
        name = command["command"]
        holding = self.holding
        if name == "status":
            return ""
        if name == "release":
            stopped = holding is not None and holding.fence.state in (FenceState.OVER, FenceState.STANDS)
            if stopped and not command.get("stopped"):
                return "the VM is stopped: say `alone` first, or end it"
            self._release()
            return ""
        if name == "lease":
            return self._begin(command)
        if name == "watchdog":
            try:
                self.watchdog = Watchdog(str(command["path"]), int(command["timeout_s"]))
            except Unsupported as error:
                return str(error)
            return ""
        if holding is None:
            return f"{name}: there is no lease yet"
        if name == "answering":
            holding.fence.answering()
        elif name == "alone":
            self._do(holding.alone(int(command["generation"]), str(command["reason"])))
        elif name == "prove":
            self._do(holding.fence.prove(str(command["reason"])))
        elif name == "end":
            self._do(holding.fence.end(str(command["reason"])))
        elif name == "ended":
            self._do(holding.fence.ended(str(command["reason"])))
        elif name == "moves":
            self._do(holding.fence.moves(str(command["reason"])))
        else:
            return f"{name!r} is no command"
        return ""

    def _begin(self, command: dict[str, Any]) -> str:
        generation, lease_ms = int(command["generation"]), float(command["lease_ms"])
        before = self.holding
        if before is not None and generation < before.fence.generation:
            return f"generation {generation} is older than {before.fence.generation}"
        address = command["address"]
        peer = int(command["family"]), tuple(address) if isinstance(address, list) else str(address)
        self.notes = dict(command["notes"])
        if before is not None and generation == before.fence.generation:
            fence = before.fence
        else:
            fence = Fence(generation, lease_ns_of(lease_ms), end_ns=int(command.get("end_ns", 0)))
        if before is not None:
            before.link.drop()
            if fence is not before.fence and before.fence.state in (FenceState.OVER, FenceState.STANDS):
                self.process.go_on()
        self.holding = Holding(
            fence, peer, token=str(command["token"]), who="fence", allow_uids=[int(uid) for uid in command["allow_uids"]])
        fence.guarded = True
        if self.vm_gone:
            self._do(fence.gone(now_ns()))
        return ""

    def _release(self) -> None:
        if self.watchdog is not None:
            self.watchdog.close()
            self.watchdog = None
        self.over = True


def main() -> None:
    """See this module's head."""
    pidfd, pid, listener, look = (int(argument) for argument in sys.argv[1:5])
    join_cgroup(pid)
    hardened = harden()
    FenceProcess(Process(pidfd, pid), socket.socket(fileno=listener), socket.socket(fileno=look), hardened).run()


if __name__ == "__main__":
    main()
