"""``colo doctor``: what works on this machine, what does not, why, and what to do about it."""

from __future__ import annotations

import argparse
import ctypes
import errno
import fcntl
import importlib
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from colo.cli.doctor.findings import LIMITED, NO, OK, Conclusion, Finding, conclude
from colo.cli.doctor.host import probe_etcd, probe_fence, probe_memory_limits
from colo.cli.terminal.standard_output import whole_output
from colo.errors import ColoError
from colo.qemu.survey import QemuFound, find_binaries, survey
from colo.text import printable

STYLES = {OK: "green", LIMITED: "yellow", NO: "red"}
KVM_GET_API_VERSION = 0xAE00
KVM_API_VERSION = 12
SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
UFFD_USER_MODE_ONLY = 1
SHM_WANTED_BYTES = 1 << 30
OPEN_FILES_WANTED = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's description and arguments."""
    parser.description = (
        "Looks at QEMU, KVM, userfaultfd, dirty trackers, huge pages, shared memory, control groups, SIMD, what a fence "
        "may do, permissions and Python packages. The last line follows from the others. Exit code 1 if a VM cannot be "
        "protected, or not taken over, here.")
    parser.add_argument(
        "--qemu", action="append", default=[], metavar="PATH", help="look at this QEMU too (may be repeated)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Examine and show; 1 if something essential is missing."""
    qemus = [survey(path) for path in find_binaries([*arguments.qemu, *_fetched_qemus()])]
    findings = examine(qemus)
    conclusion = conclude(findings)
    with whole_output():
        if not arguments.json:
            show(findings, conclusion)
        else:
            answer = {
                "works": conclusion.works,
                "can_be_primary": conclusion.primary,
                "can_be_secondary": conclusion.secondary,
                "conclusion": conclusion.text,
                "findings": [asdict(finding) for finding in findings],
                "qemus": [asdict(qemu) | {"version": str(qemu.version or "")} for qemu in qemus],
            }
            print(json.dumps(answer))
    return 0 if conclusion.works else 1


def examine(qemus: list[QemuFound]) -> list[Finding]:
    """All findings; a probe that fails itself becomes a finding."""
    findings: list[Finding] = []
    kvm = probe_kvm()
    probes: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ("qemu", lambda: probe_qemus(qemus, kvm.state != NO)),
        ("kvm", lambda: iter([kvm])),
        ("memory", probe_memory),
        ("memory", probe_memory_limits),
        ("dirty trackers", probe_trackers),
        ("cpu", probe_simd),
        ("fence", probe_fence),
        ("arbiter", probe_etcd),
        ("permissions", probe_permissions),
        ("python", probe_python),
    )
    for area, probe in probes:
        try:
            findings += probe()
        except (ColoError, OSError, ImportError) as error:
            findings.append(Finding(area, "probe", NO, f"could not look: {error}"))
    return findings


def show(findings: list[Finding], conclusion: Conclusion) -> None:
    """A table on a terminal, tab-free plain lines in a pipe."""
    verdict = conclusion.text
    if not sys.stdout.isatty():
        for finding in findings:
            advice = f" -> {finding.advice}" if finding.advice else ""
            print(printable(f"{finding.state:7} {finding.area}: {finding.name}: {finding.text}{advice}"))
        print(verdict)
        return
    table = Table(title="colo doctor", show_lines=False)
    for column in ("", "area", "what", "finding"):
        table.add_column(column, overflow="fold")
    previous = ""
    for finding in findings:
        if previous and finding.area != previous:
            table.add_section()
        advice = f"\n[dim]{escape(printable(finding.advice))}[/dim]" if finding.advice else ""
        text = escape(printable(finding.text)) + advice
        style = STYLES[finding.state]
        area = finding.area if finding.area != previous else ""
        table.add_row(f"[{style}]{finding.state}[/{style}]", area, escape(printable(finding.name)), text)
        previous = finding.area
    console = Console()
    console.print(table)
    console.print(verdict)


def _fetched_qemus() -> list[str]:
    """Other versions that were fetched for tests into .qemu/ of this source tree."""
    tree = Path(__file__).resolve().parents[2] / ".qemu"
    return [str(path) for path in sorted(tree.glob("*/qemu-system-*"))]


# QEMU and KVM


