"""The examples of docs/vmstate.md run as they stand."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "vmstate.md"


def test_the_examples_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 3
    page = ModuleType("vmstate_page")
    monkeypatch.setitem(sys.modules, page.__name__, page)
    exec("\n".join(blocks), page.__dict__)
    assert "board channels[2].count uint32 2" in capsys.readouterr().out
