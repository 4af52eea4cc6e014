"""colo: checkpoint streaming for running virtual machines, on QEMU's migration stream and COLO protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from colo.session.protector import Protector, ProtectorConfig
    from colo.session.secondary import Secondary, SecondaryConfig

__all__ = ["Protector", "ProtectorConfig", "Secondary", "SecondaryConfig", "__version__"]

_HOMES = {
    "Secondary": "colo.session.secondary",
    "SecondaryConfig": "colo.session.secondary",
    "Protector": "colo.session.protector",
    "ProtectorConfig": "colo.session.protector",
}


def __getattr__(name: str) -> object:
    """The sessions, imported when first used: floors below do not need them."""
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'colo' has no attribute {name!r}")
