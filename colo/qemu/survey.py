"""Which QEMUs this machine has, and what each can do here: by starting it for a moment and asking."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from colo.errors import QemuError, QemuUnsupported
from colo.qemu.process import QemuProcess
from colo.qemu.quirks import Version, quirks_of

PROGRAMS = ("qemu-system-{machine}", "qemu-kvm", "/usr/libexec/qemu-kvm", "/usr/bin/kvm")


@dataclass(frozen=True)
class QemuFound:
    """One QEMU binary. ``problem`` says why it cannot be used at all; the other fields are empty then.

    ``primary_kvm`` and ``primary_tcg`` say why it cannot be a COLO primary with that accelerator, or are
    empty if it can; ``facts`` are what is peculiar to its version.
    """

    path: str
    version: Version | None = None
    package: str = ""
    problem: str = ""
    has_colo: bool = False
    has_ignore_shared: bool = False
    has_kvm: bool = False
    primary_kvm: str = ""
    primary_tcg: str = ""
    facts: tuple[str, ...] = ()


def find_binaries(more: Sequence[str] = ()) -> list[str]:
    """QEMU system emulators of this machine's own architecture in PATH, and ``more``; each once."""
    machine = {"arm64": "aarch64", "amd64": "x86_64"}.get(platform.machine().lower(), platform.machine())
    candidates = [shutil.which(name.format(machine=machine)) for name in PROGRAMS]
    found: dict[str, str] = {}
    for path in [*candidates, *more]:
        if path is not None:
            found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def survey(path: str) -> QemuFound:
    """Start ``path`` without a machine and ask it what it can do. Takes some tenths of a second."""
    with tempfile.TemporaryDirectory(prefix="colo-") as work:
        argv = [path, "-nodefaults", "-display", "none", "-machine", "none", "-S"]
        try:
            with QemuProcess.start(argv, Path(work), timeout_s=10.0) as qemu:
                entries = qemu.qmp.records("query-migrate-capabilities")
                has_kvm = qemu.qmp.record("query-kvm").flag("present", False)
                capabilities = {entry.string("capability") for entry in entries}
                version, package = qemu.version, qemu.qmp.package
        except QemuError as error:
            return QemuFound(path, problem=str(error))
    quirks = quirks_of(version)
    reasons = {}
    for accelerator in ("kvm", "tcg"):
        try:
            quirks.require_colo(accelerator)
            reasons[accelerator] = (
                "" if "x-colo" in capabilities else "built without COLO (no capability x-colo)"
            )
        except QemuUnsupported as error:
            reasons[accelerator] = str(error)
    return QemuFound(
        path,
        version,
        package,
        has_colo="x-colo" in capabilities,
        has_ignore_shared="x-ignore-shared" in capabilities,
        has_kvm=has_kvm,
        primary_kvm=reasons["kvm"],
        primary_tcg=reasons["tcg"],
        facts=tuple(fact.name for fact in quirks.facts),
    )
