"""Live migration: a VM moves while it runs. The source's side, and the destination's."""

from __future__ import annotations

from colo.protocol.migration import VmPlace
from colo.session.migration.config import Arrival, DestinationConfig, MigrationConfig, MigrationOutcome
from colo.session.migration.destination import MigrationDestination
from colo.session.migration.source import Migration

__all__ = [
    "Arrival", "DestinationConfig", "Migration", "MigrationConfig", "MigrationDestination", "MigrationOutcome", "VmPlace",
]
