"""What the guest prints, computed in Python: a second implementation of ``walk.S``, that shares nothing with it."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

MASK = (1 << 64) - 1
GAIN, OFFSET = 6364136223846793005, 1442695040888963407
MIXER = 0x9E3779B97F4A7C15
PAGE_WORDS = 512
STRIDE_WORDS = 64
"""A step goes to eight words of a page, so far apart; the first of them is one of the page's first eight."""


def transcript(*, pages: int, steps_per_tick: int, ticks_per_line: int, lines: int, seed: int) -> Iterator[bytes]:
    """The lines, each with its newline, in order. Takes some microseconds a step."""
    chance, mixed, low, high, step = seed & MASK, 0, 0, 0, 0
    walked: dict[int, array[int]] = {}
    yield b"walk over %08d pages, seed %016x\n" % (pages % 10**8, chance)
    for line in range(1, lines + 1):
        for _ in range(steps_per_tick * ticks_per_line):
            chance = (chance * GAIN + OFFSET) & MASK
            page = chance * pages >> 64
            words = walked.get(page)
            if words is None:
                words = walked[page] = _walked_words(page)
            for at in range(chance >> 20 & 7, 64, 8):
                word = words[at]
                mixed ^= word
                mixed = ((mixed >> 23 | mixed << 41) & MASK) * MIXER & MASK
                words[at] = (word + mixed) & MASK
            low, high = (low + mixed) & MASK, (high + chance) & MASK
            step += 1
        yield b"line %06d step %010d hash %016x sum %016x\n" % (line, step, mixed, low ^ high)
    yield b"done\n"


def _walked_words(page: int) -> array[int]:
    """The words of a page that steps can come to, as they are at first: by stride, then by place."""
    first = page * PAGE_WORDS + 1
    return array("Q", [
        (first + stride * STRIDE_WORDS + place) * MIXER & MASK for stride in range(8) for place in range(8)])
