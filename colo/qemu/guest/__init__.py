"""A tiny guest for tests and the demo, whose memory tells which instant it is from.

``boot.S`` is a boot sector (and the sector after it) in long mode: woken by the timer it takes some
*steps*, each of which writes a few words into the next page of a range, going round and round, and now
and then it prints ``colo guest COUNTER`` on the first serial port. Step ``n`` writes, to word ``j`` of
page ``n mod pages``,

    value(n, j) = (n + 1) * G + j * H   (mod 2^64)

after checking that the word holds what step ``n - pages`` left there, and stores a running checksum of
what it read and then the counter, each by one store. So all of memory is a function of (counter, words
already written), and :func:`check_guest_memory` finds any page that is from another instant. The guest
keeps the counter in a register too, which travels with the device state: RAM and device state of
different checkpoints make it print ``colo guest TORN``.

A key on its PS/2 keyboard (QMP ``send-key``) ends it: ``p`` powers off, ``r`` resets, ``t`` makes a triple
fault, ``c`` tells a ``pvpanic`` device that the kernel crashed. One that comes while the VM stands still is lost.

It boots from any disk (:func:`make_guest_image`), through SeaBIOS in some seconds, or as the machine's
firmware (:func:`make_guest_rom`, ``-bios FILE``) within milliseconds. Seen to run on QEMU 7.2, 10.0 and
11.1, ``pc`` and ``q35``, KVM and TCG.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TypeAlias

from colo.errors import ColoError

PAGE_BYTES = 4096
G = 0x9E3779B97F4A7C15
H = 0xC2B2AE3D27D4EB4F
MASK = (1 << 64) - 1
G_INVERSE = pow(G, -1, 1 << 64)

BOOT_ADDRESS = 0x7C00
BOOT_BYTES = 1024
MAGIC = b"COLO"
MAGIC_OFFSET = 960
STATE_ADDRESS = 0x1000
FIRST_FREE_PAGE = 0x100
"""Below 1 MiB lie the guest's own code and tables, and the machine's holes."""
ADDRESS_LIMIT_BYTES = 2 << 30
"""Below 2 GiB an address is also the offset in the RAM block, on ``pc`` and ``q35`` of any size."""
FLOPPY_BYTES = 1_474_560
TIMER_HZ = 1_193_182

Memory: TypeAlias = bytes | bytearray | memoryview | mmap.mmap
_PARAMETERS = struct.Struct("<IIIIIHHHH")


class TornState(ColoError):
    """The guest's memory is not what it was at any one instant.

    ``page`` is the page's index in the walked range (None: the state page), ``expected`` and ``found``
    the words.
    """

    def __init__(self, message: str, *, page: int | None = None, expected: int = 0, found: int = 0) -> None:
        self.page = page
        self.expected = expected
        self.found = found
        super().__init__(message)


class GuestNotStarted(ColoError):
    """The image does not hold the guest: it had not booted yet, or this is another machine's memory."""


