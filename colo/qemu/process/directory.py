"""Where a QEMU's sockets are: in a directory that nobody else can enter."""

from __future__ import annotations

import os
from pathlib import Path

from colo.errors import QemuError, StorageError
from colo.private import UNIX_PATH_MAX_BYTES, PrivateDirectory


def private_directory(path: str | os.PathLike[str]) -> Path:
    """Make ``path`` a directory that only we can enter (0700), parents as they come.

    Raises QemuError when others can enter it, or change what is on the way to it; it is not ours; it cannot be made.
    """
    open_private(path).close()
    return Path(path)


def open_private(path: str | os.PathLike[str]) -> PrivateDirectory:
    """As :func:`private_directory`, and open."""
    try:
        return PrivateDirectory.open(path)
    except StorageError as error:
        raise QemuError(f"QEMU's sockets must stay private: {error}") from error


def unix_path(path: Path) -> str:
    """``path`` as a unix socket's address. Raises QemuError if it is too long for one."""
    if len(os.fsencode(path)) > UNIX_PATH_MAX_BYTES:
        raise QemuError(
            f"{path} is too long for a unix socket ({UNIX_PATH_MAX_BYTES} bytes): use a shorter directory"
        )
    return str(path)
