"""Live migration: a VM moves while it runs. The source's side, and the destination's."""

from __future__ import annotations

from colo.protocol.migration import VmPlace
from colo.session.migration.config import Arrival, MigrationDestinationConfig, MigrationOutcome, MigrationSourceConfig
from colo.session.migration.destination import MigrationDestination
from colo.session.migration.source import MigrationSource

__all__ = [
    "Arrival",
    "MigrationDestination",
    "MigrationDestinationConfig",
    "MigrationOutcome",
    "MigrationSource",
    "MigrationSourceConfig",
    "VmPlace",
]
