"""What is put around a migration stream in a file: libvirt's header, and compression.

::

    0   16  "LibvirtQemudSave" ("LibvirtQemudPart" while it is written)
    16   4  version, in the order of bytes of the host that wrote it
    20   4  bytes of the domain's XML that follows the header, cookie and padding included
    24   4  whether the VM ran
    28   4  format of the stream behind the XML
    32  60  more numbers
"""

from __future__ import annotations

import bz2
import importlib
import lzma
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from colo._fast.receive.buffers import ReadBuffer
from colo.errors import LimitExceeded, StreamError

LIBVIRT_MAGICS = (b"LibvirtQemudSave", b"LibvirtQemudPart")
LIBVIRT_HEADER_BYTES = 92
LIBVIRT_XML_MAX = 16 << 20
LIBVIRT_FORMATS = ("raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse")
PADDING_MAX = 1 << 20
"""Zeros that may stand between the XML and the stream, where it is aligned."""
CHUNK_BYTES = 1 << 20

Compression = Literal["gzip", "bzip2", "xz", "zstd", "lzop"]
COMPRESSED: dict[bytes, Compression] = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x89LZO\0\r\n\x1a\n": "lzop",
}


@dataclass(frozen=True, slots=True)
class LibvirtHeader:
    """What libvirt says ahead of the stream; ``whole`` is False when the save did not come to its end."""

    whole: bool
    version: int
    was_running: bool
    format: str
    xml_bytes: int
    domain: str


def read_libvirt_header(buf: ReadBuffer) -> LibvirtHeader | None:
    """Read the header and the XML if they are there, up to the stream's first byte; None, with nothing read, if not.

    Raises StreamError for numbers that cannot be.
    """
    start = buf.position
    magic = buf.peek(16)
    if magic not in LIBVIRT_MAGICS:
        return None
    raw = buf.read_exact(LIBVIRT_HEADER_BYTES)
    order: Literal["little", "big"] = "little" if raw[18:20] == b"\0\0" else "big"
    version, length, running, kind = (int.from_bytes(raw[at : at + 4], order) for at in (16, 20, 24, 28))
    where = "libvirt's header"
    if kind >= len(LIBVIRT_FORMATS):
        raise StreamError(f"format {kind} is not known", where=where, offset=start + 28, value=kind)
    if length > LIBVIRT_XML_MAX:
        raise LimitExceeded(
            f"{length} bytes of XML, at most {LIBVIRT_XML_MAX} are read", where=where, offset=start + 20, value=length
        )
    xml = buf.read_exact(length)
    _skip_zeros(buf)
    return LibvirtHeader(magic == LIBVIRT_MAGICS[0], version, bool(running), LIBVIRT_FORMATS[kind], length, _name_in(xml))


def _name_in(xml: bytes) -> str:
    """The domain's name: the text of the first ``<name>``, which libvirt writes before any other's."""
    begin = xml.find(b"<name>")
    end = xml.find(b"</name>", begin)
    text = xml[begin + 6 : min(end, begin + 261)].decode(errors="replace") if 0 <= begin < end else ""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _skip_zeros(buf: ReadBuffer) -> None:
    left = PADDING_MAX
    while left and (chunk := buf.peek(min(left, 4096))):
        zeros = len(chunk) - len(chunk.lstrip(b"\0"))
        buf.skip(zeros)
        left -= zeros
        if zeros < len(chunk):
            return


def compression_of(start: bytes) -> Compression | None:
    """How a file that begins so is compressed; None: in no way that is known."""
    return next((name for magic, name in COMPRESSED.items() if start.startswith(magic)), None)


def _inflate(chunks: Iterator[bytes], make: Callable[[], Any], magic: bytes) -> Iterator[bytes]:
    """Decompress members that follow each other, at most CHUNK_BYTES at a time whatever their ratio. What follows the
    last one and begins otherwise is left out, as the tools do."""
    decoder = make()
    begun = False
    for chunk in chunks:
        data, pending = chunk, False
        while data or pending:
            out = decoder.decompress(data, CHUNK_BYTES)
            begun = True
            if out:
                yield out
            if decoder.eof:
                data, pending = decoder.unused_data.lstrip(b"\0"), False
                if data and not data.startswith(magic[: len(data)]):
                    return
                decoder, begun = make(), False
                continue
            data = getattr(decoder, "unconsumed_tail", b"")
            pending = not decoder.needs_input if hasattr(decoder, "needs_input") else len(out) == CHUNK_BYTES
    if begun:
        raise EOFError("they end in the middle")


def _zstd() -> Callable[[], Any] | None:
    try:
        return importlib.import_module("compression.zstd").ZstdDecompressor  # type: ignore[no-any-return]
    except ImportError:
        return None


def _maker(kind: Compression) -> Callable[[], Any] | None:
    return {
        "gzip": lambda: zlib.decompressobj(wbits=31),
        "bzip2": bz2.BZ2Decompressor,
        "xz": lambda: lzma.LZMADecompressor(memlimit=1 << 28),
        "zstd": _zstd(),
        "lzop": None,
    }[kind]


@contextmanager
def decompressed(buf: ReadBuffer, kind: Compression) -> Iterator[ReadBuffer]:
    """A reader of what ``buf`` holds from here on, decompressed by a thread beside, a bounded piece ahead.

    Raises StreamError for what cannot be decompressed here, with what to do; at the end also for damaged data.
    """
    make = _maker(kind)
    if make is None:
        raise StreamError(
            f"compressed with {kind}, which Python has nothing for here: {kind} -dc FILE | colo inspect -"
            + (f" (the compressed part begins at byte {buf.position}: tail -c +{buf.position + 1})" if buf.position else ""),
            where="file",
            offset=buf.position,
            value=kind,
        )
    failure: list[Exception] = []

    def source() -> Iterator[bytes]:
        while not buf.at_end():
            chunk = buf.peek(min(buf.available, CHUNK_BYTES))
            buf.skip(len(chunk))
            yield chunk

    magic = next(magic for magic, name in COMPRESSED.items() if name == kind)
    with fed(_inflate(source(), make, magic), failure) as inner:
        try:
            yield inner
        except StreamError as error:
            if not failure:
                raise
            raise _damaged(kind, failure[0]) from error
    if failure:
        raise _damaged(kind, failure[0])


def _damaged(kind: str, error: Exception) -> StreamError:
    return StreamError(f"the {kind} data are damaged: {error}", where="file")


@contextmanager
def fed(chunks: Iterator[bytes], failure: list[Exception]) -> Iterator[ReadBuffer]:
    """A reader of ``chunks``, which a thread writes into a pipe as they are read; what the iterator raises ends the data
    and is kept in ``failure``."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)

    def feed() -> None:
        try:
            for chunk in chunks:
                view = memoryview(chunk)
                while view:
                    view = view[os.write(write_end, view) :]
        except BrokenPipeError:
            pass  # the reader has seen enough
        except Exception as error:
            failure.append(error)
        finally:
            os.close(write_end)

    thread = threading.Thread(target=feed, name="feed", daemon=True)
    try:
        inner = ReadBuffer(read_end)
        thread.start()
        yield inner
    finally:
        os.close(read_end)
        thread.join()
