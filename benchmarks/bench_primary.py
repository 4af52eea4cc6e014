"""What a primary costs its VM: pauses, checkpoints per second, and the rate of the first copy.

    python benchmarks/bench_primary.py [--memory-mib 1024] [--json FILE]

A VM of 1 GiB whose pages are written at random between checkpoints, and a secondary in a process of its own, over TCP on
loopback. The first copy is compared with a plain socket copy of as many contiguous bytes, in paired rounds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from colo.abc import BlockMemory
from colo.session.in_process import InProcessConfig, InProcessSecondary
from colo.session.primary import Primary, PrimaryConfig
from colo.session.statistics import percentile

PAGE = 4096
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


def secondary_main(length_bytes: int, pipe: Any) -> None:
    with InProcessSecondary(BenchVm(length_bytes), InProcessConfig("tcp:127.0.0.1:0", "none", wait_s=3600)) as secondary:
        pipe.send(secondary.address)
        threading.Thread(target=lambda: (pipe.recv(), os._exit(0)), daemon=True).start()
        secondary.run()


def raw_copy(memory: Any) -> float:
    """Seconds to send the bytes over a loopback socket to a process that reads them into its own memory."""
    listener = socket.create_server(("127.0.0.1", 0))
    total = len(memory)
    child = multiprocessing.get_context("fork").Process(target=raw_reader, args=(listener.getsockname(), total))
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


def raw_reader(address: Any, total: int) -> None:
    target = np.ones(total, dtype="u1")  # touched: no faults are timed
    view = memoryview(target)
    with socket.create_connection(address) as sock:
        sock.sendall(b"r")
        at = 0
        while at < total:
            at += sock.recv_into(view[at:])
        sock.sendall(b"d")


class Pair:
    def __init__(self, vm: BenchVm, sending: str, **options: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.child = context.Process(target=secondary_main, args=(vm.memory.total_bytes, theirs))
        self.child.start()
        self.ready = threading.Event()
        self.began = time.perf_counter()
        self.first_copy_s = 0.0
        self.primary = Primary(
            vm, PrimaryConfig(self.pipe.recv(), "none", interval_ms=3_600_000, sending=sending, **options),
            on_event=self.event)
        self.began = time.perf_counter()
        self.primary.start()
        if not self.ready.wait(120):
            raise RuntimeError(f"no first copy: {self.primary.status()}")

    def event(self, kind: str, data: Any) -> None:
        if kind == "protecting":
            self.first_copy_s = time.perf_counter() - self.began
            self.ready.set()

    def close(self) -> None:
        self.primary.close()
        self.pipe.send("end")
        self.child.join(10)


def measure(vm: BenchVm, sending: str, pages: int, checkpoints: int) -> dict[str, Any]:
    pair = Pair(vm, sending)
    draw = np.random.default_rng(7)
    reports = []
    total_s = 0.0
    try:
        for n in range(checkpoints + 3):
            vm.write(draw, pages)
            began = time.perf_counter()
            report = pair.primary.checkpoint(60)
            if n >= 3:  # the first fill buffers that stay
                total_s += time.perf_counter() - began
                reports.append(report)
    finally:
        pair.close()

    def median(name: str) -> float:
        return round(percentile((getattr(r, name) for r in reports), 50), 3)

    pauses = [r.pause_ms for r in reports]
    return {
        "sending": sending, "dirty_pages": pages, "tracker": pair.primary.status()["tracker"],
        "pause_p50_ms": round(percentile(pauses, 50), 3), "pause_p99_ms": round(percentile(pauses, 99), 3),
        "harvest_p50_ms": median("harvest_ms"), "copy_p50_ms": median("copy_ms"), "stop_p50_ms": median("stop_ms"),
        "save_p50_ms": median("save_ms"), "checkpoints_per_s": round(len(reports) / total_s, 1),
    }


def first_copy(vm: BenchVm, rounds: int) -> dict[str, Any]:
    """In pairs with a raw copy of as many bytes, alternating which is first."""
    ratios, ours = [], []
    for n in range(rounds):
        raw_s = raw_copy(vm.memory["ram"]) if n % 2 == 0 else 0.0
        pair = Pair(vm, "copy")
        ours.append(pair.first_copy_s)
        pair.close()
        ratios.append((raw_s or raw_copy(vm.memory["ram"])) / pair.first_copy_s)
    return {
        "first_copy_s": round(percentile(ours, 50), 3), "of_raw_copy": round(percentile(ratios, 50), 3),
        "all": [round(r, 3) for r in ratios],
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
    for sending in ("copy", "direct"):
        results[f"1,000 pages, {sending}"] = measure(vm, sending, 1000, checkpoints)
        results[f"25,000 pages, {sending}"] = measure(vm, sending, 25_000, max(10, checkpoints // 10))
    results["first copy, incompressible"] = first_copy(vm, rounds)
    vm.words[: len(vm.words) // 2] = 0
    results["first copy, half zero"] = first_copy(vm, rounds)
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
