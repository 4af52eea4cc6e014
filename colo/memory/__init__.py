"""The committed RAM image, in files that a stand-by QEMU can map, and what is kept beside it for whoever comes next."""

from __future__ import annotations

from colo.memory.block_image import BlockImage
from colo.memory.decision import DecisionRecord, Phase
from colo.memory.description import Description, SessionFacts
from colo.memory.image import RamImage
from colo.memory.kept_copy import KeptCopy

__all__ = ["BlockImage", "DecisionRecord", "Description", "KeptCopy", "Phase", "RamImage", "SessionFacts"]
