"""``colo demo --vm embedded``: primary and secondary are two processes, this one is the outside world.

The primary's process is killed at a random moment. What the world heard on the guest's console, from both together, must be
byte for byte what an undisturbed machine prints, and what a computation of the same in Python gives; the memory and the
registers at the end must be those of the undisturbed machine.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import colo.errors
from colo import trace
from colo.arbiter import init_arbiter
from colo.cli.demo.side import KillPoint, SideSettings, final_state
from colo.cli.demo.verdict import Verdict, judge, print_summary, proof
from colo.cli.report.conditions import link
from colo.cli.report.option import concluded, reported
from colo.cli.report.recording import Recording
from colo.cli.terminal.output import SessionOutput
from colo.emulator import EmbeddedVm, Walk
from colo.emulator.console_observer import ConsoleObserver
from colo.emulator.engine import load_unicorn
from colo.errors import ColoError, NoCheckpoint, Unsupported, VmError
from colo.figures.secondary_report import CheckpointReport

TICK_S = 0.01
TICKS_PER_LINE = 5
STEPS_PER_TICK = 200
START_S = 30.0
UNCONNECTED_S = 2.0
"""A secondary that has nobody connected this long after the kill had nobody before it either."""
PATIENCE_S = 60.0
"""Beyond the time that the guest works, for a slow machine."""
SHOWN_EVERY = 20
"""Of the guest's lines, one in so many is shown."""


