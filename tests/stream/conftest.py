"""Captured streams, and a consumer that reads the RAM bodies of any stream."""

from __future__ import annotations

import lzma
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from colo._fast.kernels.ramblock import RamBlock
from colo._fast.receive.buffers import ReadBuffer
from colo._fast.receive.pagedecoder import EOS, PageDecoder
from colo._fast.receive.staging import Staging
from colo.stream import (
    DEFAULT_LIMITS,
    Configuration,
    DeviceState,
    Item,
    LiveSection,
    RamBlockInfo,
    StreamLimits,
    StreamReader,
    parse_mem_size,
)

VECTORS = Path(__file__).resolve().parents[1] / "vectors"


@cache
def read_vector(name: str) -> bytes:
    return lzma.decompress((VECTORS / f"{name}.stream.xz").read_bytes())


class Consumer:
    """Reads streams from one buffer; pages are decoded and counted, not kept."""

    def __init__(self, source: bytes | ReadBuffer, limits: StreamLimits = DEFAULT_LIMITS) -> None:
        self.buf = source if isinstance(source, ReadBuffer) else ReadBuffer.from_bytes(source)
        self.limits = limits
        self.decoder = PageDecoder(Staging(), immediate=True)
        self.infos: list[RamBlockInfo] = []
        self.blocks: list[RamBlock] = []
        self.shared_left_out = False

    def items(self, reader: StreamReader | None = None) -> Iterator[Item]:
        for item in reader or StreamReader(self.buf, self.limits):
            yield item
            if isinstance(item, Configuration):
                self.shared_left_out = "x-ignore-shared" in item.capabilities
            if isinstance(item, LiveSection):
                self.read_ram()

    def read_ram(self) -> None:
        while (total := self.decoder.decode(self.buf)) != EOS:
            self.infos = parse_mem_size(
                self.buf, total, with_address=self.shared_left_out, limits=self.limits
            )
            self.blocks = [RamBlock(info.idstr, info.used_length) for info in self.infos]
            self.decoder.set_blocks(self.blocks)

    def device_state(self) -> DeviceState:
        [state] = [item for item in self.items() if isinstance(item, DeviceState)]
        return state


@pytest.fixture(scope="session")
def vector() -> Callable[[str], bytes]:
    """The bytes of a captured stream by name."""
    return read_vector


@pytest.fixture(scope="session")
def consume() -> type[Consumer]:
    return Consumer
