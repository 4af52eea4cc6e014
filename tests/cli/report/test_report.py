"""The report of real runs: a page that is well-formed and needs nothing else, with the figures of its run.json."""

from __future__ import annotations

import contextlib
import html.parser
import json
import os
import platform
import re
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from colo import trace
from colo.abc import BlockMemory
from colo.cli.report import page as report
from colo.cli.report import words as report_words
from colo.cli.report.option import reported
from colo.cli.report.recording import P99_LEAST, SAMPLES, VALUES, Recording, Values
from colo.cli.report.svg import NARROW, WIDE, Plot, escape, steps
from colo.cli.report.words import ms, share
from colo.cli.terminal.output import COLUMNS, SessionOutput, shown_columns
from colo.errors import ArbitrationLost, ColoError, NoCheckpoint, StorageError
from colo.figures.kinds import BYTE_KINDS, PAGE_KINDS, report_bytes, report_pages
from colo.figures.series import percentile
from colo.session.primary import Primary, PrimaryConfig
from colo.session.vm_secondary import VmSecondary, VmSecondaryConfig
from colo.text import size
from tests.cli.watched import COLO, ROOT, PageVm, leading, secondary_process

NAMES = {"": "http://www.w3.org/1999/xhtml", "svg": "http://www.w3.org/2000/svg"}
HOSTILE = "</text><script>alert('&amp;')</script>\"]]><!--"


class Page:
    """A report, read as XML and as HTML."""

    def __init__(self, directory: Path) -> None:
        self.text = (directory / "index.html").read_text(encoding="utf-8")
        self.run: dict[str, Any] = json.loads((directory / "run.json").read_text())
        self.root = ElementTree.fromstring(self.text.removeprefix("<!DOCTYPE html>\n"))
        tags = Tags()
        tags.feed(self.text)
        assert tags.open == [] and sorted(p.name for p in directory.iterdir()) == ["index.html", "run.json"]
        assert not {"script", "link", "iframe", "object", "img"} & tags.seen
        assert all(value in NAMES.values() for value in re.findall(r"https?://[^\"' <]*", self.text))

    def rows(self, name: str = "summary") -> dict[str, str]:
        """A table in words."""
        table = self.root.find(f".//{{*}}table[@id='{name}']")
        assert table is not None
        return {row[0].text or "": row[1].text or "" for row in table}

    def figure(self, name: str) -> ElementTree.Element:
        found = self.root.find(f".//{{*}}figure[@id='{name}']")
        assert found is not None, name
        return found

    def fate(self) -> tuple[str, str] | None:
        """What is said before all else, if anything."""
        main = self.root.find(".//{*}main")
        assert main is not None
        return (main[0].attrib["class"], main[0].text or "") if main[0].attrib.get("id") == "fate" else None

    def figures(self) -> list[str]:
        return [figure.attrib["id"] for figure in self.root.iter("{http://www.w3.org/1999/xhtml}figure")]

    def words(self, name: str) -> str:
        return " | ".join(self.figure(name).itertext())

    def path(self, name: str, style: str) -> str:
        """The drawn path of a figure, on a wide page."""
        found = self.figure(name).findall(f"{{*}}div[@class='wide']//{{*}}path[@class='{style}']")
        assert len(found) == 1, (name, style, len(found))
        return found[0].attrib["d"]


