"""A primary that sends what it may not: told where and why, the epoch dropped, the committed checkpoint whole."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from colo.errors import (
    ChannelError,
    ChannelLost,
    ColoError,
    DeadlineExceeded,
    LimitExceeded,
    ProtocolError,
    StreamError,
)
from colo.protocol import Mode
from colo.stream.commands import command, packaged
from colo.stream.writer import (
    configuration,
    device_section,
    end_of_section,
    end_of_stream,
    file_header,
    ram_start_section,
    section_end,
    section_footer,
    section_part,
    vmdescription,
)
from colo.wire import Command, RamFlag
from tests.session.scripted_primary import (
    BLOCKS,
    LIMITS,
    LOADED,
    PAGE,
    READY,
    RECEIVED,
    REPLY,
    REQUEST,
    SEND,
    Peer,
    delta,
    devices,
    epoch,
    infos,
    initial,
    live,
    page,
    raw,
    record,
    section,
    size_message,
    vmdesc,
    zero,
)

ROM = BLOCKS[1][0]
GOOD = raw(2 * PAGE, 77) + zero(3 * PAGE, None) + delta(4 * PAGE, b"\x04\x02ab")


def after(records: bytes) -> bytes:
    """A checkpoint's bytes with ``records``, as far as a receiver could read them."""
    return SEND + live(records)


def blob_message(blob: bytes) -> bytes:
    return SEND + live(GOOD) + size_message(len(blob)) + blob


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    with Peer(tmp_path) as each:
        each.begin()
        changed = bytearray(page(4))
        changed[4:6] = b"ab"
        each.checkpoint(GOOD, {2 * PAGE: page(77), 3 * PAGE: bytes(PAGE), 4 * PAGE: bytes(changed)})
        yield each


def test_an_honest_primary_is_followed(peer: Peer) -> None:
    for number in range(2, 6):
        peer.checkpoint(raw(number * PAGE, 200 + number), {number * PAGE: page(200 + number)})
    peer.sock.close()
    assert isinstance(peer.finish(), ChannelLost)
    peer.check()