def probe_qemus(qemus: list[QemuFound], kvm: bool) -> Iterator[Finding]:
    """Each QEMU: as primary, and as stand-by."""
    if not qemus:
        yield Finding(
            "qemu",
            "qemu-system",
            NO,
            "none found in PATH",
            "apt-get install qemu-system-x86, or --qemu PATH",
            True,
        )
        return
    primaries = standbys = 0
    for qemu in qemus:
        if qemu.problem:
            yield Finding("qemu", qemu.path, NO, qemu.problem)
            continue
        name = f"{qemu.version} {qemu.path}"
        with_kvm = kvm and qemu.has_kvm and not qemu.primary_kvm
        if with_kvm or not qemu.primary_tcg:
            primaries += 1
            how = [
                accelerator for accelerator, can in (("KVM", with_kvm), ("TCG", not qemu.primary_tcg)) if can
            ]
            yield Finding("qemu", name, OK, f"primary with {' and '.join(how)}{_peculiar(qemu)}")
        else:
            reason = qemu.primary_kvm or (qemu.primary_tcg if not kvm else "built without KVM")
            yield Finding("qemu", name, NO, f"no primary: {reason}")
        standbys += 1
        if qemu.has_ignore_shared:
            yield Finding("qemu", name, OK, "stand-by over the shared RAM file (x-ignore-shared)")
        else:
            yield Finding(
                "qemu", name, LIMITED, "stand-by, but all pages are sent to it (no x-ignore-shared)"
            )
    if not primaries:
        yield Finding(
            "qemu",
            "primary",
            NO,
            "no QEMU here can be a COLO primary",
            "a stand-by may still run here",
            side="primary",
        )
    yield Finding(
        "qemu",
        "stand-by",
        OK if standbys else NO,
        f"{standbys} of {len(qemus)} can take over",
        side="secondary",
    )


PECULIARITIES = {
    "enable_colo": "sends ENABLE_COLO",
    "return_path_first": "needs the return path",
    "switchover_start": "sends SWITCHOVER_START",
    "ram_compression": "can compress RAM",
}


def _peculiar(qemu: QemuFound) -> str:
    said = [text for name, text in PECULIARITIES.items() if name in qemu.facts]
    return f" ({', '.join(said)})" if said else ""


def probe_kvm() -> Finding:
    """Whether /dev/kvm works, and whether it is the real thing."""
    path = "/dev/kvm"
    if not os.path.exists(path):
        advice = "load kvm_intel or kvm_amd, switch virtualization on in the firmware, or nested in the host"
        return Finding(
            "kvm", path, NO, "not there: only QEMU 11 and later can be a primary (with TCG)", advice
        )
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        advice = (
            "add yourself to the group kvm: sudo usermod -aG kvm $USER" if error.errno == errno.EACCES else ""
        )
        return Finding("kvm", path, NO, f"cannot be opened: {error.strerror}", advice)
    try:
        version = fcntl.ioctl(fd, KVM_GET_API_VERSION)
    except OSError as error:
        return Finding("kvm", path, NO, f"does not answer: {error.strerror}")
    finally:
        os.close(fd)
    if version != KVM_API_VERSION:
        return Finding("kvm", path, NO, f"API version {version} instead of {KVM_API_VERSION}")
    if Path("/sys/module/kvm_pvm").exists():
        return Finding(
            "kvm", path, LIMITED, "works, in software (kvm_pvm): exact, but guests' kernels run slowly"
        )
    if "hypervisor" in _cpu_flags():
        return Finding("kvm", path, OK, "works, nested in another hypervisor")
    return Finding("kvm", path, OK, "works")


def _cpu_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()


# Memory


def probe_memory() -> Iterator[Finding]:
    """Shared memory, userfaultfd and huge pages."""
    yield probe_shared_memory(Path("/dev/shm"))
    yield probe_userfaultfd()
    yield from probe_huge_pages()


def probe_shared_memory(directory: Path) -> Finding:
    """Whether RAM images can live in ``directory``."""
    if not os.access(directory, os.W_OK | os.X_OK):
        return Finding(
            "memory",
            str(directory),
            NO,
            "no tmpfs to write to",
            "mount -t tmpfs tmpfs /dev/shm, or name --ram-dir",
        )
    usage = shutil.disk_usage(directory)
    text = f"{usage.free / (1 << 30):.1f} GiB free of {usage.total / (1 << 30):.1f} for RAM images"
    if usage.free < SHM_WANTED_BYTES:
        return Finding(
            "memory",
            str(directory),
            LIMITED,
            text,
            "mount -o remount,size=SIZE /dev/shm: a VM's RAM and a checkpoint",
        )
    return Finding("memory", str(directory), OK, text)


def probe_userfaultfd() -> Finding:
    """Whether this process gets a userfaultfd, by the system call or the device."""
    number = SYS_USERFAULTFD.get(platform.machine())
    if number is None:
        return Finding("memory", "userfaultfd", LIMITED, f"not probed on {platform.machine()}")
    libc = ctypes.CDLL(None, use_errno=True)
    reasons = []
    for flags, kind in (
        (0, "also for faults in the kernel"),
        (UFFD_USER_MODE_ONLY, "for faults in user mode only, which is all that the tracker pagemap needs"),
    ):
        fd = libc.syscall(number, os.O_CLOEXEC | flags)
        if fd >= 0:
            os.close(fd)
            return Finding("memory", "userfaultfd", OK, f"available, {kind}")
        reasons.append(os.strerror(ctypes.get_errno()))
    return Finding(
        "memory", "userfaultfd", NO, f"refused: {reasons[-1]}", "a container's seccomp profile may forbid it"
    )


