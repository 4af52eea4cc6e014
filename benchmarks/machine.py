"""What the figures were measured on, and whether it was in a state to measure: governor, heat, throttling, load."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

THROTTLED_BITS = {
    0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit",
    16: "under-voltage has occurred", 17: "frequency capping has occurred", 18: "throttling has occurred",
    19: "soft temperature limit has occurred",
}
"""Of ``vcgencmd get_throttled`` on a Raspberry Pi."""
STOLEN_PERCENT_MAX = 3.0


def machine() -> dict[str, Any]:
    """The machine, its software, and :func:`condition`; only what can be known."""
    known = {
        "cpu": _cpu(),
        "board": _text(Path("/proc/device-tree/model")).strip("\0"),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30), 1),
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "simd": _simd(),
        "qemu": _first_line("qemu-system-x86_64", "--version"),
        "kvm": os.access("/dev/kvm", os.R_OK | os.W_OK),
        "commit": _first_line("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"),
        **condition(),
    }
    return {key: value for key, value in known.items() if value not in ("", None)}


def condition() -> dict[str, Any]:
    """What may change while benchmarks run."""
    return {
        "governor": _text(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")) or "not shown",
        "temperature_c": _temperatures(),
        "throttled": throttled(_first_line("vcgencmd", "get_throttled")),
        "load": round(os.getloadavg()[0], 2),
    }


class StolenTime:
    """How much of the processors' time a hypervisor gave to others while they had work here, since this was made."""

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self._stat = stat
        self._begin = self._jiffies()

    def percent(self) -> float | None:
        """Of the time that the processors were wanted; None where it is not told."""
        if self._begin is None or (now := self._jiffies()) is None:
            return None
        stolen, wanted = now[0] - self._begin[0], now[1] - self._begin[1]
        return round(100 * stolen / wanted, 1) if wanted > 0 else 0.0

    def _jiffies(self) -> tuple[int, int] | None:
        """(stolen, all but idle)."""
        fields = _text(self._stat).partition("\n")[0].split()
        if len(fields) < 9 or fields[0] != "cpu":
            return None
        user, nice, system, _idle, _waiting, irq, softirq, stolen = map(int, fields[1:9])
        return stolen, user + nice + system + irq + softirq + stolen


def throttled(answer: str) -> str:
    """``throttled=0x50000`` in words; ``no``; or ``not shown`` where there is no ``vcgencmd``."""
    if not answer.startswith("throttled="):
        return "not shown"
    bits = int(answer.partition("=")[2], 16)
    return ", ".join(text for bit, text in THROTTLED_BITS.items() if bits >> bit & 1) or "no"


def stolen_warning(percent: float | None) -> str | None:
    """What speaks against figures during which so much time was stolen."""
    if percent is None or percent <= STOLEN_PERCENT_MAX:
        return None
    return f"{percent} % of the processors' time went to other machines of the host meanwhile: measure again"


def warnings(state: dict[str, Any]) -> list[str]:
    """What speaks against trusting figures measured in this ``state``."""
    found = []
    if state["governor"] not in ("performance", "not shown"):
        found.append(f"CPU governor is {state['governor']}: clocks change while measuring")
    if state["throttled"] not in ("no", "not shown"):
        found.append(f"the board throttles: {state['throttled']}")
    if state["load"] > (os.cpu_count() or 1) * 0.5:
        found.append(f"load is {state['load']} before measuring: others use this machine, so trust ratios only")
    return found


def _cpu() -> str:
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _temperatures() -> dict[str, float]:
    zones = {}
    for zone in sorted(Path("/sys/class/thermal").glob("thermal_zone*")):
        with contextlib.suppress(ValueError):
            zones[_text(zone / "type") or zone.name] = int(_text(zone / "temp")) / 1000
    return zones


def _simd() -> str:
    from colo._fast.kernels.kernels import active_level, levels

    return f"{active_level()} of {', '.join(levels())}"


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _first_line(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.partition("\n")[0].strip()
    return ""
