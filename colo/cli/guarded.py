"""What `colo unprotect` and `colo stop` have in common: a VM that is guarded on this machine, by its name or its monitor."""

from __future__ import annotations

import argparse
import json
from typing import Any

from colo.control.client import ControlClient
from colo.errors import ChannelLost, ColoError
from colo.fence.left_fenced import answering_guard
from colo.fence.place import CONTROL_NAME

LOOK_S = 0.1
ENDED_AS_ASKED = {"unprotect": ("unprotected",), "stop": ("ended",)}
OTHER_SIDE_RUNS = ("stopped", "handed_over")


def add_guarded_arguments(parser: argparse.ArgumentParser) -> None:
    """Which VM: the only one that is guarded here, if neither is given."""
    parser.add_argument("--vm", default="", metavar="NAME", help="the VM's name")
    parser.add_argument("--qmp", default="", metavar="SOCKET", help="the QMP socket that `colo protect` was given")
    parser.add_argument("--timeout-s", type=float, default=60.0, metavar="S", help="wait so long (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="JSON")


def command_guard(arguments: argparse.Namespace, command: str) -> int:
    """Tell the VM's guard, and wait until it has ended. 0 when it did what was asked, 4 when the other side runs the VM.

    Raises ColoError when there is no such guard, or it has not ended in time.
    """
    path = answering_guard(arguments.vm, arguments.qmp) / CONTROL_NAME
    last: Any = None
    with ControlClient(path, timeout_s=arguments.timeout_s) as client:
        try:
            client.ask(command)
            looks = max(1, int(arguments.timeout_s / LOOK_S))
            for _ in range(looks):
                last = client.ask("status")
                if last.get("over"):
                    break
                client.wait(LOOK_S)
            else:
                raise ColoError(
                    f"the guard has not ended within {arguments.timeout_s:g} s, it is {last['state']}: who may run is "
                    "undecided, or QEMU hangs; `colo protect` itself says why")
        except ChannelLost:
            last = client.last_words or last
    state = str((last or {}).get("state", "unknown"))
    done = state in ENDED_AS_ASKED[command]
    if arguments.json:
        print(json.dumps({"state": state, "vm": (last or {}).get("vm"), "pid": (last or {}).get("pid")}))
    else:
        said = {
            "unprotected": "protection has ended, the VM runs on alone", "ended": "the VM was ended, it runs nowhere",
            "stopped": "the other side had taken over: it runs the VM", "handed_over": "the other side runs the VM",
        }
        print(said.get(state, f"the guard ended: {state}"))
    return 0 if done else 4 if state in OTHER_SIDE_RUNS else 1
