"""A program with a VM of its own that it protects: ``python -m tests.fence.protected ADDRESS ARBITER OPTIONS``.

``OPTIONS`` are a PrimaryConfig's, as JSON; with ``saved`` the VM is what :func:`save` has put there, and stands still. Says what happens in JSON lines. Reads commands, a line each: ``status``, ``stop``,
``fork``, ``exec``, ``end``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from colo.abc import BlockMemory
from colo.epoch.committed import Committed
from colo.errors import ColoError
from colo.session.primary import Primary, PrimaryConfig
from tests.session.primary_vm import PageVm

_lock = threading.Lock()


def say(kind: str, data: Any = None) -> None:
    if hasattr(data, "as_dict"):
        data = data.as_dict()
    with _lock:
        print(json.dumps({"event": kind, "data": data}, default=str), flush=True)


class SavedVm:
    """A checkpoint of another machine, for a VM."""

    def __init__(self, directory: Path) -> None:
        names = json.loads((directory / "names").read_text())
        saved = [(directory / str(number)).read_bytes() for number in range(len(names))]
        self.memory = BlockMemory.allocate(dict(zip(names, map(len, saved), strict=True)))
        for name, data in zip(names, saved, strict=True):
            self.memory[name][:] = data
        self.state = (directory / "state").read_bytes()

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def save_state(self) -> bytes:
        return self.state

    def load_state(self, state: memoryview) -> None:
        raise NotImplementedError


def save(committed: Committed, directory: Path) -> None:
    """For :class:`SavedVm`."""
    directory.mkdir()
    (directory / "names").write_text(json.dumps([block.idstr for block in committed.blocks]))
    for number, block in enumerate(committed.blocks):
        (directory / str(number)).write_bytes(memoryview(block.memory_buffer)[: block.used_length])  # type: ignore[arg-type]
    (directory / "state").write_bytes(committed.device_state)


def tell_end(primary: Primary) -> None:
    try:
        say("over", primary.wait())
    except ColoError as error:
        say("over", f"{type(error).__name__}: {error}")


def main() -> None:
    """See the module."""
    address, arbiter, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    if options.pop("no_python", False):
        sys.executable = ""
    vm: Any = PageVm(free_running=True)
    if "saved" in options:
        vm = SavedVm(Path(options.pop("saved")))
    vm.resume()
    primary = Primary(vm, PrimaryConfig(address, arbiter, interval_ms=20, insecure=True, **options), on_event=say)
    primary.start()
    threading.Thread(target=tell_end, args=(primary,), daemon=True).start()
    for line in sys.stdin:
        command = line.strip()
        if command == "status":
            say("status", primary.status())
        elif command == "stop":
            primary.stop()
            say("stopped-in-order", primary.status())
        elif command == "fork":
            pid = os.fork()
            if pid == 0:
                time.sleep(60)
                os._exit(0)
            say("forked", pid)
        elif command == "exec":
            os.execv("/bin/sleep", ["sleep", "60"])
        elif command == "end":
            os._exit(0)
    signal.pause()


if __name__ == "__main__":
    main()
