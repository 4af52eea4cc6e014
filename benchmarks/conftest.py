"""For the questions that are pytest files: ``figures`` collects what they measure, ``quick`` says how long they may take."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.figures import Figure, show
from benchmarks.machine import machine

collected = pytest.StashKey[list[Figure]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="fewer rounds and smaller memory")
    parser.addoption("--figures", type=Path, metavar="FILE", help="save the figures as JSON")


def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("the benchmarks need pytest-benchmark: run `make bench`, or pip install pytest-benchmark")
    config.stash[collected] = []


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["colo"] = machine()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    figures = config.stash[collected]
    if path := config.getoption("--figures"):
        path.write_text(json.dumps([asdict(figure) for figure in figures]))
    elif figures:
        terminalreporter.section("figures")
        show(figures)


@pytest.fixture
def quick(request: pytest.FixtureRequest) -> bool:
    """Whether figures are wanted in less than two minutes for all of them."""
    return bool(request.config.getoption("--quick"))


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[..., Figure]:
    """``figure(name, value, unit, ...)`` notes a :class:`Figure` of this file's question."""
    question = request.path.stem.removeprefix("bench_")

    def add(name: str, value: float, unit: str, **more: Any) -> Figure:
        made = Figure(question, name, value, unit, **more)
        request.config.stash[collected].append(made)
        return made

    return add


@pytest.fixture(scope="session")
def qemu() -> str:
    """The QEMU binary; skips where QEMU or KVM is missing."""
    binary = os.environ.get("COLO_BENCH_QEMU", "qemu-system-x86_64")
    if shutil.which(binary) is None:
        pytest.skip(f"{binary} is not installed (apt-get install qemu-system-x86)")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("/dev/kvm cannot be opened: QEMU's COLO needs KVM (before QEMU 11 it deadlocks without)")
    return binary


@pytest.fixture
def ram_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A new directory on tmpfs, where a RAM image belongs."""
    import tempfile

    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="colo-bench-", dir=shared) as folder:
        yield Path(folder)
