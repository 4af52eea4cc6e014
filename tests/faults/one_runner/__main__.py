"""``python -m tests.faults.one_runner``: failures by the thousand."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from tests.faults.one_runner import product
from tests.faults.one_runner.documentation import rows
from tests.faults.one_runner.failures import VMS, Case, cases
from tests.faults.one_runner.hosts import missing
from tests.faults.one_runner.run import LEASE_MS, binary, run_all, table
from tests.faults.one_runner.verdict import Verdict


def main() -> int:
    """Run cases, print a table of who ran; exit code 1 when something was that may not be."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.one_runner", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--case", action="append", default=[], metavar="LINE", help="this one, as a table's first column says it")
    parser.add_argument("--places", type=int, default=2 * (os.cpu_count() or 1), help="cases at a time (default %(default)s)")
    parser.add_argument("--lease-ms", type=int, default=LEASE_MS)
    parser.add_argument("--vm", action="append", choices=VMS)
    parser.add_argument("--arbiter", action="append", choices=("file", "etcd", "exec", "none"))
    parser.add_argument("--json", metavar="FILE", help="all of it, with what every program said")
    parser.add_argument("--table", action="append", metavar="FILE", help="no cases: the documentation's table, by these --json files")
    arguments = parser.parse_args()
    if arguments.table:
        print(rows([verdict for name in arguments.table for verdict in json.loads(Path(name).read_text())]))
        return 0
    if why := missing():
        print(why, file=sys.stderr)
        return 2
    vms = tuple(vm for vm in arguments.vm or VMS if vm == "in-process" or binary(vm))
    chosen = [Case.parse(line) for line in arguments.case] or cases(
        arguments.seed, arguments.count, arbiters=tuple(arguments.arbiter or product.arbiters()), vms=vms,
        lease_ms=arguments.lease_ms)
    done: list[Verdict] = []

    def tell(verdict: Verdict) -> None:
        done.append(verdict)
        print(f"{len(done)}/{len(chosen)} {verdict.case}: {verdict.runs}, after {verdict.after_ms} ms, outage {verdict.outage_ms} ms; {verdict.took_s} s",
              *(f"FAULT {fault[:300]}" for fault in verdict.faults), sep="\n    ", flush=True)

    verdicts = run_all(chosen, places=arguments.places, lease_ms=arguments.lease_ms, tell=tell)
    print(table(verdicts))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps([verdict.as_dict() for verdict in verdicts], indent=1, default=str))
    return 1 if any(verdict.faults for verdict in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
