"""Names from the wire: one length byte, then text. A name is shown and compared, never used as a path."""

from __future__ import annotations

from typing import TYPE_CHECKING

from colo.errors import StreamError

if TYPE_CHECKING:
    from colo._fast.receive.buffers import ReadBuffer


def decode_name(raw: bytes, *, where: str, offset: int | None) -> str:
    """``raw`` as text. Raises :class:`StreamError` if it is empty, not UTF-8, or has a NUL or other control
    character."""
    if not raw:
        raise StreamError("an empty name", where=where, offset=offset, value=raw)
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise StreamError(
            f"a name that is not UTF-8: {raw!r}", where=where, offset=offset, value=raw
        ) from None
    if not name.isprintable():
        raise StreamError(f"a name with control characters: {raw!r}", where=where, offset=offset, value=raw)
    return name


def read_name(buf: ReadBuffer, where: str) -> str:
    """Read ``u8 len`` and a name of 1 to 255 bytes (QEMU: migration/qemu-file.c:qemu_get_counted_string)."""
    offset = buf.position
    return decode_name(buf.read_exact(buf.read_u8()), where=where, offset=offset)


def encode_name(name: str) -> bytes:
    """``u8 len`` and the name. Raises ValueError for what :func:`read_name` would refuse."""
    raw = name.encode()
    if not 1 <= len(raw) <= 255 or not name.isprintable():
        raise ValueError(f"a name must be 1 to 255 bytes of printable text, not {name!r}")
    return bytes((len(raw),)) + raw
