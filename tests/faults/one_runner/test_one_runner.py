"""Exactly one runs: a sample of failures, and the proof that two would be seen."""

from __future__ import annotations

import os

import pytest

from tests.faults.one_runner import product
from tests.faults.one_runner.failures import FAILURES, VMS, Case, cases
from tests.faults.one_runner.hosts import ROOT
from tests.faults.one_runner.run import Place, binary, run_all, table
from tests.faults.one_runner.verdict import Verdict

pytestmark = [pytest.mark.qemu, pytest.mark.usefixtures("kvm", "hosts_can_be_made")]
SAMPLE = 62
SEED = int(os.environ.get("COLO_SEED", "1"))
PLACES = (2 if "PYTEST_XDIST_WORKER" in os.environ else 3) * (os.cpu_count() or 1)
"""Worlds at a time: fewer where other tests run beside them."""
SOAK = 1000


def chosen(seed: int, count: int) -> list[Case]:
    vms = tuple(vm for vm in VMS if vm == "in-process" or binary(vm))
    return cases(seed, count, arbiters=product.arbiters(), vms=vms)


@pytest.fixture(scope="module")
def sample(request: pytest.FixtureRequest) -> dict[str, Verdict]:
    """The sample's verdicts by case, several at a time; only those that a selected test asks for."""
    wanted = {
        item.callspec.params["failure"] for item in request.session.items
        if isinstance(item, pytest.Function) and "sample" in item.fixturenames and hasattr(item, "callspec")}
    made = [case for case in chosen(SEED, SAMPLE) if wanted & {case.first, case.second}]
    return {verdict.case: verdict for verdict in run_all(made, places=PLACES)}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("failure", FAILURES)
def test_exactly_one_runs(failure: str, sample: dict[str, Verdict]) -> None:
    """Alone and with another, on whichever VMs and arbiters fell to it."""
    verdicts = [sample[case.line()] for case in chosen(SEED, SAMPLE) if failure in (case.first, case.second)]
    assert verdicts
    assert not any(verdict.faults for verdict in verdicts), "\n" + table([v for v in verdicts if v.faults])


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_exactly_one_runs_in_a_thousand_failures() -> None:
    verdicts = run_all(chosen(SEED + 7, SOAK), places=PLACES)
    assert len(verdicts) == SOAK
    assert not any(verdict.faults for verdict in verdicts), "\n" + table([v for v in verdicts if v.faults])


def documented() -> dict[str, str]:
    """Failures and who runs, of the documentation's table."""
    text = (ROOT / "docs" / "operation.md").read_text()
    section = text.partition("\n## What fails, and who runs\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("| `")]
    return {row[0].strip().strip("`"): row[2].strip() for row in rows}


def test_the_documentation_has_every_failure_and_says_who_runs() -> None:
    found = documented()
    assert set(found) == set(FAILURES)
    for name, failure in FAILURES.items():
        assert found[name].startswith("either" if failure.runs == "either" else f"the {failure.runs}'s"), name


@pytest.mark.parametrize("line", [
    # The guard waited two seconds for the fence's answer before it claimed the VM, and nobody stopped it meanwhile.
    "7.2 file: fence-frozen at 84 ms then link-to-primary-down after 165 ms",
    # What a guard that was frozen believes of its lease is old.
    "7.2 file: guard-thawed at 95 ms",
])
def test_what_once_went_wrong(line: str) -> None:
    with Place() as place:
        verdict = place.run(Case.parse(line))
    assert not verdict.faults, verdict


@pytest.mark.parametrize("vm", ["7.2", "in-process"])
def test_two_that_run_are_seen(vm: str) -> None:
    """With an arbiter that lets both win, a partition makes both run: this looks where it should."""
    with Place() as place:
        verdict = place.run(Case(vm, "none", "link-down"))
    assert verdict.runs == "both"
    assert verdict.overlap_ms > 500
    assert any("both run" in fault for fault in verdict.faults)


def test_a_case_is_made_again_from_its_line() -> None:
    made = chosen(3, 300)
    assert [Case.parse(case.line()) for case in made] == made
    assert made == chosen(3, 300) != chosen(4, 300)
    assert {case.first for case in made} == set(FAILURES)
    with pytest.raises(ValueError, match="one is"):
        Case.parse("7.2 file: sunshine at 3 ms")


def test_a_sample_has_every_failure() -> None:
    made = chosen(SEED, SAMPLE)
    assert {name for case in made for name in (case.first, case.second) if name} >= set(FAILURES)
    assert sum(bool(case.second) for case in made) >= SAMPLE // 3
    assert {case.arbiter for case in made} == set(product.arbiters())
