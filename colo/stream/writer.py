"""Writes the items of a section stream: each function returns its bytes, none does I/O.

CONFIGURATION, commands, the RAM block list and the vmdesc are written in the files that read them; they are
offered here again, so that a stream can be put together from one place::

    file_header() + configuration("pc-i440fx-7.2")
    + ram_start_section(2, blocks) + section_end(2) + pages + end_of_section() + section_footer(2)
    + device_section(3, "timer", body, version_id=2) + end_of_stream()
"""

from __future__ import annotations

from collections.abc import Sequence

from colo.stream.commands import command, packaged, ping
from colo.stream.configuration import configuration
from colo.stream.names import encode_name
from colo.stream.ram import RamBlockInfo, end_of_section, mem_size
from colo.vmdesc.document import vmdescription
from colo.wire import FILE_MAGIC, FILE_VERSION, RAM_IDSTR, RAM_VERSION, SectionType

__all__ = [
    "command",
    "configuration",
    "device_section",
    "end_of_section",
    "end_of_stream",
    "file_header",
    "mem_size",
    "packaged",
    "ping",
    "ram_start_section",
    "section_end",
    "section_footer",
    "section_full",
    "section_part",
    "section_start",
    "vmdescription",
]


def file_header() -> bytes:
    """``QEVM`` and version 3."""
    return FILE_MAGIC.to_bytes(4, "big") + FILE_VERSION.to_bytes(4, "big")


def section_start(section_id: int, idstr: str, *, instance_id: int = 0, version_id: int) -> bytes:
    """The header of a live section's first part; body and :func:`section_footer` follow."""
    return _header(SectionType.START, section_id, idstr, instance_id, version_id)


def section_full(section_id: int, idstr: str, *, instance_id: int = 0, version_id: int) -> bytes:
    """The header of a device section; body and :func:`section_footer` follow."""
    return _header(SectionType.FULL, section_id, idstr, instance_id, version_id)


def section_part(section_id: int) -> bytes:
    """The header of a further part of a live section."""
    return bytes((SectionType.PART,)) + section_id.to_bytes(4, "big")


def section_end(section_id: int) -> bytes:
    """The header of a live section's last part."""
    return bytes((SectionType.END,)) + section_id.to_bytes(4, "big")


def section_footer(section_id: int) -> bytes:
    """What stands behind every section's body."""
    return bytes((SectionType.FOOTER,)) + section_id.to_bytes(4, "big")


def device_section(
    section_id: int, idstr: str, body: bytes, *, instance_id: int = 0, version_id: int
) -> bytes:
    """A whole device section."""
    head = section_full(section_id, idstr, instance_id=instance_id, version_id=version_id)
    return head + body + section_footer(section_id)


def ram_start_section(section_id: int, blocks: Sequence[RamBlockInfo]) -> bytes:
    """The whole START part of the ``ram`` section: the block list, no pages (QEMU:
    migration/ram.c:ram_save_setup)."""
    head = section_start(section_id, RAM_IDSTR, version_id=RAM_VERSION)
    return head + mem_size(blocks) + end_of_section() + section_footer(section_id)


def end_of_stream() -> bytes:
    """EOF: only a vmdesc may follow."""
    return bytes((SectionType.EOF,))


def _header(kind: SectionType, section_id: int, idstr: str, instance_id: int, version_id: int) -> bytes:
    return b"".join(
        (
            bytes((kind,)),
            section_id.to_bytes(4, "big"),
            encode_name(idstr),
            instance_id.to_bytes(4, "big"),
            version_id.to_bytes(4, "big"),
        )
    )