class Side:
    """One side's process; ``on_event`` is called, from a thread, with what it tells."""

    def __init__(self, role: str, settings: SideSettings, on_event: Any) -> None:
        self.role = role
        self.error: ColoError | None = None
        self.ended = False
        """All that it told was read."""
        self.events: dict[str, Any] = {}
        """The last of each kind."""
        self.changed = threading.Condition()
        self._on_event = on_event
        self.process = subprocess.Popen(
            [sys.executable, "-m", "colo.cli.demo.side", role, json.dumps(dataclasses.asdict(settings))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0)
        self._reader = threading.Thread(target=self._read, name=f"demo-{role}", daemon=True)
        self._reader.start()

    def say(self, text: str) -> None:
        """A line on its standard input."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{text}\n")
            self.process.stdin.flush()

    def wait_for(self, kinds: Sequence[str], timeout_s: float, *, required: bool = True) -> str | None:
        """The first of these events that there is, None: the process ended without. Raises VmError, if ``required``,
        when it did not come in time."""
        with self.changed:
            if not self.changed.wait_for(lambda: self.ended or any(k in self.events for k in kinds), timeout_s) and required:
                raise VmError(f"the {self.role} did not come to {' or '.join(kinds)} within {timeout_s:g} s")
            return next((kind for kind in kinds if kind in self.events), None)

    def kill(self) -> int:
        """SIGKILL; returns when the process is gone and all that it told was read."""
        self.process.kill()
        code = self.process.wait()
        self._reader.join()
        return code

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(json.JSONDecodeError):  # cut in the middle by the kill
                event = json.loads(line)
                self._take(event["event"], event["data"])
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def _take(self, kind: str, data: Any) -> None:
        if kind == "error":
            error = getattr(colo.errors, data["type"], ColoError)
            self.error = error(data["message"])
        self._on_event(self, kind, data)
        with self.changed:
            self.events[kind] = data
            self.changed.notify_all()


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; 0 if nothing was lost and nothing doubled."""
    load_unicorn()
    if not 0 < arguments.seconds <= 3600 or not 1 <= arguments.memory_mib <= 1 << 16 or arguments.interval_ms < 0:
        raise Unsupported("--seconds is at most 3600, --memory-mib 1 to 65536, --interval-ms not negative")
    try:
        KillPoint(arguments.kill_at)
    except ValueError as error:
        raise Unsupported(f"--kill-at: {error}") from error
    title = "colo demo: an ARM64 VM in this package"
    with reported(arguments.report, title) as recording, tempfile.TemporaryDirectory(prefix="colo-demo-") as work:
        if recording is not None:
            recording.conditions |= {
                "VM": f"{arguments.memory_mib} MiB, on the Unicorn CPU emulator", "Link": link("tcp:127.0.0.1:0"),
                "Interval": f"{arguments.interval_ms:g} ms from begin to begin"}
        output = SessionOutput(json_lines=arguments.json, title=title, recording=recording)
        try:
            verdict = Demo(arguments, Path(work), output, recording).run()
        finally:
            output.close()
        if recording is not None:
            if verdict.silence_ms is not None:
                recording.outage = {
                    "ms": verdict.silence_ms, "what": "from the kill to the first byte that the world had not heard before"}
            recording.verdict = f"{'Proved: what the world heard is ' if verdict.proved else ''}{proof(verdict)}."
        print_summary(verdict, json_lines=arguments.json)
    return concluded(0 if verdict.proved else 1, recording)


class Demo:
    """One run."""

    def __init__(
        self, arguments: argparse.Namespace, work: Path, output: SessionOutput, recording: Recording | None = None,
    ) -> None:
        self.recording = recording
        self.arguments = arguments
        self.work = work
        self.output = output
        self.seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1 << 32)
        self.random = random.Random(self.seed)
        self.ram_bytes = arguments.memory_mib << 20
        lines = max(1, round(arguments.seconds / (TICK_S * TICKS_PER_LINE)))
        self.walk = Walk.over(
            self.ram_bytes, lines=lines, steps_per_tick=STEPS_PER_TICK, ticks_per_line=TICKS_PER_LINE, seed=self.seed)
        self.started = threading.Event()
        """The primary's guest runs."""
        self.checkpoints: list[dict[str, Any]] = []
        """As the primary told of them."""
        self.committed = 0
        self.killed_s = 0.0

    def run(self) -> Verdict:
        """Raises NoCheckpoint when the kill came before there was anything to take over."""
        arbiter = self.work / "arbiter"
        arbiter.mkdir(mode=0o700)
        init_arbiter(f"file:{arbiter}", vm="demo")
        with ConsoleObserver(self.work / "console", on_line=self._heard) as world, contextlib.ExitStack() as sides:
            settings = SideSettings(
                dataclasses.asdict(self.walk), self.ram_bytes, TICK_S, f"file:{arbiter}", str(self.work / "console"),
                self.arguments.interval_ms, self.arguments.sending, self.arguments.tracker,
                "shadow" if self.arguments.xbzrle else None, self.arguments.kill_at,
                not self.arguments.no_output_commit, self.recording is not None)
            secondary = Side("secondary", settings, self._secondary_event)
            sides.callback(secondary.kill)
            primary = Side("primary", settings, self._primary_event)
            sides.callback(primary.kill)
            if secondary.wait_for(["listening"], START_S) is None:
                raise secondary.error or VmError("the secondary ended before it listened")
            primary.say(secondary.events["listening"])
            self._kill(primary)
            undisturbed = Undisturbed(self.walk, self.ram_bytes)
            sides.callback(undisturbed.close)
            self._await_end(secondary, world, undisturbed)
            return judge(
                self.walk, world, undisturbed, secondary.events["finished"], secondary.events["running"], self.checkpoints,
                killed_s=self.killed_s, seed=self.seed)

    def _kill(self, primary: Side) -> None:
        """At the moment asked for, or at a random one after the first checkpoint."""
        if primary.wait_for(["started"], START_S) is None:
            raise primary.error or VmError("the primary ended before its VM ran")
        begun_s = time.monotonic()
        if self.arguments.kill_at is not None:
            after_s = self.arguments.seconds + PATIENCE_S
        elif self.arguments.kill_after is not None:
            after_s = self.arguments.kill_after
        else:
            primary.wait_for(["protecting"], START_S)
            begun_s = time.monotonic()
            after_s = self.random.uniform(0.2, 0.7) * self.arguments.seconds
        with primary.changed:
            primary.changed.wait_for(lambda: primary.ended, max(0.0, begun_s + after_s - time.monotonic()))
        if not primary.ended:
            self.output.say(f"SIGKILL to the primary, pid {primary.process.pid}, {time.monotonic() - begun_s:.3f} s "
                            f"{'after its start' if self.arguments.kill_after is not None else 'after its first checkpoint'}")
        self.killed_s = time.monotonic()
        if self.recording is not None:
            self.recording.killed()
        if (code := primary.kill()) != -9:
            raise primary.error or VmError(f"the primary was not killed: it ended by itself, with code {code}")
        if self.arguments.kill_at is not None:
            self.output.say(f"the primary was killed at {self.arguments.kill_at}, pid {primary.process.pid}")

    def _await_end(self, secondary: Side, world: ConsoleObserver, undisturbed: Undisturbed) -> None:
        """The takeover, and the guest's end; once it runs there, the undisturbed machine does the same."""
        if self._await_takeover(secondary) != "running":
            error = secondary.error or VmError("the secondary ended without a takeover")
            if isinstance(error, NoCheckpoint):
                said = bytes(world.transcript)
                right = b"".join(self.walk.expected()).startswith(said)
                raise NoCheckpoint(
                    f"nothing could be taken over: {error}. The world had heard {len(said)} bytes, "
                    f"{'as they should be' if right else 'WRONG ones'}")
            raise error
        undisturbed.start()
        if secondary.wait_for(["finished", "error"], self.arguments.seconds + PATIENCE_S) != "finished":
            error = secondary.error or VmError("the secondary ended before the guest had done its work")
            if world.faults:
                raise VmError(f"the proof failed: {'; '.join(world.faults)}") from error
            raise error
        world.wait_for(secondary.events["finished"]["printed_bytes"], 5.0)

    def _await_takeover(self, secondary: Side) -> str | None:
        """Which of running and error came of it."""
        secondary.wait_for(["connected", "error"], UNCONNECTED_S, required=False)
        if not {"connected", "error"} & set(secondary.events):
            # It goes on listening, as it should; but here nobody will come any more.
            secondary.error = NoCheckpoint("the primary was killed before it had connected")
            return "error"
        return secondary.wait_for(["running", "error"], START_S)

    def _primary_event(self, side: Side, kind: str, data: Any) -> None:
        if kind == "checkpoint":
            self.checkpoints.append({**data, "at_s": time.monotonic()})
            self.output.primary_checkpoint(data)
            return
        sentences = {
            "started": "the primary's VM runs, pid {0[pid]}; dirty pages by {0[tracker]}",
            "protecting": "the first copy is committed: from now on the console waits for checkpoints",
            "lost": "primary: {0}", "notice": "primary: {0}", "error": "primary: {0[message]}",
            "ended": "primary: {0[ending]}",
        }
        self._tell(side, kind, data, sentences)

    def _secondary_event(self, side: Side, kind: str, data: Any) -> None:
        if kind == "checkpoint":
            self.output.event(trace.Checkpoint(CheckpointReport(**data)))
            return
        if kind == "heat":
            if self.recording is not None:
                self.recording.heat = data
            return
        if kind == "running" and self.recording is not None:
            self.recording.running(data)
        sentences = {
            "listening": "the secondary listens on {0}",
            "lost": "the secondary lost the primary: {0}",
            "taking-over": "taking over ({0})",
            "running": "the VM runs in the secondary, from checkpoint {0[checkpoint]}, after {0[total_ms]:.1f} ms",
            "notice": "secondary: {0}",
        }
        self._tell(side, kind, data, sentences)

    def _tell(self, side: Side, kind: str, data: Any, sentences: dict[str, str]) -> None:
        if self.arguments.json:
            self.output.json_line(kind, {"side": side.role, "told": data})
        elif kind in sentences:
            self.output.say(sentences[kind].format(data))

    def _heard(self, generation: int, line: bytes) -> None:
        words = line.split()
        if not words or (words[0] == b"line" and int(words[1]) % SHOWN_EVERY):
            return
        if self.arguments.json:
            self.output.json_line("console", {"generation": generation, "line": line.decode()})
        else:
            self.output.say(f"  {'primary  ' if generation == 0 else 'secondary'} | {line.decode()}", remember=False)


class Undisturbed:
    """The same guest on a machine that nobody protects or kills, in a thread of this process, as fast as it goes."""

    def __init__(self, walk: Walk, ram_bytes: int) -> None:
        self.transcript = bytearray()
        self._vm = EmbeddedVm(ram_bytes)
        walk.load_into(self._vm)
        self._vm.console.output = self._say

    def start(self) -> None:
        self._vm.resume()

    def close(self) -> None:
        self._vm.close()

    def _say(self, position: int, data: bytes) -> None:
        self.transcript += data
        self._vm.console.acknowledge(position + len(data))

    def result(self) -> tuple[bytes, dict[str, Any]]:
        """What it printed, and what it came to. Raises VmError."""
        while self._vm.running:
            time.sleep(0.005)
        self._vm.pause()
        if isinstance(self._vm.failure, ColoError):
            raise self._vm.failure
        return bytes(self.transcript), final_state(self._vm)
