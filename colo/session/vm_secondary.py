"""A secondary for VMs that live in this process: at takeover the VM's own memory already holds the checkpoint.

Checkpoints are applied straight to the memory of a VM that stands by. When a primary comes back after a loss, its full copy
goes into a second set of blocks until it is committed: the last committed checkpoint stays whole meanwhile.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from colo import trace
from colo.abc import Transport, VirtualMachine
from colo.arbiter import Runner, arbiter_from_uri
from colo.errors import ColoError, Interrupted, VmError
from colo.figures.takeover_report import VmTakeover
from colo.memory.guest_image import GuestImage
from colo.protocol import Failover
from colo.session.following import Following
from colo.session.secondary_config import VmSecondaryConfig
from colo.takeover.claiming_side import Loss
from colo.trace import OnEvent, SessionState, Sink
from colo.vm.hold import VmHold
from colo.vm.saved_state import decode_state

__all__ = ["VmSecondary", "VmSecondaryConfig", "VmTakeover"]


class VmSecondary(Following[VmTakeover]):
    """Follows a primary into ``vm``, which must stand still, and makes it run when the primary is lost. ::

        with VmSecondary(vm, VmSecondaryConfig("tcp:127.0.0.1:9000", "file:/shared/vm1")) as secondary:
            report = secondary.run()       # returns when the VM runs here

    ``sinks`` take the events themselves (:mod:`colo.trace`);
    ``on_event(kind, data)`` hears ``listening``, ``connected``, ``checkpoint``, ``lost``, ``taking-over``, ``notice`` and
    ``running``.
    """

    WAITS = SessionState.WAITING
    config: VmSecondaryConfig
    image: GuestImage

    def __init__(
        self, vm: VirtualMachine, config: VmSecondaryConfig, *,
        on_event: OnEvent | None = None,
        sinks: Iterable[Sink] = (),
    ) -> None:
        self.vm = vm
        super().__init__(config, on_event, sinks)

    def _open(self) -> None:
        config = self.config
        generation = self._ask(arbiter_from_uri(config.arbiter, role="secondary", vm=config.vm))
        self._keep_in(GuestImage(self.vm.memory.blocks))
        self._receive(
            generation, required=config.lease_ms > 0, parks=True, lease_ms=config.lease_ms,
            control=Path(config.control) if config.control is not None else None)
        self.state = SessionState.LISTENING

    def _failover_command(self) -> dict[str, Any]:
        return self.request_failover().result(self.config.takeover_s).as_dict()

    def status(self) -> dict[str, Any]:
        """What ``colo status`` shows; keys are stable, and those of :meth:`colo.session.qemu_secondary.QemuSecondary.status`
        as far as they mean something here."""
        return super().status() | {
            "ram_bytes": sum(block.length_bytes for block in self.vm.memory.blocks),
            "takeover": self.report.as_dict() if self.report else None,
        }

    def run(self) -> VmTakeover:
        """Follow a primary; returns when the VM was taken over.

        Raises RuntimeError (another session has the VM), NoCheckpoint (lost before the first commit), ArbitrationLost (the
        other side runs), VmError (the VM did not load the state) or Interrupted (:meth:`stop`). Whatever it raises,
        :attr:`committed` stays as long as this object; run again, it holds that, lets a primary come back, and takes over
        when asked.
        """
        if self._result.done():
            self._result = Future()
            self._requested, self._eager, self.failover = None, None, Failover()
            self.claiming.won = False
            self.claiming.forget_alone()
            self.state = self.WAITS
        hold = VmHold(self.vm)
        hold.take()
        try:
            return super().run()
        finally:
            with contextlib.suppress(ColoError):
                self.ram.settle()  # whoever looks at what is committed finds it in the blocks
            hold.release()

    def _run(self) -> VmTakeover:
        self._tell(trace.Listening(self.address))
        loss = self._wait(Interrupted("the session was asked to stop"))
        self.claiming.heed()
        return self._take_over(loss)

    def _follow_one(self, sock: Transport) -> Loss | None:
        loss = super()._follow_one(sock)
        if loss is None and self.promises.ended:
            self.claiming.heed()
        return loss

    def _get_ready(self) -> Runner:
        return Runner.of()

    def _stop_vm(self) -> None:
        self.vm.pause()  # as it does: nothing here has made it run

    def _run_here(self) -> None:
        attempt, committed = self._attempt, self.committed
        assert attempt is not None and committed is not None and self.generation is not None
        noticed_ns, arbitrated_ns = attempt.loss.noticed_ns, time.monotonic_ns()
        self.ram.settle()
        self.image.bring_home()
        settled_ns = time.monotonic_ns()
        try:
            self.vm.load_state(decode_state(committed.device_state, self.config.limits))
            if self.config.resume:
                self.vm.resume()
        except Exception as error:
            raise VmError(
                f"the VM did not take checkpoint {committed.number} over: {type(error).__name__}: {error}") from error
        done_ns = time.monotonic_ns()
        self.report = VmTakeover(
            checkpoint=committed.number,
            reason=attempt.loss.reason,
            generation=self.generation,
            arbitration_ms=(arbitrated_ns - noticed_ns) / 1e6,
            settle_ms=(settled_ns - arbitrated_ns) / 1e6,
            load_ms=(done_ns - settled_ns) / 1e6,
            total_ms=(done_ns - noticed_ns) / 1e6,
            checkpoint_age_ms=(noticed_ns - committed.at_ns) / 1e6,
        )
