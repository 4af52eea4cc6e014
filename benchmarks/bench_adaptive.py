"""What does compression beyond XBZRLE give on real pages, and what does it cost?

``python benchmarks/bench_adaptive.py [--json FILE] [--corpus FOLDER]``. Every set of the corpus
(``corpus.py``) goes through a PageEncoder with a shadow copy, by XBZRLE alone and with an AdaptiveCodec, and
what comes out is decoded and compared.
``sweep`` times all pairs of a set one after another; ``hot`` repeats groups of 64 pairs, as kernels are
usually timed, so that caches and branch predictors know them. ``lz4``, ``lz4, mask`` and ``zstd`` take whatever is
smaller, as over a very slow link; the others are the codec's own choice at a link's rate.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import corpus
import numpy as np
from numpy.typing import NDArray

from colo._fast.kernels.codec_libraries import probe
from colo._fast.receive.adaptive_decoder import AdaptiveDecoder
from colo._fast.send.adaptive import AdaptiveCodec
from colo._fast.send.pagecache import ShadowCache
from colo._fast.send.pageencoder import PageEncoder

SLOW_LINK_BYTES_PER_S = 1.0
HOT_PAGES = 64
HOT_GROUPS = 8
Pages = NDArray[np.uint8]


def codecs() -> dict[str, AdaptiveCodec | None]:
    """A fresh codec per way; None is XBZRLE alone."""
    return {
        "xbzrle": None,
        "lz4": AdaptiveCodec(SLOW_LINK_BYTES_PER_S, methods=("lz4",)),
        "lz4, mask": AdaptiveCodec(SLOW_LINK_BYTES_PER_S, methods=("lz4", "mask")),
        "zstd": AdaptiveCodec(SLOW_LINK_BYTES_PER_S, methods=("zstd",)),
        "at 100 Mb/s": AdaptiveCodec(12.5e6),
        "lz4, mask at 550 Mb/s": AdaptiveCodec(68.75e6, methods=("lz4", "mask")),
        "at 1 Gb/s": AdaptiveCodec(125e6),
        "at 10 Gb/s": AdaptiveCodec(1.25e9),
    }


class Way:
    """One way to encode, with what it has learned."""

    def __init__(self, codec: AdaptiveCodec | None) -> None:
        self.encoder = PageEncoder(codec=codec)

    def encode(self, old: Pages, new: Pages) -> tuple[bytes, float]:
        """The records, and the seconds they took."""
        shadow = ShadowCache(len(old), memory=bytearray(old))
        shadow.validate_all()
        self.encoder.begin_block("pc.ram", new.reshape(-1), None, shadow)
        begun = time.perf_counter()
        self.encoder.encode()
        taken = time.perf_counter() - begun
        return self.encoder.take(), taken

    def hot_ns(self, old: Pages, new: Pages) -> float:
        """Nanoseconds per page on groups seen many times."""
        groups = []
        for start in np.linspace(0, max(len(old) - HOT_PAGES, 0), HOT_GROUPS).astype(int):
            group = slice(start, start + HOT_PAGES)
            times = [self.encode(old[group], new[group])[1] for _ in range(20)]
            groups.append(statistics.median(times[10:]) / len(old[group]) * 1e9)
        return statistics.mean(groups)


def measure(folder: Path, rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Set -> way -> bytes per page, sweep and hot ns per page."""
    results: dict[str, dict[str, dict[str, float]]] = {}
    for name, (old, new) in corpus.load(folder).items():
        ways = {label: Way(codec) for label, codec in codecs().items()}
        times: dict[str, list[float]] = {label: [] for label in ways}
        sizes: dict[str, int] = {}
        for _ in range(rounds):
            for label, way in ways.items():
                records, taken = way.encode(old, new)
                times[label].append(taken)
                sizes[label] = len(records)
                received = bytearray(old)
                AdaptiveDecoder().apply(records, received)
                if received != new.tobytes():
                    raise AssertionError(f"{name} by {label} does not decode to its pages")
        results[name] = {
            label: {
                "bytes": sizes[label] / len(old),
                "sweep_ns": statistics.median(times[label]) / len(old) * 1e9,
                "hot_ns": way.hot_ns(old, new),
            }
            for label, way in ways.items()
        }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description="Adaptive compression on the corpus of real page pairs")
    parser.add_argument("--corpus", type=Path, default=corpus.DEFAULT_FOLDER)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print(probe())
    results = measure(arguments.corpus, arguments.rounds)
    print("bytes per page with record headers (ratio to XBZRLE), sweep ns / hot ns per page")
    for name, ways in results.items():
        cells = [
            f"{label} {w['bytes']:.0f} ({w['bytes'] / ways['xbzrle']['bytes']:.2f}) "
            f"{w['sweep_ns']:.0f}/{w['hot_ns']:.0f}"
            for label, w in ways.items()
        ]
        print(f"{name:14}", " | ".join(cells))
    for burst in corpus.BURSTS_MS:
        chosen = [ways for name, ways in results.items() if name.endswith(burst)]
        print(f"mean, {burst}:")
        for label in chosen[0]:
            mean = {key: statistics.mean(ways[label][key] for ways in chosen) for key in chosen[0][label]}
            base = statistics.mean(ways["xbzrle"]["bytes"] for ways in chosen)
            print(
                f"  {label:12} {mean['bytes']:6.0f} bytes, ratio {mean['bytes'] / base:.3f}, "
                f"sweep {mean['sweep_ns']:6.0f} ns, hot {mean['hot_ns']:6.0f} ns"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
