"""The CONFIGURATION item: which machine a stream is from, and what its sender insists on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from colo.errors import LimitExceeded, StreamError
from colo.limits import DEFAULT_LIMITS, StreamLimits
from colo.stream.names import decode_name, encode_name, read_name
from colo.stream.sections import Configuration
from colo.wire import IDSTR_MAX_BYTES, TARGET_PAGE_BITS, SectionType

if TYPE_CHECKING:
    from colo._fast.receive.buffers import ReadBuffer

CAPABILITIES = "configuration/capabilities"
PAGE_BITS = "configuration/target-page-bits"
UUID = "configuration/uuid"
EXTENSIONS = "configuration/colo"
"""colo's own: a u64 of :class:`~colo.wire.Extension` bits that the sender offers. A QEMU refuses it."""
SUBSECTION_VERSION = 1
PAGE_BITS_MIN, PAGE_BITS_MAX = 10, 16
"""Of any QEMU target whose stream's flags fit below its pages: 1 KiB (some ARM) to 64 KiB."""


def read_configuration(
    buf: ReadBuffer, limits: StreamLimits = DEFAULT_LIMITS, *, any_page_bits: bool = False
) -> Configuration:
    """Read what follows the type byte: machine name and subsections, which must be known to be delimited.
    ``any_page_bits``: take target pages of other sizes than 4096 bytes too.

    Waits for the byte behind it, which every stream has. QEMU: migration/savevm.c:vmstate_configuration.
    """
    offset = buf.position - 1
    length = buf.read_u32()
    if length > IDSTR_MAX_BYTES:
        raise LimitExceeded(
            f"the machine's name has {length} bytes, at most {IDSTR_MAX_BYTES} are read",
            where="CONFIGURATION",
            offset=buf.position - 4,
            value=length,
        )
    machine = decode_name(buf.read_exact(length), where="CONFIGURATION", offset=buf.position - length)
    found: dict[str, object] = {}
    while buf.peek(1) == bytes((SectionType.SUBSECTION,)):
        start = buf.position
        buf.skip(1)
        name = read_name(buf, "CONFIGURATION subsection")
        where = f"CONFIGURATION subsection '{name}'"
        if name in found:
            raise StreamError("sent twice", where=where, offset=start, value=name)
        if name not in _READERS:
            raise StreamError(
                "unknown, and without a length: nothing behind it can be read; known are "
                + ", ".join(sorted(_READERS)),
                where=where,
                offset=start,
                value=name,
            )
        version = buf.read_u32()
        if version != SUBSECTION_VERSION:
            raise StreamError(
                f"version {version}, only {SUBSECTION_VERSION} is known",
                where=where,
                offset=start,
                value=version,
            )
        found[name] = _READERS[name](buf, where, limits)
    capabilities = found.get(CAPABILITIES, ())
    page_bits, uuid = found.get(PAGE_BITS), found.get(UUID)
    assert isinstance(capabilities, tuple)
    assert isinstance(page_bits, int | None)
    if page_bits not in (None, TARGET_PAGE_BITS) and not any_page_bits:
        raise StreamError(
            f"target pages of 2^{page_bits} bytes; only 2^{TARGET_PAGE_BITS} (4096) is served",
            where=f"CONFIGURATION subsection '{PAGE_BITS}'",
            offset=offset,
            value=page_bits,
        )
    assert isinstance(uuid, bytes | None)
    extensions = found.get(EXTENSIONS)
    assert isinstance(extensions, int | None)
    return Configuration(offset, machine, capabilities, page_bits, uuid, extensions)


def _read_capabilities(buf: ReadBuffer, where: str, limits: StreamLimits) -> tuple[str, ...]:
    offset = buf.position
    count = buf.read_u32()
    if count > limits.capabilities:
        raise LimitExceeded(
            f"{count} capabilities, at most {limits.capabilities} are read",
            where=where,
            offset=offset,
            value=count,
        )
    return tuple(read_name(buf, where) for _ in range(count))


def _read_page_bits(buf: ReadBuffer, where: str, limits: StreamLimits) -> int:
    bits = buf.read_u32()
    if not PAGE_BITS_MIN <= bits <= PAGE_BITS_MAX:
        raise StreamError(
            f"target pages of 2^{bits} bytes; 2^{PAGE_BITS_MIN} to 2^{PAGE_BITS_MAX} can be",
            where=where,
            offset=buf.position - 4,
            value=bits,
        )
    return bits


def _read_uuid(buf: ReadBuffer, where: str, limits: StreamLimits) -> bytes:
    return buf.read_exact(16)


def _read_extensions(buf: ReadBuffer, where: str, limits: StreamLimits) -> int:
    return buf.read_u64()


_READERS = {
    CAPABILITIES: _read_capabilities,
    PAGE_BITS: _read_page_bits,
    UUID: _read_uuid,
    EXTENSIONS: _read_extensions,
}


def configuration(
    machine: str,
    *,
    capabilities: tuple[str, ...] = (),
    page_bits: int | None = None,
    uuid: bytes | None = None,
    extensions: int | None = None,
) -> bytes:
    """The CONFIGURATION item. ``extensions``: what to offer to another colo; never to a QEMU.

    ``capabilities`` must name those whose use shows in the stream (``x-ignore-shared``): the loading QEMU
    compares them with its own. Raises ValueError for names or sizes that do not fit the format.
    """
    name = encode_name(machine)[1:]
    parts = [bytes((SectionType.CONFIGURATION,)), len(name).to_bytes(4, "big"), name]
    if page_bits is not None:
        parts += [_subsection(PAGE_BITS), page_bits.to_bytes(4, "big")]
    if capabilities:
        parts += [
            _subsection(CAPABILITIES),
            len(capabilities).to_bytes(4, "big"),
            *map(encode_name, capabilities),
        ]
    if uuid is not None:
        if len(uuid) != 16:
            raise ValueError(f"a UUID has 16 bytes, not {len(uuid)}")
        parts += [_subsection(UUID), uuid]
    if extensions is not None:
        parts += [_subsection(EXTENSIONS), extensions.to_bytes(8, "big")]
    return b"".join(parts)


def _subsection(name: str) -> bytes:
    return bytes((SectionType.SUBSECTION,)) + encode_name(name) + SUBSECTION_VERSION.to_bytes(4, "big")
