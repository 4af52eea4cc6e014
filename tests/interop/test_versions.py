"""The main path with each QEMU: protected, some checkpoints, killed, taken over."""

from __future__ import annotations

from pathlib import Path

import pytest

from colo.figures.takeover_report import TakeoverReport
from colo.qemu.guest import make_guest_rom
from colo.qemu.primary import ColoSettings
from tests.faults.rig import rig, wait_until
from tests.interop.binaries import binary
from tests.qemu.tiny_machine import GUEST, RAM_MIB

pytestmark = [pytest.mark.qemu, pytest.mark.usefixtures("kvm")]

CHECKPOINTS = 10
CASES = [
    (version, variant)
    for version in ("7.2", "10.0", "11.1")
    for variant in ("plain", "xbzrle", *(("compress",) if version == "7.2" else ()))
]


class Versioned:
    """Makes command lines as the ``machine`` fixture does, of a version's own QEMU."""

    def __init__(self, path: str, run_dir: Path) -> None:
        self.path = path
        self.rom = run_dir / "guest.rom"
        make_guest_rom(self.rom, GUEST)

    def __call__(
        self, *extra: str, accel: str = "kvm", serial: Path | None = None, ram_mib: int = RAM_MIB
    ) -> list[str]:
        argv = [
            self.path, "-nodefaults", "-display", "none", "-machine", "pc", "-accel", accel, "-m", str(ram_mib),
            "-bios", str(self.rom),
        ]
        return [*argv, *(("-serial", f"file:{serial}") if serial else ()), *extra]


@pytest.mark.parametrize("share_ram", [True, False], ids=["shared", "sent"])
@pytest.mark.parametrize(("version", "variant"), CASES, ids=[f"{v}-{w}" for v, w in CASES])
def test_protected_killed_taken_over(run_dir: Path, version: str, variant: str, share_ram: bool) -> None:
    settings = ColoSettings(checkpoint_delay_ms=20, xbzrle=variant == "xbzrle", compress=variant == "compress")
    machine = Versioned(binary(version), run_dir)
    with rig(machine, run_dir, settings=settings, share_ram=share_ram) as case:
        case.start()
        case.protect()
        wait_until(lambda: (case.secondary.status()["checkpoint"] or 0) >= CHECKPOINTS or case.outcome is not None,
                   timeout_s=20, what=f"checkpoint {CHECKPOINTS}")
        assert case.outcome is None, case.outcome
        pages = case.secondary.statistics.pages
        assert (pages["xbzrle"] > 0) == (variant == "xbzrle")
        assert (pages["compressed"] > 0) == (variant == "compress")
        case.kill_primary()
        report = case.finish()
        assert isinstance(report, TakeoverReport), report
        assert report.checkpoint >= CHECKPOINTS
        assert report.shared_blocks == (("pc.ram",) if share_ram else ())
        case.check_resumed(report, report.checkpoint)
