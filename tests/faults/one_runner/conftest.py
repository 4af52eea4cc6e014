"""What hosts need, and real QEMUs."""

import pytest

from tests.faults.one_runner.hosts import missing
from tests.qemu.conftest import _absent, kvm, qemu_binary

__all__ = ["hosts_can_be_made", "kvm", "qemu_binary"]


@pytest.fixture(scope="session")
def hosts_can_be_made() -> None:
    """Root, namespaces and cgroups."""
    if why := missing():
        _absent(why)
