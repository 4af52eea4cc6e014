"""What two colo ends can agree on beyond QEMU's protocol: offered by a primary, taken by a secondary."""

from __future__ import annotations

from colo._fast.kernels.codec_libraries import METHODS, probe, usable_methods
from colo.errors import Unsupported
from colo.wire import Extension

__all__ = ["METHODS", "compression", "offered", "served"]


def compression(wanted: str | None) -> tuple[str, ...]:
    """The methods to offer for ``wanted``: one by name, ``auto`` or None. Raises Unsupported when none works here."""
    if wanted is None:
        return ()
    found = tuple(name for name in usable_methods() if wanted in ("auto", name))
    if not found:
        raise Unsupported(f"compress={wanted!r}: " + "; ".join(f"{k}: {v}" for k, v in probe().items()))
    return found


def offered(methods: tuple[str, ...], *, digest: bool) -> Extension:
    """What a primary offers."""
    found = Extension.DIGEST if digest else Extension(0)
    for name in methods:
        found |= Extension[name.upper()]
    return found


def served() -> Extension:
    """What a secondary takes: what its libraries can do."""
    return offered(usable_methods(), digest=True)
