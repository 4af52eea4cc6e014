"""The facts by version."""

from __future__ import annotations

import pytest

from colo.errors import QemuUnsupported
from colo.qemu.quirks import FACTS, Version, quirks_of


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)", (7, 2, 22)),
        ("QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1~bpo13+1)\nCopyright", (11, 1, 3)),
        ("10.0", (10, 0, 0)),
    ],
)
def test_versions_are_read(text: str, version: tuple[int, int, int]) -> None:
    assert Version.parse(text) == version


def test_no_version_is_no_version() -> None:
    with pytest.raises(ValueError, match="no QEMU version"):
        Version.parse("bash: qemu: command not found")


@pytest.mark.parametrize("version", [(10, 0, 0), (10, 0, 6), (10, 1, 0), (3, 1, 0)])
def test_broken_releases_are_refused_with_a_way_out(version: tuple[int, int, int]) -> None:
    with pytest.raises(QemuUnsupported, match=r"Use 7\.2"):
        quirks_of(Version(*version)).require_colo("kvm")


@pytest.mark.parametrize("version", [(7, 2, 22), (10, 0, 7), (10, 0, 13), (11, 1, 3)])
def test_working_releases_pass_with_kvm(version: tuple[int, int, int]) -> None:
    quirks_of(Version(*version)).require_colo("kvm")


def test_tcg_is_refused_before_11() -> None:
    with pytest.raises(QemuUnsupported, match="-accel kvm"):
        quirks_of(Version(10, 0, 13)).require_colo("tcg")
    quirks_of(Version(11, 1, 3)).require_colo("tcg")


def test_dialects_follow_the_version() -> None:
    old, middle, new = (quirks_of(Version(*v)) for v in ((7, 2, 22), (10, 0, 13), (11, 1, 3)))
    assert [q.has("enable_colo") for q in (old, middle, new)] == [True, True, False]
    assert [q.has("switchover_start") for q in (old, middle, new)] == [False, True, True]
    assert [q.needs_return_path for q in (old, middle, new)] == [False, False, True]
    assert [q.has_compression for q in (old, middle, new)] == [True, False, False]
    assert all(q.has_ignore_shared for q in (old, middle, new))
    with pytest.raises(KeyError):
        old.has("no such fact")


def test_every_fact_says_where_it_was_seen() -> None:
    for fact in FACTS:
        assert fact.since < fact.until
        assert fact.seen_on
        assert fact.what
