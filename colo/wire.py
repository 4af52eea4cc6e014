"""QEMU's migration stream and COLO messages: every number, once.

All integers on the wire are big-endian. A *target page* is 4096 bytes on x86 and ARM. This file imports nothing but
:mod:`enum`; ``setup.py`` writes the numbers marked by :func:`c_numbers` into a C header for the core.

The stream::

    u32 FILE_MAGIC, u32 FILE_VERSION
    0x07 CONFIGURATION   u32 len, machine type, [SUBSECTION...]
    0x08 COMMAND         u16 command, u16 len, payload
    0x01 START/0x04 FULL u32 section_id, u8 len, idstr, u32 instance_id, u32 version_id, body, footer
    0x02 PART /0x03 END  u32 section_id, body, footer
    0x05 SUBSECTION      u8 len, name, u32 version_id, body     (inside a vmstate body)
    0x7e FOOTER          u32 section_id
    0x00 EOF
    0x06 VMDESCRIPTION   u32 len, JSON

The body of the ``ram`` section is a run of records, each opened by ``u64 (offset | RamFlag)``, ended by one with EOS::

    MEM_SIZE   offset = total bytes; per block: u8 len, idstr, u64 used_length [, u64 page_size] [, u64 address]
    ZERO       [idstr] u8 fill
    PAGE       [idstr] 4096 bytes
    XBZRLE     [idstr] u8 1, u16 len, encoded bytes
    COMPRESS   [idstr] u32 len, zlib stream (QEMU < 9.1)
    CONTINUE   a bit beside the others: the block is that of the record before, no idstr follows

COLO, after the ordinary stream (P primary, S secondary), each message a u32::

    S CHECKPOINT_READY
    per checkpoint:  P CHECKPOINT_REQUEST  S CHECKPOINT_REPLY  P VMSTATE_SEND, live-state sections, EOF,
                     P VMSTATE_SIZE + u64 n, n bytes of device state  S VMSTATE_RECEIVED  S VMSTATE_LOADED

Between two colo ends, and never towards a QEMU (which refuses the subsection that offers it): a primary offers
:class:`Extension` bits in the CONFIGURATION's subsection ``configuration/colo``; the secondary answers with those it takes,
EXTENSIONS + u64, ahead of CHECKPOINT_READY. With DIGEST agreed, P CHECKPOINT_DIGEST + u128 comes ahead of VMSTATE_SIZE.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum, IntFlag

FILE_MAGIC = 0x5145564D
"""``QEVM``: the first four bytes of a migration stream."""
FILE_VERSION = 3

TARGET_PAGE_BITS = 12
TARGET_PAGE_BYTES = 1 << TARGET_PAGE_BITS

IDSTR_MAX_BYTES = 255
"""A section's or block's name has a one-byte length."""
RAM_IDSTR = "ram"
RAM_VERSION = 4
XBZRLE_ENCODING = 1
"""The byte that opens an XBZRLE record: the only encoding there is."""
XBZRLE_HEADER_BYTES = 3


class SectionType(IntEnum):
    """The byte that opens each item of the section stream."""

    EOF = 0x00
    START = 0x01
    PART = 0x02
    END = 0x03
    FULL = 0x04
    SUBSECTION = 0x05
    VMDESCRIPTION = 0x06
    CONFIGURATION = 0x07
    COMMAND = 0x08
    FOOTER = 0x7E


class Command(IntEnum):
    """What a COMMAND item asks for. Payload sizes are in :data:`COMMAND_PAYLOAD_BYTES`."""

    OPEN_RETURN_PATH = 1
    PING = 2
    POSTCOPY_ADVISE = 3
    POSTCOPY_LISTEN = 4
    POSTCOPY_RUN = 5
    POSTCOPY_RAM_DISCARD = 6
    PACKAGED = 7
    ENABLE_COLO = 8
    POSTCOPY_RESUME = 9
    RECV_BITMAP = 10
    SWITCHOVER_START = 11


COMMAND_PAYLOAD_BYTES: dict[Command, tuple[int, ...] | None] = {
    Command.OPEN_RETURN_PATH: (0,),
    Command.PING: (4,),
    Command.POSTCOPY_ADVISE: (0, 16),
    Command.POSTCOPY_LISTEN: (0,),
    Command.POSTCOPY_RUN: (0,),
    Command.POSTCOPY_RAM_DISCARD: None,
    Command.PACKAGED: (4,),
    Command.ENABLE_COLO: (0,),
    Command.POSTCOPY_RESUME: (0,),
    Command.RECV_BITMAP: None,
    Command.SWITCHOVER_START: (0,),
}
"""Allowed payload lengths of each command; None: any length up to 65535."""


class ReturnPath(IntEnum):
    """Messages from receiver to sender on the return path: u16 type, u16 len, payload."""

    SHUT = 1
    PONG = 2
    REQ_PAGES_ID = 3
    REQ_PAGES = 4
    RECV_BITMAP = 5
    RESUME_ACK = 6
    SWITCHOVER_ACK = 7


class RamFlag(IntFlag):
    """Low bits of a RAM record's first u64; the page offset is in the bits above."""

    ZERO = 0x002
    MEM_SIZE = 0x004
    PAGE = 0x008
    EOS = 0x010
    CONTINUE = 0x020
    XBZRLE = 0x040
    HOOK = 0x080
    COMPRESS_PAGE = 0x100
    MULTIFD_FLUSH = 0x200


