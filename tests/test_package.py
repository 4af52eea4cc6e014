"""What ``import colo`` gives."""

from __future__ import annotations

import subprocess
import sys

import pytest

import colo


@pytest.mark.parametrize("name", [name for name in colo.__all__ if name != "__version__"])
def test_every_session_is_there_with_its_documentation(name: str) -> None:
    found = getattr(colo, name)
    assert isinstance(found, type) and found.__name__ == name
    assert found.__doc__
    assert name in dir(colo)


def test_a_name_that_is_not_there_is_refused() -> None:
    with pytest.raises(AttributeError, match="'Nothing'"):
        _ = colo.Nothing  # type: ignore[attr-defined]


def test_importing_the_package_imports_no_session() -> None:
    code = "import sys, colo; sys.exit(any(name.startswith('colo.session') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
