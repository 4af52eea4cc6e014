"""The lease of a VM in this process: held by a thread of the session's, which pauses the VM when it runs out."""

from __future__ import annotations

import logging
import select
import threading
from collections.abc import Callable, Collection
from typing import Any

from colo.fence.witness import Witness
from colo.lease.clock import now_ns
from colo.lease.holding import Holding
from colo.protocol.fencing import Actions, Fence, FenceAction, FenceState
from colo.protocol.lease import LEASE_SHARE, lease_ns_of
from colo.wake import Wake

_log = logging.getLogger(__name__)


class VmLease:
    """Holds a lease of ``generation`` from the secondary at ``peer``.

    ``stop()`` and ``go_on()`` pause and resume the VM, on the lease's own thread; ``changed()`` is called there whenever
    :attr:`lost` or :attr:`taken` may be another. A VM that is to stand still for good does so by the same ``stop()``.

    ``witness``: tell the secondary at once when this process is killed, by a :class:`~colo.fence.witness.Witness`; ``tell``
    hears why there is none.
    """

    def __init__(
        self, peer: tuple[int, Any], *, token: str, generation: int, lease_ms: float, stop: Callable[[], None],
        go_on: Callable[[], None], changed: Callable[[], None], witness: bool = False,
        allow_uids: Collection[int] = (), tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        fence = Fence(generation, lease_ns_of(lease_ms))
        fence.guarded = True
        self._holding = Holding(fence, peer, token=token, who="session", allow_uids=allow_uids)
        self._stop, self._go_on, self._changed = stop, go_on, changed
        self._stopped = False
        self._over = False
        self._lock = threading.RLock()
        self._leased = threading.Event()
        self._poke = Wake()
        self._thread = threading.Thread(target=self._run, name="colo-vm-lease", daemon=True)
        self._thread.start()
        self._witness = Witness(
            peer, token=token, generation=generation, lease_ns=fence.lease.lease_ns, tell=tell,
            allow_uids=allow_uids) if witness else None

    def wait_leased(self, timeout_s: float) -> bool:
        """Whether the first promise came in time."""
        return self._leased.wait(timeout_s)

    @property
    def lost(self) -> str:
        """Why the secondary counts as lost, by the lease; "" while it does not."""
        fence = self._holding.fence
        if fence.wanted:
            return "the secondary lost this primary, and wants to take over"
        if fence.state not in (FenceState.LEASED, FenceState.OVER):
            return ""
        left_ns = fence.lease.left_ns(now_ns())
        if left_ns < fence.lease.lease_ns // LEASE_SHARE:
            return f"the secondary has promised nothing for {(fence.lease.lease_ns - left_ns) / 1e6:.0f} ms"
        return ""

    @property
    def taken(self) -> bool:
        """The secondary has claimed the VM."""
        return self._holding.taken > 0

    @property
    def notice(self) -> str:
        """Why the secondary could not take over as things are, by its own word."""
        return self._holding.notice

    def status(self) -> dict[str, Any]:
        """For the session's status; keys are stable."""
        fence = self._holding.fence
        left_ns = fence.lease.left_ns(now_ns())
        return {
            "lease_ms": fence.lease.lease_ns / 1e6, "left_ms": round(left_ns / 1e6, 1), "fence": fence.state.value,
            "connected": self._holding.link.met, "witness": self._witness.status() if self._witness is not None else None,
        }

    def answering(self) -> None:
        """The session is asking the arbiter: it will say what came of it."""
        with self._lock:
            self._holding.fence.answering()

    def alone(self, generation: int, reason: str) -> None:
        """``generation`` was won: the VM goes on without a lease, and the secondary is told, if it hears."""
        self.release_witness()
        with self._lock:
            self._do(self._holding.alone(generation, reason))

    def prove(self, reason: str) -> None:
        """The VM stands still for good, as far as this generation goes, and the secondary is told."""
        with self._lock:
            self._do(self._holding.fence.prove(reason))

    def ended(self, reason: str) -> None:
        """The VM was ended on purpose: nobody is to run it."""
        self.release_witness()
        with self._lock:
            self._do(self._holding.fence.ended(reason))

    def release_witness(self) -> None:
        """Nothing depends any more on whether this process lives. Any number of times."""
        if self._witness is not None:
            self._witness.release()

    def close(self) -> None:
        """Hang up; the VM stays as it is. Any number of times."""
        self.release_witness()
        if self._over:
            return
        self._over = True
        self._poke.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._holding.link.drop()
        self._poke.close()

    def _run(self) -> None:
        lost = ""
        while not self._over:
            link = self._holding.link
            poller = select.poll()
            poller.register(self._poke.fd, select.POLLIN)
            sock = link.sock
            if sock is not None:
                poller.register(sock, link.events)
            ready = {fd for fd, _ in poller.poll(self._timeout_ms())}
            if self._poke.fd in ready:
                self._poke.clear()
            with self._lock:
                if sock is not None and link.sock is sock and sock.fileno() in ready:
                    self._do(self._holding.hear(now_ns()))
                self._do(self._holding.tend(now_ns()))
            if self._holding.fence.state is FenceState.LEASED:
                self._leased.set()
            if self._leased.is_set() and (self.lost != lost or self.taken):
                lost = self.lost
                self._changed()

    def _did(self, method: Callable[[], None]) -> bool:
        """Whether the VM's method did not raise. A VM that cannot be paused is not proven to stand still."""
        try:
            method()
        except Exception:
            _log.exception("the VM's own method failed when its lease ended, or began again")
            return False
        return True

    def _timeout_ms(self) -> float:
        now = now_ns()
        lease = self._holding.fence.lease
        due = [now + lease.lease_ns // 8]
        if (at := self._holding.due_ns(now)) is not None:
            due.append(at)
        return max(0.0, (min(due) - now) / 1e6) + 0.05

    def _do(self, actions: Actions) -> None:
        for action in actions:
            if action in (FenceAction.STOP_VM, FenceAction.KILL_VM):
                if not self._stopped:
                    self._stopped = self._did(self._stop)
            elif action is FenceAction.CONTINUE_VM:
                if self._stopped:
                    self._stopped = not self._did(self._go_on)
            elif action is FenceAction.CERTIFY:
                self._holding.certify(stands=self._stopped)
            else:
                self._changed()
