"""A corpus of real page pairs: memory of real processes before and after they worked.

``python benchmarks/corpus.py [FOLDER]`` runs four programs (objects, JSON, numpy, sqlite), lets each work for
short and for long bursts, reads its memory through /proc/PID/mem before and after every burst while it waits,
and keeps the pages that changed: what a dirty tracker would have found. A set is a file
``<program>-<burst>.pairs`` of 8192-byte items: the old page, then the new one. Pages that were not there
before, or are zero now, are left out: they are no work for a delta encoder.

The pairs are as real as memory is, so two runs differ in detail; compare methods on one corpus, not across
two.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PAGE_BYTES = 4096
PRESENT = 1 << 63
PROGRAMS = ("objects", "json", "numpy", "sqlite")
BURSTS_MS = {"short": 4, "long": 250}
DEFAULT_FOLDER = Path(tempfile.gettempdir()) / f"colo-corpus-{os.getuid()}"

Pairs = tuple[NDArray[np.uint8], NDArray[np.uint8]]

# The programs, run in a process of their own: set up, then one burst of so many milliseconds per line read.
_WORKER = r"""
import random, sys, time
program = sys.argv[1]
chance = random.Random(7)

def objects():
    class Node:
        def __init__(self, key):
            self.key, self.next, self.data = key, None, {"name": f"node {key}", "seen": [key] * (key % 9)}
    nodes = {i: Node(i) for i in range(20000)}
    serial = 20000
    def step():
        nonlocal serial
        for _ in range(20):
            del nodes[chance.choice(tuple(nodes)[:64])]
            nodes[serial] = Node(serial)
            serial += 1
        for node in list(nodes.values())[serial % 997::997]:
            node.data["seen"].append(serial)
            node.next = nodes[serial - 1]
    return step

def json_():
    import json
    records = [{"id": i, "user": f"user{i % 211}", "tags": [f"t{j}" for j in range(i % 7)], "score": i / 7,
                "note": "lorem ipsum dolor " * (i % 5)} for i in range(4000)]
    texts = [json.dumps(r) for r in records]
    def step():
        for _ in range(40):
            i = chance.randrange(len(records))
            record = json.loads(texts[i])
            record["score"] = chance.random()
            record["tags"].append("new")
            del record["tags"][:len(record["tags"]) - 6]
            records[i], texts[i] = record, json.dumps(record)
    return step

def numpy_():
    import numpy as np
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0:512, 0:512] / 64
    field = (np.sin(x) * np.cos(y)).astype(np.float32)
    counts = np.zeros(200000, dtype=np.int64)
    table = np.arange(400000, dtype=np.int32).reshape(-1, 8).copy()
    table[:, 3] = rng.integers(0, 1000, len(table))
    def step():
        counts[rng.integers(0, counts.size, 300)] += 1
        table[rng.integers(0, len(table), 40), 3] += 1
        top = int(rng.integers(1, 507))
        field[top:top + 4] += 0.25 * (field[top - 1:top + 3] - field[top:top + 4])
        block = int(rng.integers(0, len(table) - 64))
        part = table[block:block + 64]
        table[block:block + 64] = part[np.argsort(part[:, 3])]
    return step

def sqlite_():
    import sqlite3
    db = sqlite3.connect(":memory:")
    db.execute("create table item (id integer primary key, name text, price real, stock int, note text)")
    db.execute("create index by_name on item(name)")
    db.executemany("insert into item values (?,?,?,?,?)",
                   [(i, f"item {i * 7919 % 30000}", i / 3, i % 50, "note " * (i % 6)) for i in range(30000)])
    serial = 30000
    def step():
        nonlocal serial
        for _ in range(10):
            db.execute("insert into item values (?,?,?,?,?)",
                       (serial, f"item {serial * 7919 % 30000}", serial / 3, serial % 50,
                        "note " * (serial % 6)))
            db.execute("update item set stock = stock + 1, note = ? where id = ?",
                       ("x" * chance.randrange(30), chance.randrange(serial)))
            db.execute("delete from item where id = ?", (chance.randrange(serial),))
            serial += 1
        db.commit()
    return step

