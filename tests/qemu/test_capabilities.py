"""What others left on a QEMU's migration settings: off while it is protected, put back, or refused by name."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from colo.errors import ColoError, QemuUnsupported
from colo.qemu.capabilities import (
    LEFTOVERS,
    USUAL_PARAMETERS,
    MigrationSettings,
    capabilities_of,
    capability_list,
    require_migratable,
)
from colo.qemu.primary import ColoSettings, QemuPrimary
from colo.qemu.process import QemuProcess
from colo.qemu.qmp import QmpCommandError
from colo.session.qemu_secondary import QemuSecondary, QemuSecondaryConfig
from tests.interop.binaries import binary
from tests.qemu.tiny_machine import Machine, wait_for_lines

pytestmark = pytest.mark.qemu
VERSIONS = ("7.2", "10.0", "11.1")
TOGETHER_REFUSED = {"background-snapshot", "zero-copy-send", "postcopy-preempt", "multifd", "mapped-ram"}
"""They forbid others, or need them: each is left on by itself."""


@pytest.fixture(params=VERSIONS)
def versioned(request: pytest.FixtureRequest, machine: Machine) -> Machine:
    path = binary(request.param)

    def command(*extra: str, **named: object) -> list[str]:
        return [path, *machine(*extra, **named)[1:]]  # type: ignore[arg-type]

    return command


@pytest.fixture
def plain(versioned: Machine, run_dir: Path) -> Iterator[QemuProcess]:
    with QemuProcess.start(versioned("-S"), run_dir / "q") as qemu:
        yield qemu


def switch_on(qemu: QemuProcess, *names: str) -> None:
    qemu.qmp.execute("migrate-set-capabilities", {"capabilities": capability_list(dict.fromkeys(names, True))})


def parameters(qemu: QemuProcess) -> dict[str, object]:
    return dict(qemu.qmp.execute("query-migrate-parameters"))


def test_every_capability_of_these_versions_has_its_row(plain: QemuProcess) -> None:
    assert set(capabilities_of(plain)) - set(LEFTOVERS) <= {"events", "x-colo"}


def test_every_usual_value_is_qemu_s_own(plain: QemuProcess) -> None:
    values = parameters(plain)
    for name, (value, _why) in USUAL_PARAMETERS.items():
        assert values.get(name, value) == value


def test_whatever_is_on_goes_off_and_comes_back(plain: QemuProcess) -> None:
    names = []
    for name in LEFTOVERS:
        if name in TOGETHER_REFUSED or name not in capabilities_of(plain):
            continue
        with contextlib.suppress(QmpCommandError):
            switch_on(plain, name)
            names.append(name)
    assert len(names) > 5
    before = capabilities_of(plain)
    settings = MigrationSettings.take(plain, {"events": True, "xbzrle": True})
    assert [name for name, state in capabilities_of(plain).items() if state] == ["xbzrle", "events"]
    for name in names:
        said = [text for text in settings.notices if text.startswith(f"capability {name} was on")]
        assert len(said) == (name not in ("xbzrle", "return-path"))
    assert settings.restore()
    assert capabilities_of(plain) == before
    switch_on(plain, "x-colo" if not plain.quirks.needs_return_path else "events")
    assert settings.restore()


@pytest.mark.parametrize("name", sorted(TOGETHER_REFUSED))
def test_one_that_forbids_others_goes_off_too(plain: QemuProcess, name: str) -> None:
    try:
        switch_on(plain, *(["postcopy-ram"] if name == "postcopy-preempt" else ["multifd"] if name == "zero-copy-send" else []),
                  name)
    except QmpCommandError as error:
        pytest.skip(f"QEMU {plain.version}: {error}")
    settings = MigrationSettings.take(plain, {"events": True})
    assert any(name in text for text in settings.notices)
    assert [name for name, state in capabilities_of(plain).items() if state] == ["events"]


def test_parameters_that_would_hold_the_vm_are_usual_meanwhile(plain: QemuProcess) -> None:
    plain.qmp.execute("migrate-set-parameters", {"downtime-limit": 60_000, "max-bandwidth": 1 << 20})
    settings = MigrationSettings.take(plain, {"events": True}, {"max-bandwidth": 1 << 40})
    assert "parameter downtime-limit was 60000 and is 300" in settings.notices[0]
    assert parameters(plain)["downtime-limit"] == 300
    assert parameters(plain)["max-bandwidth"] == 1 << 40
    assert settings.restore()
    assert parameters(plain)["downtime-limit"] == 60_000
    assert parameters(plain)["max-bandwidth"] == 1 << 20


def test_encryption_that_was_asked_for_is_not_dropped(plain: QemuProcess) -> None:
    plain.qmp.execute("migrate-set-parameters", {"tls-creds": "tls0"})
    with pytest.raises(QemuUnsupported, match=r"tls-creds is 'tls0'.*encrypt"):
        MigrationSettings.take(plain, {"events": True})
    assert not capabilities_of(plain)["events"]
    MigrationSettings.take(plain, {"events": True}, refuse=False)
    assert parameters(plain)["tls-creds"] == ""


def test_a_vm_that_cannot_migrate_is_refused_in_qemu_s_words(versioned: Machine, run_dir: Path) -> None:
    argv = versioned("-S", "-usb", "-device", "usb-wacom-tablet")
    with QemuProcess.start(argv, run_dir / "q") as qemu, pytest.raises(QemuUnsupported, match=r"cannot be protected: .*wacom"):
        require_migratable(qemu)


@pytest.mark.usefixtures("kvm")
@pytest.mark.parametrize("name", ["multifd", "postcopy-ram", "dirty-bitmaps", "pause-before-switchover", "x-ignore-shared"])
def test_a_vm_with_a_leftover_is_protected_all_the_same(versioned: Machine, run_dir: Path, name: str) -> None:
    serial = run_dir / "serial"
    with QemuProcess.start(versioned(accel="kvm", serial=serial, ram=run_dir / "theirs"), run_dir / "q") as qemu:
        switch_on(qemu, name)
        primary = QemuPrimary(qemu)
        wait_for_lines(serial, 1)
        with QemuSecondary(QemuSecondaryConfig(f"unix:{run_dir}/s", run_dir / "ram")) as secondary:

            def follow(followed: QemuSecondary = secondary) -> None:
                with contextlib.suppress(ColoError):
                    followed.run()

            thread = threading.Thread(target=follow, daemon=True)
            thread.start()
            primary.set_up(secondary.address, ColoSettings(checkpoint_delay_ms=20), timeout_s=20)
            assert any(f"capability {name} was on" in text for text in primary.notices)
            wait_for_lines(serial, len(wait_for_lines(serial, 0)) + 2)
            assert (secondary.status()["checkpoint"] or 0) > 0
            secondary.stop()
            thread.join(20)
            assert not thread.is_alive()
        assert primary.free_from_lost_secondary() > 0
        on = {key for key, state in capabilities_of(qemu).items() if state}
        assert on == {name}
        wait_for_lines(serial, len(wait_for_lines(serial, 0)) + 1)
