"""Adaptive compression of pages: a codec between two colo ends that agreed on it, never towards a QEMU."""

from collections.abc import Iterable
from typing import NamedTuple

CLASSES: tuple[str, ...]

class AdaptiveStats(NamedTuple):
    """``pages`` sent by each method, ``tried`` and ``declined`` pages, ``cpu_ns`` spent, and for each class
    of page and method the running averages (bytes saved, ns spent)."""

    pages: dict[str, int]
    tried: int
    declined: int
    cpu_ns: int
    expected: dict[str, dict[str, tuple[float, float]]]

class AdaptiveCodec:
    """Chooses and runs the compression of single pages for one PageEncoder. Raises Unsupported or
    ValueError."""

    @property
    def page_bytes(self) -> int: ...
    def __init__(
        self,
        link_bytes_per_s: float,
        *,
        cpu_weight: float = 1.0,
        methods: Iterable[str] | None = None,
        floor_bytes: int = 256,
        zstd_level: int = 1,
    ) -> None: ...
    def set_link(self, link_bytes_per_s: float, cpu_weight: float = 1.0) -> None:
        """Tell the link's rate as now measured (0: unknown) and the worth of CPU time."""
    @property
    def methods(self) -> tuple[str, ...]: ...
    @property
    def stats(self) -> AdaptiveStats: ...
