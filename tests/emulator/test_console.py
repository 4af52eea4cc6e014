"""The console's line: exactly once to the world, from whichever machine, or a fault is told."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import time

import pytest

from colo.emulator.console import CONSOLE, FULL_BYTES, TAIL_MAX_BYTES, Console
from colo.emulator.console_link import DATA, DATA_MAX_BYTES, HELLO, MAGIC, ConsoleLink
from colo.emulator.console_observer import ConsoleObserver
from colo.errors import ChannelLost, StreamError


@pytest.fixture
def world(tmp_path):
    with ConsoleObserver(tmp_path / "world") as observer:
        observer.path = tmp_path / "world"
        yield observer


def link(world, console: Console, generation: int = 0) -> ConsoleLink:
    line = ConsoleLink(
        world.path, generation=generation, start=console.start, written=console.written,
        on_acknowledged=console.acknowledge)
    console.output = line.send
    return line


def say(console: Console, text: bytes) -> None:
    for byte in text:
        console.put(byte)


def moved(console: Console) -> Console:
    other = Console()
    CONSOLE.load(other, CONSOLE.save(console))
    return other


def until(holds) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)


def settled(console: Console) -> bool:
    console.settle()
    return not console.tail


def test_what_is_acknowledged_leaves_the_state(world):
    console = Console()
    line = link(world, console)
    say(console, b"one\ntwo\n")
    console.flush()
    until(lambda: settled(console))
    assert (console.written, console.start, bytes(world.transcript)) == (8, 8, b"one\ntwo\n")
    line.close()


@pytest.mark.parametrize("left", range(9))
def test_a_takeover_says_again_what_was_not_acknowledged_and_the_world_takes_the_rest(world, left):
    console = Console()
    line = link(world, console)
    say(console, b"one\ntwo\n")
    line.send(0, b"one\ntwo\n"[:left])  # the primary died here, and knows of no acknowledgement
    until(lambda: world.position == left)
    line.close()
    second = moved(console)
    assert second.start == 0
    again = link(world, second, 1)
    say(second, b"three\n")
    second.flush()
    until(lambda: settled(second))
    assert bytes(world.transcript) == b"one\ntwo\nthree\n" and world.faults == []
    assert world.repeated_bytes == left
    again.close()


def test_machines_killed_at_random_give_one_transcript(world):
    chance = random.Random(11)
    text = b"".join(b"line %d\n" % n for n in range(300))
    console, checkpoint, generation = Console(), Console(), 0
    line = link(world, console)
    while console.written < len(text) or console.tail:
        say(console, text[console.written : console.written + chance.randrange(40)])
        if chance.random() < 0.5:  # a checkpoint: what it covers may leave now
            console.settle()
            checkpoint = moved(console)
            if chance.random() < 0.7:
                console.flush()
        if chance.random() < 0.1:
            line.close()
            console, generation = moved(checkpoint), generation + 1
            line = link(world, console, generation)
    assert bytes(world.transcript) == text and world.faults == []
    assert generation > 10
    line.close()


def test_who_is_heard_only_after_its_successor_is_no_fault_and_has_no_say(world):
    console = Console()
    line = link(world, console, 2)
    say(console, b"one\ntwo\n")
    console.flush()
    until(lambda: world.position == 8)
    late = Console()
    old = link(world, late, 1)
    say(late, b"one\nTWO\n")
    with contextlib.suppress(ChannelLost):
        late.flush()
    old._reader.join(10)
    assert not old._reader.is_alive(), "the world hangs up"
    assert (bytes(world.transcript), world.faults) == (b"one\ntwo\n", [])
    old.close()
    line.close()


def test_output_beyond_the_state_that_is_taken_over_is_a_fault(world):
    console = Console()
    line = link(world, console)
    checkpoint = moved(console)
    say(console, b"too early\n")
    console.flush()
    until(lambda: world.position)
    link(world, checkpoint, 1)
    until(lambda: world.faults)
    assert "10 more are here already: output left before its checkpoint was committed" in world.faults[0]
    line.close()


def test_late_output_of_the_old_machine_is_a_fault_only_beyond_the_new_ones_state(world):
    old, new = Console(), Console()
    say(old, b"ab")
    new = moved(old)
    first = link(world, Console())
    until(lambda: 0 in world._limits)  # heard first: else it has no say beside its successor
    second = link(world, new, 1)
    until(lambda: 1 in world._limits)
    first.send(0, b"ab")
    until(lambda: world.position == 2)
    assert world.faults == []
    first.send(2, b"c")
    until(lambda: world.faults)
    assert "knows of 2" in world.faults[0]
    second.close()


@pytest.mark.parametrize(("position", "data", "fault"), [(5, b"x", "5 bytes before byte 5 are lost"),
                                                        (0, b"anders", "says other bytes at 0")])
def test_a_gap_and_a_contradiction_are_faults(world, position, data, fault):
    line = ConsoleLink(world.path, generation=0, start=0, written=0, on_acknowledged=lambda position: None)
    if position == 0:
        line.send(0, b"another")
    line.send(position, data)
    until(lambda: world.faults)
    assert fault in world.faults[0]
    line.close()


def test_a_machine_whose_state_begins_behind_the_world_has_lost_bytes(world):
    ConsoleLink(world.path, generation=0, start=7, written=9, on_acknowledged=lambda position: None)
    until(lambda: world.faults)
    assert "7 bytes before it are lost" in world.faults[0]


@pytest.mark.parametrize("raw", [
    b"", b"CON", b"x" * HELLO.size, HELLO.pack(MAGIC, 0, 0, 0) + DATA.pack(0, DATA_MAX_BYTES + 1),
    HELLO.pack(MAGIC, 0, 0, 0) + DATA.pack(1 << 63, 5), HELLO.pack(MAGIC, 0, 0, 0) + DATA.pack(0, 50) + b"cut",
])
def test_a_line_that_breaks_the_rules_adds_nothing(world, raw):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(world.path))
        sock.sendall(raw)
        sock.shutdown(socket.SHUT_WR)
        sock.settimeout(10)
        while sock.recv(64):
            pass
    assert world.position == 0


def test_without_a_world_there_is_a_clear_error(tmp_path):
    with pytest.raises(ChannelLost, match="the console's line"):
        ConsoleLink(tmp_path / "none", generation=0, start=0, written=0, on_acknowledged=lambda position: None)


def test_an_acknowledgement_of_what_was_never_said_is_not_believed():
    console = Console()
    say(console, b"abc")
    console.acknowledge(1 << 40)
    console.settle()
    assert bytes(console.tail) == b"abc"  # nothing was handed out yet
    console.flush()
    console.settle()
    assert console.start == 3


def test_what_output_refused_is_handed_to_it_again():
    console, taken = Console(), bytearray()

    def refuse(position: int, data: bytes) -> None:
        raise ChannelLost("not now")

    console.output = refuse
    say(console, b"abc")
    with pytest.raises(ChannelLost):
        console.flush()
    console.output = lambda position, data: taken.extend(data)
    console.flush()
    assert taken == b"abc"


def test_a_full_console_says_so_and_a_state_beyond_its_limit_is_refused():
    console = Console()
    say(console, bytes(FULL_BYTES))
    assert console.full
    state = bytearray(CONSOLE.save(console))
    state[8:12] = struct.pack(">I", TAIL_MAX_BYTES + 1)
    with pytest.raises(StreamError, match="size"):
        CONSOLE.load(Console(), bytes(state))


def test_a_state_with_more_unacknowledged_than_printed_is_refused():
    with pytest.raises((StreamError, ValueError), match="unacknowledged"):
        CONSOLE.load(Console(), struct.pack(">QI", 1, 2) + b"ab")
