"""What the table asks of a secondary has code that carries it out, and that code does nothing that no row asks for."""

from __future__ import annotations

from itertools import product

import pytest

from colo.protocol import Action, Condition, Event, Reads, Role
from colo.protocol.states import facts, states
from colo.protocol.table import ROWS, unexpected
from colo.session.secondary import Secondary
from tests.session.scripted_primary import Peer
from colo.link.follower import HANDLERS, READERS, SENDS
from pathlib import Path


@pytest.fixture
def session(tmp_path: Path):
    with Secondary(SecondaryConfig(f"unix:{tmp_path}/listen", tmp_path / "ram", lease_ms=0.0)) as secondary:
        yield secondary
