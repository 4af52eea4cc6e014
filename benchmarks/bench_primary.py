"""What a primary costs its VM: pauses, checkpoints per second, and the rate of the first copy.

    python benchmarks/bench_primary.py [--memory-mib 1024] [--json FILE]

A VM of 1 GiB whose pages are written at random, and a secondary in a process of its own, over TCP on loopback. The VM is
written between checkpoints, so that each has exactly so many dirty pages; or by a thread of its own all the time, so that pages
copied ahead of a pause are written again before it. The first copy is compared with a plain socket copy of as many contiguous bytes, in paired rounds.
"""

from __future__ import annotations

import argparse
import json
import mmap
import multiprocessing
import os
import socket
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from colo.abc import BlockMemory, SteppedMachine
from colo.figures.primary_report import PrimaryReport
from colo.figures.series import percentile
from colo.session.primary import Primary, PrimaryConfig
from colo.session.vm_secondary import VmSecondary, VmSecondaryConfig

PAGE = 4096
FILLING = 3
"""The first checkpoints fill buffers that stay."""
WAYS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("copy", "copy", {}), ("copy without copying ahead", "copy", {"copy_ahead": False}), ("direct", "direct", {}))
warnings.simplefilter("ignore", RuntimeWarning)


class BenchVm:
    """Memory that is written only between checkpoints."""

    def __init__(self, length_bytes: int) -> None:
        self.memory = BlockMemory.allocate({"ram": length_bytes})
        self.words = np.frombuffer(self.memory.blocks[0].buffer, dtype="<u8").reshape(-1, PAGE // 8)

    def fill(self, share: float) -> None:
        draw = np.random.default_rng(1)
        pages = len(self.words)
        for first in range(0, int(pages * share), 4096):
            part = self.words[first : min(first + 4096, int(pages * share))]
            part[:] = draw.integers(0, 1 << 63, part.shape, dtype="<u8")

    def write(self, draw: Any, pages: int) -> None:
        chosen = draw.choice(len(self.words), pages, replace=False)
        self.words[chosen, draw.integers(PAGE // 8)] += 1

    def pause(self) -> None: ...
    def resume(self) -> None: ...

    def save_state(self) -> bytes:
        return bytes(1000)

    def load_state(self, state: memoryview) -> None: ...


class WritingVm(SteppedMachine):
    """The same memory, written by a thread all the time, until it is paused."""

    def __init__(self, vm: BenchVm, pages_per_s: int) -> None:
        super().__init__(vm.memory)
        self.words = vm.words
        self.pages_per_s = pages_per_s
        self.draw = np.random.default_rng(11)
        self.began = time.perf_counter()

    def step(self) -> None:
        time.sleep(0.0002)  # a real machine stops within tens of microseconds
        now = time.perf_counter()
        due, self.began = int((now - self.began) * self.pages_per_s), now
        # Paused for long, it does not catch up: a machine that stood still did nothing.
        self.words[self.draw.integers(len(self.words), size=min(due, self.pages_per_s // 200)), 7] += 1

    save_state, load_state = BenchVm.save_state, BenchVm.load_state


def secondary_main(length_bytes: int, touched: bool, pipe: Any) -> None:
    vm = BenchVm(length_bytes)
    if touched:
        vm.words[:] = 1
    with VmSecondary(vm, VmSecondaryConfig("tcp:127.0.0.1:0", "none", wait_s=3600)) as secondary:
        pipe.send(secondary.address)
        threading.Thread(target=lambda: (pipe.recv(), os._exit(0)), daemon=True).start()
        secondary.run()


def raw_copy(memory: Any, touched: bool) -> float:
    """Seconds to send the bytes over a loopback socket to a process that reads them into its own memory, ``touched``
    before or new from the system."""
    listener = socket.create_server(("127.0.0.1", 0))
    total = len(memory)
    child = multiprocessing.get_context("fork").Process(target=raw_reader, args=(listener.getsockname(), total, touched))
    child.start()
    conn, _ = listener.accept()
    conn.recv(1)
    began = time.perf_counter()
    conn.sendall(memory)
    conn.recv(1)
    took = time.perf_counter() - began
    conn.close()
    listener.close()
    child.join()
    return took


def raw_reader(address: Any, total: int, touched: bool) -> None:
    view = memoryview(mmap.mmap(-1, total, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    if touched:
        np.frombuffer(view, dtype="u1")[:] = 1
    with socket.create_connection(address) as sock:
        sock.sendall(b"r")
        at = 0
        while at < total:
            at += sock.recv_into(view[at:])
        sock.sendall(b"d")


class Pair:
    def __init__(
        self, vm: BenchVm | WritingVm, sending: str, *, interval_ms: float = 3_600_000, touched: bool = True, **options: Any
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.child = context.Process(target=secondary_main, args=(vm.memory.total_bytes, touched, theirs))
        self.child.start()
        self.ready = threading.Event()
        self.began = time.perf_counter()
        self.first_copy_s = 0.0
        self.reports: list[PrimaryReport] = []
        self.primary = Primary(
            vm, PrimaryConfig(self.pipe.recv(), "none", interval_ms=interval_ms, sending=sending, **options),
            on_event=self.event)
        self.began = time.perf_counter()
        self.primary.start()
        if not self.ready.wait(120):
            raise RuntimeError(f"no first copy: {self.primary.status()}")

    def event(self, kind: str, data: Any) -> None:
        if kind == "protecting":
            self.first_copy_s = time.perf_counter() - self.began
            self.ready.set()
        elif kind == "checkpoint" and not data.full_copy:
            self.reports.append(data)

    def close(self) -> None:
        self.primary.close()
        self.pipe.send("end")
        self.child.join(10)


def measure(vm: BenchVm, sending: str, pages: int, checkpoints: int, **options: Any) -> dict[str, Any]:
    """Exactly so many pages, written between checkpoints."""
    pair = Pair(vm, sending, **options)
    draw = np.random.default_rng(7)
    total_s = 0.0
    try:
        for n in range(checkpoints + FILLING):
            vm.write(draw, pages)
            began = time.perf_counter()
            pair.primary.checkpoint(60)
            if n >= FILLING:
                total_s += time.perf_counter() - began
    finally:
        pair.close()
    return summary(pair.reports[FILLING:], total_s, pair)


def measure_running(vm: BenchVm, pages: int, checkpoints: int, interval_ms: float, **options: Any) -> dict[str, Any]:
    """About so many pages per checkpoint, written all the time, with checkpoints as they fall due."""
    running = WritingVm(vm, int(pages / interval_ms * 1000))
    running.resume()
    pair = Pair(running, "copy", interval_ms=interval_ms, **options)
    try:
        while len(pair.reports) < FILLING:
            time.sleep(0.001)
        began, first = time.perf_counter(), len(pair.reports)
        while len(pair.reports) < first + checkpoints:
            time.sleep(0.02)
        total_s, last = time.perf_counter() - began, len(pair.reports)
    finally:
        pair.close()
        running.close()
    return summary(pair.reports[first:last], total_s, pair)


def summary(reports: Sequence[PrimaryReport], total_s: float, pair: Pair) -> dict[str, Any]:
    def median(name: str) -> float:
        return round(percentile((getattr(r, name) for r in reports), 50), 3)

    pauses = [r.pause_ms for r in reports]
    return {
        "dirty_pages_p50": median("dirty_pages"), "tracker": pair.primary.status()["tracker"],
        "ahead_pages_p50": median("ahead_pages"), "paused_pages_p50": median("paused_pages"),
        "ahead_p50_ms": median("ahead_ms"),
        "pause_p50_ms": round(percentile(pauses, 50), 3), "pause_p99_ms": round(percentile(pauses, 99), 3),
        "harvest_p50_ms": median("harvest_ms"), "copy_p50_ms": median("copy_ms"), "stop_p50_ms": median("stop_ms"),
        "save_p50_ms": median("save_ms"), "checkpoints_per_s": round(len(reports) / total_s, 1),
    }


def first_copy(vm: BenchVm, rounds: int, touched: bool) -> dict[str, Any]:
    """In pairs with a raw copy of as many bytes into the same kind of memory, alternating which is first."""
    raw, ours = [], []
    for n in range(rounds):
        raw_s = raw_copy(vm.memory["ram"], touched) if n % 2 == 0 else 0.0
        pair = Pair(vm, "copy", touched=touched)
        ours.append(pair.first_copy_s)
        pair.close()
        raw.append(raw_s or raw_copy(vm.memory["ram"], touched))
    return {
        "first_copy_s": round(percentile(ours, 50), 3), "raw_s": round(percentile(raw, 50), 3),
        "of_raw_copy": round(sum(raw) / sum(ours), 3),  # as which is first matters where memory comes from a hypervisor
        "all": [round(r / o, 3) for r, o in zip(raw, ours, strict=True)],
    }


def delta_bytes(memory_bytes: int, share: float = 0.05) -> float:
    """Bytes of records per byte of dirty pages when that share of each page's bytes, scattered at random, changed."""
    vm = BenchVm(memory_bytes)
    vm.fill(1.0)
    octets = vm.words.view("u1")
    pair = Pair(vm, "copy", xbzrle="shadow")
    draw = np.random.default_rng(3)
    try:
        pair.primary.checkpoint(60)
        pages = draw.choice(len(octets), 1000, replace=False)
        for page in pages:
            chosen = draw.choice(PAGE, int(PAGE * share), replace=False)
            octets[page, chosen] ^= draw.integers(1, 256, len(chosen), dtype="u1")
        report = pair.primary.checkpoint(60)
    finally:
        pair.close()
    return sum(report.record_bytes.values()) / (PAGE * report.dirty_pages)


def measure_all(memory_mib: int, checkpoints: int, rounds: int) -> dict[str, Any]:
    vm = BenchVm(memory_mib << 20)
    vm.fill(1.0)
    results: dict[str, Any] = {}
    for name, sending, options in WAYS:
        results[f"1,000 pages, {name}"] = measure(vm, sending, 1000, checkpoints, **options)
        results[f"25,000 pages, {name}"] = measure(vm, sending, 25_000, max(10, checkpoints // 10), **options)
    results["running, 1,000 pages"] = measure_running(vm, 1000, checkpoints, 10)
    results["running, 25,000 pages"] = measure_running(vm, 25_000, max(10, checkpoints // 10), 250)
    results["first copy, incompressible"] = first_copy(vm, rounds, touched=True)
    results["first copy, incompressible, into new memory"] = first_copy(vm, rounds, touched=False)
    vm.words[: len(vm.words) // 2] = 0
    results["first copy, half zero"] = first_copy(vm, rounds, touched=True)
    results["XBZRLE, 5 % of bytes"] = {"of_raw_bytes": round(delta_bytes(256 << 20), 4)}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory-mib", type=int, default=1024)
    parser.add_argument("--checkpoints", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the figures")
    arguments = parser.parse_args()
    results = measure_all(arguments.memory_mib, arguments.checkpoints, arguments.rounds)
    for name, result in results.items():
        print(f"{name}: {result}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
