"""Adaptive compression: round trips, agreement with the libraries, choice by the link, hostile input."""

from __future__ import annotations

import contextlib
import random
import struct
import subprocess
import sys

import lz4.block
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from colo._fast.kernels.bitmap import DirtyBitmap
from colo._fast.kernels.codec_libraries import probe, usable_methods
from colo._fast.receive.adaptive_decoder import AdaptiveDecoder
from colo._fast.send.adaptive import AdaptiveCodec
from colo._fast.send.pagecache import PageCache, ShadowCache
from colo._fast.send.pageencoder import PageEncoder
from colo.errors import ColoError, StreamError, Truncated, Unsupported
from colo.wire import PageEncoding, RamFlag

PAGE = 4096
SLOW_LINK = 1e3

pytestmark = pytest.mark.skipif(
    usable_methods() != ("lz4", "zstd", "mask"), reason=f"needs both libraries: {probe()}"
)


def shuffled_pages(pages: int, seed: int) -> tuple[bytearray, bytearray]:
    """Pages of 32-byte rows before and after rows moved: XBZRLE is helpless there, a dictionary is not."""
    chance = random.Random(seed)
    old, new = bytearray(), bytearray()
    for _ in range(pages * 4):
        rows = [chance.randbytes(16) * 2 for _ in range(PAGE // 4 // 32)]
        old += b"".join(rows)
        chance.shuffle(rows)
        rows[0] = chance.randbytes(32)
        new += b"".join(rows)
    return old, new


def encode(
    old: bytearray | None, new: bytearray, codec: AdaptiveCodec | None, page_bytes: int = PAGE
) -> tuple[bytes, PageEncoder]:
    encoder = PageEncoder(page_bytes=page_bytes, codec=codec)
    shadow = None
    if old is not None:
        shadow = ShadowCache(len(old) // page_bytes, page_bytes, memory=bytearray(old))
        shadow.validate_all()
    encoder.begin_block("b", new, None, shadow)
    encoder.encode()
    encoder.end_section()
    if shadow is not None:
        assert memoryview(shadow) == new
    return encoder.take(), encoder


@pytest.mark.parametrize("page_bytes", [1024, 4096, 16384])
@pytest.mark.parametrize("methods", [("lz4",), ("zstd",), ("lz4", "zstd")])
@pytest.mark.parametrize("known", [True, False])
def test_pages_come_back_and_take_less(methods: tuple[str, ...], page_bytes: int, known: bool) -> None:
    old, new = shuffled_pages(64, seed=1)
    codec = AdaptiveCodec(SLOW_LINK, methods=methods)
    stream, encoder = encode(old if known else None, new, codec, page_bytes)
    received = bytearray(old)
    assert AdaptiveDecoder(page_bytes).apply(stream, received) == (len(stream), len(new) // page_bytes)
    assert received == new
    plain, _ = encode(old if known else None, new, None, page_bytes)
    assert len(stream) < (0.6 if known else 0.9) * len(plain)
    form = "delta" if known else "page"
    assert all(encoder.stats.pages[f"{method}_{form}"] > 0 for method in methods)
    assert codec.methods == methods
    assert sum(codec.stats.pages.values()) > 0


def first_payload(stream: bytes) -> tuple[int, bytes]:
    at = 8 + 1 + stream[8]
    encoding, length = struct.unpack_from(">BH", stream, at)
    return encoding, stream[at + 3 : at + 3 + length]


def test_lz4_records_are_what_the_lz4_package_reads() -> None:
    old, new = shuffled_pages(1, seed=2)
    encoding, payload = first_payload(encode(old, new, AdaptiveCodec(SLOW_LINK, methods=("lz4",)))[0])
    assert encoding == PageEncoding.LZ4_DELTA
    assert lz4.block.decompress(payload, uncompressed_size=PAGE, dict=bytes(old)) == new
    encoding, payload = first_payload(encode(None, new, AdaptiveCodec(SLOW_LINK, methods=("lz4",)))[0])
    assert encoding == PageEncoding.LZ4_PAGE
    assert lz4.block.decompress(payload, uncompressed_size=PAGE) == new


def test_zstd_records_are_what_the_zstandard_package_reads() -> None:
    old, new = shuffled_pages(1, seed=3)
    encoding, payload = first_payload(encode(old, new, AdaptiveCodec(SLOW_LINK, methods=("zstd",)))[0])
    assert encoding == PageEncoding.ZSTD_DELTA
    prefix = zstandard.ZstdCompressionDict(bytes(old), dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    frame = b"\x28\xb5\x2f\xfd" + payload
    assert zstandard.ZstdDecompressor(dict_data=prefix).decompress(frame, max_output_size=PAGE) == new
    encoding, payload = first_payload(encode(None, new, AdaptiveCodec(SLOW_LINK, methods=("zstd",)))[0])
    assert encoding == PageEncoding.ZSTD_PAGE
    frame = b"\x28\xb5\x2f\xfd" + payload
    assert zstandard.ZstdDecompressor().decompress(frame, max_output_size=PAGE) == new


def test_records_of_the_lz4_package_are_read() -> None:
    old, new = shuffled_pages(1, seed=4)
    payload = lz4.block.compress(bytes(new), mode="high_compression", store_size=False, dict=bytes(old))
    record = struct.pack(">QBcBH", RamFlag.XBZRLE, 1, b"b", PageEncoding.LZ4_DELTA, len(payload)) + payload
    received = bytearray(old)
    assert AdaptiveDecoder().apply(record, received) == (len(record), 1)
    assert received == new


def mask_delta(old: bytes, new: bytes) -> bytes:
    """The layout of ``maskdelta.h``, written down again."""
    changed, fresh, masks, changes = 0, 0, b"", b""
    before = 0
    lines = len(old) // 64
    for line in range(lines):
        at = range(64 * line, 64 * line + 64)
        mask = sum(1 << i for i, k in enumerate(at) if old[k] != new[k])
        if not mask:
            continue
        changed |= 1 << line
        if mask != before:
            fresh |= 1 << line
            masks += mask.to_bytes(8, "little")
        before = mask
        changes += bytes(new[k] for k in at if old[k] != new[k])
    return changed.to_bytes(lines // 8, "little") + fresh.to_bytes(lines // 8, "little") + masks + changes


@pytest.mark.parametrize("page_bytes", [1024, 4096, 16384])
def test_mask_records_are_laid_out_as_written(page_bytes: int) -> None:
    chance = random.Random(page_bytes)
    old = bytearray(chance.randbytes(page_bytes))
    for changes in ((), (1, 2, 3), (0, 1, 2, 3, 4, 5, 6, 7), (7,)):
        new = bytearray(old)
        for at in range(page_bytes):
            if at % 8 in changes or chance.random() < 0.05 * (at > page_bytes // 2) or (not changes and at % 3 == 0):
                new[at] ^= 0x77
        codec = AdaptiveCodec(SLOW_LINK, methods=("mask",))
        stream, encoder = encode(old, new, codec, page_bytes)
        if not encoder.stats.pages["mask_delta"]:
            assert len(mask_delta(old, new)) >= page_bytes or changes
            continue
        encoding, payload = first_payload(stream)
        assert encoding == PageEncoding.MASK_DELTA
        assert payload == mask_delta(old, new)
        received = bytearray(old)
        AdaptiveDecoder(page_bytes).apply(stream, received)
        assert received == new


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_bad_mask_records_are_refused(data: st.DataObject) -> None:
    page = bytes(PAGE)
    good = mask_delta(page, bytes(1 if k % 5 == 0 and k > 700 else 0 for k in range(PAGE)))
    bad = bytearray(good)
    kind = data.draw(st.sampled_from(["longer", "shorter", "unmarked", "zero mask", "other mask", "no first mask"]))
    if kind == "longer":
        bad += b"x"
    elif kind == "shorter":
        del bad[data.draw(st.integers(1, len(bad) - 1)) :]
    elif kind == "unmarked":
        bad[0] = 0
        bad[8] = 1
    elif kind == "zero mask":
        bad[16:24] = bytes(8)
    elif kind == "other mask":
        bad[16:24] = b"\xff" * 8
    else:
        first = next(bit for bit in range(64) if bad[8 + bit // 8] >> bit % 8 & 1)
        bad[8 + first // 8] &= ~(1 << first % 8)
        del bad[16:24]
    memory = bytearray(b"\x5a" * PAGE)
    with pytest.raises(StreamError):
        AdaptiveDecoder().apply(record(PageEncoding.MASK_DELTA, bytes(bad)), memory)
    assert memory == b"\x5a" * PAGE


@pytest.mark.parametrize("page_bytes", [1024, 4096, 16384])
def test_lz4_deltas_of_all_kinds_of_pages_are_what_the_lz4_package_reads(page_bytes: int) -> None:
    chance = random.Random(page_bytes)
    for trial in range(300):
        old = bytearray(chance.choice([chance.randbytes(page_bytes), bytes(page_bytes), b"abc" * page_bytes])[:page_bytes])
        new = bytearray(old)
        for _ in range(chance.choice([1, 20, 200])):
            at, n = chance.randrange(page_bytes), chance.choice([1, 5, 40, 700])
            part = new[at : at + n]
            what = chance.randrange(4)
            start = chance.randrange(page_bytes - len(part) + 1)
            new[at : at + n] = (
                old[start : start + len(part)] if what == 0
                else bytes(len(part)) if what == 1
                else chance.randbytes(len(part)) if what == 2
                else bytes(byte ^ 1 for byte in part)
            )  # fmt: skip
        stream, encoder = encode(old, new, AdaptiveCodec(SLOW_LINK, methods=("lz4",), floor_bytes=0), page_bytes)
        if encoder.stats.pages["lz4_delta"]:
            _, payload = first_payload(stream)
            assert lz4.block.decompress(payload, uncompressed_size=page_bytes, dict=bytes(old)) == new, trial
        received = bytearray(old)
        AdaptiveDecoder(page_bytes).apply(stream, received)
        assert received == new


def test_small_changes_stay_xbzrle_and_noise_goes_raw() -> None:
    chance = random.Random(5)
    old = bytearray(chance.randbytes(40 * PAGE))
    new = bytearray(old)
    for page in range(20):
        new[page * PAGE + 7] ^= 1
    new[20 * PAGE :] = chance.randbytes(20 * PAGE)
    stream, encoder = encode(old, new, AdaptiveCodec(SLOW_LINK))
    assert encoder.stats.pages["xbzrle"] == 20
    assert encoder.stats.pages["page"] == 20
    received = bytearray(old)
    AdaptiveDecoder().apply(stream, received)
    assert received == new


def test_the_links_rate_decides() -> None:
    old, new = shuffled_pages(300, seed=6)
    codec = AdaptiveCodec(0)
    encode(old, new, codec)
    assert codec.stats.tried == 0
    assert codec.stats.declined > 0
    fast = AdaptiveCodec(1e15)
    encode(old, new, fast)
    assert fast.stats.tried < 30
    slow = AdaptiveCodec(SLOW_LINK)
    encode(old, new, slow)
    assert slow.stats.declined == 0
    expected = slow.stats.expected["overflow"]
    assert expected.keys() == {"lz4", "zstd", "mask"}
    assert all(saved > 1000 and ns > 0 for method, (saved, ns) in expected.items() if method != "mask")
    # Records that moved are nothing for masks.
    assert expected["mask"][0] < 100
    best = max(expected, key=lambda method: expected[method][0])
    assert slow.stats.pages[best] > 200


def test_a_codec_learns_of_a_new_rate_while_in_use() -> None:
    old, new = shuffled_pages(100, seed=7)
    codec = AdaptiveCodec(0)
    encoder = PageEncoder(codec=codec)
    for rate, pages in ((0.0, 0), (SLOW_LINK, 100)):
        shadow = ShadowCache(100, memory=bytearray(old))
        shadow.validate_all()
        encoder.begin_block("b", new, None, shadow)
        codec.set_link(rate)
        before = codec.stats.tried
        encoder.encode()
        assert codec.stats.tried - before == pages


def test_it_works_with_a_cache_and_checkpoints() -> None:
    old, new = shuffled_pages(64, seed=8)
    for capacity in (64, 16):
        cache = PageCache(capacity * PAGE)
        encoder = PageEncoder(codec=AdaptiveCodec(SLOW_LINK))
        received = bytearray(len(old))
        decoder = AdaptiveDecoder()
        for age, memory in enumerate([old, new, old, new]):
            encoder.begin_block("b", memory, None, cache, age=age)
            encoder.encode()
            decoder.apply(encoder.take(), received)
            assert received == memory


# -- hostile input


def record(encoding: int, payload: bytes, offset: int = 0) -> bytes:
    head = struct.pack(">QBcBH", offset | RamFlag.XBZRLE, 1, b"b", encoding, len(payload))
    return head + payload


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(list(PageEncoding)), st.binary(max_size=300))
def test_any_payload_is_a_page_or_an_error_that_leaves_the_page_alone(
    encoding: PageEncoding, payload: bytes
) -> None:
    page = bytearray(b"\x5a" * PAGE)
    refused: StreamError | None = None
    try:
        AdaptiveDecoder().apply(record(encoding, payload), page)
    except StreamError as error:
        refused = error
    assert refused is None or (refused.offset == 0 and page == b"\x5a" * PAGE)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_records_are_applied_or_an_error(stream: bytes) -> None:
    at: int | None
    try:
        at, _ = AdaptiveDecoder().apply(stream, bytearray(2 * PAGE))
    except StreamError as error:
        at = error.offset
    assert at is not None
    assert at <= len(stream)


@pytest.mark.parametrize("method", ["lz4", "zstd", "mask"])
def test_every_truncation_and_damage_of_real_records(method: str) -> None:
    old, new = shuffled_pages(2, seed=9)
    if method == "mask":
        new = bytearray(byte ^ (at % 4 < 3) for at, byte in enumerate(old))
    stream, _ = encode(old, new, AdaptiveCodec(SLOW_LINK, methods=(method,)))
    decoder = AdaptiveDecoder()
    for cut in range(1, len(stream) - 8):
        with contextlib.suppress(Truncated):
            decoder.apply(stream[:cut], bytearray(old))
    encoding, payload = first_payload(stream)
    for cut in range(len(payload)):
        page = bytearray(old[:PAGE])
        with pytest.raises(StreamError, match="does not decode"):
            decoder.apply(record(encoding, payload[:cut]), page)
        assert page == old[:PAGE]
    chance = random.Random(10)
    for _ in range(2000):
        damaged = bytearray(stream)
        for _ in range(chance.randrange(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        with contextlib.suppress(ColoError):
            decoder.apply(damaged, bytearray(old))
    received = bytearray(old)
    decoder.apply(stream, received)
    assert received == new


def test_errors_name_the_record() -> None:
    decoder = AdaptiveDecoder()
    good = struct.pack(">QBcB", RamFlag.ZERO, 1, b"b", 0)
    page = bytearray(PAGE)
    with pytest.raises(StreamError, match="unknown page encoding 0x2a") as caught:
        decoder.apply(good + record(0x2A, b"x"), page)
    assert caught.value.offset == len(good)
    with pytest.raises(StreamError, match="outside the RAM block"):
        decoder.apply(record(1, b"x", PAGE), page)
    with pytest.raises(StreamError, match="flags that no page record has"):
        decoder.apply(struct.pack(">Q", RamFlag.COMPRESS_PAGE), page)
    with pytest.raises(Truncated):
        decoder.apply(good[:-1], page)
    with pytest.raises(ValueError, match="whole number of pages"):
        decoder.apply(good, bytearray(PAGE + 1))
    with pytest.raises(BufferError):
        decoder.apply(good, bytes(PAGE))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="no compression method 'gzip'"):
        AdaptiveCodec(1.0, methods=("gzip",))
    with pytest.raises(ValueError, match="finite"):
        AdaptiveCodec(-1.0)
    with pytest.raises(ValueError, match="finite"):
        AdaptiveCodec(1.0).set_link(float("nan"))
    with pytest.raises(ValueError, match="levels"):
        AdaptiveCodec(1.0, zstd_level=20)
    with pytest.raises(Unsupported, match="16384"):
        PageEncoder(page_bytes=65536, codec=AdaptiveCodec(1.0))
    codec = AdaptiveCodec(1.0)
    PageEncoder(codec=codec)
    with pytest.raises(ValueError, match="belongs to one"):
        PageEncoder(codec=codec)
    with pytest.raises(ValueError, match="power of two"):
        AdaptiveDecoder(65536)


def test_a_bitmap_limits_it_as_any_encoder() -> None:
    old, new = shuffled_pages(8, seed=11)
    bitmap = DirtyBitmap(8)
    bitmap.set(3)
    shadow = ShadowCache(8, memory=bytearray(old))
    shadow.validate_all()
    encoder = PageEncoder(codec=AdaptiveCodec(SLOW_LINK))
    encoder.begin_block("b", new, bitmap, shadow)
    assert encoder.encode()[0] == 1


def test_an_empty_xbzrle_changes_nothing() -> None:
    """As in QEMU, and as the decoder of sessions takes it."""
    memory = bytearray(b"\x5a" * 4096)
    record = (0x60).to_bytes(8, "big") + b"\1\0\0"
    assert AdaptiveDecoder().apply(record, memory) == (len(record), 1)
    assert memory == b"\x5a" * 4096


def test_a_decoder_alone_opens_the_libraries_when_it_is_made() -> None:
    """Records are read in a process that neither compresses nor asked what works."""
    page = bytes(range(256)) * 16
    payload = lz4.block.compress(page, store_size=False)
    record = struct.pack(">QBBBH", RamFlag.XBZRLE, 1, 97, PageEncoding.LZ4_PAGE, len(payload)) + payload
    program = f"""
import sys
from colo._fast.receive.adaptive_decoder import AdaptiveDecoder
memory = bytearray({PAGE})
AdaptiveDecoder({PAGE}).apply({record!r}, memory)
assert memory == {page!r}
assert "colo._fast.send.adaptive" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
