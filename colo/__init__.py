"""colo: checkpoint streaming for running virtual machines, on QEMU's migration stream and COLO protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from colo.epoch.outbox import Outbox
    from colo.session.in_process import InProcessConfig, InProcessSecondary
    from colo.session.migration import DestinationConfig, Migration, MigrationConfig, MigrationDestination
    from colo.session.primary import Primary, PrimaryConfig
    from colo.session.protector import Protector, ProtectorConfig
    from colo.session.secondary import Secondary, SecondaryConfig

__all__ = [
    "DestinationConfig", "InProcessConfig", "InProcessSecondary", "Migration", "MigrationConfig", "MigrationDestination",
    "Outbox", "Primary", "PrimaryConfig", "Protector", "ProtectorConfig", "Secondary", "SecondaryConfig", "__version__",
]

_HOMES = {
    "colo.session.in_process": ("InProcessConfig", "InProcessSecondary"),
    "colo.session.migration": ("DestinationConfig", "Migration", "MigrationConfig", "MigrationDestination"),
    "colo.epoch.outbox": ("Outbox",),
    "colo.session.primary": ("Primary", "PrimaryConfig"),
    "colo.session.protector": ("Protector", "ProtectorConfig"),
    "colo.session.secondary": ("Secondary", "SecondaryConfig"),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    """The sessions, imported when first used: floors below do not need them."""
    if name in _MODULES:
        import importlib

        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'colo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
