"""Who may run, by time and by proof: the lease's connection, the fence beside a QEMU, the witness beside a program that runs
its VM itself, and what each side says when they meet.

The rules are in :mod:`colo.protocol.lease` and :mod:`colo.protocol.fencing`; here they get sockets, signals and clocks.
"""

from __future__ import annotations

from colo.lease.meeting import Meeting, Welcome

__all__ = ["Meeting", "Welcome"]
