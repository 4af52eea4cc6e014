"""The torn-checkpoint guest's memory model: any one instant is accepted, any mixture of two is found."""

from __future__ import annotations

import shutil
import struct
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.qemu.guest import (
    BOOT_ADDRESS,
    PAGE_BYTES,
    STATE_ADDRESS,
    GuestNotStarted,
    GuestParams,
    TornState,
    boot_code,
    check_guest_memory,
    checksum_after,
    make_guest_image,
    make_guest_rom,
    serial_counters,
    step_of,
    value,
)

PARAMS = GuestParams(pages=7, words=3, first_page=0x100, stride_pages=2)
RAM_BYTES = 2 << 20


def memory_at(
    counter: int, words_done: int = 0, *, folded: bool = False, params: GuestParams = PARAMS
) -> bytearray:
    """The guest's memory as its program would have left it, by running the steps one after the other."""
    ram = bytearray(RAM_BYTES)
    code = boot_code(params)
    ram[BOOT_ADDRESS : BOOT_ADDRESS + len(code)] = code
    checksum = 0
    for step in range(counter + 1):
        page = params.first_page + step % params.pages * params.stride_pages
        count = params.words if step < counter else words_done
        for word in range(count):
            at = page * PAGE_BYTES + word * params.gap_bytes
            checksum += struct.unpack_from("<Q", ram, at)[0]
            struct.pack_into("<Q", ram, at, value(step, word))
        if step == counter - 1:
            struct.pack_into("<Q", ram, STATE_ADDRESS + 8, checksum & (1 << 64) - 1)
    if folded:
        struct.pack_into("<Q", ram, STATE_ADDRESS + 8, checksum & (1 << 64) - 1)
    struct.pack_into("<Q", ram, STATE_ADDRESS, counter)
    return ram


@given(counter=st.integers(0, 60), words_done=st.integers(0, 3))
def test_every_instant_is_told_apart(counter: int, words_done: int) -> None:
    state = check_guest_memory(memory_at(counter, words_done), PARAMS)
    assert (state.counter, state.words_done) == (counter, words_done)


@given(counter=st.integers(0, 60))
def test_checksum_may_be_one_step_ahead_only_when_the_page_is_whole(counter: int) -> None:
    assert check_guest_memory(memory_at(counter, 3, folded=True)).counter == counter
    ram = memory_at(counter, 2)
    struct.pack_into("<Q", ram, STATE_ADDRESS + 8, checksum_after(counter + 1, PARAMS))
    if checksum_after(counter + 1, PARAMS) == checksum_after(counter, PARAMS):
        check_guest_memory(ram)
    else:
        with pytest.raises(TornState, match="checksum"):
            check_guest_memory(ram)


@given(
    counter=st.integers(0, 60),
    other=st.integers(0, 60),
    page=st.integers(0, 6),
)
def test_one_page_from_another_instant_is_found(counter: int, other: int, page: int) -> None:
    ram, stranger = memory_at(counter), memory_at(other)
    at = (PARAMS.first_page + page * PARAMS.stride_pages) * PAGE_BYTES
    same = ram[at : at + PAGE_BYTES] == stranger[at : at + PAGE_BYTES]
    ahead = other == counter + 1 or (page == counter % PARAMS.pages and other > counter)
    ram[at : at + PAGE_BYTES] = stranger[at : at + PAGE_BYTES]
    if same:
        check_guest_memory(ram)
    elif ahead and stranger[at : at + 8] == value(counter, 0).to_bytes(8, "little"):
        assert (
            check_guest_memory(ram).words_done == PARAMS.words
        )  # the next step's page is an instant of this one
    else:
        with pytest.raises(TornState) as torn:
            check_guest_memory(ram)
        assert torn.value.page == page


def test_state_page_from_another_instant_is_found() -> None:
    ram, older = memory_at(40), memory_at(39)
    ram[STATE_ADDRESS : STATE_ADDRESS + PAGE_BYTES] = older[STATE_ADDRESS : STATE_ADDRESS + PAGE_BYTES]
    check_guest_memory(ram)  # exactly the instant before the counter's own store
    oldest = memory_at(38)
    ram[STATE_ADDRESS : STATE_ADDRESS + PAGE_BYTES] = oldest[STATE_ADDRESS : STATE_ADDRESS + PAGE_BYTES]
    with pytest.raises(TornState):
        check_guest_memory(ram)


@given(step=st.integers(0, (1 << 64) - 1), word=st.integers(0, 511))
def test_a_word_tells_its_step(step: int, word: int) -> None:
    assert step_of(value(step, word), word) == step


def test_memory_without_the_guest_is_not_torn_but_not_started() -> None:
    with pytest.raises(GuestNotStarted):
        check_guest_memory(bytes(RAM_BYTES))


def test_an_image_shorter_than_the_range_is_refused() -> None:
    with pytest.raises(GuestNotStarted, match="ends at"):
        check_guest_memory(memory_at(3)[: PARAMS.end_bytes - PAGE_BYTES])


def test_other_parameters_than_told_are_torn() -> None:
    with pytest.raises(TornState, match="parameters"):
        check_guest_memory(memory_at(3), GuestParams(pages=8, words=3, first_page=0x100, stride_pages=2))


def test_the_guest_s_own_alarm_is_heard() -> None:
    ram = memory_at(5)
    struct.pack_into("<I", ram, STATE_ADDRESS + 16, 1)
    with pytest.raises(TornState, match="itself"):
        check_guest_memory(ram)
    assert serial_counters(b"colo guest 1\ncolo guest 22\ncolo gue") == [1, 22]
    with pytest.raises(TornState, match="step 23"):
        serial_counters(b"colo guest 1\ncolo guest TORN 23\n")


@pytest.mark.parametrize(
    "wrong",
    [{"pages": 0}, {"words": 0}, {"words": 513}, {"first_page": 1}, {"ticks_hz": 5}, {"pages": 1 << 20}],
)
def test_parameters_that_cannot_work_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)) + "|range"):
        GuestParams(**wrong)


def test_parameters_travel_through_the_boot_block() -> None:
    params = GuestParams(
        pages=5000, words=16, ticks_hz=250, steps_per_tick=77, ticks_per_line=3, stride_pages=3
    )
    assert GuestParams.unpack(params.pack()) == params


def test_images_have_the_sizes_machines_expect(tmp_path: Path) -> None:
    make_guest_image(tmp_path / "disk")
    make_guest_rom(tmp_path / "rom")
    disk, rom = (tmp_path / "disk").read_bytes(), (tmp_path / "rom").read_bytes()
    assert len(disk) == 1_474_560
    assert disk[510:512] == b"\x55\xaa"
    assert len(rom) == 65536
    assert rom[0x400:0x800] == disk[:1024]


def test_checked_in_bytes_are_what_the_source_builds(tmp_path: Path) -> None:
    assert shutil.which("as"), "binutils is needed: apt-get install binutils"
    assert shutil.which("ld"), "binutils is needed: apt-get install binutils"
    here = Path(str(files("colo.qemu.guest").joinpath("build")))
    subprocess.run([str(here), str(tmp_path)], check=True)
    for name in ("boot.bin", "rom.bin"):
        assert (tmp_path / name).read_bytes() == (here.parent / name).read_bytes(), f"{name}: run {here}"