class ColoMessage(IntEnum):
    """COLO's messages. Both directions share the one migration channel. Those from EXTENSIONS on are colo's own."""

    CHECKPOINT_READY = 0
    CHECKPOINT_REQUEST = 1
    CHECKPOINT_REPLY = 2
    VMSTATE_SEND = 3
    VMSTATE_SIZE = 4
    VMSTATE_RECEIVED = 5
    VMSTATE_LOADED = 6
    EXTENSIONS = 0x434F0001
    CHECKPOINT_DIGEST = 0x434F0002


MESSAGE_VALUE_BYTES: dict[ColoMessage, int] = {
    ColoMessage.VMSTATE_SIZE: 8,
    ColoMessage.EXTENSIONS: 8,
    ColoMessage.CHECKPOINT_DIGEST: 16,
}
"""Messages that a number follows, and how long it is."""


class Extension(IntFlag):
    """What two colo ends may agree on beyond QEMU's protocol."""

    DIGEST = 1
    """Each checkpoint's digest is sent, and compared before it is committed."""
    LZ4 = 2
    """Pages may come in the LZ4 encodings."""
    ZSTD = 4
    """Pages may come in the zstd encodings."""
    MASK = 8
    """Pages may come as mask deltas."""


class PageEncoding(IntEnum):
    """The byte that opens the payload of a RAM record with the XBZRLE flag: how its bytes are made.

    QEMU knows XBZRLE only, and refuses a record with any other. The others are colo's own: **never sent to a
    QEMU**, only between two colo ends that agreed on them. *Delta* means against the receiver's present page,
    as XBZRLE is.
    """

    XBZRLE = 1
    LZ4_DELTA = 0xC1
    """An LZ4 block that decodes to one page, the old page being its dictionary."""
    ZSTD_DELTA = 0xC2
    """A zstd frame without magic number that decodes to one page, the old page being its prefix."""
    LZ4_PAGE = 0xC3
    """An LZ4 block that decodes to one page by itself."""
    ZSTD_PAGE = 0xC4
    """A zstd frame without magic number that decodes to one page by itself."""
    MASK_DELTA = 0xC5
    """Bit masks of the bytes that changed, then those bytes (``_fast/maskdelta.h`` has the layout)."""


