"""Compressed pages of a checkpoint: made against the committed page, staged as whole pages, refused before any commit."""

from __future__ import annotations

import contextlib
import random

import pytest

from colo._fast.kernels.bitmap import DirtyBitmap
from colo._fast.kernels.codec_libraries import usable_methods
from colo._fast.kernels.ramblock import RamBlock
from colo._fast.receive.adaptive_decoder import AdaptiveDecoder
from colo._fast.receive.buffers import ReadBuffer
from colo._fast.receive.pagedecoder import EOS, PageDecoder
from colo._fast.receive.staging import Staging
from colo._fast.send.adaptive import AdaptiveCodec
from colo._fast.send.pagecache import ShadowCache
from colo._fast.send.pageencoder import PageEncoder
from colo.errors import LimitExceeded, StreamError
from colo.wire import PageEncoding

PAGE = 4096
PAGES = 60
LIBRARIES = [name for name in usable_methods() if name != "mask"]


class Ends:
    """A sender with a codec and a receiver, whose memory equals the sender's after each checkpoint."""

    def __init__(self, method: str, *, remember: bool = True) -> None:
        self.memory = bytearray(words(PAGES * PAGE, seed=1))
        self.shadow = ShadowCache(PAGES) if remember else None
        self.encoder = PageEncoder(codec=AdaptiveCodec(1e5, methods=[method]))
        self.received = bytearray(PAGES * PAGE)
        self.block = RamBlock("ram", PAGES * PAGE, memory=self.received)
        self.staging = Staging()
        self.decoder = PageDecoder(self.staging)
        self.decoder.set_codec(AdaptiveDecoder())

    def records(self, first: int = 0, pages: int = PAGES) -> bytes:
        bitmap = DirtyBitmap(PAGES)
        bitmap.set(first, pages)
        self.encoder.begin_block("ram", self.memory, bitmap, self.shadow)
        self.encoder.encode()
        self.encoder.end_section()
        self.encoder.close()
        return self.encoder.take()

    def stage(self, records: bytes) -> None:
        self.decoder.set_blocks([self.block])
        assert self.decoder.decode(ReadBuffer.from_bytes(records)) == EOS


def words(length: int, *, seed: int) -> bytes:
    draw = random.Random(seed)
    known = [bytes(draw.choices(b"abcdefghijklmnop", k=draw.randrange(3, 9))) for _ in range(50)]
    out = bytearray()
    while len(out) < length:
        out += draw.choice(known) + b" "
    return bytes(out[:length])


def change(method: str, memory: bytearray, seed: int) -> None:
    """So that the method gains more than XBZRLE does."""
    if method != "mask":
        shuffle(memory, seed)
        return
    draw = random.Random(seed)
    for page in range(PAGES):
        for at in range(page * PAGE + draw.randrange(8), (page + 1) * PAGE, 16):
            memory[at] = draw.randrange(256)


def shuffle(memory: bytearray, seed: int) -> None:
    """Most bytes of every page move: XBZRLE gains little, an older page as dictionary much."""
    for page in range(PAGES):
        at, by = page * PAGE, 1 + (seed * 37 + page * 11) % 700
        memory[at : at + PAGE] = memory[at + by : at + PAGE] + memory[at : at + by]


@pytest.mark.parametrize("method", usable_methods())
@pytest.mark.parametrize("remember", [True, False])
def test_memory_is_the_senders_after_each_checkpoint(method: str, remember: bool) -> None:
    ends = Ends(method, remember=remember)
    for epoch in range(6):
        before = bytes(ends.received)
        ends.stage(ends.records())
        assert ends.received == before, "nothing is written before it is applied"
        ends.staging.reserve()
        ends.staging.apply()
        assert ends.received == ends.memory
        change(method, ends.memory, epoch)
    pages = ends.encoder.stats.pages
    fresh = pages.get(f"{method}_page", 0)
    assert (fresh > 0) == (method in LIBRARIES)
    assert (pages[f"{method}_delta"] > 0) == remember
    assert ends.block.counts["compressed_pages"] == fresh + pages[f"{method}_delta"]


@pytest.mark.parametrize("method", usable_methods())
def test_damage_in_any_byte_is_refused_or_changes_nothing_but_that_page(method: str) -> None:
    ends = Ends(method)
    ends.stage(ends.records())
    ends.staging.apply()
    change(method, ends.memory, 3)
    good = ends.records(5, 1)
    committed = bytes(ends.received)
    for at in range(len(good) - 8):
        bad = bytearray(good)
        bad[at] ^= 0x11
        with contextlib.suppress(StreamError):
            ends.stage(bytes(bad) + bytes(8))
        ends.staging.drop()
        assert ends.received == committed


@pytest.mark.parametrize("method", LIBRARIES)
def test_without_an_agreement_it_is_refused(method: str) -> None:
    ends = Ends(method)
    records = ends.records()
    ends.decoder.set_codec(None)
    with pytest.raises(StreamError, match="XBZRLE encoding"):
        ends.stage(records)
    ends.staging.drop()
    immediate = PageDecoder(Staging(), immediate=True)
    immediate.set_codec(AdaptiveDecoder())
    immediate.set_blocks([ends.block])
    with pytest.raises(StreamError, match="XBZRLE encoding"):
        immediate.decode(ReadBuffer.from_bytes(records))


@pytest.mark.parametrize("method", usable_methods())
def test_a_delta_needs_the_committed_page(method: str) -> None:
    ends = Ends(method)
    ends.stage(ends.records())
    ends.staging.apply()
    change(method, ends.memory, 1)
    once = ends.records(7, 1)
    assert once[8 + 4] == PageEncoding[f"{method.upper()}_DELTA"]
    with pytest.raises(StreamError, match="came before in the same checkpoint") as caught:
        ends.stage(once[:-8] + once)
    assert caught.value.offset == len(once) - 8
    ends.staging.drop()
    fresh = RamBlock("ram", PAGES * PAGE, memory=bytearray(PAGES * PAGE))
    ends.decoder.set_blocks([fresh])
    with pytest.raises(StreamError, match="never came before"):
        ends.decoder.decode(ReadBuffer.from_bytes(once))


@pytest.mark.parametrize("method", LIBRARIES)
def test_more_pages_than_the_block_has_are_refused(method: str) -> None:
    ends = Ends(method, remember=False)
    ends.memory[:] = words(PAGE, seed=2) * PAGES
    records = ends.records()
    with pytest.raises(LimitExceeded, match="more RAM records"):
        ends.stage(records[:-8] * 6000 + records[-8:])


@pytest.mark.parametrize("method", usable_methods())
def test_the_codec_of_a_checkpoint_stays_to_its_end(method: str) -> None:
    ends = Ends(method)
    ends.stage(ends.records())
    ends.staging.apply()
    change(method, ends.memory, 3)
    ends.decoder.set_blocks([ends.block])
    ends.decoder.set_codec(None)
    assert ends.decoder.decode(ReadBuffer.from_bytes(ends.records())) == EOS
    ends.staging.apply()
    assert ends.received == ends.memory
    change(method, ends.memory, 4)
    with pytest.raises(StreamError, match="XBZRLE encoding"):
        ends.stage(ends.records())
