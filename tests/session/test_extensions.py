"""What two colo ends agree on beyond QEMU's protocol: a checkpoint damaged on its way is never committed."""

from __future__ import annotations

import random
import select
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from colo._fast.kernels.codec_libraries import usable_methods
from colo.arbiter import init_arbiter
from colo.errors import ColoError
from colo.protocol import Mode
from colo.session.primary import Primary, PrimaryConfig, PrimaryEnding
from colo.session.vm_secondary import VmTakeover
from tests.session.primary_vm import PageVm, expected
from tests.session.test_primary import Standby, arbiter

__all__ = ["arbiter"]
SEND = b"\0\0\0\3"


class Damager:
    """Carries one connection, as fast as it may, and inverts one bit of what the primary sends after it was armed."""

    def __init__(self, to: str, *, bytes_per_s: float = 0.0) -> None:
        self.bytes_per_s = bytes_per_s
        host, port = to.removeprefix("tcp:").rsplit(":", 1)
        self.target = host, int(port)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp:127.0.0.1:{self.listener.getsockname()[1]}"
        self.flip_at: int | None = None
        """Counted from the begin of what is sent from now on, in bits."""
        self.sent = 0
        self.flipped = False
        self.thread = threading.Thread(target=self._carry, daemon=True)
        self.thread.start()

    def _carry(self) -> None:
        primary, _ = self.listener.accept()
        secondary = socket.create_connection(self.target)
        with primary, secondary:
            while True:
                for ready in select.select([primary, secondary], [], [])[0]:
                    try:
                        data = bytearray(ready.recv(1 << 16))
                    except OSError:
                        return
                    if not data:
                        return
                    if ready is primary and self.bytes_per_s:
                        time.sleep(len(data) / self.bytes_per_s)
                    if ready is primary and self.flip_at is not None:
                        at = self.flip_at // 8 - self.sent
                        if 0 <= at < len(data):
                            data[at] ^= 1 << self.flip_at % 8
                            self.flipped = True
                        self.sent += len(data)
                    (secondary if ready is primary else primary).sendall(data)

    def close(self) -> None:
        self.listener.close()


def damaged_checkpoint(arbiter: Path, sending: str, digest: bool, draw: random.Random) -> tuple[bool, bool]:
    """One bit of a checkpoint's pages or device state is inverted. Returns whether it was committed, and whether what the
    secondary then ran from was a state that the VM had."""
    vm, other = PageVm(), PageVm()
    standby = Standby(other, arbiter, lease_ms=0)
    between = Damager(standby.secondary.address)
    try:
        with Primary(
            vm, PrimaryConfig(
                between.address, f"file:{arbiter}", interval_ms=10_000.0, sending=sending, digest=digest, lease_ms=0)
        ) as primary:
            primary.start()
            primary.checkpoint(10)
            vm.advance()
            # The request goes out (4 bytes), then 4 bytes of VMSTATE_SEND; the START section names the blocks. Behind it
            # lie the pages' records and, at the very end, the device state.
            length = 8 + 4096
            between.flip_at = 8 * 200 + draw.randrange(8 * length)
            try:
                report = primary.checkpoint(10)
                committed = report.number == 2
            except ColoError:
                committed = False
            assert between.flipped
            outcome = standby.join() if not committed else None
            if committed:
                standby.secondary.request_failover("the end of the test")
                outcome = standby.join()
            if isinstance(outcome, VmTakeover):
                return committed, other.image() == expected(other.turn, other.pages)
            assert primary.wait(10).ending is PrimaryEnding.ALONE
            return committed, True
    finally:
        between.close()
        standby.close()
        vm.close()
        other.close()


@pytest.mark.parametrize("sending", ["copy", "direct"])
def test_no_bit_flip_in_a_checkpoint_is_committed(tmp_path: Path, sending: str) -> None:
    draw = random.Random(sending)
    for n in range(20):
        place = tmp_path / str(n)
        place.mkdir(mode=0o700)
        init_arbiter(f"file:{place}", vm="test")
        committed, sound = damaged_checkpoint(place, sending, True, draw)
        assert sound
        assert not committed


