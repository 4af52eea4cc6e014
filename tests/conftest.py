"""What all tests share."""

from __future__ import annotations

import ctypes
import resource
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# A busy machine, or a sanitized core, makes nothing wrong: no test of ours times anything.
settings.register_profile("colo", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("colo")

PR_GET_DUMPABLE = 3


def process_attributes() -> dict[str, object]:
    """What a command changes of its whole process, and what of it the tests that follow would feel."""
    return {
        # Not dumpable: an ordinary user's process can open nothing of its own in /proc any more, pagemap among it.
        "dumpable": ctypes.CDLL(None).prctl(PR_GET_DUMPABLE, 0, 0, 0, 0),
        "RLIMIT_CORE": resource.getrlimit(resource.RLIMIT_CORE),
        "SIGTERM": signal.getsignal(signal.SIGTERM),
        "SIGINT": signal.getsignal(signal.SIGINT),
        "SIGPIPE": signal.getsignal(signal.SIGPIPE),
    }


ONE_AT_A_TIME = "tests/faults/one_runner/"
"""Hosts have names of their own, and six worlds at a time keep a machine busy by themselves."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Side by side, what takes longest begins first."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not item.nodeid.startswith(ONE_AT_A_TIME))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Tests of one file stay in one process, where several run side by side: they share fixtures, and wait most of the time."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return ONE_AT_A_TIME if file.startswith(ONE_AT_A_TIME) else file

    return ByFile(config, log)


@pytest.fixture(autouse=True)
def process_as_it_was() -> Iterator[None]:
    """A command that changes its process runs in one of its own."""
    before = process_attributes()
    yield
    assert process_attributes() == before, "this test changes the test process: run that in a subprocess"
