"""Where the QEMU versions are that tests meet."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

FETCHED = Path(os.environ.get("COLO_QEMU_DIR", Path(__file__).resolve().parents[2] / ".qemu"))


def binary(version: str) -> str:
    if version == "7.2":
        found = shutil.which(os.environ.get("COLO_QEMU", "qemu-system-x86_64"))
    else:
        path = FETCHED / version / "qemu-system-x86_64"
        found = str(path) if path.exists() else None
    if found is None:
        message = f"QEMU {version} is not here: `make qemu-versions` fetches it"
        if version in os.environ.get("COLO_REQUIRE_QEMU", "").split():
            pytest.fail(message)
        pytest.skip(message)
    return found
