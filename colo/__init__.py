"""colo: checkpoint streaming for running virtual machines, on QEMU's migration stream and COLO protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from colo.epoch.outbox import Outbox
    from colo.session.migration import (
        MigrationDestination,
        MigrationDestinationConfig,
        MigrationSource,
        MigrationSourceConfig,
    )
    from colo.session.primary import Primary, PrimaryConfig
    from colo.session.qemu_guard import QemuGuard, QemuGuardConfig
    from colo.session.qemu_secondary import QemuSecondary, QemuSecondaryConfig
    from colo.session.vm_secondary import VmSecondary, VmSecondaryConfig

__all__ = [
    "MigrationDestination", "MigrationDestinationConfig", "MigrationSource", "MigrationSourceConfig", "Outbox", "Primary",
    "PrimaryConfig", "QemuGuard", "QemuGuardConfig", "QemuSecondary", "QemuSecondaryConfig", "VmSecondary",
    "VmSecondaryConfig", "__version__",
]

_HOMES = {
    "colo.epoch.outbox": ("Outbox",),
    "colo.session.migration": (
        "MigrationDestination", "MigrationDestinationConfig", "MigrationSource", "MigrationSourceConfig"),
    "colo.session.primary": ("Primary", "PrimaryConfig"),
    "colo.session.qemu_guard": ("QemuGuard", "QemuGuardConfig"),
    "colo.session.qemu_secondary": ("QemuSecondary", "QemuSecondaryConfig"),
    "colo.session.vm_secondary": ("VmSecondary", "VmSecondaryConfig"),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}
_FORMER = {
    "DestinationConfig": "MigrationDestinationConfig", "InProcessConfig": "VmSecondaryConfig",
    "InProcessSecondary": "VmSecondary", "Migration": "MigrationSource", "MigrationConfig": "MigrationSourceConfig",
    "Protector": "QemuGuard", "ProtectorConfig": "QemuGuardConfig", "Secondary": "QemuSecondary",
    "SecondaryConfig": "QemuSecondaryConfig",
}
"""Names that go with the next release: what each is called now."""


def __getattr__(name: str) -> object:
    """The sessions, imported when first used: floors below do not need them."""
    import importlib

    if name in _FORMER:
        import warnings

        warnings.warn(f"colo.{name} is colo.{_FORMER[name]} now, and goes with the next release", DeprecationWarning, 2)
        name = _FORMER[name]
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'colo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
