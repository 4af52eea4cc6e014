"""Fixtures of the real-QEMU tests, here too."""

from tests.qemu.conftest import kvm, machine, qemu_binary, run_dir

__all__ = ["kvm", "machine", "qemu_binary", "run_dir"]
