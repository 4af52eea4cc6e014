"""Primary and secondary over a channel that is cut at any byte, in either direction, again and again.

After every cut the secondary's state must be a checkpoint that was made, at least the last acknowledged one, whole to the
byte; every page that differs from it must be dirty at the primary; and after the next full copy nothing may be missing.
"""

from __future__ import annotations

import importlib.util
import random
import select
import socket
import struct
import sys
import threading
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from colo._fast.kernels.bitmap import DirtyBitmap
from colo.abc import BlockMemory
from colo.epoch.outbox import Outbox
from colo.epoch.participants import Participants
from colo.epoch.primary_pages import PrimaryPages
from colo.errors import ColoError
from colo.link.primary_link import PrimaryLink, event_of
from colo.link.primary_settings import LinkSettings
from colo.memory.trackers import open_tracker, probe
from colo.protocol import Action, Dialect, Event, Mode, State
from colo.protocol.deadlines import Deadlines
from colo.session.vm_secondary import VmSecondary, VmSecondaryConfig
from colo.stream import StreamLimits
from colo.transport import SocketTransport
from colo.vm.handle import VmHandle
from colo.vm.saved_state import StateForm, decode_state
from colo.wire import Extension

_spec = importlib.util.spec_from_file_location(
    "primary_vm", Path(__file__).parents[1] / "session" / "primary_vm.py")
