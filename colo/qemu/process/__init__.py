"""A QEMU as a process under its monitor: one that already runs (:class:`Qemu`), or one of our own (:class:`QemuProcess`)."""

from __future__ import annotations

from colo.qemu.process.directory import private_directory, unix_path
from colo.qemu.process.own import MONITOR_ID, QemuProcess
from colo.qemu.process.running import Qemu

__all__ = ["MONITOR_ID", "Qemu", "QemuProcess", "private_directory", "unix_path"]
