"""A primary notices that its checkpoints leave the VM hardly any time."""

from __future__ import annotations

import importlib.util
import io
import sys
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from colo.arbiter import init_arbiter
from colo.cli.terminal.live_view import Watch

_spec = importlib.util.spec_from_file_location("test_primary", Path(__file__).with_name("test_primary.py"))
assert _spec is not None and _spec.loader is not None
test_primary = sys.modules.setdefault("test_primary", importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(test_primary)
PageVm, Standby, config, Primary = test_primary.PageVm, test_primary.Standby, test_primary.config, test_primary.Primary


def run_until(interval_ms: float, save_s: float, arbiter: Path, *, told: bool) -> tuple[dict[str, Any], list[str]]:
    """Status and notices of a VM whose state takes so long to save, once it warned or its share is known."""
    vm = PageVm(free_running=True)
    vm.on_save = lambda: time.sleep(save_s)
    standby, notices, warned = Standby(PageVm(), arbiter), [], threading.Event()

    def hear(kind: str, data: Any) -> None:
        if kind == "notice":
            notices.append(data)
            warned.set()

    with Primary(vm, config(standby, arbiter, interval_ms=interval_ms), on_event=hear) as primary:
        primary.start()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            status = primary.status()
            if warned.is_set() or (not told and status["statistics"]["running_share"] is not None):
                break
            time.sleep(0.05)
        status = primary.status()
        assert primary.statistics.checkpoints > 0
    standby.close()
    vm.close()
    return status, notices


def test_an_interval_too_short_for_the_vm_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0o700)
    init_arbiter(f"file:{tmp_path}/a", vm="test")
    status, notices = run_until(1.0, 0.05, tmp_path / "a", told=True)
    assert status["statistics"]["running_share"] < 0.5
    assert len(notices) == 1 and "interval_ms" in notices[0]
    watch, picture = Watch("test"), io.StringIO()
    watch.add(status, None)
    words = f"runs {status['statistics']['running_share']:.0%} of the time"
    Console(file=picture, width=120).print(watch)
    assert words in watch.line() and words in picture.getvalue()


def test_one_that_leaves_it_time_is_not(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0o700)
    init_arbiter(f"file:{tmp_path}/a", vm="test")
    status, notices = run_until(500.0, 0.0, tmp_path / "a", told=False)
    assert status["statistics"]["running_share"] > 0.5
    assert notices == []