assert _spec is not None and _spec.loader is not None
primary_vm = sys.modules.setdefault("primary_vm", importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(primary_vm)
write, expected, PAGE = primary_vm.write, primary_vm.expected, primary_vm.PAGE

PAGES = [4, 2]
LIMITS = StreamLimits(quiet_ms=20.0)
DEADLINES = Deadlines(message_s=2.0, progress_s=2.0)
TRACKERS = [result.name for result in probe() if result.available and result.name in ("pagemap", "shadow")]


class TurnVm:
    """Writes when it is told to, and at once when it is resumed: while a copied checkpoint is still being sent. Running on,
    it writes just before it is paused: after pages were copied ahead."""

    def __init__(self) -> None:
        self.memory = BlockMemory.allocate({"ram": PAGES[0] * PAGE, "rom/aux": PAGES[1] * PAGE})
        self.views = [block.view() for block in self.memory.blocks]
        self.turn = 0
        self.outbox: Outbox | None = None
        self.standing = True
        self.restless = False

    def advance(self) -> None:
        assert not self.standing
        self.turn += 1
        write(self.views, PAGES, self.turn)
        if self.outbox is not None:
            self.outbox.put(self.turn)

    def pause(self) -> None:
        if self.restless and not self.standing:
            self.advance()
        self.standing = True

    def resume(self) -> None:
        self.standing = False
        self.advance()

    def save_state(self) -> bytes:
        assert self.standing
        return struct.pack(">Q", self.turn)

    def load_state(self, state: memoryview) -> None:
        self.turn = struct.unpack(">Q", state)[0]

    def image(self) -> list[bytes]:
        return [bytes(view) for view in self.views]


def relay(ends: tuple[socket.socket, socket.socket], budgets: list[int | None]) -> None:
    """Carries bytes both ways; the first direction whose budget is used up cuts the channel for both."""
    try:
        while True:
            for end in select.select(ends, [], [])[0]:
                n = ends.index(end)
                budget = budgets[n]
                data = end.recv(1 << 16 if budget is None else min(1 << 16, max(1, budget)))
                if not data or budget == 0:
                    return
                ends[1 - n].sendall(data)
                if budget is not None:
                    budgets[n] = budget - len(data)
                    if budgets[n] == 0:
                        return
    except OSError:
        pass
    finally:
        for end in ends:
            end.close()


@dataclass
class Run:
    """One VM, its tracker and caches, and one secondary, over as many connections as the schedule has."""

    copy: bool
    mode: Mode
    tracker: str
    xbzrle: Any
    extended: bool
    copy_ahead: bool
    delivered: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.vm, self.other = TurnVm(), TurnVm()
        self.outbox = self.vm.outbox = Outbox(self.delivered.append)
        self.tracker_object = open_tracker(self.tracker, self.vm.memory)
        self.pages = PrimaryPages(self.vm.memory, tracker=self.tracker_object, xbzrle=self.xbzrle)
        self.participants = Participants([self.pages, self.outbox])
        self.pages.start()
        if self.copy_ahead:
            self.write_after_each_harvest()
        self.form = StateForm(LIMITS)
        self.handle = VmHandle(self.vm)
        self.turns: list[int] = []
        """Of each connection's checkpoints, in order: what the VM's state was."""
        self.made: set[int] = set()
        self.acknowledged_turn = -1
        self.may_hold: int | None = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            self.secondary = VmSecondary(
                self.other, VmSecondaryConfig(
                    "tcp:127.0.0.1:0", "none", deadlines=DEADLINES, limits=LIMITS, mode=self.mode))
        save = self.vm.save_state

        def noted() -> bytes:
            self.turns.append(self.vm.turn)
            self.made.add(self.vm.turn)
            return save()

        self.vm.save_state = noted  # type: ignore[method-assign]

    def write_after_each_harvest(self) -> None:
        """While the VM runs: between finding a page dirty and copying it, it is written again."""
        self.vm.restless = True
        harvest = self.pages.harvest_more

        def harvest_and_write() -> int:
            found = harvest()
            if not self.vm.standing:
                self.vm.advance()
            return found

        self.pages.harvest_more = harvest_and_write  # type: ignore[method-assign]

    def connection(self, checkpoints: int, budgets: list[int | None], draw: random.Random) -> State:
        """One connection, cut when a direction has carried its budget. Returns where the primary then stood."""
        ours, near = socket.socketpair()
        far, theirs = socket.socketpair()
        threads = [
            threading.Thread(target=relay, args=((near, far), budgets), daemon=True),
            threading.Thread(target=self.secondary._follow, args=(SocketTransport(theirs),), daemon=True),
        ]
        for thread in threads:
            thread.start()
        self.turns.clear()
        link = PrimaryLink(
            SocketTransport(ours), self.handle, self.pages, self.form,
            LinkSettings(
                "colo", Dialect(enable_colo=True, extended=self.extended), self.mode, self.copy, DEADLINES,
                extensions=Extension.DIGEST, copy_ahead=self.copy_ahead),
            participants=self.participants, committed=self.may_hold, actions={
                Action.RUN_ALONE: self.handle.resume, Action.RELEASE_ALL: lambda: self.participants.end(True)},
        )
        stood = ended = State.RUNNING
        try:
            link.synchronise()
            for _ in range(checkpoints):
                for _ in range(draw.randrange(3)):
                    self.vm.advance()
                link.checkpoint()
        except ColoError as error:
            stood = link.machine.state
            ended = link.end(event_of(error))
        if stood is not State.RUNNING or link.machine.over:
            assert ended in (State.LOST, State.ALONE)
            self.check_still_dirty(link)
        if link.acknowledged is not None:
            first = 0 if self.may_hold is None else self.may_hold + 1
            self.acknowledged_turn = self.turns[link.acknowledged - first]
        if link.may_be_committed:
            self.may_hold = link.machine.committed or 0
        link.end(Event.FAILED)
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        assert self.pages.owned_pages() == 0
        self.check_secondary()
        return stood

    def check_still_dirty(self, link: PrimaryLink) -> None:
        """What differs from the last acknowledged checkpoint is dirty (during the first copy, everything is due)."""
        if link.acknowledged is None:
            return
        first = 0 if self.may_hold is None else self.may_hold + 1
        old = expected(self.turns[link.acknowledged - first], PAGES)
        bitmaps = [DirtyBitmap(n) for n in PAGES]
        self.tracker_object.harvest(bitmaps)
        for block, bitmap in enumerate(bitmaps):
            now = self.vm.image()[block]
            for page in range(PAGES[block]):
                at = slice(page * PAGE, (page + 1) * PAGE)
                assert now[at] == old[block][at] or bitmap.test(page), f"page {page} of block {block} was forgotten"
        self.tracker_object.give_back(bitmaps)

    def check_secondary(self) -> None:
        held = self.secondary.committed
        if held is None:
            assert self.acknowledged_turn == -1
            return
        self.secondary.ram.settle()
        turn = struct.unpack(">Q", decode_state(held.device_state, LIMITS))[0]
        assert turn in self.made
        assert turn >= self.acknowledged_turn
        image = [bytes(memoryview(block.memory_buffer)) for block in held.blocks]  # type: ignore[arg-type]
        assert [block.idstr for block in held.blocks] == ["ram", "rom/aux"]
        assert image == expected(turn, PAGES)
        # Nothing has left that the secondary's state does not know of, in order and each once.
        assert self.delivered == list(range(1, len(self.delivered) + 1))
        assert len(self.delivered) <= turn

    def close(self) -> None:
        self.pages.stop()
        self.secondary.close()


def schedule(seed: int) -> set[State]:
    """Returns the states of the primary in which it was cut."""
    cut = set()
    draw = random.Random(seed)
    run = Run(
        copy=draw.random() < 0.5, mode=draw.choice([Mode.EARLY, Mode.STRICT]), tracker=draw.choice(TRACKERS),
        xbzrle=draw.choice([None, "shadow", 64 << 10]), extended=draw.random() < 0.7,
        copy_ahead=draw.random() < 0.7,
    )
    try:
        for _ in range(draw.randrange(1, 4)):
            # Sizes at all scales: headers and messages are cut as often as pages.
            towards_secondary = draw.randrange(1 << draw.randrange(1, 17))
            towards_primary = draw.randrange(60)
            which = draw.random()
            budgets: list[int | None] = [
                towards_secondary if which < 0.7 else None, towards_primary if which >= 0.7 else None]
            cut.add(run.connection(draw.randrange(6), budgets, draw))
        run.connection(2, [None, None], draw)
        assert run.secondary.committed is not None
        assert run.acknowledged_turn == run.turns[-1]
        turn = struct.unpack(">Q", decode_state(run.secondary.committed.device_state, LIMITS))[0]
        assert turn == run.turns[-1]
    finally:
        run.close()
    return cut


@pytest.mark.parametrize("batch", range(6))
def test_any_cut_leaves_the_secondary_with_a_whole_checkpoint(batch: int) -> None:
    for seed in range(batch * 25, (batch + 1) * 25):
        try:
            schedule(seed)
        except AssertionError as error:
            raise AssertionError(f"schedule {seed}: {error}") from error


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_thousands_of_cuts_in_every_state() -> None:
    cut: set[State] = set()
    for seed in range(1_000, 7_000):
        try:
            cut |= schedule(seed)
        except AssertionError as error:
            raise AssertionError(f"schedule {seed}: {error}") from error
    assert cut >= {
        State.INITIAL_RAM, State.AWAIT_READY, State.AWAIT_REPLY, State.SENDING_RAM, State.AWAIT_RECEIVED,
        State.AWAIT_LOADED,
    }, cut
