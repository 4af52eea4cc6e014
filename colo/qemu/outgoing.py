"""A QEMU that sends its VM: how its migration stands, whether it answers, and its channel shut down from inside."""

from __future__ import annotations

import time

from colo.qemu.process import Qemu
from colo.qemu.qmp import QmpCommandError, QmpError

MIGRATION_YANK = {"instances": [{"type": "migration"}]}


class Outgoing:
    """``qemu``, which migrates, or is a COLO primary."""

    def __init__(self, qemu: Qemu) -> None:
        self.qemu = qemu

    def migration_status(self, timeout_s: float = 10.0) -> str:
        """``colo`` while it is a primary; else ``none``, ``active``, ``completed``, ``failed``, …"""
        return self.qemu.qmp.record("query-migrate", timeout_s=timeout_s).string("status", "none")

    def yank(self, *, timeout_s: float = 2.0) -> bool:
        """Shut the migration channel down from inside, out of band; False if there was none.

        Works while QEMU waits for a hung peer, also in the middle of RAM, when no ordinary command is
        answered.
        """
        try:
            self.qemu.qmp.execute_oob("yank", MIGRATION_YANK, timeout_s=timeout_s)
        except QmpCommandError as error:
            if error.error_class == "DeviceNotFound":
                return False
            raise
        return True

    def responds(self, timeout_s: float = 0.5) -> bool:
        """Whether QEMU's process runs at all: a hung peer blocks its main loop, but not out-of-band commands."""
        try:
            self.qemu.qmp.execute_oob("query-yank", timeout_s=timeout_s)
        except QmpError:
            return False
        return True

    def main_loop_responds(self, timeout_s: float = 0.5) -> bool:
        """Whether QEMU's main loop runs: dead storage blocks it, and so does a peer that hangs amid a checkpoint.

        A QEMU whose main loop is blocked can neither stop its VM nor let it run on alone.
        """
        try:
            self.qemu.qmp.execute("query-status", timeout_s=timeout_s)
        except QmpError:
            return False
        return True

    def why_not_alone(self, timeout_s: float = 2.0) -> str | None:
        """Why this QEMU could not run on alone if its side won, or None if it could. Ask before you claim.

        A main loop that is blocked only by the peer answers once the channel is yanked, which is done here: call this
        for a secondary that is given up. A reason is final: leave the VM to the other side, and end this QEMU
        (:meth:`end_loser`). Takes at most ``timeout_s`` seconds.
        """
        deadline = time.monotonic() + timeout_s
        if not self.qemu.alive():
            return "QEMU's process is gone"
        if self.main_loop_responds(timeout_s / 4):
            return None
        try:
            self.yank(timeout_s=seconds_left(deadline) / 2)
        except QmpError as error:
            return f"QEMU's process hangs, it does not even answer out of band: {error}"
        if self.main_loop_responds(seconds_left(deadline)):
            return None
        return (
            f"QEMU's main loop has not answered for {timeout_s:g} s, also without its peer: it hangs in dead storage, "
            "or the like, and could not run its VM"
        )


def seconds_left(deadline: float) -> float:
    """Seconds to ``deadline``, never so few that an answer had no chance."""
    return max(0.05, deadline - time.monotonic())