RECORDS: dict[str, tuple[bytes, str]] = {
    "a block never announced": (raw(0, 1, "vga.vram"), "not announced"),
    "an offset at the block's end": (raw(16 * PAGE, 1), "past the block's end"),
    "an offset that wraps": (raw((1 << 64) - PAGE, 1), "past the block's end"),
    "an offset past the smaller block": (raw(2 * PAGE, 1, ROM), "past the block's end"),
    "two types": (record(0, RamFlag.PAGE | RamFlag.ZERO, page(1)), "do not go together"),
    "all types": (record(0, 0xFFF, page(1)), "flag"),
    "no type": (record(0, 0, page(1)), "without a type flag"),
    "RDMA's flag": (record(0, RamFlag.HOOK, b""), "HOOK"),
    "an unknown flag": (record(0, 0x400, b""), "unknown flag"),
    "a fill byte": (zero(0, fill=7), "fills with 0x07"),
    "an empty block name": ((RamFlag.PAGE).to_bytes(8, "big") + b"\0" + page(1), "empty name"),
    "a block name with NUL": (record(0, RamFlag.PAGE, page(1), "pc\0ram"), "not announced"),
    "XBZRLE of another encoding": (record(0, RamFlag.XBZRLE, b"\x02\0\0"), "encoding"),
    "XBZRLE longer than a page": (record(0, RamFlag.XBZRLE, b"\x01\xff\xff"), "length"),
    "XBZRLE past the page": (delta(0, b"\xfa\x1f\x0a" + b"x" * 10), "malformed|past the page"),
    "XBZRLE with an empty run": (delta(0, b"\x01\x00"), "malformed"),
    "XBZRLE on a page that never came": (delta(PAGE, b"\x00\x01a", ROM), "never came"),
    "compressed to nothing": (record(0, RamFlag.COMPRESS_PAGE, bytes(4)), "compressed length 0"),
    "compressed to too much": (record(0, RamFlag.COMPRESS_PAGE, b"\xff\xff\xff\xff"), "compressed length"),
    "compressed garbage": (record(0, RamFlag.COMPRESS_PAGE, b"\0\0\0\x08notzlib!"), "do not inflate"),
    "an end with an offset": ((PAGE | RamFlag.EOS).to_bytes(8, "big"), "offset"),
    "a second block list": ((PAGE | RamFlag.MEM_SIZE).to_bytes(8, "big"), "second MEM_SIZE"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_bad_record_drops_the_epoch(peer: Peer, name: str) -> None:
    bad, words = RECORDS[name]
    peer.request()
    peer.send(after(raw(5 * PAGE, 99) + bad))
    error = peer.finish()
    assert isinstance(error, StreamError), error
    assert error.offset is not None and error.where
    with pytest.raises(StreamError, match=words):
        raise error
    peer.check()


def block_list(total: int, *blocks: tuple[str, int]) -> bytes:
    """START of a checkpoint's live state with a block list of one's own."""
    body = (total | RamFlag.MEM_SIZE).to_bytes(8, "big")
    body += b"".join(bytes((len(n),)) + n.encode() + length.to_bytes(8, "big") for n, length in blocks)
    return SEND + b"\x01" + bytes((0, 0, 0, 2)) + b"\x03ram" + bytes(4) + bytes((0, 0, 0, 4)) + body


SUM = sum(length for _, length in BLOCKS)
BLOCK_LISTS: dict[str, tuple[bytes, str]] = {
    "blocks that pass the total": (block_list(SUM - PAGE, *BLOCKS), "sum"),
    "a length of 2^64 - 1": (block_list(SUM, ("pc.ram", (1 << 64) - 1)), "whole pages"),
    "a length of 2^64 - 4096": (block_list(SUM, ("pc.ram", (1 << 64) - PAGE)), "sum"),
    "a total of 2^64 - 4096": (block_list((1 << 64) - PAGE, ("pc.ram", (1 << 64) - PAGE)), "at most"),
    "an empty block": (block_list(SUM, ("pc.ram", 0)), "used length"),
    "half a page": (block_list(SUM, ("pc.ram", 2048)), "whole pages"),
    "a block twice": (block_list(SUM, ("pc.ram", PAGE), ("pc.ram", PAGE)), "twice"),
    "another list": (block_list(PAGE, ("pc.ram", PAGE)), "changed"),
    "another order": (block_list(SUM, *reversed(BLOCKS)), "changed"),
    "a name with NUL": (block_list(SUM, ("pc\0ram", SUM)), "control characters"),
    "an empty name": (block_list(SUM, ("", SUM)), "empty name"),
    "more than is allowed": (block_list(1 << 40, ("pc.ram", (1 << 40) - 2 * PAGE), (ROM, 2 * PAGE)), "at most"),
}


@pytest.mark.parametrize("name", BLOCK_LISTS)
def test_a_bad_block_list_drops_the_epoch(peer: Peer, name: str) -> None:
    bad, words = BLOCK_LISTS[name]
    peer.request()
    peer.send(bad)
    error = peer.finish()
    assert isinstance(error, StreamError), error
    with pytest.raises(StreamError, match=words):
        raise error
    peer.check()


SECTIONS: dict[str, tuple[bytes, str]] = {
    "an unknown section type": (b"\x55", "unknown section type"),
    "a footer outside": (section_footer(2), "footer outside"),
    "a configuration": (configuration("pc-test"), "CONFIGURATION"),
    "a vmdesc": (vmdesc(), "vmdesc"),
    "a section never started": (section_part(9), "started"),
    "pages before START": (section(raw(0, 5)) + ram_start_section(2, infos()), "behind pages"),
    "another live section": (b"\x01" + bytes(4) + b"\x05block" + bytes(8), "not served"),
    "another ram version": (b"\x01" + bytes((0, 0, 0, 2)) + b"\x03ram" + bytes(4) + bytes((0, 0, 0, 3)), "version"),
    "a footer of another": (section_end(2) + end_of_section() + section_footer(3), "footer of section 3"),
    "no footer": (section_end(2) + end_of_section() + b"\0", "footer"),
    "no ram section": (end_of_stream(), "without a whole ram section"),
    "only START": (ram_start_section(2, infos()) + end_of_stream(), "without a whole ram section"),
    "ended twice": (live(GOOD)[:-1] + section(GOOD), "ended before"),
    "an unknown command": (b"\x08" + bytes((0, 99, 0, 0)), "unknown command"),
    "a command of a wrong size": (b"\x08" + bytes((0, 2, 0, 3)) + b"abc", "payload"),
    "devices in the live state": (devices(2)[:-1] + end_of_stream(), "device sections"),
    "PACKAGED": (packaged(device_section(9, "x", b"1", version_id=1)), "."),
    "PACKAGED too large": (command(Command.PACKAGED, b"\xff\xff\xff\xff"), "."),
    "COLO enabled again": (command(Command.ENABLE_COLO), "."),
    "postcopy": (command(Command.POSTCOPY_LISTEN), "."),
}


@pytest.mark.parametrize("name", SECTIONS)
def test_a_bad_section_drops_the_epoch(peer: Peer, name: str) -> None:
    bad, words = SECTIONS[name]
    peer.request()
    peer.send(SEND + bad)
    error = peer.finish()
    assert isinstance(error, (StreamError, ProtocolError)), repr(error)
    with pytest.raises(ColoError, match=words):
        raise error
    peer.check()


BLOBS: dict[str, tuple[bytes, str]] = {
    "no sections": (b"\0", "no device section"),
    "garbage": (os.urandom(300), "."),
    "no EOF": (devices(2)[:-1], "."),
    "bytes behind the EOF": (devices(2) + b"xyz", "follow"),
    "a device missing": (device_section(3, "timer", bytes(8), version_id=2) + b"\0", "missing"),
    "a new device": (devices(2)[:-1] + device_section(5, "evil", b"abcd", version_id=1) + b"\0", "new"),
    "a section id twice": (
        device_section(3, "timer", bytes(8), version_id=2) + device_section(3, "cpu", bytes(16), version_id=1) + b"\0", "."),
    "a bad footer": (devices(2)[:-6] + section_footer(9) + b"\0", "."),
    "another instance": (
        device_section(3, "timer", bytes(8), instance_id=1, version_id=2)
        + device_section(4, "cpu", bytes(16), version_id=1) + b"\0", "."),
    "ram among them": (
        device_section(3, "timer", bytes(8), version_id=2) + device_section(2, "ram", bytes(16), version_id=4) + b"\0", "."),
}


@pytest.mark.parametrize("name", BLOBS)
def test_bad_device_state_is_never_acknowledged(peer: Peer, name: str) -> None:
    blob, words = BLOBS[name]
    peer.request()
    peer.send(blob_message(blob))
    error = peer.finish()
    assert isinstance(error, StreamError), repr(error)
    with pytest.raises(StreamError, match=words):
        raise error
    peer.follower.sock.close()
    assert peer.sock.recv(100) == b"", "something was acknowledged"
    peer.check()


@pytest.mark.parametrize("size", [0, LIMITS.device_state_bytes + 1, (1 << 63), (1 << 64) - 1])
def test_a_device_state_s_size_is_bounded_before_it_is_believed(peer: Peer, size: int) -> None:
    peer.request()
    peer.send(SEND + live(GOOD) + size_message(size))
    error = peer.finish()
    assert isinstance(error, StreamError) and error.value == size and error.offset is not None
    peer.check()


MESSAGES: dict[str, bytes] = {
    "no message": (99).to_bytes(4, "big"),
    "one of the secondary's": RECEIVED,
    "READY": READY,
    "LOADED": LOADED,
    "VMSTATE_SEND unasked": SEND,
    "a size unasked": size_message(100),
    "REQUEST twice": REQUEST + REQUEST,
    "REPLY": REPLY,
    "all ones": b"\xff" * 64,
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_out_of_order_is_told(peer: Peer, name: str) -> None:
    peer.send(MESSAGES[name])
    error = peer.finish()
    assert isinstance(error, (StreamError, ProtocolError)), repr(error)
    peer.check()


def test_a_duplicate_in_the_epoch_is_told(peer: Peer) -> None:
    peer.request()
    peer.send(SEND + live(GOOD) + SEND)
    assert isinstance(peer.finish(), ProtocolError)
    peer.check()


def test_a_checkpoint_that_repeats_is_an_error_and_not_applied(peer: Peer) -> None:
    """The one before, late, without a REQUEST."""
    peer.send(epoch(raw(0, 66), 1))
    assert isinstance(peer.finish(), (ProtocolError, StreamError))
    peer.check()


def test_garbage_between_checkpoints(peer: Peer) -> None:
    peer.send(random.Random(3).randbytes(5000))
    assert isinstance(peer.finish(), (ProtocolError, StreamError))
    peer.check()


@pytest.mark.parametrize("mode", [Mode.EARLY, Mode.STRICT])
@pytest.mark.parametrize("kind", ["grow", "shrink and grow"])
def test_a_resized_block_is_legal_and_exact(tmp_path: Path, mode: Mode, kind: str) -> None:
    with Peer(tmp_path, mode=mode) as peer:
        peer.begin()
        steps = [(4, [raw(0, 7, ROM), raw(3 * PAGE, 8, ROM)])]
        if kind == "grow":
            # The page that came before the block grew is zero now: that must not be taken for done.
            steps += [(5, [zero(0, ROM), zero(3 * PAGE, ROM)]), (70, [zero(0, ROM), raw(69 * PAGE, 9, ROM)])]
        else:
            steps += [(1, [zero(0, ROM)]), (4, [zero(PAGE, ROM), zero(2 * PAGE, ROM), zero(3 * PAGE, ROM)])]
        for number, (pages, records) in enumerate(steps, 1):
            blocks = (BLOCKS[0], (ROM, pages * PAGE))
            blob = devices(number)
            peer.request()
            peer.send(
                SEND + ram_start_section(2, infos(blocks)) + section(b"".join(records)) + end_of_stream()
                + size_message(len(blob)) + blob
            )
            peer.expect(RECEIVED + LOADED)
            peer.number = number
            memory = peer.memory[ROM]
            del memory[pages * PAGE :]
            memory.extend(bytes(pages * PAGE - len(memory)))
            for each in records:
                offset = int.from_bytes(each[:8], "big") & ~(PAGE - 1)
                data = each[9 + len(ROM) :]
                memory[offset : offset + PAGE] = data if len(data) == PAGE else bytes(PAGE)
        peer.sock.close()
        peer.finish()
        peer.check()


def test_a_resize_that_is_not_committed_changes_nothing(peer: Peer) -> None:
    peer.request()
    peer.send(SEND + ram_start_section(2, infos((BLOCKS[0], (ROM, 8 * PAGE)))) + section(raw(7 * PAGE, 1, ROM)))
    peer.sock.close()
    assert isinstance(peer.finish(), ChannelLost)
    peer.check()


def test_cut_at_every_byte_of_a_checkpoint(tmp_path: Path) -> None:
    whole = epoch(zero(0) + delta(PAGE, b"\x02\x03xyz", None) + raw(PAGE * 6, 1), 2)
    start = whole.index(page(1))
    dense = [*range(start + 1), *range(start + PAGE - 1, len(whole))]
    offsets = dense + random.Random(1).sample(range(start, start + PAGE), 10)
    for upto in offsets:
        directory = tmp_path / str(upto)
        with Peer(directory) as peer:
            peer.begin()
            peer.checkpoint(raw(8 * PAGE, 50), {8 * PAGE: page(50)})
            peer.request()
            peer.send(whole[:upto])
            peer.sock.close()
            error = peer.finish()
            assert isinstance(error, ChannelLost), f"cut at byte {upto}: {error!r}"
            peer.check()


def test_cut_at_every_byte_of_the_initial_stream(tmp_path: Path) -> None:
    whole = initial(zero(0) + delta(0, b"\x00\x01a"))
    for upto in range(len(whole)):
        with Peer(tmp_path / str(upto)) as peer:
            peer.send(whole[:upto])
            peer.sock.close()
            error = peer.finish()
            assert isinstance(error, ColoError), f"cut at byte {upto}: {error!r}"
            if peer.follower.committed is not None:
                # Only the vmdesc is optional: a stream that ends before it was whole.
                assert upto == len(whole) - len(vmdesc()), upto


INITIAL: dict[str, tuple[bytes, str]] = {
    "garbage": (b"QEVM" + b"\xff" * 100, "version"),
    "no configuration": (file_header() + command(Command.ENABLE_COLO), "CONFIGURATION"),
    "a machine name of 4 GiB": (file_header() + b"\x07\xff\xff\xff\xff", "at most"),
    "pages before the list": (initial()[: initial().index(b"\x01\0\0\0\x02\x03ram")] + section_end(2), "started"),
    "a block list that never ends": (
        file_header() + configuration("pc") + block_list((1 << 63), *((f"b{n}", PAGE) for n in range(5000)))[4:],
        "more than|at most"),
    "too much RAM": (file_header() + configuration("pc") + block_list(1 << 30, ("pc.ram", 1 << 30))[4:], "at most"),
    "a deep vmdesc": (
        initial()[: -len(vmdesc())] + vmdescription(b'{"a":' * 5000 + b"1" + b"}" * 5000), "deep"),
    "a vmdesc over its cap": (initial()[: -len(vmdesc())] + b'\x06\xff\xff\xff\xff{"', "at most"),
    "a vmdesc that disagrees": (
        initial()[: -len(vmdesc())] + vmdescription(b'{"page_size":4096,"devices":[]}'), "vmdesc"),
    "a name of another encoding": (file_header() + b"\x07\0\0\0\x02\xff\xfe", "UTF-8"),
    "PACKAGED": (
        file_header() + configuration("pc") + packaged(packaged(device_section(9, "x", b"1", version_id=1))), "."),
    "shared RAM left out": (file_header() + configuration("pc", capabilities=("x-ignore-shared",)) + bytes(9), "x-ignore-shared"),
}


@pytest.mark.parametrize("name", INITIAL)
def test_a_bad_initial_stream_is_told(tmp_path: Path, name: str) -> None:
    data, words = INITIAL[name]
    with Peer(tmp_path) as peer:
        peer.send(data)
        error = peer.finish()
        assert isinstance(error, (StreamError, ProtocolError)), repr(error)
        with pytest.raises(ColoError, match=words):
            raise error
        assert peer.follower.committed is None


def trickle(peer: Peer, data: bytes, every_s: float) -> float:
    """Send byte by byte until the other end gives up; how long that took."""
    began = time.monotonic()
    for byte in data:
        if peer.error is not None:
            break
        try:
            peer.send(bytes((byte,)))
        except OSError:
            break
        time.sleep(every_s)
    return time.monotonic() - began


EMPTY_PARTS = (section_part(2) + end_of_section() + section_footer(2)) * 1000
TRICKLES: dict[str, tuple[Callable[[Peer], None], bytes]] = {
    "the header": (lambda peer: None, initial()),
    "empty parts of the initial stream": (
        lambda peer: peer.send(initial()[: initial().index(section_end(2))]), EMPTY_PARTS),
    "a message": (lambda peer: peer.begin(), REQUEST),
    "the live state": (lambda peer: (peer.begin(), peer.request()), SEND + live(raw(0, 1))),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("name", TRICKLES)
def test_a_trickle_does_not_outlive_the_deadlines(tmp_path: Path, name: str) -> None:
    prepare, data = TRICKLES[name]
    with Peer(tmp_path, tcp=True) as peer:
        prepare(peer)
        assert trickle(peer, data, 0.1 if name != "a message" else 0.4) < 5
        error = peer.finish()
        assert isinstance(error, DeadlineExceeded), repr(error)
        assert error.phase
        if peer.number >= 0:
            peer.check()


def test_silence_in_the_middle_is_noticed(peer: Peer) -> None:
    peer.request()
    peer.send(epoch(raw(0, 1), 2)[:200])
    error = peer.finish()
    assert isinstance(error, DeadlineExceeded) and error.phase == "progress"
    peer.check()


def test_a_peer_that_does_not_read_is_dropped(tmp_path: Path) -> None:
    with Peer(tmp_path) as peer:
        peer.sock.settimeout(2)
        opened = initial().index(command(Command.ENABLE_COLO))
        peer.send(initial()[:opened] + command(Command.OPEN_RETURN_PATH))
        pings = command(Command.PING, bytes(4)) * 1000
        with pytest.raises(OSError):
            for _ in range(10_000):
                peer.send(pings)
        assert isinstance(peer.finish(), ChannelError)


def test_memory_stays_within_the_limits(tmp_path: Path) -> None:
    me = psutil.Process()
    attacks: list[bytes] = [
        # Zero records without end; pages without end; device state of the most that is allowed, and garbage.
        SEND + live(b"")[: live(b"").index(section_end(2)) + 5] + zero(0) + zero(PAGE, None) * 3_000_000,
        SEND + live(b"")[: live(b"").index(section_end(2)) + 5] + raw(0, 1) + raw(PAGE, 1, None) * 12_000,
        SEND + live(GOOD) + size_message(LIMITS.device_state_bytes) + bytes(LIMITS.device_state_bytes),
    ]
    before = None
    for number, attack in enumerate(attacks):
        with Peer(tmp_path / str(number)) as peer:
            peer.begin()
            peer.request()
            peer.sock.settimeout(0.5)
            before = me.memory_info().rss if before is None else before
            with pytest.raises(OSError):
                for at in range(0, len(attack), 1 << 20):
                    peer.send(attack[at : at + (1 << 20)])
                peer.finish()
                raise ConnectionResetError
            error = peer.finish()
            assert isinstance(error, (LimitExceeded, StreamError)), repr(error)
            grown = me.memory_info().rss - before
            assert grown <= LIMITS.device_state_bytes + (16 << 20), f"attack {number}: {grown >> 20} MiB more"
            peer.check()