@dataclass(frozen=True)
class GuestParams:
    """What the guest does.

    It writes ``words`` 64-bit words in each page it visits; the pages are ``first_page``, ``first_page +
    stride_pages``, … (``pages`` of them, 4096 bytes each, all below 2 GiB). It is woken ``ticks_hz``
    times a second (19 or more), takes ``steps_per_tick`` steps (= pages) each time, and prints a line
    every ``ticks_per_line`` ticks. With a ``beat_port`` each tick also writes the counter's low byte to that
    port (0xE9: ``-debugcon``): who watches it knows to a tick when the guest ran.
    """

    pages: int = 1000
    first_page: int = 0x1000
    stride_pages: int = 1
    words: int = 4
    ticks_hz: int = 100
    steps_per_tick: int = 10
    ticks_per_line: int = 10
    beat_port: int = 0

    def __post_init__(self) -> None:
        end_bytes = (self.first_page + (self.pages - 1) * self.stride_pages + 1) * PAGE_BYTES
        checks = (
            (self.pages >= 1, f"pages is {self.pages}: at least 1 is needed"),
            (self.stride_pages >= 1, f"stride_pages is {self.stride_pages}: at least 1 is needed"),
            (
                self.first_page >= FIRST_FREE_PAGE,
                f"first_page is {self.first_page}: below 1 MiB the guest itself lives",
            ),
            (end_bytes <= ADDRESS_LIMIT_BYTES, f"the range ends at {end_bytes:#x}: it must end below 2 GiB"),
            (1 <= self.words <= PAGE_BYTES // 8, f"words is {self.words}: a page has 1 to 512"),
            (19 <= self.ticks_hz <= 10_000, f"ticks_hz is {self.ticks_hz}: the timer does 19 to 10000"),
            (1 <= self.steps_per_tick < 1 << 32, f"steps_per_tick is {self.steps_per_tick}"),
            (1 <= self.ticks_per_line < 1 << 32, f"ticks_per_line is {self.ticks_per_line}"),
            (0 <= self.beat_port < 1 << 16, f"beat_port is {self.beat_port}: a port is 1 to 65535, 0 is none"),
        )
        for holds, message in checks:
            if not holds:
                raise ValueError(message)

    @property
    def gap_bytes(self) -> int:
        """From one word of a page to the next."""
        return PAGE_BYTES // self.words // 8 * 8

    @property
    def end_bytes(self) -> int:
        """The least RAM, in bytes, that holds the whole range."""
        return (self.first_page + (self.pages - 1) * self.stride_pages + 1) * PAGE_BYTES

    @property
    def pages_per_second(self) -> int:
        """How many pages it changes in a second, while its processor keeps up."""
        return self.ticks_hz * self.steps_per_tick

    @classmethod
    def at_rate(cls, pages_per_second: int, *, pages: int = 1000, words: int = 4) -> GuestParams:
        """Parameters for about ``pages_per_second``, in even steps of 10 ms."""
        return cls(pages=pages, words=words, steps_per_tick=max(1, pages_per_second // 100))

    def pack(self) -> bytes:
        """The parameter block of the boot image."""
        return _PARAMETERS.pack(
            self.steps_per_tick,
            self.first_page * PAGE_BYTES,
            self.pages,
            self.stride_pages * PAGE_BYTES,
            self.ticks_per_line,
            self.words,
            self.gap_bytes,
            TIMER_HZ // self.ticks_hz,
            self.beat_port,
        )

    @classmethod
    def unpack(cls, block: bytes) -> GuestParams:
        """The parameters from a guest's own copy in memory. Raises ValueError if they are none."""
        steps, first, pages, stride, lines, words, _gap, divisor, beat_port = _PARAMETERS.unpack(block)
        return cls(
            pages=pages,
            first_page=first // PAGE_BYTES,
            stride_pages=stride // PAGE_BYTES,
            words=words,
            ticks_hz=max(19, min(10_000, round(TIMER_HZ / max(1, divisor)))),
            steps_per_tick=steps,
            ticks_per_line=lines,
            beat_port=beat_port,
        )


@dataclass(frozen=True)
class GuestState:
    """Where the guest was: ``counter`` steps done, ``words_done`` words of the next one written."""

    counter: int
    words_done: int
    checksum: int
    params: GuestParams


def boot_code(params: GuestParams) -> bytes:
    """The two sectors with their parameters in place."""
    code = bytearray(files(__package__).joinpath("boot.bin").read_bytes())
    if len(code) != BOOT_BYTES or code[MAGIC_OFFSET : MAGIC_OFFSET + 4] != MAGIC:
        raise ColoError("colo/qemu/guest/boot.bin is not what boot.S builds: run colo/qemu/guest/build")
    block = params.pack()
    code[MAGIC_OFFSET + 4 : MAGIC_OFFSET + 4 + len(block)] = block
    return bytes(code)


def make_guest_image(path: str | os.PathLike[str], params: GuestParams | None = None) -> GuestParams:
    """Write a disk image (floppy-sized, mostly a hole) that boots the guest: ``-drive format=raw,…``."""
    params = params or GuestParams()
    with open(path, "wb") as image:
        image.write(boot_code(params))
        image.truncate(FLOPPY_BYTES)
    return params


def make_guest_rom(path: str | os.PathLike[str], params: GuestParams | None = None) -> GuestParams:
    """Write a 64 KiB firmware image that is the guest; give it to ``-bios``."""
    params = params or GuestParams()
    rom = bytearray(64 << 10)
    shim = files(__package__).joinpath("rom.bin").read_bytes()
    rom[: len(shim)] = shim
    rom[0x400 : 0x400 + BOOT_BYTES] = boot_code(params)
    rom[0xFFF0:0xFFF5] = b"\xea\x00\x00\x00\xf0"  # ljmp $0xf000, $0
    Path(path).write_bytes(rom)
    return params


def value(step: int, word: int) -> int:
    """What step ``step`` writes to word ``word`` of its page."""
    return ((step + 1) * G + word * H) & MASK


def step_of(found: int, word: int) -> int:
    """The step that wrote ``found`` to word ``word``, if any did (mod 2^64)."""
    return ((found - word * H) * G_INVERSE - 1) & MASK


def checksum_after(counter: int, params: GuestParams) -> int:
    """The running checksum once ``counter`` steps are done."""
    read = max(0, counter - params.pages)  # steps whose words, one pass old, were read and folded
    words = params.words
    return (words * G * (read * (read + 1) // 2) + read * H * (words * (words - 1) // 2)) & MASK


def check_guest_memory(
    image: Memory | str | os.PathLike[str], params: GuestParams | None = None
) -> GuestState:
    """Find out which instant ``image`` (the guest's RAM from address 0: bytes, a mapping, or a file) is from.

    Without ``params`` the guest's own copy of them in the image is used.

    Raises TornState when no single instant has this memory; names the first page that does not fit.
    Raises GuestNotStarted when the guest's code is not in the image, or its range is not.
    """
    if isinstance(image, str | os.PathLike):
        with open(image, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
            return check_guest_memory(mapping, params)
    with memoryview(image) as whole, whole.cast("B") as view:
        return _check(view, params)


def _check(view: memoryview, params: GuestParams | None) -> GuestState:
    magic_at = BOOT_ADDRESS + MAGIC_OFFSET
    if len(view) < FIRST_FREE_PAGE * PAGE_BYTES or bytes(view[magic_at : magic_at + 4]) != MAGIC:
        raise GuestNotStarted(
            "no guest code at 0x7c00: it had not booted yet, or this is another machine's memory"
        )
    block = bytes(view[magic_at + 4 : magic_at + 4 + _PARAMETERS.size])
    if params is None:
        try:
            params = GuestParams.unpack(block)
        except ValueError as error:
            raise TornState(f"the guest's parameters in memory make no sense: {error}") from None
    elif params.pack() != block:
        raise TornState(f"the guest's parameters in memory are {GuestParams.unpack(block)}, not {params}")
    if params.end_bytes > len(view):
        raise GuestNotStarted(f"the range ends at {params.end_bytes:#x}, the image already at {len(view):#x}")

    counter, checksum, torn = struct.unpack_from("<QQI", view, STATE_ADDRESS)
    if torn:
        raise TornState(f"the guest itself found its memory torn at step {counter}")
    words_done = _words_done(view, params, counter)
    full = words_done == params.words
    if checksum != checksum_after(counter, params) and not (
        full and checksum == checksum_after(counter + 1, params)
    ):
        raise TornState(
            f"the checksum is {checksum:#x} at step {counter}, not {checksum_after(counter, params):#x}",
            expected=checksum_after(counter, params),
            found=checksum,
        )
    at_work = counter % params.pages
    for page in range(params.pages):
        step = counter - 1 - (counter - 1 - page) % params.pages
        for word, found in enumerate(_words(view, params, page)):
            new = page == at_work and word < words_done
            expected = value(counter, word) if new else value(step, word) if step >= 0 else 0
            if found != expected:
                address = (params.first_page + page * params.stride_pages) * PAGE_BYTES
                raise TornState(
                    f"page {page} (address {address:#x}), word {word}, is {found:#x} as of step "
                    f"{step_of(found, word)}; at step {counter} it would be {expected:#x}",
                    page=page,
                    expected=expected,
                    found=found,
                )
    return GuestState(counter, words_done, checksum, params)


def _words(view: memoryview, params: GuestParams, page: int) -> Iterator[int]:
    start = (params.first_page + page * params.stride_pages) * PAGE_BYTES
    for word in range(params.words):
        yield struct.unpack_from("<Q", view, start + word * params.gap_bytes)[0]


def _words_done(view: memoryview, params: GuestParams, counter: int) -> int:
    """How many leading words of the page in work are already those of step ``counter``."""
    done = 0
    for word, found in enumerate(_words(view, params, counter % params.pages)):
        if found != value(counter, word):
            break
        done += 1
    return done


_LINE = re.compile(rb"colo guest (TORN )?([0-9]+)\r?\n")


def serial_counters(output: bytes) -> list[int]:
    """The counters of all whole lines that the guest printed.

    Raises TornState when it printed ``TORN``.
    """
    counters = []
    for torn, counter in _LINE.findall(output):
        if torn:
            raise TornState(f"the guest found its memory torn at step {int(counter)} and stopped")
        counters.append(int(counter))
    return counters