class BitmapForm(IntEnum):
    """How a serialised dirty bitmap's payload is written. Colo's own: ``u64 pages, u8 form, payload``."""

    BITS = 0
    """ceil(pages / 8) bytes; page n is bit n % 8 of byte n // 8; bits past the last page are 0."""
    RUNS = 1
    """(pages skipped, pages set) pairs of LEB128, to the end of the payload; only the first skip may be 0."""


BITMAP_HEADER_BYTES = 9


LEASE_MAGIC = 0x434F4C4C
"""``COLL``: opens each frame of a lease connection, and so tells one from a migration stream. Colo's own."""
LEASE_FRAME_BYTES = 32
"""``u32 magic, u8 kind, u8 0, u16 length of what follows, u64 generation, u64 sequence, u64 value``, big-endian."""
LEASE_TEXT_BYTES_MAX = 8192
"""Most that may follow a frame: JSON, in MEET, WELCOME, REFUSED, NOTICE."""


RAM_SECTION_ID = 0x636F6C6F
"""The ``ram`` section's id in streams that colo writes. No device section of a VM has it: theirs count from 0 or 1."""

# What two colo ends of a migration say to each other in PINGs, which a QEMU answers as any other. Colo's own.

HELLO = 0x434F4C00
"""A PING with this number asks who the destination is. A QEMU answers it as any other; a colo one adds the bits below."""
HELLO_COLO = 1
HELLO_ARBITER = 2
"""It asks an arbiter before it runs the VM."""
HELLO_MASK = 0xFF
LAST_WORD_MIN = 1 << 31
"""The PING behind HELLO, to a colo destination, has a random number from here up: with it the stream's last word begins."""
DIGEST_BYTES = 16
"""The last word ends with the digest of the page records since the last PING and of the device sections with their EOF.
What was sent while the VM ran has none: a page that is written to meanwhile is not the same bytes when it is read twice."""
DEVICES_PING = 0x434F4D00
ROUND_PING = 1


GENERATION_MAX = 10**15
"""Generations are less than this."""


class LeaseMessage(IntEnum):
    """What the two sides say over a lease connection. From the primary's side:"""

    MEET = 1
    """Opens a connection: who this is, and what it sees at the arbiter; or the token of a session that is known."""
    RENEW = 2
    """``sequence``: promise again, please."""
    GONE = 3
    """Proof: the VM's process is gone, in this generation."""
    STANDS = 4
    """Proof: the VM stands still, and will not go on in this generation."""
    ENDED = 5
    """The VM was ended on purpose (its guest powered off, its user stopped it): nobody is to run it."""
    ALONE = 6
    """The primary has claimed ``value`` and runs on alone: what the secondary holds is of no use any more."""
    WELCOME = 17
    """From here on from the secondary's side. The answer to MEET: the session's token, and what it sees."""
    REFUSED = 18
    """The answer to MEET: no, and why. The connection is then closed."""
    PROMISE = 19
    """Of RENEW ``sequence``: "I shall not run the VM before ``value`` nanoseconds have passed"."""
    WANTS = 20
    """It promises no more: it wants to run the VM, and waits for a proof or the end of its promise."""
    STOP = 21
    """It has claimed ``value``: stop the VM, and prove it."""
    END = 22
    """The VM is loaded at the secondary and about to run: end the one here."""
    RETURNED = 23
    """It could not run the VM: the generation ``value``, which it holds, may be claimed from it."""
    NOTICE = 24
    """What the primary's user should know of the secondary's side: why it could not take over, or "" that it can."""


def c_numbers() -> Iterator[tuple[str, int]]:
    """The numbers the C core shares, as (macro name, value)."""
    yield "WIRE_PAGE_BYTES", TARGET_PAGE_BYTES
    yield "WIRE_PAGE_BITS", TARGET_PAGE_BITS
    yield "WIRE_XBZRLE_ENCODING", XBZRLE_ENCODING
    for flag in RamFlag:
        yield f"WIRE_RAM_{flag.name}", int(flag)
    for encoding in PageEncoding:
        yield f"WIRE_ENCODING_{encoding.name}", int(encoding)
