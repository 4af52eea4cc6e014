"""The guard of a primary QEMU: it watches, decides, and ends protection."""

from __future__ import annotations

from colo.session.protector.config import Ending, ProtectorConfig, ProtectorReport
from colo.session.protector.protector import Protector

__all__ = ["Ending", "Protector", "ProtectorConfig", "ProtectorReport"]
