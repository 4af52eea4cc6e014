"""A real QEMU, and the device state of one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.vmstate.qemu_machine import PC, QEMU, Captured, Machine, capture


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Callable[..., Machine]]:
    if shutil.which(QEMU) is None:
        pytest.skip(f"{QEMU} is not installed")
    started: list[Machine] = []

    def start(*args: str) -> Machine:
        directory = tmp_path / str(len(started))
        directory.mkdir()
        started.append(Machine(directory, *args))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture(scope="session")
def pc(tmp_path_factory: pytest.TempPathFactory) -> Captured:
    """A ``pc`` stopped before its first instruction."""
    if shutil.which(QEMU) is None:
        pytest.skip(f"{QEMU} is not installed")
    directory = tmp_path_factory.mktemp("pc")
    qemu = Machine(directory, *PC)
    try:
        return capture(qemu.migrate(directory / "stream"))
    finally:
        qemu.close()
