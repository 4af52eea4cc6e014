"""The digest of a checkpoint's bytes: the same for the same bytes however they come, another for any damage."""

from __future__ import annotations

import os
import socket
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colo._fast.kernels.bitmap import DirtyBitmap
from colo._fast.kernels.digest import StreamDigest
from colo._fast.kernels.kernels import levels
from colo._fast.kernels.ramblock import RamBlock
from colo._fast.receive.buffers import ReadBuffer
from colo._fast.receive.pagedecoder import EOS, PageDecoder
from colo._fast.receive.staging import Staging
from colo._fast.send.pagecache import ShadowCache
from colo._fast.send.pageencoder import PageEncoder
from colo._fast.send.recordarena import RecordArena

PAGE = 4096
PATTERN = bytes(os.urandom(3 * PAGE + 77))


def digest_of(*pieces: bytes, simd: str | None = None) -> int:
    digest = StreamDigest(simd=simd)
    for piece in pieces:
        digest.update(piece)
    return digest.value


@given(st.lists(st.integers(0, len(PATTERN)), max_size=12))
def test_pieces_do_not_matter(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(PATTERN)]
    pieces = [PATTERN[a:b] for a, b in pairwise(places)]
    assert digest_of(*pieces) == digest_of(PATTERN)


@given(st.binary(max_size=3 * PAGE))
@settings(max_examples=50)
def test_every_level_agrees(data: bytes) -> None:
    assert len({digest_of(data, simd=level) for level in levels()}) == 1


def test_it_is_the_same_in_every_release() -> None:
    """Both ends must agree: the digest is part of the wire."""
    assert f"{digest_of(b''):032x}" == "08a0ae3d90b9ec9df2f0a33236584925"
    assert f"{digest_of(bytes(range(256)) * 40):032x}" == "63f7a7dca83d75dd1dc6e7dcb5a826c2"


@given(st.integers(0, len(PATTERN) * 8 - 1))
def test_one_bit_makes_another(bit: int) -> None:
    data = bytearray(PATTERN)
    data[bit // 8] ^= 1 << bit % 8
    assert digest_of(bytes(data)) != digest_of(PATTERN)


def test_lost_doubled_and_swapped_blocks_are_noticed() -> None:
    a, b = PATTERN[:PAGE], PATTERN[PAGE : 2 * PAGE]
    all_of_them = [digest_of(x) for x in (b"", a, b, a + b, b + a, a + a, a + bytes(1), a[:-1], bytes(PAGE), bytes(2 * PAGE))]
    assert len(set(all_of_them)) == len(all_of_them)


def test_it_goes_on_after_its_value_was_read_and_begins_anew() -> None:
    digest = StreamDigest()
    digest.update(PATTERN[:100])
    assert digest.value == digest.value
    digest.update(PATTERN[100:])
    assert digest.value == digest_of(PATTERN)
    assert digest.length_bytes == len(PATTERN)
    digest.reset()
    assert digest.value == digest_of(b"")


def memory_of(pages: int) -> bytearray:
    memory = bytearray(os.urandom(pages * PAGE))
    memory[PAGE : 2 * PAGE] = bytes(PAGE)
    return memory


@pytest.mark.parametrize("remember", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("collected", [False, True])
def test_sender_and_receiver_agree(remember: bool, threads: int, collected: bool) -> None:
    """Over a socket, with and without deltas; headers between the records are not part of it."""
    pages = 1500
    memory = memory_of(pages)
    shadow = ShadowCache(pages) if remember else None
    out, back = socket.socketpair()
    arena = RecordArena() if collected else None
    encoder = PageEncoder(None if collected else out, threads=threads, arena=arena)
    staging, block = Staging(), RamBlock("ram", len(memory), memory=bytearray(len(memory)))
    decoder = PageDecoder(staging)
    sent, received = StreamDigest(), StreamDigest()
    encoder.set_digest(sent)
    decoder.set_digest(received)
    with out, back:
        out.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        for epoch in range(3):
            memory[epoch * 7 * PAGE + 5] ^= 0xFF
            sent.reset()
            received.reset()
            bitmap = DirtyBitmap(pages)
            bitmap.set(0, 3 if epoch else 60)
            bitmap.set(epoch * 7, 1)
            encoder.write(b"a header")
            encoder.begin_block("ram", memory, bitmap, shadow, age=epoch)
            encoder.encode()
            encoder.end_section()
            encoder.close()
            if arena is not None:
                out.sendall(arena)
                arena.clear()
            assert back.recv(8, socket.MSG_WAITALL) == b"a header"
            decoder.set_blocks([block])
            assert decoder.decode(ReadBuffer(back.fileno())) == EOS
            assert sent.value == received.value
            assert sent.length_bytes > 0
            staging.apply()


def test_an_arena_in_use_neither_moves_nor_changes() -> None:
    arena = RecordArena()
    assert bytes(arena) == b"" and len(arena) == 0
    encoder = PageEncoder(arena=arena)
    encoder.write(b"abc", flush=True)
    with memoryview(arena) as view:
        assert bytes(view) == b"abc" and view.readonly
        for refused in (lambda: arena.clear(), lambda: arena.prepare(64 << 20), lambda: encoder.write(b"d", flush=True)):
            with pytest.raises(BufferError, match="release the memoryview"):
                refused()
    arena.clear()
    with pytest.raises(ValueError, match="not both"):
        PageEncoder(1, arena=arena)


def test_an_arena_keeps_its_memory_as_far_as_asked() -> None:
    arena = RecordArena()
    encoder = PageEncoder(arena=arena)
    arena.prepare(5 << 20)
    room = arena.room_bytes
    assert room >= 5 << 20
    data = os.urandom(9 << 20)
    encoder.write(data, flush=True)
    assert bytes(arena) == data
    arena.clear(1 << 20)
    assert len(arena) == 0 and arena.room_bytes >= room
