"""What most tests of migrations begin with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.session.migration.target import PAGES, Target
from tests.session.primary_vm import PageVm


@pytest.fixture
def target() -> Iterator[Target]:
    each = Target()
    yield each
    each.close()


@pytest.fixture
def vm() -> Iterator[Any]:
    each = PageVm(PAGES, free_running=True)
    yield each
    each.close()
