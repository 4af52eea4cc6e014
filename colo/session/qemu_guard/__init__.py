"""The guard of a primary QEMU: it watches, decides, and ends protection."""

from __future__ import annotations

from colo.session.qemu_guard.config import Ending, QemuGuardConfig, QemuGuardReport
from colo.session.qemu_guard.guard import QemuGuard

__all__ = ["Ending", "QemuGuard", "QemuGuardConfig", "QemuGuardReport"]
