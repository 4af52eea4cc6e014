"""How near does taking in a RAM stream come to copying it?

A stream of raw pages (and one of zero pages) lies in memory, is decoded into a staged checkpoint, given its storage and
applied to a RAM image in a file on tmpfs, as a secondary does. The limit is one memcpy of the same bytes, in the same
round. All is cold: 256 MiB, more than any cache holds.
"""

from __future__ import annotations

import socket
import statistics
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.paired import paired, rate_ratio
from colo._fast.kernels.ramblock import RamBlock
from colo._fast.receive.buffers import ReadBuffer
from colo._fast.receive.pagedecoder import EOS, PageDecoder
from colo._fast.receive.staging import Staging
from colo._fast.send.pageencoder import PageEncoder
from colo.memory import RamImage

MIB = 1 << 20


class QemuSecondary:
    """A RAM image, and what takes checkpoints into it."""

    def __init__(self, image: RamImage, ram_bytes: int) -> None:
        self.blocks: list[RamBlock] = image.announce([("pc.ram", ram_bytes)])
        self.staging = Staging()
        self.decoder = PageDecoder(self.staging)

    def take(self, buffer: ReadBuffer) -> None:
        """One checkpoint's RAM section, decoded and committed."""
        self.decoder.set_blocks(self.blocks)
        assert self.decoder.decode(buffer) == EOS
        self.staging.reserve()
        self.staging.apply()


@pytest.fixture
def ram_bytes(quick: bool) -> int:
    return (64 if quick else 256) * MIB


@pytest.fixture
def secondary(ram_dir: Path, ram_bytes: int) -> Iterator[QemuSecondary]:
    with RamImage(ram_dir / "image") as image:
        yield QemuSecondary(image, ram_bytes)


@pytest.fixture
def raw_stream(ram_bytes: int) -> bytes:
    return section(np.random.default_rng(1).integers(0, 256, ram_bytes, np.uint8).data)


@pytest.fixture
def rounds(quick: bool) -> int:
    return 7 if quick else 15


def section(memory: Any) -> bytes:
    """The body of a ``ram`` section with all pages of ``memory``."""
    encoder = PageEncoder()
    encoder.begin_block("pc.ram", memory)
    encoder.encode()
    encoder.end_section()
    return encoder.take()


def copy(source: bytes, target: bytearray) -> Callable[[], None]:
    view = memoryview(target)

    def work() -> None:
        view[:] = source

    return work


def test_raw_pages(
    benchmark: Any, figure: Callable[..., Any], secondary: QemuSecondary, raw_stream: bytes, ram_bytes: int, rounds: int
) -> None:
    target = bytearray(len(raw_stream))
    limit = copy(raw_stream, target)
    secondary.take(ReadBuffer.from_bytes(raw_stream))

    def work() -> None:
        secondary.take(ReadBuffer.from_bytes(raw_stream))

    taken = paired({"memcpy": limit, "decode": work}, rounds)
    memory = secondary.blocks[0].memory_buffer
    assert memory is not None
    assert section(memory) == raw_stream
    benchmark.extra_info["bytes"] = len(raw_stream)
    benchmark.pedantic(work, rounds=3)
    gigabytes = len(raw_stream) / 1e9
    rates = {name: [gigabytes / s for s in values] for name, values in taken.items()}
    figure(
        "raw pages, decoded and committed", statistics.median(rates["decode"]), "GB/s", better="higher",
        limit=statistics.median(rates["memcpy"]), limit_name="memcpy of the stream",
        ratio=rate_ratio(taken["memcpy"], taken["decode"]), bar=0.4, bar_on="ratio",
        samples=rates["decode"], limit_samples=rates["memcpy"],
    )


@pytest.mark.parametrize("already_zero", [False, True], ids=["over data", "already zero"])
def test_zero_pages(
    benchmark: Any, figure: Callable[..., Any], secondary: QemuSecondary, raw_stream: bytes, ram_bytes: int, rounds: int,
    already_zero: bool,
) -> None:
    zero_stream = section(bytearray(ram_bytes))
    target = bytearray(ram_bytes)
    secondary.take(ReadBuffer.from_bytes(raw_stream))

    def dirty() -> None:
        if not already_zero:
            secondary.take(ReadBuffer.from_bytes(raw_stream))

    def work() -> None:
        secondary.take(ReadBuffer.from_bytes(zero_stream))

    filled = np.frombuffer(target, np.uint8)
    taken = paired({"memset": lambda: filled.fill(0), "decode": work}, rounds, before={"decode": dirty})
    memory = secondary.blocks[0].memory_buffer
    assert memory is not None
    assert not np.frombuffer(memoryview(memory), np.uint8).any()
    benchmark.extra_info["guest_bytes"] = ram_bytes
    benchmark.pedantic(work, setup=dirty, rounds=3)
    gigabytes = ram_bytes / 1e9
    rates = {name: [gigabytes / s for s in values] for name, values in taken.items()}
    figure(
        f"zero pages, {'on zero pages' if already_zero else 'on pages that held data'}",
        statistics.median(rates["decode"]), "GB/s", better="higher", limit=statistics.median(rates["memset"]),
        limit_name="memset", ratio=rate_ratio(taken["memset"], taken["decode"]), bar=10,
        samples=rates["decode"], limit_samples=rates["memset"],
    )


def test_raw_pages_from_a_socket(
    figure: Callable[..., Any], secondary: QemuSecondary, raw_stream: bytes, rounds: int
) -> None:
    """For information: sending takes the other processor, or its share of this one."""
    ours, theirs = socket.socketpair()
    requests, done = threading.Semaphore(0), threading.Event()

    def send() -> None:
        while requests.acquire() and not done.is_set():
            theirs.sendall(raw_stream)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    buffer = ReadBuffer(ours.fileno())
    target = memoryview(bytearray(MIB))

    def contiguous() -> None:
        requests.release()
        left = len(raw_stream)
        while left:
            left -= ours.recv_into(target, min(left, MIB))

    def work() -> None:
        requests.release()
        secondary.take(buffer)

    # The buffer never reads past what it is asked for at the section's end, so both can share the socket.
    taken = paired({"recv": contiguous, "decode": work}, max(3, rounds // 2))
    done.set()
    requests.release()
    sender.join()
    ours.close()
    theirs.close()
    gigabytes = len(raw_stream) / 1e9
    rates = {name: [gigabytes / s for s in values] for name, values in taken.items()}
    figure(
        "raw pages from a unix socket", statistics.median(rates["decode"]), "GB/s", better="higher",
        limit=statistics.median(rates["recv"]), limit_name="recv of 1 MiB at a time, thrown away",
        ratio=rate_ratio(taken["recv"], taken["decode"]), samples=rates["decode"], limit_samples=rates["recv"],
    )
