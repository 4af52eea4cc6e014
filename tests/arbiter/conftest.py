"""Real etcds, each started once for all tests that leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from colo.arbiter import init_arbiter
from colo.arbiter.etcd.arbiter import EtcdArbiter
from tests.arbiter.etcd_cluster import Cluster


@pytest.fixture(scope="session")
def one() -> Iterator[Cluster]:
    with Cluster(1) as cluster:
        yield cluster


@pytest.fixture
def three() -> Iterator[Cluster]:
    with Cluster(3) as cluster:
        yield cluster


@pytest.fixture
def uri(one: Cluster, request: Any) -> str:
    """A fresh arbiter of VM vm1."""
    made = one.uri(f"tests/{abs(hash(request.node.nodeid))}")
    init_arbiter(made, vm="vm1")
    return made


@pytest.fixture(autouse=True)
def closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever arbiter a test makes is closed after it: one at etcd keeps its registration, on a thread, until then."""
    made: list[EtcdArbiter] = []
    begin = EtcdArbiter.__init__

    def remember(self: EtcdArbiter, *arguments: Any, **named: Any) -> None:
        begin(self, *arguments, **named)
        made.append(self)

    monkeypatch.setattr(EtcdArbiter, "__init__", remember)
    yield
    for arbiter in made:
        arbiter._registration.end()