def test_without_the_digest_damage_does_get_through(tmp_path: Path) -> None:
    """Else the test above would prove nothing."""
    draw = random.Random(1)
    outcomes = []
    for n in range(8):
        place = tmp_path / str(n)
        place.mkdir(mode=0o700)
        init_arbiter(f"file:{place}", vm="test")
        outcomes.append(damaged_checkpoint(place, "copy", False, draw))
    assert any(committed and not sound for committed, sound in outcomes), outcomes


@pytest.mark.parametrize(("mode", "digest", "agreed"), [
    (Mode.EARLY, True, True), (Mode.EARLY, False, False), (Mode.STRICT, True, False)])
def test_what_is_offered_is_agreed_on(arbiter: Path, mode: Mode, digest: bool, agreed: bool) -> None:
    """In the mode for a QEMU nothing is offered: it would refuse the stream."""
    vm, other = PageVm(), PageVm()
    strict = mode is Mode.STRICT  # as towards a QEMU: no lease can be had
    standby = Standby(other, "none", mode=mode, lease_ms=0 if strict else 3000.0)
    with Primary(vm, PrimaryConfig(
        standby.secondary.address, "none", interval_ms=10_000.0, mode=mode, digest=digest)
    ) as primary:
        primary.start()
        primary.checkpoint(10)
        status: dict[str, Any] = primary.status()
        assert status["extensions"] == (["DIGEST"] if agreed else [])
        primary.stop()
    standby.close()
    vm.close()
    other.close()


class TextVm(PageVm):
    """Its pages hold words that move: deltas gain little, an older page as dictionary much."""

    def __init__(self) -> None:
        super().__init__(256)
        draw = random.Random(5)
        known = [bytes(draw.choices(b"abcdefghijklmnop", k=6)) for _ in range(40)]
        self.views[0][:] = b"".join(draw.choice(known) + b"  " for _ in range(256 * 512))

    def advance(self) -> None:
        self.turn += 1
        ram = self.views[0]
        for page in range(256):
            at, by = page * 4096, 8 * (1 + (self.turn * 7 + page) % 200)
            ram[at : at + 4096] = bytes(ram[at + by : at + 4096]) + bytes(ram[at : at + by])


@pytest.mark.parametrize("sending", ["copy", "direct"])
@pytest.mark.parametrize("compress", [name for name in (*usable_methods(), "auto") if name != "mask"])
def test_pages_are_compressed_where_the_link_is_slow(arbiter: Path, sending: str, compress: str) -> None:
    vm, other = TextVm(), PageVm(256)
    standby = Standby(other, arbiter, lease_ms=0)
    between = Damager(standby.secondary.address, bytes_per_s=8e6)
    with Primary(vm, PrimaryConfig(
        between.address, f"file:{arbiter}", interval_ms=10_000.0, sending=sending, compress=compress, xbzrle="shadow",
        lease_ms=0,
    )) as primary:
        primary.start()
        for _ in range(6):
            with vm.paused():
                vm.advance()
            report = primary.checkpoint(20)
        assert 1e6 < primary.status()["link_bytes_per_s"] < 20e6
        assert set(primary.status()["extensions"]) > {"DIGEST"}
        compressed = {kind: n for kind, n in report.pages.items() if kind.endswith("_delta") and n}
        assert sum(compressed.values()) > 100, report
        assert compress == "auto" or set(compressed) == {f"{compress}_delta"}
        assert primary.statistics.compression_ratio < 0.8
        assert standby.secondary.statistics.pages["compressed"] >= sum(compressed.values())
        standby.secondary.request_failover("test")
        assert isinstance(standby.join(), VmTakeover)
        assert other.image() == vm.image()
    between.close()
    standby.close()
    vm.close()
    other.close()


@pytest.mark.parametrize(("options", "words"), [
    ({"compress": "gzip"}, "compress is None"),
    ({"compress": "lz4", "mode": Mode.STRICT, "arbiter": "none"}, "a QEMU knows XBZRLE only"),
    ({"sending": "later"}, "sending is"),
    ({"link_share": 1.5}, "link_share"),
])
def test_what_cannot_be_is_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    vm = PageVm()
    with pytest.raises(ValueError, match=words):
        Primary(vm, PrimaryConfig(**{"to": "tcp:127.0.0.1:1", "arbiter": f"file:{tmp_path}", **options}))
    vm.close()
