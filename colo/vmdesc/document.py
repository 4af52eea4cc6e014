"""The VMDESCRIPTION item: JSON that lists the devices of a stream with their fields, in the order they were
sent.

QEMU writes it behind EOF (migration/savevm.c, migration/vmstate.c).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from colo.errors import LimitExceeded
from colo.limits import DEFAULT_LIMITS, StreamLimits
from colo.vmdesc.records import Vmdesc
from colo.vmdesc.schema import ROOT, Schema
from colo.vmdesc.text import WHERE, read_text
from colo.wire import SectionType

if TYPE_CHECKING:
    from colo._fast.receive.buffers import ReadBuffer


def read_vmdesc(buf: ReadBuffer, limits: StreamLimits = DEFAULT_LIMITS) -> Vmdesc:
    """Read what follows the type byte. Raises LimitExceeded before reading a text longer than the limit."""
    offset = buf.position
    length = buf.read_u32()
    if length > limits.vmdesc_bytes:
        raise LimitExceeded(
            f"{length} bytes, at most {limits.vmdesc_bytes} are read",
            where=WHERE,
            offset=offset,
            value=length,
        )
    return parse_vmdesc(buf.read_exact(length), offset=buf.position - length, limits=limits)


def parse_vmdesc(text: bytes, *, offset: int = 0, limits: StreamLimits = DEFAULT_LIMITS) -> Vmdesc:
    """Check ``text`` (which starts at ``offset`` in the stream) against the schema and return it as records.

    Raises LimitExceeded if it is nested deeper, or has more values, than the limits allow, before it is
    parsed; StreamError, with the byte offset, if it is not UTF-8 or not JSON, and with the path of the value if a
    value is not as it must be.
    """
    schema = Schema(offset=offset)
    top = schema.mapping(read_text(text, offset=offset, limits=limits), ROOT)
    devices = schema.devices(top)
    return Vmdesc(
        offset,
        text,
        schema.number(top["page_size"], ROOT, "page_size", 1 << 34) if "page_size" in top else None,
        schema.struct(top["configuration"], (ROOT, "configuration")) if "configuration" in top else None,
        devices,
    )


def vmdescription(text: bytes) -> bytes:
    """The VMDESCRIPTION item around JSON ``text``."""
    return bytes((SectionType.VMDESCRIPTION,)) + len(text).to_bytes(4, "big") + text
