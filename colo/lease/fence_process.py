"""The fence: a process of its own beside the VM's, which holds the lease and stops that process when it runs out.

It depends on nobody else: it renews whoever is dead, hung or frozen, and needs a guard (``colo protect``) only to be told what
the arbiter decided. It imports little, locks its memory, asks for real-time priority, and does nothing in its loop that can
block. Started by :class:`colo.lease.fence.FenceHandle`::

    python -I fence_process.py PIDFD PID LISTENER          the VM's process, and a listening SOCK_SEQPACKET unix socket

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
import time
from typing import Any

if __name__ == "__main__":  # started by its path, without the user's environment: where the package is, it knows itself
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from colo.errors import ColoError, Unsupported
from colo.lease.frames import Frame, FrameReader, encode
from colo.lease.processes import Process
from colo.lease.watchdog import Watchdog
from colo.protocol.fencing import Actions, Certificate, Fence, FenceAction, FenceState
from colo.protocol.lease import lease_ns_of
from colo.wire import LeaseMessage

COMMAND_BYTES_MAX = 16384
CONNECT_S = 1.0
REALTIME_PRIORITY = 20
PROOFS = {
    Certificate.STANDS: LeaseMessage.STANDS, Certificate.GONE: LeaseMessage.GONE, Certificate.ENDED: LeaseMessage.ENDED,
}
MCL_CURRENT_AND_FUTURE = 3
PR_SET_NAME, PR_SET_DUMPABLE = 15, 4


def now_ns() -> int:
    """The clock of leases: it goes on while the machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


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

    def __init__(self, process: Process, listener: socket.socket, hardened: dict[str, bool]) -> None:
        self.process = process
        self.listener = listener
        self.hardened = hardened
        self.fence: Fence | None = None
        self.guard: socket.socket | None = None
        self.link: socket.socket | None = None
        self.met = self.token_sent = False
        """The link: welcomed; connected, and the token sent."""
        self.reader = FrameReader()
        self.peer: tuple[int, Any] = (0, None)
        self.token = ""
        self.notes: dict[str, Any] = {}
        """The guard's own, kept for the guard after it."""
        self.taken = 0
        """The generation that the secondary says it has claimed."""
        self.returned = 0
        """The generation that it says may be claimed from it."""
        self.said = self.notice = ""
        self.certified = False
        self.promised_at_ns = 0
        self.connect_ns = 0
        self.watchdog: Watchdog | None = None
        self.over = False
        self.vm_gone = False
        self.overshoot_us = 0
        """From the lease's end to the VM standing still, at the last time that it ran out."""

    # -- the loop

    def run(self) -> None:
        while not self.over:
            poller = select.poll()
            poller.register(self.listener, select.POLLIN)
            if not self.vm_gone:
                poller.register(self.process.pidfd, select.POLLIN)
            if self.guard is not None:
                poller.register(self.guard, select.POLLIN)
            if self.link is not None:
                poller.register(self.link, select.POLLIN if self.met or self.token_sent else select.POLLOUT)
            ready = {fd for fd, _ in poller.poll(self._timeout_ms())}
            if not self.vm_gone and self.process.pidfd in ready:
                self.vm_gone = True
                if self.fence is not None:
                    self._do(self.fence.gone())
            if self.fence is not None:
                self._do(self.fence.tick(now_ns()))
            if self.link is not None and self.link.fileno() in ready:
                self._link_ready()
            self._tend_link()
            if self.guard is not None and self.guard.fileno() in ready:
                self._hear_guard()
            if self.listener.fileno() in ready:
                self._new_guard()
            if self.vm_gone and self.guard is None and self._nothing_to_prove():
                self.over = True
        self._drop_link()

    def _has_proof(self) -> bool:
        return self.fence is not None and self.fence.certificate is not Certificate.NONE

    def _nothing_to_prove(self) -> bool:
        """The proof was sent, or time has proven the same."""
        return self.fence is None or self.certified or not self._has_proof() or (
            now_ns() > self.fence.lease.end_ns + 2 * self.fence.lease.lease_ns)

    def _timeout_ms(self) -> float | None:
        now = now_ns()
        due = []
        if self.fence is not None:
            if (at := self.fence.next_ns()) is not None:
                due.append(at)
            if self.vm_gone:
                due.append(now + self.fence.lease.lease_ns // 4)
            if self._wants_link():
                due.append(self.connect_ns if self.link is None else self._renewal_due_ns())
        return None if not due else max(0.0, (min(due) - now) / 1e6) + 0.05

    def _renewal_due_ns(self) -> int:
        assert self.fence is not None
        if not self.met:
            return self.connect_ns
        if not self.fence.renews:
            return now_ns() + 1_000_000_000
        return self.fence.lease.due_ns

    # -- the lease connection

    def _wants_link(self) -> bool:
        return self.fence is not None and self.fence.state is not FenceState.ALONE and (
            self.fence.renews or not self.certified or self.fence.state is not FenceState.GONE)

    def _tend_link(self) -> None:
        if self.fence is None:
            return
        now = now_ns()
        if not self._wants_link():
            self._drop_link()
            return
        if self.link is not None and not self.met and now >= self.connect_ns:
            self._drop_link()  # neither connected nor met in time
        if self.link is None and now >= self.connect_ns:
            self._connect(now)
        if self.link is not None and self.met and self.fence.renews and now >= self.fence.lease.due_ns:
            if self.promised_at_ns and now - self.promised_at_ns > self.fence.lease.lease_ns // 2:
                self.promised_at_ns = 0
                self._drop_link()  # it may be the connection: another one finds out
                self._connect(now)
                return
            sequence = self.fence.lease.ask(now_ns())
            self._send(Frame(LeaseMessage.RENEW, self.fence.generation, sequence))
            if self.watchdog is not None:
                self.watchdog.well()

    def _connect(self, now: int) -> None:
        assert self.fence is not None
        family, address = self.peer
        self.connect_ns = now + min(int(CONNECT_S * 1e9), self.fence.lease.lease_ns // 4)
        self.met = self.token_sent = False
        self.reader = FrameReader()
        try:
            self.link = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            if family != socket.AF_UNIX:
                self.link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(BlockingIOError):
                self.link.connect(address)
        except OSError:
            self._drop_link()

    def _drop_link(self) -> None:
        if self.link is not None:
            self.link.close()
            self.link = None
        self.met = False

    def _send(self, frame: Frame) -> None:
        """Small frames: a connection that does not take one is of no use."""
        if self.link is None:
            return
        data = encode(frame)
        try:
            if self.link.send(data) != len(data):
                self._drop_link()
        except OSError:
            self._drop_link()

    def _link_ready(self) -> None:
        assert self.link is not None
        if not self.token_sent:
            if self.link.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._drop_link()
                return
            self.token_sent = True
            assert self.fence is not None
            self._send(Frame(LeaseMessage.MEET, self.fence.generation, text={"token": self.token, "who": "fence"}))
            return
        try:
            data = self.link.recv(65536)
            frames = self.reader.feed(data)
        except BlockingIOError:
            return
        except (OSError, ColoError):
            data, frames = b"", []
        if not data:
            self._drop_link()
            return
        for frame in frames:
            self._take(frame)

    def _take(self, frame: Frame) -> None:
        assert self.fence is not None
        now = now_ns()
        kind = frame.kind
        if kind is LeaseMessage.WELCOME:
            self.met = True
            self.promised_at_ns = now
            self._noticed(frame)
            if self._has_proof():
                self._certify()
        elif kind is LeaseMessage.REFUSED:
            self.said = str(frame.text.get("reason", ""))[:512]
            self.connect_ns = now + self.fence.lease.lease_ns // 2
            self._drop_link()
            self._tell()
        elif frame.generation != self.fence.generation and kind is not LeaseMessage.NOTICE:
            return
        elif kind is LeaseMessage.PROMISE:
            self.promised_at_ns = now
            before = self.fence.lease.end_ns
            self._do(self.fence.promised(frame.sequence, frame.value, now))
            if self.fence.lease.end_ns != before:
                self._tell()
        elif kind is LeaseMessage.WANTS:
            self._do(self.fence.wants(now))
        elif kind is LeaseMessage.STOP:
            self.taken = frame.value
            self._do(self.fence.stop())
        elif kind is LeaseMessage.END:
            self.taken = frame.value
            self._do(self.fence.end("the VM runs at the other side"))
        elif kind is LeaseMessage.RETURNED:
            self.returned = frame.value
            self.said = str(frame.text.get("reason", ""))[:512]
            self._tell()
        elif kind is LeaseMessage.NOTICE:
            self._noticed(frame)

    def _noticed(self, frame: Frame) -> None:
        notice = frame.text.get("notice")
        notice = notice[:512] if isinstance(notice, str) else ""
        if notice != self.notice:
            self.notice = notice
            self._tell()

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
                self._certify()
            else:
                self._tell()

    def _stop_vm(self) -> None:
        assert self.fence is not None
        stands = self.process.stop()
        self.overshoot_us = max(0, (now_ns() - self.fence.lease.end_ns) // 1000) if self.fence.lease.end_ns else 0
        if not stands:
            # It does not even stop: what cannot be stopped is ended, and the proof comes from its end.
            self.process.kill()

    def _certify(self) -> None:
        fence = self.fence
        if fence is None or fence.certificate is Certificate.NONE:
            return
        if fence.certificate is Certificate.STANDS and not self.process.stands:
            return
        if fence.certificate is Certificate.ENDED and not self.vm_gone:
            pass  # told at once: nobody is to run it
        self.certified = self.link is not None and self.met
        self._send(Frame(PROOFS[fence.certificate], fence.generation, text={"reason": fence.reason[:256]}))
        self.certified = self.certified and self.link is not None

    # -- the guard

    def status(self) -> dict[str, Any]:
        fence = self.fence
        return {
            "pid": self.process.pid, "fence_pid": os.getpid(), "vm_gone": self.vm_gone, "hardened": self.hardened,
            "connected": self.met, "taken": self.taken, "returned": self.returned, "said": self.said, "notice": self.notice, "notes": self.notes,
            "certified": self.certified, "overshoot_us": self.overshoot_us, "now_ns": now_ns(),
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

    def _new_guard(self) -> None:
        try:
            sock, _ = self.listener.accept()
        except OSError:
            return
        _, uid, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, os.geteuid()):
            sock.close()
            return
        if self.guard is not None:
            self.guard.close()
        self.guard = sock
        if self.fence is not None:
            self._do(self.fence.guard(True, now_ns()))

    def _guard_gone(self) -> None:
        if self.guard is not None:
            self.guard.close()
            self.guard = None
        if self.fence is not None:
            self._do(self.fence.guard(False, now_ns()))
            if self.fence.state in (FenceState.ALONE, FenceState.UNLEASED):
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
        except (ValueError, KeyError, TypeError, AttributeError) as wrong:
            command, error = {}, f"{type(wrong).__name__}: {wrong}"
        self._answer({"answer": command.get("number", 0), "error": error, "status": self.status()})

    def _command(self, command: dict[str, Any]) -> str:
        name = command["command"]
        if name == "status":
            return ""
        if name == "release":
            if self.fence is not None and self.fence.state in (FenceState.OVER, FenceState.STANDS) and not command.get("stopped"):
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
        if self.fence is None:
            return f"{name}: there is no lease yet"
        if name == "answering":
            self.fence.answering()
        elif name == "alone":
            generation = int(command["generation"])
            old = self.fence.generation
            self._do(self.fence.alone(generation))
            self._send(Frame(LeaseMessage.ALONE, old, value=generation, text={"reason": str(command["reason"])[:256]}))
        elif name == "prove":
            self._do(self.fence.prove(str(command["reason"])))
        elif name == "end":
            self._do(self.fence.end(str(command["reason"])))
        elif name == "ended":
            self._do(self.fence.ended(str(command["reason"])))
        elif name == "notes":
            self.notes = dict(command["notes"])
        else:
            return f"{name!r} is no command"
        return ""

    def _begin(self, command: dict[str, Any]) -> str:
        generation, lease_ms = int(command["generation"]), float(command["lease_ms"])
        if self.fence is not None and generation < self.fence.generation:
            return f"generation {generation} is older than {self.fence.generation}"
        address = command["address"]
        self.peer = int(command["family"]), tuple(address) if isinstance(address, list) else str(address)
        self.token = str(command["token"])
        self.notes = dict(command["notes"])
        if self.fence is None or generation != self.fence.generation:
            stopped = self.fence is not None and self.fence.state in (FenceState.OVER, FenceState.STANDS)
            self.fence = Fence(generation, lease_ns_of(lease_ms), end_ns=int(command.get("end_ns", 0)))
            self.taken = self.returned = 0
            if stopped:
                self.process.go_on()
        self.fence.guarded = True
        self.certified = False
        self._drop_link()
        self.connect_ns = 0
        if self.vm_gone:
            self._do(self.fence.gone())
        return ""

    def _release(self) -> None:
        if self.watchdog is not None:
            self.watchdog.close()
            self.watchdog = None
        self.over = True


def main() -> None:
    """See this module's head."""
    pidfd, pid, listener = (int(argument) for argument in sys.argv[1:4])
    join_cgroup(pid)
    hardened = harden()
    FenceProcess(Process(pidfd, pid), socket.socket(fileno=listener), hardened).run()


if __name__ == "__main__":
    main()
