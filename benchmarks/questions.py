"""The questions, in the order they are asked, and how each is run: every one in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure

HERE = Path(__file__).parent
TIMEOUT_S = 3600


@dataclass(frozen=True)
class Answer:
    """What came of a question."""

    figures: list[Figure]
    skipped: str = ""
    output: str = ""
    failed: bool = False


@dataclass(frozen=True)
class Question:
    """One file. ``in_quick``: also asked by ``--quick``."""

    name: str
    about: str
    ask: Callable[[Path, bool], Answer]
    in_quick: bool = True


def pytest_file(name: str) -> Callable[[Path, bool], Answer]:
    """A file on pytest(-benchmark): its raw JSON is saved beside the run."""

    def ask(folder: Path, quick: bool) -> Answer:
        saved = folder / f"{name}.figures.json"
        command = [
            sys.executable, "-m", "pytest", str(HERE / f"bench_{name}.py"), "-q", "-rs", "--figures", str(saved),
            "--benchmark-json", str(folder / f"{name}.pytest-benchmark.json"), "--benchmark-disable-gc",
            "--benchmark-columns=min,median,rounds", "-p", "no:cacheprovider", "--timeout", str(TIMEOUT_S),
            "-o", "python_files=bench_*.py", *(["--quick"] if quick else []),
        ]
        done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=False)
        output = done.stdout + done.stderr
        figures = [Figure.from_dict(f) for f in json.loads(saved.read_text())] if saved.exists() else []
        saved.unlink(missing_ok=True)
        raw = folder / f"{name}.pytest-benchmark.json"
        if raw.exists() and not raw.stat().st_size:
            raw.unlink()
        skips = [line.partition(": ")[2] for line in output.splitlines() if line.startswith("SKIPPED")]
        return Answer(figures, "; ".join(skips), output, failed=done.returncode not in (0, 5))

    return ask


def script(name: str, to_figures: Callable[[Mapping[str, Any]], list[Figure]], quick_options: list[str]) -> Callable[[Path, bool], Answer]:
    """A program that prints its own table and saves JSON with ``--json``."""

    def ask(folder: Path, quick: bool) -> Answer:
        saved = folder / f"{name}.json"
        command = [sys.executable, str(HERE / f"bench_{name}.py"), "--json", str(saved), *(quick_options if quick else [])]
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
        done = subprocess.run(
            command, cwd=HERE.parent, env=environment, capture_output=True, text=True, check=False)
        output = done.stdout + done.stderr
        if done.returncode or not saved.exists():
            return Answer([], "", output, failed=True)
        return Answer(to_figures(json.loads(saved.read_text())), "", output)

    return ask


def page_encoder_figures(saved: Mapping[str, Any]) -> list[Figure]:
    name = "pageencoder"
    contiguous = saved["contiguous GB/s"]
    headers = "gathered / no headers"
    return [
        Figure(
            name, "raw pages out to TCP, gathered", saved["gathered GB/s"], "GB/s", "higher", limit=contiguous,
            limit_name="contiguous 1 MiB sends", ratio=saved["gathered / contiguous"], bar=0.75, bar_on="ratio"),
        Figure(
            name, "the same with the zero test", saved["gathered, zero test GB/s"], "GB/s", "higher", limit=contiguous,
            limit_name="contiguous 1 MiB sends", ratio=saved["gathered with zero test / contiguous"]),
        Figure(
            name, "rate with headers", saved["gathered GB/s"], "GB/s", "higher", limit=saved["no headers GB/s"],
            limit_name="the same pages without", ratio=saved[headers], bar=0.95, bar_on="ratio"),
        Figure(name, "delta encoding, 32 changed bytes", saved["32 changed bytes, 1 thread, ns/page"], "ns/page"),
        Figure(name, "two threads, rate against one", saved["2 threads / 1 thread"], "x", "higher"),
        Figure(name, "begin_block() with nothing to do", saved["begin_block() ns"] / 1000, "µs", bar=1.5),
        Figure(name, "encode() with nothing to do", saved["encode() ns"] / 1000, "µs", bar=1.5),
    ]


def adaptive_figures(saved: Mapping[str, Any]) -> list[Figure]:
    """Means over the sets of long and of short bursts."""
    figures = []
    for burst in ("long", "short"):
        sets = [ways for name, ways in saved.items() if name.endswith(burst)]
        base = sum(ways["xbzrle"]["bytes"] for ways in sets) / len(sets)
        base_us = sum(ways["xbzrle"]["hot_ns"] for ways in sets) / len(sets) / 1000
        for way in sets[0]:
            size = sum(ways[way]["bytes"] for ways in sets) / len(sets)
            spent = sum(ways[way]["hot_ns"] for ways in sets) / len(sets) / 1000
            figures.append(Figure(
                "adaptive", f"{burst} bursts, {way}", size, "B/page", limit=None if way == "xbzrle" else base,
                limit_name="XBZRLE", ratio=None if way == "xbzrle" else size / base, parts={"µs/page": spent},
                bar=0.65 if (burst, way) == ("long", "lz4, mask at 550 Mb/s") else None, bar_on="ratio"))
            if (burst, way) == ("long", "lz4, mask at 550 Mb/s"):
                figures.append(Figure("adaptive", "long bursts, lz4, mask at 550 Mb/s: time beyond XBZRLE", spent - base_us, "µs/page", bar=2))
    return figures


def primary_figures(saved: Mapping[str, Any]) -> list[Figure]:
    name, figures = "primary", []
    for sending in ("copy", "copy without copying ahead", "direct"):
        few, many = saved[f"1,000 pages, {sending}"], saved[f"25,000 pages, {sending}"]
        ours = sending == "copy"  # the way that is for short pauses, and the default
        parts = {part: few[f"{part}_p50_ms"] for part in ("stop", "save", "harvest", "copy")}
        figures += [
            Figure(name, f"pause, 1,000 pages of 1 GiB, {sending}, p50", few["pause_p50_ms"], "ms", bar=2.0 if ours else None, parts=parts),
            Figure(name, f"pause, 1,000 pages of 1 GiB, {sending}, p99", few["pause_p99_ms"], "ms", bar=5.0 if ours else None),
            Figure(name, f"checkpoints, 1,000 pages, {sending}", few["checkpoints_per_s"], "/s", "higher", bar=100.0),
            Figure(name, f"pause, 25,000 pages of 1 GiB, {sending}, p50", many["pause_p50_ms"], "ms", bar=30.0 if ours else None),
        ]
    few, many = saved["running, 1,000 pages"], saved["running, 25,000 pages"]
    figures += [
        Figure(name, "pause, about 1,000 pages, written all the time, p50", few["pause_p50_ms"], "ms", bar=2.0,
               parts={part: few[f"{part}_p50_ms"] for part in ("stop", "save", "harvest", "copy")}),
        Figure(name, "pause, about 1,000 pages, written all the time, p99", few["pause_p99_ms"], "ms", bar=5.0),
        Figure(name, "checkpoints, about 1,000 pages, written all the time (10 ms apart)", few["checkpoints_per_s"], "/s", "higher"),
        Figure(name, "pause, about 25,000 pages, written all the time, p50", many["pause_p50_ms"], "ms", bar=30.0),
    ]
    for kind, bar in (("incompressible", 0.7), ("incompressible, into new memory", 0.7), ("half zero", None)):
        copy = saved[f"first copy, {kind}"]
        figures.append(Figure(
            name, f"first copy of 1 GiB, {kind}", 1 / copy["first_copy_s"], "GiB/s", "higher",
            limit=copy["of_raw_copy"] and 1 / copy["first_copy_s"] / copy["of_raw_copy"], limit_name="a raw copy of as many bytes",
            ratio=copy["of_raw_copy"], bar=bar, bar_on="ratio"))
    figures.append(Figure(
        name, "XBZRLE, 5 % of each page's bytes changed: of the raw bytes", saved["XBZRLE, 5 % of bytes"]["of_raw_bytes"], "x", bar=0.17))
    return figures


QUESTIONS = [
    Question("kernels", "the kernels against memory's own limits", pytest_file("kernels"), in_quick=False),
    Question("decode", "taking in a RAM stream against copying it", pytest_file("decode")),
    Question("pageencoder", "a RAM section out to a socket against contiguous sends", script("pageencoder", page_encoder_figures, ["--rounds", "5"])),
    Question("adaptive", "what compression beyond XBZRLE gives on real pages", script("adaptive", adaptive_figures, ["--rounds", "1"]), in_quick=False),
    Question("trackers", "what it costs to know which pages were written", pytest_file("trackers")),
    Question("checkpoint", "what a checkpoint costs at the secondary", pytest_file("checkpoint")),
    Question(
        "primary", "what a primary of ours costs its VM",
        script("primary", primary_figures, ["--memory-mib", "256", "--checkpoints", "50", "--rounds", "1"]), in_quick=False),
    Question("memory", "the secondary's memory over thousands of checkpoints", pytest_file("memory")),
    Question("pause", "pause of a QEMU primary, with our secondary and QEMU's own", pytest_file("pause"), in_quick=False),
    Question("takeover", "from the loss to the VM running", pytest_file("takeover"), in_quick=False),
]