def probe_huge_pages() -> Iterator[Finding]:
    """Transparent and reserved huge pages."""
    base = Path("/sys/kernel/mm/transparent_hugepage")
    for name, file, wanted in (
        ("huge pages", "enabled", "always madvise"),
        ("huge pages in tmpfs", "shmem_enabled", "always within_size advise force"),
    ):
        try:
            text = (base / file).read_text()
        except OSError:
            yield Finding("memory", name, LIMITED, "this kernel has no transparent huge pages")
            continue
        chosen = text[text.index("[") + 1 : text.index("]")] if "[" in text else text.strip()
        state = OK if chosen in wanted.split() else LIMITED
        advice = "" if state == OK else f"echo advise > {base / file}: fewer page faults for large guests"
        yield Finding("memory", name, state, f"transparent: {chosen}", advice)
    fields = dict(
        line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line
    )
    total, free = (int(fields.get(key, "0").split()[0]) for key in ("HugePages_Total", "HugePages_Free"))
    yield Finding("memory", "hugetlb", OK, f"{free} of {total} reserved huge pages free (not needed)")


def probe_trackers() -> Iterator[Finding]:
    """The dirty trackers for VMs in a process of one's own."""
    trackers = importlib.import_module("colo.memory.trackers")
    for result in trackers.probe():
        yield Finding(
            "dirty trackers", result.name, OK if result.available else LIMITED, result.reason or "works"
        )


# Processor, permissions, Python


def probe_simd() -> Iterator[Finding]:
    """What the core's kernels run on."""
    kernels = importlib.import_module("colo._fast.kernels.kernels")
    levels, active = kernels.levels(), kernels.active_level()
    state = OK if active != "portable" else LIMITED
    yield Finding("cpu", "SIMD", state, f"{active} is used; this CPU and build have {', '.join(levels)}")
    yield Finding("cpu", "processors", OK, f"{len(os.sched_getaffinity(0))} usable, {platform.machine()}")


def probe_permissions() -> Iterator[Finding]:
    """What this user may do."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    state = OK if soft >= OPEN_FILES_WANTED else LIMITED
    advice = "" if state == OK else f"ulimit -n {OPEN_FILES_WANTED}"
    yield Finding("permissions", "open files", state, f"{soft} (at most {hard})", advice)
    if os.geteuid() == 0:
        yield Finding("permissions", "user", OK, "root")
    else:
        advice = (
            "run colo as the user that owns the QEMU process: else neither its monitor nor its pid is ours"
        )
        yield Finding("permissions", "user", OK, f"uid {os.geteuid()}", advice)
    runtime = os.environ.get("XDG_RUNTIME_DIR") or "/tmp"
    state = OK if os.access(runtime, os.W_OK | os.X_OK) else LIMITED
    yield Finding("permissions", "sockets", state, f"private directories under {runtime}")


PACKAGES = (
    ("qemu.qmp", "qemu.qmp", "the monitor", True, "pip install qemu.qmp"),
    ("rich", "rich", "tables on the terminal", True, "pip install rich"),
    ("psutil", "psutil", "process figures", True, "pip install psutil"),
    ("numpy", "numpy", "views of pages and bitmaps", False, "pip install colo-vm[arrays]"),
    ("unicorn", "unicorn", "the embedded VM of colo demo", False, "pip install colo-vm[demo]"),
    ("matplotlib", "matplotlib", "plots of benchmarks", False, "pip install colo-vm[bench]"),
)


def probe_python() -> Iterator[Finding]:
    """The interpreter, and the packages beside colo."""
    yield Finding(
        "python", "interpreter", OK, f"{platform.python_implementation()} {platform.python_version()}"
    )
    for package, module, purpose, needed, advice in PACKAGES:
        try:
            importlib.import_module(module)
            version = importlib.metadata.version(package)
        except (ImportError, importlib.metadata.PackageNotFoundError) as error:
            state = NO if needed else LIMITED
            yield Finding("python", package, state, f"missing ({purpose}): {error}", advice, needed)
        else:
            yield Finding("python", package, OK, f"{version} ({purpose})")
    libraries = importlib.import_module("colo._fast.kernels.codec_libraries")
    for method, text in libraries.probe().items():
        usable = not text.startswith("not usable")
        advice = "" if usable else "pip install colo-vm[compress]"
        yield Finding(
            "python", method, OK if usable else LIMITED, f"{text} (compression between colo ends)", advice
        )
