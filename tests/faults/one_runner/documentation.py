"""The documentation's table of failures, from the failures themselves and what was measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from tests.faults.one_runner.failures import FAILURES, VMS

RUNS = {"primary": "the primary's", "secondary": "the secondary's", "either": "either, and one"}


def rows(verdicts: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row for each failure, with the outages that ``verdicts`` (as JSON has them) have of it alone."""
    seen: dict[str, list[float]] = defaultdict(list)
    for verdict in verdicts:
        name = verdict["case"].partition(": ")[2].partition(" at ")[0]
        if " then " not in verdict["case"] and not verdict["faults"]:
            seen[name].append(verdict["outage_ms"])
    lines = ["| failure | what happens | who runs | nobody runs for | what the user does |", "|---|---|---|---|---|"]
    for failure in FAILURES.values():
        what = failure.what + ("" if failure.vms == VMS or "in-process" in failure.vms else " (QEMU)")
        lines.append(
            f"| `{failure.name}` | {what} | {RUNS[failure.runs]} | {_outage(seen[failure.name])} | {failure.user} |")
    return "\n".join(lines)


def _outage(outages_ms: list[float]) -> str:
    if not outages_ms:
        return "not measured"
    ordered = sorted(outages_ms)
    return f"{ordered[len(ordered) // 2]:.0f} ms, at most {ordered[-1]:.0f}"
