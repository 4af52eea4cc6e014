"""Adaptive compression: round trips, agreement with the libraries, choice by the link, hostile input."""

from __future__ import annotations

import contextlib
import random
import struct

import lz4.block
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from colo._fast.adaptive import AdaptiveCodec, AdaptiveDecoder, probe, usable_methods
from colo._fast.bitmap import DirtyBitmap
from colo._fast.pagecache import PageCache, ShadowCache
from colo._fast.pageencoder import PageEncoder
from colo.errors import ColoError, StreamError, Truncated, Unsupported
from colo.wire import PageEncoding, RamFlag

PAGE = 4096
SLOW_LINK = 1e3

pytestmark = pytest.mark.skipif(
    usable_methods() != ("lz4", "zstd"), reason=f"needs both libraries: {probe()}"
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
    assert expected.keys() == {"lz4", "zstd"}
    assert all(saved > 1000 and ns > 0 for saved, ns in expected.values())
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


@pytest.mark.parametrize("method", ["lz4", "zstd"])
def test_every_truncation_and_damage_of_real_records(method: str) -> None:
    old, new = shuffled_pages(2, seed=9)
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
