"""The committed RAM image, in files that a stand-by QEMU can map."""

from __future__ import annotations

from colo.memory.image import RamImage

__all__ = ["RamImage"]