class Tags(html.parser.HTMLParser):
    """Which elements there are, and whether each is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        self.seen.add(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_figures(page: Page, side: dict[str, Any]) -> None:
    """What the page shows of one side's timeline is what its run.json says, and that agrees with itself."""
    rows, points = page.rows(), side["points"]
    assert sum(p["checkpoints"] for p in points) == side["checkpoints"]
    for what, kinds, amount in (("pages", PAGE_KINDS, lambda n: f"{n:,}"), ("bytes", BYTE_KINDS, size)):
        totals = {kind: sum(p[what].get(kind, 0) for p in points) for kind in kinds}
        assert totals == side[what]
        whole = sum(totals.values())
        for kind, count in totals.items():
            words = f"{kind} {amount(count)} ({share(count, whole)})"
            assert (words in page.words(what)) == (count > 0), words
    assert side["dirty_pages"] == sum(side["pages"].values())
    assert f"{side['dirty_pages']:,} (" in rows["Dirty pages"] and size(side["stream_bytes"]) in rows["Sent"]
    p50, p99, most = (side["pause_ms"][name] for name in ("p50", "p99", "max"))
    assert (p99 is not None) == (side["checkpoints"] >= P99_LEAST)
    assert f"p50 {ms(p50)}" in page.words("pause")
    assert (f"p99 {ms(p99)}" if p99 is not None else f"max {ms(most)}") in page.words("pause")
    if side["checkpoints_per_point"] == 1:
        values = [p["pause_ms"]["mean"] for p in points]
        assert p50 == pytest.approx(percentile(values, 50), abs=1e-3)
        assert p99 is None or p99 == pytest.approx(percentile(values, 99), abs=1e-3)
        drawn = page.path("pause", "dots c1").count("M")
        beyond = page.figure("pause").findall("{*}div[@class='wide']//{*}path[@class='line warn']")
        assert drawn + sum(path.attrib["d"].count("M") for path in beyond) == len(points)


