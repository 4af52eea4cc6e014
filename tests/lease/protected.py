"""A program with a VM of its own that it protects: ``python -m tests.lease.protected ADDRESS ARBITER OPTIONS``.

``OPTIONS`` are a PrimaryConfig's, as JSON. Says what happens in JSON lines. Reads commands, a line each: ``status``, ``stop``,
``fork``, ``exec``, ``end``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from typing import Any

from colo.session.primary import Primary, PrimaryConfig
from tests.session.primary_vm import PageVm

_lock = threading.Lock()


def say(kind: str, data: Any = None) -> None:
    if hasattr(data, "as_dict"):
        data = data.as_dict()
    with _lock:
        print(json.dumps({"event": kind, "data": data}, default=str), flush=True)


def main() -> None:
    """See the module."""
    address, arbiter, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    if options.pop("no_python", False):
        sys.executable = ""
    vm = PageVm(free_running=True)
    vm.resume()
    primary = Primary(vm, PrimaryConfig(address, arbiter, interval_ms=20, insecure=True, **options), on_event=say)
    primary.start()
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
