"""Runs of the benchmarks: bars, files, comparison, report."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import __main__ as command
from benchmarks.compare import change, show_comparison
from benchmarks.figures import Figure, Run
from benchmarks.machine import StolenTime, machine, stolen_warning, throttled, warnings
from benchmarks.paired import paired, rate_ratio
from benchmarks.questions import HERE, QUESTIONS, Answer, Question


def pause(value: float, **more: object) -> Figure:
    return Figure("pause", "p50", value, "ms", **more)  # type: ignore[arg-type]


def test_a_bar_is_held_against_the_value_or_the_ratio() -> None:
    assert pause(4.9, bar=5).holds
    assert pause(5.1, bar=5).holds is False
    assert pause(56, limit=174, ratio=0.32, bar=0.6, bar_on="ratio").holds
    assert Figure("decode", "raw", 2, "GB/s", "higher", ratio=0.39, bar=0.4, bar_on="ratio").holds is False
    assert pause(1).holds is None


def test_a_run_is_saved_and_loaded_whole(tmp_path: Path) -> None:
    run = Run(machine(), [pause(1.5, samples=(1.0, 2.0), parts={"ram": 1.0}, bar=5)], {"takeover": "no QEMU"})
    run.save(tmp_path / "run.json")
    assert Run.load(tmp_path / "run.json") == run


def test_other_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"benchmarks": []}')
    with pytest.raises(ValueError, match="not a saved run"):
        Run.load(tmp_path / "other.json")


def test_the_comparison_goes_by_ratios_where_both_have_one() -> None:
    assert change(pause(10, ratio=0.5), pause(30, ratio=0.25)) == pytest.approx(1.0)
    assert change(pause(10), pause(20)) == pytest.approx(-0.5)
    higher = Figure("decode", "raw", 2, "GB/s", "higher")
    assert change(higher, Figure("decode", "raw", 3, "GB/s", "higher")) == pytest.approx(0.5)


def test_the_comparison_finds_what_got_worse_and_what_came_and_went() -> None:
    printed = io.StringIO()
    old = Run({"cpu": "a"}, [pause(4, bar=5), Figure("takeover", "t", 8, "ms")])
    new = Run({"cpu": "b"}, [pause(6, bar=5), Figure("memory", "m", 8, "MiB")])
    worse = show_comparison(old, new, Console(file=printed, width=140))
    assert [figure.name for figure in worse] == ["p50"]
    for words in ("not the same cpu", "33% worse", "MISSED", "new", "gone"):
        assert words in printed.getvalue()


def test_throttling_of_a_pi_is_told_in_words() -> None:
    assert throttled("throttled=0x0") == "no"
    assert throttled("throttled=0x50005") == (
        "under-voltage, throttled, under-voltage has occurred, throttling has occurred"
    )
    assert throttled("") == "not shown"


def test_a_machine_in_no_state_to_measure_is_warned_of() -> None:
    state = {"governor": "ondemand", "throttled": "throttled", "load": 1e6}
    assert len(warnings(state)) == 3
    assert not warnings({"governor": "performance", "throttled": "no", "load": 0.0})


def test_rounds_are_paired_and_put_things_back() -> None:
    done: list[str] = []
    works = {name: lambda name=name: done.append(name) for name in "ab"}
    taken = paired(works, 4, before={"b": lambda: done.append("reset")})
    assert {name: len(times) for name, times in taken.items()} == {"a": 4, "b": 4}
    assert all(done[i - 1] == "reset" for i, name in enumerate(done) if name == "b")
    assert rate_ratio([1.0, 2.0, 9.0], [2.0, 4.0, 9.0]) == 0.5


def test_every_question_has_its_file() -> None:
    assert [q.name for q in QUESTIONS if not (HERE / f"bench_{q.name}.py").is_file()] == []


def test_the_report_shows_every_figure(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.report import write_report

    figures = [
        pause(2, limit=44, ratio=0.05, limit_name="QEMU's own secondary", bar=5, samples=[2, 3], limit_samples=[43, 44]),
        Figure("decode", "raw <pages>", 2, "GB/s", "higher", limit=3, limit_name="memcpy", ratio=0.7, bar=0.4, bar_on="ratio"),
        Figure("takeover", "512 MiB", 9, "ms", parts={"settle": 1, "load": 8}, bar=50),
        Figure("memory", "beyond", -19, "MiB", bar=100, samples=[1, 2], parts={"RAM image": 256, "largest checkpoint": 20}),
    ]
    page = write_report(Run(machine(), figures, {"pause": "no <kvm>"}), tmp_path).read_text()
    assert "4 of 4 bars hold" in page
    assert "raw &lt;pages&gt;" in page
    assert "no &lt;kvm&gt;" in page
    for name in ("bars.svg", "limits.svg", "pauses.svg", "parts.svg", "memory.svg"):
        assert name in page
        assert (tmp_path / name).stat().st_size > 1000


def test_two_runs_of_one_second_have_a_folder_each(tmp_path: Path) -> None:
    folders = {command.new_folder(tmp_path / "out") for _ in range(4)}
    assert len(folders) == 4 and all(folder.is_dir() for folder in folders)


def test_what_programs_say_is_no_markup_and_no_markup_reaches_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "E assert [0, 1] == [/]  [red]"
    answers = {
        "broken": Answer([], "", said, failed=True),
        "absent": Answer([], "[1] x.py:3: no /dev/kvm [here]", ""),
        "slow": Answer([pause(6, bar=5, limit=5, limit_name="memcmp [both]")], "", ""),
    }
    monkeypatch.setattr(command, "QUESTIONS", [
        Question(name, f"about [{name}]", lambda *_, answer=answer: answer) for name, answer in answers.items()])
    printed = io.StringIO()
    assert command.run(False, None, tmp_path, False, Console(file=printed, highlight=False, width=200)) == 1
    text = printed.getvalue()
    for words in ("failed; its output:", said, "not measured: [1] x.py:3: no /dev/kvm [here]", "about [slow]", "missed: pause, p50"):
        assert words in text, text
    assert "[/]\n" not in text and "[bold" not in text and "[yellow]" not in text


@pytest.mark.parametrize("absent", ["pytest_benchmark", "numpy"])
def test_a_package_that_is_missing_is_named_before_anything_is_run(tmp_path: Path, absent: str) -> None:
    code = f"import sys; sys.modules[{absent!r}] = None; from benchmarks.__main__ import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "--only", "decode", "--out", str(tmp_path / "out")], cwd=HERE.parent,
        capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert absent.replace("_", "-") in done.stderr.partition("pip install ")[2].split() and "make bench" in done.stderr
    assert not (tmp_path / "out").exists()


def test_without_bars_and_samples_there_is_still_a_report(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.report import write_report

    assert "0 of 0" in write_report(Run({}, [pause(1)]), tmp_path).read_text()


def test_time_stolen_by_the_host_is_told(tmp_path):
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 50 1000 7 0 0 10 3 3\ncpu0 1 1 1 1 1 1 1 1\n")
    stolen = StolenTime(stat)
    assert stolen.percent() == 0.0
    stat.write_text("cpu  150 0 70 9000 99 0 0 40 3 3\ncpu0 1 1 1 1 1 1 1 1\n")
    assert stolen.percent() == 30.0  # 30 of the 100 that were wanted
    assert "30.0 %" in (stolen_warning(stolen.percent()) or "")
    assert stolen_warning(0.4) is None
    assert StolenTime(tmp_path / "nothing").percent() is None and stolen_warning(None) is None
