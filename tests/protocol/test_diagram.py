"""The documentation says what the tables say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from colo.protocol import diagram
from colo.protocol.states import PRIMARY, SECONDARY, states
from colo.protocol.table import ROWS

DOCUMENT = Path(__file__).parents[2] / "docs" / "protocol.md"


def test_the_document_equals_the_tables() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert diagram.redraw(text) == text, "run python -m colo.protocol.diagram --write docs/protocol.md"


def test_a_changed_table_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "protocol.md"
    copy.write_text(DOCUMENT.read_text(encoding="utf-8"), encoding="utf-8")
    assert diagram.main(["--check", str(copy)]) == 0
    monkeypatch.setattr(diagram, "ROWS", ROWS[1:])
    assert diagram.main(["--check", str(copy)]) == 1
    assert diagram.main(["--write", str(copy)]) == 0
    assert diagram.main(["--check", str(copy)]) == 0
    assert copy.read_text(encoding="utf-8") != DOCUMENT.read_text(encoding="utf-8")


def test_every_row_and_state_is_in_the_drawings() -> None:
    for role in (PRIMARY, SECONDARY):
        rows = [*diagram.draw_rows(role), *diagram.draw_endings(role)]
        for state in states(role):
            assert any(line.startswith(f"| {state.value} |") for line in rows), state
            assert any(line.startswith(f"| {state.value} |") for line in diagram.draw_facts(role))


def test_markers_that_name_nothing_or_are_missing_are_refused() -> None:
    with pytest.raises(ValueError, match="no drawing is called 'nonsense'"):
        diagram.redraw("<!-- table: nonsense -->\n<!-- end: nonsense -->")
    with pytest.raises(ValueError, match="no markers for"):
        diagram.redraw("nothing here")


def test_it_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "colo.protocol.diagram", "--check", str(DOCUMENT)]
    assert subprocess.run(command, check=False, cwd=DOCUMENT.parents[1]).returncode == 0