step = {"objects": objects, "json": json_, "numpy": numpy_, "sqlite": sqlite_}[program]()
print("ready", flush=True)
for line in sys.stdin:
    until = time.perf_counter() + int(line) / 1000
    while time.perf_counter() < until:
        step()
    print("done", flush=True)
"""


def _mappings(pid: int) -> Iterator[tuple[int, int]]:
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        match = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw.p \S+ \S+ \d+\s*(.*)", line)
        if match and match[3] not in ("[vvar]", "[vsyscall]"):
            yield int(match[1], 16), int(match[2], 16)


def read_memory(pid: int) -> dict[int, bytes]:
    """The present, writable, private pages of a process that stands still: address -> page."""
    pages: dict[int, bytes] = {}
    with (
        open(f"/proc/{pid}/mem", "rb", buffering=0) as mem,
        open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap,
    ):
        for start, end in _mappings(pid):
            pagemap.seek(start // PAGE_BYTES * 8)
            entries = np.frombuffer(pagemap.read((end - start) // PAGE_BYTES * 8), np.uint64)
            for index in np.flatnonzero(entries & np.uint64(PRESENT)):
                address = start + int(index) * PAGE_BYTES
                mem.seek(address)
                pages[address] = mem.read(PAGE_BYTES)
    return pages


def collect(program: str, burst: str, *, rounds: int, max_pairs: int) -> bytes:
    """Run one program for ``rounds`` bursts; at most ``max_pairs`` pairs of old + new page, a fair sample."""
    pairs: list[bytes] = []
    with subprocess.Popen(
        [sys.executable, "-c", _WORKER, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None

        def work(ms: int) -> None:
            assert worker.stdin is not None
            assert worker.stdout is not None
            print(ms, file=worker.stdin, flush=True)
            if not worker.stdout.readline():
                raise RuntimeError(f"the program {program!r} of the corpus died")

        worker.stdout.readline()
        work(BURSTS_MS[burst] * 4)
        zero = bytes(PAGE_BYTES)
        for _ in range(rounds):
            before = read_memory(worker.pid)
            work(BURSTS_MS[burst])
            after = read_memory(worker.pid)
            pairs += [
                old + new
                for address, new in after.items()
                if (old := before.get(address)) is not None and new not in (old, zero)
            ]
        worker.stdin.close()
    if len(pairs) > max_pairs:
        pairs = random.Random(1).sample(pairs, max_pairs)
    return b"".join(pairs)


def make(folder: Path = DEFAULT_FOLDER, *, max_pairs: int = 2000) -> None:
    """Write every set into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for program in PROGRAMS:
        for burst in BURSTS_MS:
            made = collect(program, burst, rounds=12 if burst == "short" else 4, max_pairs=max_pairs)
            (folder / f"{program}-{burst}.pairs").write_bytes(made)


def load(folder: Path = DEFAULT_FOLDER) -> dict[str, Pairs]:
    """Set name -> (old pages, new pages), each uint8 of shape (n, 4096). Makes the corpus when it is not
    there."""
    if len(list(folder.glob("*.pairs"))) < len(PROGRAMS) * len(BURSTS_MS):
        make(folder)
    sets = {}
    for path in sorted(folder.glob("*.pairs")):
        both = np.fromfile(path, np.uint8).reshape(-1, 2, PAGE_BYTES)
        sets[path.stem] = (np.ascontiguousarray(both[:, 0]), np.ascontiguousarray(both[:, 1]))
    return sets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--max-pairs", type=int, default=2000, help="pairs kept per set")
    arguments = parser.parse_args()
    make(arguments.folder, max_pairs=arguments.max_pairs)
    for name, (old, new) in load(arguments.folder).items():
        changed = np.count_nonzero(old != new, axis=1).mean() if len(old) else 0
        print(f"{name:16} {len(old):5} pairs, {changed:6.0f} bytes of a page changed on average")


if __name__ == "__main__":
    main()
