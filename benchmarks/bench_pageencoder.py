"""How near does a RAM section get to sending the same bytes contiguously?

``python benchmarks/bench_pageencoder.py [--json FILE]``. Over a TCP loopback socket, in paired rounds of one
process:

* contiguous: the block's bytes in 1 MiB sends, the limit;
* gathered: PageEncoder, all pages raw, with and without its zero test;
* no headers: the same iovec sizes without headers, by one ``sendmsg`` per 512 pages, to price the headers;

and into memory, by one thread and by two: delta encoding against a shadow copy. Last, what a call costs when
there is nothing to do. Ratios are medians over the pairs: on a busy machine they hold where rates do not.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import socket
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from colo._fast.kernels.bitmap import DirtyBitmap
from colo._fast.send.pagecache import ShadowCache
from colo._fast.send.pageencoder import PageEncoder

PAGE_BYTES = 4096
BLOCK_BYTES = 64 << 20
CONTIGUOUS_BYTES = 1 << 20
GATHER_PAGES = 512


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def paired(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each work, in rounds that run all of them one after another, in turning order."""
    for work in works.values():
        work()
    taken: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for round_ in range(rounds):
        for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
            taken[name].append(seconds(works[name]))
    return taken


def ratio(limit: list[float], measured: list[float]) -> float:
    """Median over the pairs of how much of the limit's rate was reached."""
    return statistics.median(a / b for a, b in zip(limit, measured, strict=True))


def drain(source: socket.socket) -> None:
    buffer = bytearray(CONTIGUOUS_BYTES)
    while source.recv_into(buffer):
        pass


def send_ratios(rounds: int) -> dict[str, float]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    reader = threading.Thread(target=drain, args=(theirs,), daemon=True)
    reader.start()
    memory = mmap.mmap(-1, BLOCK_BYTES)
    memory.write(os.urandom(1 << 20) * (BLOCK_BYTES >> 20))
    view = memoryview(memory)
    encoder = PageEncoder(ours)
    step = GATHER_PAGES * PAGE_BYTES
    lists = [
        [view[at + i * PAGE_BYTES : at + (i + 1) * PAGE_BYTES] for i in range(GATHER_PAGES)]
        for at in range(0, BLOCK_BYTES, step)
    ]

    def contiguous() -> None:
        for at in range(0, BLOCK_BYTES, CONTIGUOUS_BYTES):
            ours.sendall(view[at : at + CONTIGUOUS_BYTES])

    def gathered(detect_zero: bool) -> None:
        encoder.begin_block("pc.ram", memory, detect_zero=detect_zero)
        encoder.encode()

    def no_headers() -> None:
        for pages in lists:
            sent = ours.sendmsg(pages)
            if sent < step:
                at = sent % PAGE_BYTES
                rest = pages[sent // PAGE_BYTES :]
                ours.sendall(b"".join([rest[0][at:], *rest[1:]]))

    taken = paired(
        {
            "contiguous": contiguous,
            "gathered": lambda: gathered(False),
            "gathered, zero test": lambda: gathered(True),
            "no headers": no_headers,
        },
        rounds,
    )
    ours.close()
    reader.join()
    rates = {f"{name} GB/s": BLOCK_BYTES / statistics.median(taken[name]) / 1e9 for name in taken}
    return rates | {
        "gathered / contiguous": ratio(taken["contiguous"], taken["gathered"]),
        "gathered with zero test / contiguous": ratio(taken["contiguous"], taken["gathered, zero test"]),
        "gathered / no headers": ratio(taken["no headers"], taken["gathered"]),
    }


def delta_ratios(rounds: int) -> dict[str, float]:
    """Pages of which 32 scattered bytes change each round, by one thread and by two."""
    pages = 16384
    rng = np.random.default_rng(1)
    memory = rng.integers(0, 256, (pages, PAGE_BYTES), np.uint8)
    where = rng.integers(0, PAGE_BYTES, (pages, 32))
    rows = np.arange(pages)[:, None]
    encoders = {threads: PageEncoder(threads=threads) for threads in (1, 2)}
    shadows = {threads: ShadowCache(pages, memory=bytearray(memory)) for threads in (1, 2)}
    for shadow in shadows.values():
        shadow.validate_all()
    taken: dict[int, list[float]] = {1: [], 2: []}
    for round_ in range(rounds):
        memory[rows, where] += np.uint8(1)
        for threads in ((1, 2), (2, 1))[round_ % 2]:
            encoder = encoders[threads]
            encoder.begin_block("pc.ram", memory, None, shadows[threads])
            taken[threads].append(seconds(encoder.encode))
            encoder.take()
    return {
        "32 changed bytes, 1 thread, ns/page": statistics.median(taken[1]) / pages * 1e9,
        "2 threads / 1 thread": ratio(taken[1], taken[2]),
    }


def call_costs() -> dict[str, float]:
    """Nanoseconds of calls that find nothing to do."""
    memory, bitmap, calls = bytearray(PAGE_BYTES), DirtyBitmap(1), 100_000
    encoder = PageEncoder()

    def empty() -> None:
        for _ in range(calls):
            encoder.encode()

    def begin() -> None:
        for _ in range(calls):
            encoder.begin_block("pc.ram", memory, bitmap)

    begin()
    return {
        "begin_block() ns": min(seconds(begin) for _ in range(5)) / calls * 1e9,
        "encode() ns": min(seconds(empty) for _ in range(5)) / calls * 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="RAM section out to TCP loopback, against contiguous sends")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = send_ratios(arguments.rounds) | delta_ratios(arguments.rounds) | call_costs()
    for name, value in results.items():
        print(f"{name:40} {value:10.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
