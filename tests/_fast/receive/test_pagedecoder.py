"""RAM records into the staged checkpoint and onto memory: right, whole or not at all, and safe on any bytes."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import socket
import struct
import threading
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colo._fast.kernels.ramblock import RamBlock
from colo._fast.receive.buffers import ReadBuffer
from colo._fast.receive.pagedecoder import EOS as BODY_ENDED
from colo._fast.receive.pagedecoder import PageDecoder
from colo._fast.receive.staging import Staging
from colo.errors import ChannelLost, LimitExceeded, StorageError, StreamError, Truncated
from colo.wire import RamFlag
from tests._fast.ram_records import EOS, PAGE, compressed, encode_xbzrle, head, page, xbzrle, zero

PAGES = 64


def blocks(*names: str) -> list[RamBlock]:
    return [RamBlock(name, PAGES * PAGE, memory=bytearray(PAGES * PAGE)) for name in names or ("pc.ram",)]


def memory(block: RamBlock, at: int = 0, n: int = PAGE) -> bytes:
    return bytes(memoryview(block.memory_buffer)[at : at + n])


def decoder_over(rams: list[RamBlock], *, immediate: bool = False) -> PageDecoder:
    decoder = PageDecoder(Staging(), immediate=immediate)
    decoder.set_blocks(rams)
    return decoder


def random_page(seed: int) -> bytes:
    return random.Random(seed).randbytes(PAGE)


def refused(records: bytes, rams: list[RamBlock] | None = None) -> StreamError:
    staging = Staging()
    decoder = PageDecoder(staging)
    decoder.set_blocks(rams or blocks())
    with pytest.raises(StreamError) as caught:
        decoder.decode(ReadBuffer.from_bytes(records))
    return caught.value


def test_pages_reach_memory_only_when_applied():
    ram, = rams = blocks()
    staging = Staging()
    decoder = PageDecoder(staging)
    decoder.set_blocks(rams)
    data = random_page(1)
    assert decoder.decode(ReadBuffer.from_bytes(page(PAGE, data, "pc.ram") + EOS)) == BODY_ENDED
    assert memory(ram, PAGE) == bytes(PAGE)
    staging.reserve()
    staging.apply()
    assert memory(ram, PAGE) == data


def test_dropping_leaves_memory_as_it_was():
    ram, = rams = blocks()
    staging = Staging()
    decoder = PageDecoder(staging)
    decoder.set_blocks(rams)
    decoder.decode(ReadBuffer.from_bytes(page(0, random_page(2), "pc.ram") + EOS))
    staging.drop()
    staging.apply()
    assert memory(ram) == bytes(PAGE)


def test_a_new_checkpoint_over_an_unapplied_one_is_refused():
    rams = blocks()
    decoder = decoder_over(rams)
    decoder.decode(ReadBuffer.from_bytes(page(0, random_page(2), "pc.ram") + EOS))
    with pytest.raises(RuntimeError, match="neither applied nor dropped"):
        decoder.set_blocks(rams)


def test_continue_goes_on_with_the_block_before_and_names_change_it():
    first, second = rams = blocks("pc.ram", "/rom@etc/acpi/tables")
    staging = Staging()
    decoder = PageDecoder(staging)
    decoder.set_blocks(rams)
    a, b, c = random_page(1), random_page(2), random_page(3)
    decoder.decode(ReadBuffer.from_bytes(
        page(0, a, "pc.ram") + page(PAGE, b) + page(0, c, "/rom@etc/acpi/tables") + zero(PAGE) + EOS))
    staging.apply()
    assert (memory(first), memory(first, PAGE), memory(second)) == (a, b, c)
    assert first.counts["normal_pages"] == 2
    assert second.counts == second.counts | {"normal_pages": 1, "zero_pages": 1}


def test_continue_works_across_bodies_and_checkpoints():
    ram, = rams = blocks()
    staging = Staging()
    decoder = PageDecoder(staging)
    decoder.set_blocks(rams)
    decoder.decode(ReadBuffer.from_bytes(zero(0, "pc.ram") + EOS))
    decoder.decode(ReadBuffer.from_bytes(page(PAGE, random_page(4)) + EOS))
    staging.apply()
    decoder.set_blocks(rams)
    decoder.decode(ReadBuffer.from_bytes(page(0, random_page(5)) + EOS))
    staging.apply()
    assert memory(ram, 0, 2 * PAGE) == random_page(5) + random_page(4)


def test_later_records_of_a_page_win():
    ram, = rams = blocks()
    staging = Staging()
    decoder = PageDecoder(staging)
    decoder.set_blocks(rams)
    old, new = random_page(1), bytearray(random_page(1))
    new[100:110] = b"0123456789"
    delta = encode_xbzrle(old, bytes(new))
    decoder.decode(ReadBuffer.from_bytes(page(0, bytes(PAGE), "pc.ram") + page(0, old) + xbzrle(0, delta) + EOS))
    staging.apply()
    assert memory(ram) == bytes(new)


def test_zero_clears_what_was_there():
    ram, = rams = blocks()
    memoryview(ram.memory_buffer)[:] = b"x" * (PAGES * PAGE)
    staging = Staging()
    decoder = PageDecoder(staging)
    decoder.set_blocks(rams)
    decoder.decode(ReadBuffer.from_bytes(zero(0, "pc.ram") + zero(PAGE) + zero(3 * PAGE) + EOS))
    assert staging.records == 2, "neighbouring zero pages are one run"
    staging.apply()
    assert memory(ram, 0, 5 * PAGE) == bytes(2 * PAGE) + b"x" * PAGE + bytes(PAGE) + b"x" * PAGE


def test_compressed_pages():
    ram, = rams = blocks()
    staging = Staging()
    decoder = PageDecoder(staging)
    decoder.set_blocks(rams)
    data = bytes(range(256)) * 16
    decoder.decode(ReadBuffer.from_bytes(
        compressed(0, zlib.compress(data), "pc.ram") + compressed(PAGE, zlib.compress(random_page(1))) + EOS))
    staging.apply()
    assert memory(ram, 0, 2 * PAGE) == data + random_page(1)


def test_many_compressed_pages_in_the_immediate_mode():
    pages = 3000
    ram = RamBlock("pc.ram", pages * PAGE, memory=bytearray(pages * PAGE))
    decoder = decoder_over([ram], immediate=True)
    data = [bytes((i % 251 + 1,)) * PAGE for i in range(pages)]
    stream = compressed(0, zlib.compress(data[0]), "pc.ram") + b"".join(
        compressed(i * PAGE, zlib.compress(data[i])) for i in range(1, pages))
    decoder.decode(ReadBuffer.from_bytes(stream + EOS))
    assert memory(ram, 0, pages * PAGE) == b"".join(data)


def test_mem_size_is_handed_to_the_caller():
    decoder = PageDecoder(Staging())
    buf = ReadBuffer.from_bytes(struct.pack(">Q", 7 * PAGE | RamFlag.MEM_SIZE) + b"rest")
    assert decoder.decode(buf) == 7 * PAGE
    assert buf.position == 8


def test_what_follows_the_body_stays_in_the_buffer():
    decoder = decoder_over(blocks())
    buf = ReadBuffer.from_bytes(zero(0, "pc.ram") + EOS + b"\x7e rest")
    decoder.decode(buf)
    assert buf.read_exact(6) == b"\x7e rest"


@pytest.mark.parametrize(("records", "text"), [
    (head(0, RamFlag.PAGE | RamFlag.ZERO, "pc.ram"), "do not go together"),
    (head(0, RamFlag.HOOK, "pc.ram"), "HOOK"),
    (head(0, 0x400, "pc.ram"), "unknown flag 0x400"),
    (head(0, 0x401, "pc.ram"), "unknown flag 0x401"),
    (head(0, 0, "pc.ram"), "without a type flag"),
    (struct.pack(">Q", RamFlag.EOS | RamFlag.CONTINUE), "do not go together"),
    (struct.pack(">Q", PAGE | RamFlag.EOS), "carries the offset"),
    (page(0, bytes(PAGE)), "no record before it named a block"),
    (head(0, RamFlag.PAGE, ""), "empty name"),
    (head(0, RamFlag.PAGE, "pc.bios"), "not announced"),
    (head(0, RamFlag.PAGE, "pc.ra"), "not announced"),
    (head(PAGES * PAGE, RamFlag.ZERO, "pc.ram") + b"\0", "past the block's end"),
    (head(-PAGE & (1 << 64) - 1, RamFlag.ZERO, "pc.ram") + b"\0", "past the block's end"),
    (head((1 << 64) - PAGE, RamFlag.PAGE, "pc.ram") + bytes(PAGE), "past the block's end"),
    (zero(0, "pc.ram", fill=1), "fills with 0x01"),
    (xbzrle(0, b"", "pc.ram", encoding=2), "encoding 2"),
    (head(0, RamFlag.XBZRLE, "pc.ram") + b"\x01\xff\xff", "more than a page"),
    (zero(0, "pc.ram") + xbzrle(0, b"\x00\x00"), "malformed"),
    (zero(0, "pc.ram") + xbzrle(0, b"\xff\x1f\x02ab"), "malformed"),
    (xbzrle(0, b"\x00\x01a", "pc.ram"), "never came before"),
    (compressed(0, b"", "pc.ram"), "compressed length 0"),
    (head(0, RamFlag.COMPRESS_PAGE, "pc.ram") + b"\xff\xff\xff\xff", "compressed length"),
    (compressed(0, b"not zlib at all", "pc.ram"), "do not inflate"),
    (compressed(0, zlib.compress(bytes(PAGE - 1)), "pc.ram"), "do not inflate"),
    (compressed(0, zlib.compress(bytes(PAGE + 1)), "pc.ram"), "do not inflate"),
])
def test_bad_records_are_refused_by_name(records, text):
    error = refused(records)
    assert text in str(error)
    assert "ram section" in error.where
    assert error.offset is not None
    assert error.value is not None


def test_the_error_gives_the_offset_of_the_bad_record():
    good = page(0, random_page(1), "pc.ram") + zero(PAGE)
    error = refused(good + zero(2 * PAGE, fill=7))
    assert error.offset == len(good)
    assert error.where == "ram section, block pc.ram"


def test_a_checkpoint_larger_than_its_blocks_can_be_is_refused():
    rams = blocks()
    staging = Staging()
    decoder = PageDecoder(staging)
    decoder.set_blocks(rams)
    record = zero(0, "pc.ram")
    with pytest.raises(LimitExceeded, match="than its blocks have pages"):
        decoder.decode(ReadBuffer.from_bytes(b"".join(
            zero((i % 2) * 2 * PAGE, "pc.ram") for i in range(4000)) + record + EOS))


@pytest.mark.parametrize("source", ["memory", "socket"])
def test_truncation_at_every_byte_is_an_error_and_touches_nothing(source):
    ram, = rams = blocks()
    old = random_page(1)
    good = zero(0, "pc.ram") + xbzrle(0, b"\x00\x03abc") + page(PAGE, old)[:64] if source == "socket" else (
        zero(0, "pc.ram") + xbzrle(0, b"\x00\x03abc") + page(PAGE, old) + compressed(2 * PAGE, zlib.compress(old)) + EOS)
    for cut in range(len(good)) if len(good) < 300 else [*range(60), *range(60, len(good) - 1, 97), len(good) - 1]:
        staging = Staging()
        decoder = PageDecoder(staging)
        decoder.set_blocks(rams)
        if source == "memory":
            with pytest.raises(Truncated):
                decoder.decode(ReadBuffer.from_bytes(good[:cut]))
        else:
            ours = os_pair(good[:cut])
            with ours, pytest.raises(ChannelLost):
                decoder.decode(ReadBuffer(ours.fileno()))
        staging.drop()
    assert memory(ram, 0, PAGES * PAGE) == bytes(PAGES * PAGE)


def os_pair(data: bytes) -> socket.socket:
    ours, theirs = socket.socketpair()
    theirs.sendall(data)
    theirs.close()
    return ours


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_end_in_an_error_or_a_body(data, immediate):
    rams = blocks("pc.ram", "b")
    staging = Staging()
    decoder = PageDecoder(staging, immediate=immediate)
    decoder.set_blocks(rams)
    with contextlib.suppress(StreamError):
        decoder.decode(ReadBuffer.from_bytes(zero(0, "pc.ram") + data))
    staging.drop()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(
    st.sampled_from(["page", "zero", "xbzrle", "compressed"]), st.integers(0, PAGES - 1), st.integers(0, 2**32)),
    max_size=60), st.integers(1, 9000), st.booleans(), st.integers(0, 70))
def test_any_mix_of_records_gives_what_a_model_gives(plan, chunk, immediate, begin):
    room = bytearray(b"\xa5" * (PAGES * PAGE + 200))
    ram, = rams = [RamBlock("pc.ram", PAGES * PAGE, memory=memoryview(room)[begin : begin + PAGES * PAGE])]
    room[begin : begin + PAGES * PAGE] = bytes(PAGES * PAGE)
    model = bytearray(PAGES * PAGE)
    stream, first = b"", True
    seen: set[int] = set()
    for kind, index, seed in plan:
        offset, name = index * PAGE, "pc.ram" if first else None
        rng = random.Random(seed)
        if kind == "xbzrle" and index not in seen:
            kind = "zero"
        old = bytes(model[offset : offset + PAGE])
        if kind == "page":
            new = rng.randbytes(PAGE)
            stream += page(offset, new, name)
        elif kind == "zero":
            new = bytes(PAGE)
            stream += zero(offset, name)
        elif kind == "compressed":
            new = rng.randbytes(16) * (PAGE // 16)
            stream += compressed(offset, zlib.compress(new), name)
        else:
            changed = bytearray(old)
            for _ in range(rng.randrange(1, 20)):
                changed[rng.randrange(PAGE)] = rng.randrange(256)
            new = bytes(changed)
            stream += xbzrle(offset, encode_xbzrle(old, new), name)
        model[offset : offset + PAGE] = new
        seen.add(index)
        first = False
    stream += EOS + b"tail"
    staging = Staging()
    decoder = PageDecoder(staging, immediate=immediate)
    decoder.set_blocks(rams)
    read_end, write_end = os.pipe()

    def feed():
        for i in range(0, len(stream), chunk):
            os.write(write_end, stream[i : i + chunk])
        os.close(write_end)

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        buf = ReadBuffer(read_end)
        assert decoder.decode(buf) == BODY_ENDED
        assert buf.read_exact(4) == b"tail"
    finally:
        thread.join()
        os.close(read_end)
    staging.reserve()
    staging.apply()
    assert memory(ram, 0, PAGES * PAGE) == bytes(model)
    assert ram.received_pages == len(seen)
    around = room[:begin] + room[begin + PAGES * PAGE :]
    assert around == b"\xa5" * 200


def test_replaying_twice_is_the_same_as_once():
    """A replay that was cut short is repeated from the start."""
    ram, = rams = blocks()
    stream = (page(0, random_page(1), "pc.ram") + xbzrle(0, b"\x05\x03abc") + zero(PAGE) + page(PAGE, random_page(2)) + EOS)
    for _ in range(2):
        staging = Staging()
        decoder = PageDecoder(staging)
        decoder.set_blocks(rams)
        decoder.decode(ReadBuffer.from_bytes(stream))
        staging.apply()
    expected = bytearray(random_page(1))
    expected[5:8] = b"abc"
    assert memory(ram, 0, 2 * PAGE) == bytes(expected) + random_page(2)


@pytest.fixture
def sparse(tmp_path):
    fd = os.open(tmp_path / "ram", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, PAGES * PAGE)
    yield RamBlock("pc.ram", PAGES * PAGE, memory=mmap.mmap(fd, PAGES * PAGE), fd=fd), fd
    os.close(fd)


def test_a_sparse_file_gets_storage_for_what_is_written_only(sparse):
    ram, _ = sparse
    staging = Staging()
    decoder = PageDecoder(staging)
    decoder.set_blocks([ram])
    decoder.decode(ReadBuffer.from_bytes(
        zero(0, "pc.ram") + page(8 * PAGE, random_page(1)) + page(9 * PAGE, random_page(2)) + zero(20 * PAGE) + EOS))
    staging.reserve()
    staging.apply()
    assert ram.present_pages == 2
    assert memory(ram, 8 * PAGE, 2 * PAGE) == random_page(1) + random_page(2)
    decoder.set_blocks([ram])
    decoder.decode(ReadBuffer.from_bytes(zero(9 * PAGE, "pc.ram") + EOS))
    staging.reserve()
    staging.apply()
    assert memory(ram, 9 * PAGE) == bytes(PAGE)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_file_system_is_told_before_anything_is_applied(tmp_path):
    import subprocess

    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=False).returncode:
        pytest.skip("mount is not permitted here")
    try:
        fd = os.open(tmp_path / "ram", os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, PAGES * PAGE)
        with mmap.mmap(fd, PAGES * PAGE) as mapped:
            ram = RamBlock("pc.ram", PAGES * PAGE, memory=mapped, fd=fd)
            staging = Staging()
            decoder = PageDecoder(staging)
            decoder.set_blocks([ram])
            decoder.decode(ReadBuffer.from_bytes(page(0, random_page(0), "pc.ram") + b"".join(
                page(i * PAGE, random_page(i)) for i in range(1, PAGES)) + EOS))
            with pytest.raises(StorageError, match="No space left"):
                staging.reserve()
            staging.drop()
            assert mapped[:PAGE] == bytes(PAGE)
            del decoder, staging, ram
            os.close(fd)
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=False)


def test_blocks_are_checked_when_made():
    with pytest.raises(ValueError, match="whole pages"):
        RamBlock("a", 100)
    with pytest.raises(ValueError, match="1 to 255"):
        RamBlock("", PAGE)
    with pytest.raises(ValueError, match="bytes of memory"):
        RamBlock("a", 2 * PAGE, memory=bytearray(PAGE))
    with pytest.raises(BufferError):
        RamBlock("a", PAGE, memory=bytes(PAGE))


def test_a_resized_block_keeps_what_is_known_of_its_pages():
    small, = rams = blocks()
    decoder = decoder_over(rams, immediate=True)
    decoder.decode(ReadBuffer.from_bytes(page(PAGE, random_page(1), "pc.ram") + EOS))
    large = RamBlock("pc.ram", 2 * PAGES * PAGE, memory=bytearray(2 * PAGES * PAGE))
    large.adopt(small)
    assert large.received_pages == 1
    decoder = decoder_over([large])
    assert decoder.decode(ReadBuffer.from_bytes(xbzrle(PAGE, b"\x00\x01a", "pc.ram") + EOS)) == BODY_ENDED
