"""What is put around a stream: libvirt's header, compression."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import struct
import threading
import zlib

import pytest

from colo._fast.receive.buffers import ReadBuffer
from colo.errors import LimitExceeded, StreamError
from colo.survey import envelope
from colo.survey.envelope import compression_of, decompressed, read_libvirt_header

XML = b"<domain type='kvm'>\n  <name>vm-1</name>\n  <uuid>x</uuid><name>other</name></domain>\0"


def libvirt(xml=XML, *, magic=b"LibvirtQemudSave", order="<", version=2, running=1, kind=0, length=None, rest=b"QEVM"):
    numbers = struct.pack(order + "5I", version, len(xml) if length is None else length, running, kind, 0)
    return magic + numbers + bytes(56) + xml + rest


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("padding", [0, 5000])
def test_libvirts_header_is_read_in_both_orders_of_bytes(order, padding):
    buf = ReadBuffer.from_bytes(libvirt(order=order, rest=bytes(padding) + b"QEVM"))
    header = read_libvirt_header(buf)
    assert header == envelope.LibvirtHeader(True, 2, True, "raw", len(XML), "vm-1")
    assert buf.peek(4) == b"QEVM"


def test_a_save_that_did_not_end_is_told():
    assert not read_libvirt_header(ReadBuffer.from_bytes(libvirt(magic=b"LibvirtQemudPart"))).whole


def test_what_is_not_libvirts_is_left_unread():
    buf = ReadBuffer.from_bytes(b"QEVM" + bytes(100))
    assert read_libvirt_header(buf) is None
    assert buf.position == 0
    assert read_libvirt_header(ReadBuffer.from_bytes(b"Libvirt")) is None


@pytest.mark.parametrize(
    ("data", "kind", "says"),
    [
        (libvirt(kind=9), StreamError, "format 9"),
        (libvirt(length=1 << 30), LimitExceeded, "1073741824 bytes of XML"),
        (libvirt()[:60], StreamError, "92 bytes expected"),
        (libvirt()[:120], StreamError, "the data ends here"),
    ],
)
def test_headers_that_cannot_be(data, kind, says):
    with pytest.raises(kind, match=says):
        read_libvirt_header(ReadBuffer.from_bytes(data))


def test_a_domains_name_is_printable():
    assert read_libvirt_header(ReadBuffer.from_bytes(libvirt(b"<name>a\x1b[31m\xff</name>"))).domain == "a?[31m\N{REPLACEMENT CHARACTER}"
    assert read_libvirt_header(ReadBuffer.from_bytes(libvirt(b"<name>a"))).domain == ""


PLAIN = os.urandom(300_000) + bytes(5 << 20) + b"end"
MAKERS = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}


def read_all(buf: ReadBuffer) -> bytes:
    got = bytearray()
    while not buf.at_end():
        got += buf.read_exact(buf.available)
    return bytes(got)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("members", [1, 3])
def test_compressed_data_are_read(kind, members):
    data = MAKERS[kind](PLAIN) * members
    assert compression_of(data[:16]) == kind
    with decompressed(ReadBuffer.from_bytes(data), kind) as inner:
        assert read_all(inner) == PLAIN * members


@pytest.mark.parametrize("kind", MAKERS)
def test_what_follows_the_last_member_is_left_out(kind):
    with decompressed(ReadBuffer.from_bytes(MAKERS[kind](b"abc") + bytes(10) + b"garbage"), kind) as inner:
        assert read_all(inner) == b"abc"


@pytest.mark.parametrize("kind", MAKERS)
def test_damaged_and_cut_data_are_told(kind):
    whole = MAKERS[kind](PLAIN)
    for data in (whole[:-20], whole[: len(whole) // 2] + b"xxxx" + whole[len(whole) // 2 + 4 :]):
        with pytest.raises(StreamError, match=f"the {kind} data are damaged"), decompressed(
            ReadBuffer.from_bytes(data), kind
        ) as inner:
            read_all(inner)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_reader_that_has_seen_enough_ends_the_thread(kind):
    before = set(threading.enumerate())  # those of other tests may end meanwhile
    bomb = MAKERS[kind](bytes(64 << 20))
    with decompressed(ReadBuffer.from_bytes(bomb), kind) as inner:
        assert inner.peek(10) == bytes(10)
    assert not set(threading.enumerate()) - before


def test_a_bomb_is_inflated_a_piece_at_a_time():
    pieces = envelope._inflate(iter([gzip.compress(bytes(64 << 20))]), lambda: zlib.decompressobj(wbits=31), b"\x1f\x8b")
    assert max(len(piece) for piece in pieces) <= envelope.CHUNK_BYTES


@pytest.mark.parametrize("kind", ["zstd", "lzop"])
def test_what_python_cannot_decompress_is_refused_with_the_command(kind, monkeypatch):
    monkeypatch.setattr(envelope, "_zstd", lambda: None)
    buf = ReadBuffer.from_bytes(bytes(10) + b"\x28\xb5\x2f\xfd")
    buf.skip(10)
    with pytest.raises(StreamError, match=rf"{kind} -dc FILE \| colo inspect -.*tail -c \+11"), decompressed(buf, kind):
        pass
