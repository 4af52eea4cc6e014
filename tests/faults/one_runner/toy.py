"""A VM in a program's own process, protected by it: ``python -m tests.faults.one_runner.toy primary|secondary …``.

Each turn writes its number where the turn ``PAGES`` before it wrote, after looking that it is there, and sends a beat. SIGUSR1
makes a turn that hangs, as a device of dead storage would; SIGUSR2 ends that.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import struct
import sys
import threading
import time
from typing import Any

from colo import Primary, PrimaryConfig, VmSecondary, VmSecondaryConfig
from colo.abc import BlockMemory, SteppedMachine
from colo.errors import ArbitrationLost, NoCheckpoint, VmError
from colo.protocol.deadlines import Deadlines
from tests.faults.one_runner.output import BEAT_PORT

PAGES = 300
PAGE_BYTES = 4096


class ToyVm(SteppedMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__(BlockMemory.allocate({"ram": PAGES * PAGE_BYTES}))
        self.view = self.memory.blocks[0].view()
        self.turn = 0
        self.go_on = threading.Event()
        self.go_on.set()
        self.beat = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.beat.connect(("127.0.0.1", BEAT_PORT))

    def step(self) -> None:
        self.go_on.wait()
        at = self.turn % PAGES * PAGE_BYTES
        found = struct.unpack_from(">Q", self.view, at)[0]
        if found != max(0, self.turn - PAGES + 1):
            say("torn", {"turn": self.turn, "found": found})
            raise RuntimeError(f"memory is torn at turn {self.turn}: {found}")
        struct.pack_into(">Q", self.view, at, self.turn + 1)
        self.turn += 1
        self.beat.send(bytes([self.turn & 255]))
        time.sleep(0.001)

    def save_state(self) -> bytes:
        return struct.pack(">Q", self.turn)

    def load_state(self, state: memoryview) -> None:
        [self.turn] = struct.unpack(">Q", state)


def say(kind: str, data: Any) -> None:
    """One event."""
    if hasattr(data, "as_dict"):
        data = data.as_dict()
    print(json.dumps({"event": kind, "time": time.time(), "data": data}, default=str), flush=True)


def with_known(kind: Any, **values: Any) -> Any:
    """A configuration of that class, without the values that this version does not know."""
    return kind(**{name: value for name, value in values.items() if name in kind.__dataclass_fields__})


def primary(vm: ToyVm, arguments: argparse.Namespace) -> int:
    """Protect it; it runs on alone as long as it may."""
    vm.resume()
    config = with_known(
        PrimaryConfig, to=arguments.address, arbiter=arguments.arbiter, interval_ms=100, insecure=True, vm=arguments.vm,
        lease_ms=arguments.lease_ms, deadlines=Deadlines().capped(arguments.deadline_ms), vm_s=arguments.deadline_ms / 1000)
    with Primary(vm, config, on_event=say) as session:
        signal.signal(signal.SIGTERM, lambda *_: session.stop())
        session.start()
        try:
            outcome = session.wait()
        except VmError as error:  # the session is over, the VM is not
            say("gave-up", str(error))
            threading.Event().wait()
    say("ended", {"ending": outcome.ending.name.lower(), "reason": outcome.reason, "generation": outcome.generation})
    if outcome.ending.name == "STOPPED":
        return 4
    threading.Event().wait()
    return 0


def secondary(vm: ToyVm, arguments: argparse.Namespace) -> int:
    """Follow; run it once it may."""
    config = with_known(
        VmSecondaryConfig, listen=arguments.address, arbiter=arguments.arbiter, insecure=True, vm=arguments.vm,
        lease_ms=arguments.lease_ms, deadlines=Deadlines().capped(arguments.deadline_ms), control=arguments.control or None)
    with VmSecondary(vm, config, on_event=say) as session:
        signal.signal(signal.SIGTERM, lambda *_: session.stop())
        try:
            session.run()
        except ArbitrationLost as error:
            say("ended", {"ending": "lost", "reason": str(error)})
            return 4
        except NoCheckpoint as error:
            say("ended", {"ending": "nothing", "reason": str(error)})
            return 3
        threading.Event().wait()
    return 0


def main() -> int:
    """As either side."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=("primary", "secondary"))
    parser.add_argument("address")
    parser.add_argument("--arbiter", required=True)
    parser.add_argument("--lease-ms", type=int, required=True)
    parser.add_argument("--vm", default="")
    parser.add_argument("--control", default="")
    arguments = parser.parse_args()
    if "lease_ms" not in VmSecondaryConfig.__dataclass_fields__:  # one side alone cannot have it
        arguments.lease_ms, arguments.deadline_ms = 0, arguments.lease_ms
    else:
        arguments.deadline_ms = arguments.lease_ms
    vm = ToyVm()
    signal.signal(signal.SIGUSR1, lambda *_: vm.go_on.clear())
    signal.signal(signal.SIGUSR2, lambda *_: vm.go_on.set())
    return primary(vm, arguments) if arguments.role == "primary" else secondary(vm, arguments)


if __name__ == "__main__":
    sys.exit(main())