def test_the_embedded_demo_s_report_has_its_figures(tmp_path: Path) -> None:
    pytest.importorskip("unicorn")
    done = subprocess.run(
        [*COLO, "demo", "--seconds", "1.5", "--memory-mib", "4", "--interval-ms", "20", "--kill-after", "1.2", "--json",
         "--xbzrle", "--report", str(tmp_path / "deep" / "report")],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    verdict = json.loads(done.stdout.splitlines()[-1])["data"]
    page = Page(tmp_path / "deep" / "report")
    run, rows = page.run, page.rows()
    assert page.figures() == ["pause", "parts", "pages", "bytes", "ratio", "interval", "heat", "takeover"]
    assert run["primary"]["checkpoints"] + 1 == verdict["checkpoints"]
    assert run["primary"]["pause_ms"]["p50"] == verdict["pause_p50_ms"]
    assert run["primary"]["pause_ms"]["p99"] in (verdict["pause_p99_ms"], None)
    check_figures(page, run["primary"])
    assert rows["Pause"] == report_words.spread(run["primary"]["pause_ms"])
    assert run["takeover"]["total_ms"] == verdict["takeover"]["total_ms"]
    for part in ("arbitration", "settle", "load"):
        assert f"{part} {ms(verdict['takeover'][f'{part}_ms'])}" in page.words("takeover")
    assert "primary killed" in page.words("pause") and run["kill_s"] > 0
    assert page.fate() is None
    assert run["outage"]["ms"] == verdict["silence_ms"] and ms(verdict["silence_ms"]) in rows["Outage"]
    conditions = page.rows("conditions")
    assert platform.release() in conditions["Kernel"] and "20 ms" in conditions["Interval"] and "4 MiB" in conditions["VM"]
    assert rows["Proof"].startswith("Proved: ") and rows["Proof"] == run["verdict"]
    heat = run["heat"]
    assert [block["idstr"] for block in heat["blocks"]] == ["ram"]
    assert sum(map(sum, heat["rows"])) == run["secondary"]["dirty_pages"] > 0
    assert len(heat["times_s"]) == len(heat["rows"]) and heat["times_s"] == sorted(heat["times_s"])
    assert 0 <= heat["times_s"][0] <= run["duration_s"]
    assert "ram" in page.words("heat") and report_words.hottest(heat) == rows["Hottest place"]


def test_a_secondary_s_report_is_written_when_it_is_stopped(tmp_path: Path) -> None:
    vm = PageVm(64, free_running=True)
    with contextlib.closing(vm), secondary_process(tmp_path, "--report", str(tmp_path / "report")) as (second, address):
        with leading(vm, address):
            second.wait_for(lambda lines: sum('"event": "checkpoint"' in line for line in lines) >= 8)
            second.end(signal.SIGTERM)
    page = Page(tmp_path / "report")
    side = page.run["secondary"]
    told = [json.loads(line)["data"] for line in second.lines if '"event": "checkpoint"' in line]
    told = [one for one in told if one["number"] > 0]
    assert side["checkpoints"] == len(told) and page.run["primary"]["checkpoints"] == 0
    assert side["pages"] == {kind: sum(report_pages(one)[kind] for one in told) for kind in PAGE_KINDS}
    assert side["stream_bytes"] == sum(one["stream_bytes"] for one in told)
    assert all(sum(report_bytes(one).values()) == one["stream_bytes"] for one in told)
    check_figures(page, side)
    assert {"pause", "parts", "pages", "bytes", "heat"} <= set(page.figures()) and "takeover" not in page.figures()
    assert "Held" in page.rows() and "Pause" not in page.rows()
    assert "rom/aux" in page.words("heat")
    assert page.run["ending"]["text"] == "Interrupted"


def test_no_checkpoint_is_a_report_too(tmp_path: Path) -> None:
    with secondary_process(tmp_path, "--report", str(tmp_path / "report")) as (second, _):
        assert second.end(signal.SIGTERM) == 130
    page = Page(tmp_path / "report")
    assert page.figures() == [] and page.rows()["Checkpoints"] == "0"
    assert "no checkpoint was committed" in page.text and "NaN" not in page.text
    assert page.run["secondary"]["pause_ms"] == {"count": 0, "p50": None, "p90": None, "p99": None, "max": None}
    assert page.fate() is None  # it was ended, nothing was lost


def test_names_from_a_peer_stay_text(tmp_path: Path) -> None:
    """A primary names its blocks; what a page shows of that is words."""
    class NamedVm(PageVm):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            super().__init__(16, free_running=True)
            self.memory = BlockMemory.allocate({HOSTILE: 16 * 4096, "b": 2 * 4096})
            self.views = [block.view() for block in self.memory.blocks]

    first, second = NamedVm(), NamedVm()
    with reported(str(tmp_path / "report"), HOSTILE) as recording:
        assert recording is not None
        output = SessionOutput(json_lines=True, recording=recording)
        with VmSecondary(
            second, VmSecondaryConfig("tcp:127.0.0.1:0", "none", resume=False, heat_map=True), sinks=[output.event],
        ) as secondary:
            def run() -> None:
                with contextlib.suppress(ColoError):
                    secondary.run()

            thread = threading.Thread(target=run, daemon=True)
            thread.start()
            with Primary(first, PrimaryConfig(secondary.address, "none", interval_ms=5.0)) as primary:
                first.resume()
                primary.start()
                while primary.statistics.checkpoints < 10:
                    primary.checkpoint(20)
                assert secondary.committed is not None
                secondary.request_failover().result(20)
            thread.join(20)
            assert secondary.heat is not None
            recording.heat = secondary.heat.as_dict()
    first.close()
    second.close()
    page = Page(tmp_path / "report")
    assert page.root.find(".//{*}h1").text == HOSTILE  # type: ignore[union-attr]
    assert HOSTILE in page.words("heat")
    assert page.rows()["Hottest place"].startswith((HOSTILE, "b at"))
    assert page.run["takeover"]["reason"] == "request" and "because: request" in page.rows()["Takeover"]


@pytest.mark.parametrize("name", ["\0\x1b[2J\x7f", "\ud800\udfff", "\u202e\ufffe\uffff", "a\nb\r\u2028c", "&#0;&lt;"])
def test_what_is_no_character_of_xml_is_told_by_its_number(name: str) -> None:
    read = ElementTree.fromstring(f'<a b="{escape(name)}">{escape(name)}</a>')
    assert read.text == read.attrib["b"]
    assert read.text.isprintable()
    assert read.text.encode()


def secondary_report(number: int, held_ms: float) -> dict[str, Any]:
    return {
        "number": number, "interval_ms": 20.0, "held_ms": held_ms, "ram_ms": held_ms / 2, "device_ms": held_ms / 4,
        "validate_ms": held_ms / 8, "stream_bytes": 4096 * number % 100_000 + 5000, "device_bytes": 400,
        "zero_pages": number % 3, "normal_pages": 1, "xbzrle_pages": number % 7, "xbzrle_bytes": number % 7 * 30,
        "compressed_pages": 0, "compressed_bytes": 0,
    }


def test_a_long_run_is_thinned_and_nothing_is_lost_of_its_sums(tmp_path: Path) -> None:
    recording = Recording("long")
    reports = [secondary_report(n, 1 + n % 97) for n in range(1, 5001)]
    for one in reports:
        recording.secondary_checkpoint(one)
    for n in range(1000):
        recording.note(f"note {n}")
    report.write(report.prepare(tmp_path), recording)
    page = Page(tmp_path)
    side = page.run["secondary"]
    assert len(side["points"]) <= SAMPLES and side["checkpoints_per_point"] == 16
    assert side["pause_ms"] == {"count": 5000, "p50": 49.0, "p90": 88.0, "p99": 97.0, "max": 97.0}
    assert side["stream_bytes"] == sum(one["stream_bytes"] for one in reports)
    check_figures(page, side)
    mean = sum(p["pause_ms"]["mean"] * p["checkpoints"] for p in side["points"]) / 5000
    assert mean == pytest.approx(sum(one["held_ms"] for one in reports) / 5000, rel=1e-3)
    assert all(p["pause_ms"]["min"] <= p["pause_ms"]["mean"] <= p["pause_ms"]["max"] for p in side["points"])
    assert page.path("pause", "range c1").count("M") == len(side["points"])
    assert page.run["notes_left_out"] == 1000 - len(page.run["notes"])
    assert page.run["notes"][0]["text"] == "note 0" and page.run["notes"][-1]["text"] == "note 999"


def test_percentiles_of_very_many_values_stay_near_in_bounded_memory() -> None:
    values = Values()
    for n in range(4 * VALUES + 3):
        values.add((n * 7919) % 1000)
    told = values.as_dict()
    assert len(values._values) <= VALUES and told["count"] == 4 * VALUES + 3
    # A multiple of the rhythm's length apart, kept values would all be the same.
    assert told["p50"] == pytest.approx(500, abs=10) and told["p99"] == pytest.approx(990, abs=5) and told["max"] == 999


def test_pauses_seen_from_outside_are_those_of_the_page(tmp_path: Path) -> None:
    """`colo protect` sees no more of a QEMU."""
    recording = Recording("protect")
    output = SessionOutput(json_lines=True, recording=recording)
    for n in range(40):
        output.pause(2.0 + n % 5)
    output.event(trace.Lost("it was cut"))
    report.write(report.prepare(tmp_path), recording)
    page = Page(tmp_path)
    assert page.figures() == ["pause", "interval"]
    assert page.run["vm_pauses"]["pause_ms"]["p50"] == 4.0 and "p50 4.00 ms" in page.rows()["Pause"]
    assert "channel lost: it was cut" in page.text


def test_one_wild_pause_does_not_flatten_the_others(tmp_path: Path) -> None:
    recording = Recording("wild")
    for n in range(1, 301):
        recording.secondary_checkpoint(secondary_report(n, 900.0 if n == 150 else 2.0))
    report.write(report.prepare(tmp_path), recording)
    page = Page(tmp_path)
    assert "the greatest is 900.0 ms" in page.words("pause")
    assert page.path("pause", "line warn").count("M") == 1  # a cross
    check_figures(page, page.run["secondary"])


def test_a_place_that_cannot_be_written_is_refused_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    arguments = ["secondary", "tcp:127.0.0.1:0", "--ram-dir", str(tmp_path / "ram"), "--report", str(tmp_path / "file")]
    # In a process of its own, as it takes itself out of core dumps.
    done = subprocess.run(
        [*COLO, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 8
    assert "--report" in done.stderr
    assert not (tmp_path / "ram").exists()


def test_a_failed_run_keeps_its_error_when_the_report_is_written(tmp_path: Path) -> None:
    with pytest.raises(NoCheckpoint), reported(str(tmp_path / "report"), "failing"):
        raise NoCheckpoint("there was <nothing>")
    assert "there was <nothing>" in Page(tmp_path / "report").rows()["Ending"]


def lost_run(tmp_path: Path, error: ColoError) -> Page:
    """A secondary that committed checkpoints, lost its primary, and ended so."""
    with contextlib.suppress(type(error)), reported(str(tmp_path / "report"), "lost") as recording:
        assert recording is not None
        output = SessionOutput(json_lines=True, recording=recording)
        recording.secondary_checkpoint({**secondary_report(1, 2.0), "number": 0})
        for n in range(1, 30):
            recording.secondary_checkpoint(secondary_report(n, 2.0))
        output.event(trace.Lost("the peer closed the connection"))
        raise error
    return Page(tmp_path / "report")


def test_a_lost_vm_is_said_first_and_in_red(tmp_path: Path) -> None:
    page = lost_run(tmp_path, StorageError("the stand-by died"))
    fate = page.fate()
    assert fate is not None and fate[0] == "lost" and "The VM is lost" in fate[1] and "the stand-by died" in fate[1]
    assert "#fate.lost{background:var(--warn)" in page.text
    assert "lost" in page.words("pause")


def test_one_that_runs_on_the_other_side_is_not_lost(tmp_path: Path) -> None:
    fate = lost_run(tmp_path, ArbitrationLost("generation 3 is the primary's")).fate()
    assert fate is not None and fate[0] == "warn" and "does not run here" in fate[1]


def test_a_primary_that_came_back_is_not_lost(tmp_path: Path) -> None:
    recording = Recording("back")
    output = SessionOutput(json_lines=True, recording=recording)
    recording.secondary_checkpoint({**secondary_report(1, 2.0), "number": 0})
    for event in (trace.Connected(), trace.Lost("words"), trace.Connected()):
        output.event(event)
    recording.ending = {"text": "Interrupted", "reason": "asked to end"}
    report.write(report.prepare(tmp_path), recording)
    assert Page(tmp_path).fate() is None


def test_a_failed_proof_is_red_too(tmp_path: Path) -> None:
    recording = Recording("torn")
    recording.running({"total_ms": 3.0, "checkpoint": 7, "checkpoint_age_ms": 1.0, "reason": "x"})
    recording.verdict = "FAILED: line 3 is 'a', not 'b'."
    report.write(report.prepare(tmp_path), recording)
    page = Page(tmp_path)
    assert page.fate() is not None and page.fate()[0] == "lost" and page.text.count("line 3 is") == 2  # and in the table


@pytest.mark.parametrize(("kind", "level"), [("alone", "warn"), ("stopped", "warn"), ("primary_gone", "lost"), ("detached", None)])
def test_how_protection_ended_is_said_first(tmp_path: Path, kind: str, level: str | None) -> None:
    recording = Recording("protect")
    recording.vm_pause(2.0)
    recording.lost()
    recording.ending = {"ending": kind, "text": "words for it", "reason": "why"}
    report.write(report.prepare(tmp_path), recording)
    fate = Page(tmp_path).fate()
    assert (fate[0] if fate else None) == level and (fate is None or "words for it; why" in fate[1])


@pytest.mark.parametrize("count", [1, P99_LEAST - 1, P99_LEAST])
def test_a_p99_needs_two_hundred_values(tmp_path: Path, count: int) -> None:
    recording = Recording("few")
    for n in range(1, count + 1):
        recording.secondary_checkpoint(secondary_report(n, float(n)))
    report.write(report.prepare(tmp_path), recording)
    page = Page(tmp_path)
    check_figures(page, page.run["secondary"])
    told = page.rows()["Held"]
    assert ("p99 198" in told) == (count == P99_LEAST) and f"at most {ms(float(count))}" in told
    assert (f"{count} values are too few for a p99" in told) == (count < P99_LEAST)
    assert ("but one in a hundred" in page.text) == (count == P99_LEAST)


def test_the_outage_is_from_the_kill_or_else_from_the_loss(tmp_path: Path) -> None:
    takeover = {"total_ms": 3.0, "checkpoint": 7, "checkpoint_age_ms": 1.0, "reason": "x"}
    recording = Recording("outage")
    recording.lost()
    recording.running(takeover)
    assert "what passed before it was noticed is not in it" in recording.as_dict()["outage"]["what"]
    assert recording.as_dict()["outage"]["ms"] >= 0
    recording = Recording("killed")
    recording.killed()
    recording.lost()
    assert recording.as_dict()["outage"] is None
    recording.running(takeover)
    assert recording.as_dict()["outage"]["what"].startswith("from the kill")
    report.write(report.prepare(tmp_path), recording)
    assert "The world was without it for" in Page(tmp_path).text


def test_a_vm_that_hardly_ran_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = Recording("protect")
    now = iter(n / 100 for n in range(400))
    monkeypatch.setattr(recording, "now_s", lambda: next(now))
    for _ in range(300):
        recording.vm_pause(8.0)
    report.write(report.prepare(tmp_path), recording)
    assert Page(tmp_path).rows()["The VM ran"].startswith("20 % of the time") and "too short" in Page(tmp_path).rows()["The VM ran"]


def test_each_chart_has_a_form_for_a_narrow_page(tmp_path: Path) -> None:
    recording = Recording("narrow")
    for n in range(1, 301):
        recording.secondary_checkpoint(secondary_report(n, 2.0))
    report.write(report.prepare(tmp_path), recording)
    page = Page(tmp_path)
    for name in page.figures():
        boxes = [svg.attrib["viewBox"].split()[2] for svg in page.figure(name).iter("{http://www.w3.org/2000/svg}svg")]
        assert boxes == [str(WIDE.width), str(NARROW.width)], name
        for text in page.figure(name).findall("{*}div[@class='narrow']//{*}text"):
            words, x = text.text or "", float(text.attrib["x"])
            wide = 6.2 * len(words)
            begin = {"start": x, "end": x - wide, "middle": x - wide / 2}[text.attrib["text-anchor"]]
            assert begin >= -2 and begin + wide <= NARROW.width + 2, (name, words)


def test_without_the_option_nothing_is_recorded(tmp_path: Path) -> None:
    with reported(None, "x") as recording:
        assert recording is None
    place = report.prepare(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with place, pytest.raises(StorageError, match="could not be written"):
        report.write(place, Recording("x"))


@pytest.mark.parametrize("top", [0.0, 1e-6, 0.3, 1.0, 7, 99.99, 12345, 1e12, float("nan"), float("inf")])
def test_axes_are_round_and_reach_the_top(top: float) -> None:
    marks = steps(top)
    assert marks[0] == 0 and 2 <= len(marks) <= 8 and marks == sorted(marks)
    if 0 < top < float("inf"):
        assert marks[-1] >= top * 0.999
    for layout in (WIDE, NARROW):
        plot = Plot(layout, "t", "ms", 0.0, top)
        plot.stack([(0.0, 0.0)], [("a", "c1", [1.0])])
        ElementTree.fromstring(plot.render())


def test_the_live_table_drops_columns_until_it_fits() -> None:
    row = ["123", "50", "1.20", "0.80", "0", "970", "0", "0", "–", "95.9 KiB", "0.02", "1.8 MiB/s", "35.0 MiB/s"]
    assert shown_columns([row], 200) == list(range(len(COLUMNS)))
    narrow = [COLUMNS[n] for n in shown_columns([row], 80)]
    assert {"pause ms", "every ms", "xbzrle", "ratio", "link"} <= set(narrow) and "zero" not in narrow
    assert {"pause ms", "xbzrle"} <= {COLUMNS[n] for n in shown_columns([row], 10)}


@pytest.mark.qemu
def test_the_qemu_demo_s_report_joins_what_both_sides_know(tmp_path: Path) -> None:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("no /dev/kvm")
    done = subprocess.run(
        [*COLO, "demo", "--vm", "qemu", "--kill-after", "3", "--json", "--report", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    if done.returncode == 10:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    page = Page(tmp_path)
    assert {"pause", "pages", "bytes", "heat", "takeover"} <= set(page.figures())
    assert page.run["vm_pauses"]["checkpoints"] > 0 and page.run["secondary"]["checkpoints"] > 0
    assert "pc.ram" in page.words("heat") and "compose" in page.words("takeover")
    assert sum(map(sum, page.run["heat"]["rows"])) == page.run["secondary"]["dirty_pages"]
