"""The table of a migration's statuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from colo.errors import ProtocolError
from colo.protocol.migration import STATUSES, MigrationStatus, next_status


def test_every_status_has_its_row_and_an_end() -> None:
    assert set(STATUSES) == set(MigrationStatus)
    for status in MigrationStatus:
        seen, now = set(), {status}
        while now:
            seen |= now
            now = {then for each in now for then in STATUSES[each].next} - seen
        assert any(STATUSES[each].over for each in seen)


def test_until_it_is_over_it_can_fail() -> None:
    for status, facts in STATUSES.items():
        if not facts.over and status is not MigrationStatus.NONE:
            assert MigrationStatus.FAILED in facts.next


def test_what_cannot_follow_is_refused() -> None:
    assert next_status(MigrationStatus.NONE, MigrationStatus.SETUP) is MigrationStatus.SETUP
    with pytest.raises(ProtocolError, match="active cannot follow"):
        next_status(MigrationStatus.NONE, MigrationStatus.ACTIVE)
    with pytest.raises(ProtocolError, match="nothing"):
        next_status(MigrationStatus.CANCELLED, MigrationStatus.COMPLETED)


def test_the_document_has_the_same_table() -> None:
    text = (Path(__file__).parents[2] / "docs" / "migration.md").read_text()
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        name = cells[0].strip("`")
        if len(cells) == 3 and name in {each.value for each in MigrationStatus}:
            rows[name] = (cells[1].startswith("yes"), set(re.findall(r"`([a-z-]+)`", cells[2])))
    assert rows == {
        status.value: (facts.runs_here, {each.value for each in facts.next}) for status, facts in STATUSES.items()}
