"""What ``import colo`` gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import colo


@pytest.mark.parametrize("name", [name for name in colo.__all__ if name != "__version__"])
def test_every_session_is_there_with_its_documentation(name: str) -> None:
    found = getattr(colo, name)
    assert isinstance(found, type) and found.__name__ == name
    assert found.__doc__
    assert name in dir(colo)


@pytest.mark.parametrize(("former", "name"), [
    ("Secondary", "QemuSecondary"), ("SecondaryConfig", "QemuSecondaryConfig"), ("InProcessSecondary", "VmSecondary"),
    ("InProcessConfig", "VmSecondaryConfig"), ("Protector", "QemuGuard"), ("ProtectorConfig", "QemuGuardConfig"),
    ("Migration", "MigrationSource"), ("MigrationConfig", "MigrationSourceConfig"),
    ("DestinationConfig", "MigrationDestinationConfig"),
])
def test_a_former_name_is_the_same_thing_and_says_what_it_is_called_now(former: str, name: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"colo.{name} now"):
        found = getattr(colo, former)
    assert found is getattr(colo, name) and former not in dir(colo)


def test_a_former_option_still_counts() -> None:
    with pytest.warns(DeprecationWarning, match="copy_ahead"):
        config = colo.PrimaryConfig("tcp:127.0.0.1:1", "none", precopy=False)
    assert not config.copy_ahead and colo.PrimaryConfig("tcp:127.0.0.1:1", "none").copy_ahead


def test_a_name_that_is_not_there_is_refused() -> None:
    with pytest.raises(AttributeError, match="'Nothing'"):
        _ = colo.Nothing  # type: ignore[attr-defined]


def test_importing_the_package_imports_no_session() -> None:
    code = "import sys, colo; sys.exit(any(name.startswith('colo.session') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("started", [["script.py"], ["-c", "import runpy; runpy.run_path('script.py')"]])
def test_a_clone_beside_a_script_does_not_hide_the_package(tmp_path: Path, started: list[str]) -> None:
    """``colo/`` beside it is a directory without ``__init__.py``, the package is in it."""
    (tmp_path / "colo" / "colo").mkdir(parents=True)
    (tmp_path / "colo" / "colo" / "__init__.py").write_text("raise SystemExit('this is the clone')\n")
    (tmp_path / "script.py").write_text("import colo\nfrom colo import Primary\nprint(colo.__file__)\n")
    # Without PYTHONPATH, which would find it first in any case; it is what the tests of a copied tree have.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if subprocess.run([sys.executable, "-I", "-c", "import colo"], check=False, capture_output=True).returncode:
        pytest.skip("colo is not installed into this Python")
    done = subprocess.run(
        [sys.executable, *started], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert tmp_path not in Path(done.stdout.strip()).parents
