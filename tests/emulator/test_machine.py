"""The machine: deterministic, stopped at any step and carried on elsewhere, and clear about what a guest may not do."""

from __future__ import annotations

import json
import random
import struct
import time

import pytest

pytest.importorskip("unicorn")

from colo.cli.demo.side import final_state
from colo.emulator import EmbeddedVm, Walk, machine
from colo.emulator.machine import RAM_ADDRESS
from colo.errors import VmError
from colo.memory.trackers import open_tracker, probe
from colo.vmstate import decode_section, split_sections

RAM = 1 << 20
WALK = Walk.over(RAM, lines=6, steps_per_tick=150, ticks_per_line=3, seed=9)


@pytest.fixture
def make():
    made: list[EmbeddedVm] = []

    def one(walk: Walk | None = WALK, **options) -> EmbeddedVm:
        vm = EmbeddedVm(RAM, **options)
        made.append(vm)
        if walk is not None:
            walk.load_into(vm)
        return vm

    yield one
    for vm in made:
        vm.close()


def words(*instructions: int) -> bytes:
    return struct.pack(f"<{len(instructions)}I", *instructions)


def move(source: EmbeddedVm, target: EmbeddedVm) -> None:
    target.memory["ram"][:] = source.memory["ram"]
    target.load_state(memoryview(source.save_state()))


@pytest.mark.parametrize("instructions", [1000, 7, 50_000])
def test_where_steps_end_changes_nothing(make, monkeypatch, instructions):
    monkeypatch.setattr(machine, "STEP_INSTRUCTIONS", instructions)
    walk = Walk.over(RAM, lines=2, steps_per_tick=20, ticks_per_line=2, seed=3) if instructions < 100 else WALK
    if instructions < 100:
        walk = Walk(pages=2, lines=2, steps_per_tick=20, ticks_per_line=2, seed=3)
    vm = make(walk)
    while vm.step():
        pass
    assert bytes(vm.console.tail) == b"".join(walk.expected())


def test_a_machine_that_moves_at_every_moment_prints_and_ends_as_one_that_stays(make, monkeypatch):
    stays = make()
    while stays.step():
        pass
    monkeypatch.setattr(machine, "STEP_INSTRUCTIONS", 2311)
    chance, here = random.Random(5), make()
    moves = 0
    while here.step():
        if chance.random() < 0.2:
            there = make(None)
            move(here, there)
            here, moves = there, moves + 1
    assert moves > 20
    assert bytes(here.console.tail) == bytes(stays.console.tail) == b"".join(WALK.expected())
    assert final_state(here) == final_state(stays)


def test_the_vector_registers_travel_and_are_forgotten_where_there_were_none(make):
    fresh, used = make(), make()
    while used.console.written < 200:
        used.step()
    assert not fresh.registers().uses_vectors and used.registers().uses_vectors
    blob, vmdesc = used._devices.registry.save_described()
    cpu = decode_section(split_sections(blob, vmdesc)[0].body, vmdesc["devices"][0])
    assert cpu["sp"] == RAM_ADDRESS + 8192
    assert "cpu/fpsimd" in json.dumps(vmdesc)
    used.load_state(memoryview(fresh.save_state()))
    assert not used.registers().uses_vectors


def test_a_pause_stands_still_at_once_and_a_long_tick_does_not_hold_it_up(make):
    vm = make(tick_s=3600.0)
    vm.resume()
    while not vm.timer.waiting:
        time.sleep(0.001)
    vm.pause()  # would last an hour
    before = bytes(vm.memory["ram"]), vm.save_state()
    time.sleep(0.02)
    assert (bytes(vm.memory["ram"]), vm.save_state()) == before


@pytest.mark.parametrize(("program", "says"), [
    (words(0xD2800000, 0xF9400001), "a read of 8 bytes at 0x0, where nothing is mapped"),
    (words(0xD2800000, 0xF9000001), "a write of 8 bytes at 0x0, where nothing is mapped"),
    (words(0xD2A12020, 0xB9001001), "a write of 4 bytes at timer\\+0x10, where no register is"),
    (words(0xD2A12000, 0xB9400001), "a read of 4 bytes at console\\+0x0, where no register can be read"),
    (words(0xFFFFFFFF), "pc 0x40000000"),
    (words(0xD2800000, 0xD61F0000), "where nothing is mapped"),
])
def test_a_guest_that_does_what_it_may_not_ends_the_machine_with_a_clear_error(make, program, says):
    vm = make(None)
    vm.boot(program, [])
    vm.resume()
    end = time.monotonic() + 20
    while vm.failure is None and time.monotonic() < end:
        time.sleep(0.001)
    assert isinstance(vm.failure, VmError)
    with pytest.raises(VmError, match=f"the guest stopped at pc .*{says}|{says}"):
        raise vm.failure
    with pytest.raises(RuntimeError, match="a step raised"):
        vm.resume()


@pytest.mark.parametrize("spoil", [
    lambda state: b"", lambda state: state[:-1], lambda state: state[:200], lambda state: state + b"\0",
    lambda state: state.replace(b"timer", b"tumer"), lambda state: b"\0",
])
def test_a_state_that_is_none_is_refused_and_changes_nothing(make, spoil):
    vm, other = make(), make()
    for _ in range(20):
        vm.step()
        other.step()
        other.step()
    before = vm.save_state()
    with pytest.raises(ValueError, match="no state of an embedded VM"):
        vm.load_state(memoryview(spoil(other.save_state())))
    assert vm.save_state() == before


def trackers() -> list[str]:
    return ["auto", *(p.name for p in probe() if p.available and p.name in ("pagemap", "shadow", "hash", "softdirty"))]


@pytest.mark.parametrize("name", trackers())
def test_trackers_see_what_the_guest_writes(make, name):
    vm = make()
    copy = bytearray(vm.memory["ram"])
    with open_tracker(name, vm.memory) as tracker:
        for _ in range(12):
            for _ in range(5):
                vm.step()
            bitmaps = tracker.new_bitmaps()
            assert tracker.harvest(bitmaps) < RAM // 4096 or vm.console.written == 0
            for first, run in bitmaps[0].runs():
                where = slice(first * 4096, (first + run) * 4096)
                copy[where] = vm.memory["ram"][where]
            assert copy == vm.memory["ram"]


def test_an_impossible_size_of_memory_is_refused():
    for size in (0, -4096, 4097, 1 << 60):
        with pytest.raises(ValueError, match="bytes of RAM"):
            EmbeddedVm(size)


def test_a_closed_machine_closes_again(make):
    vm = make()
    vm.resume()
    vm.close()
    vm.close()
    with pytest.raises(RuntimeError):
        vm.resume()
