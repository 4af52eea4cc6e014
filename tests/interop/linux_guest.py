"""A real Linux to protect: Debian's kernel for virtual machines, and an initramfs of busybox whose init counts.

Both come from Debian's packages, unpacked under .qemu/linux and not installed. The init prints its counter on the
serial console and keeps files whose checksums it looks at in turn: a line TORN says that memory is not of one instant.
"""

from __future__ import annotations

import gzip
import re
import shutil
import stat
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
KEPT = HERE.parents[1] / ".qemu" / "linux"
KERNEL_PACKAGE = "linux-image-cloud-amd64"
APPEND = "console=ttyS0 quiet panic=1 rdinit=/init"

LINE = re.compile(r"^linux guest (\d+)$", re.MULTILINE)

INIT = """#!/bin/busybox sh
# Counts; every step writes one of 16 files anew and checks another.
n=0
while [ $n -lt 16 ]; do
    /bin/busybox head -c 65536 /dev/urandom >/data.$n
    /bin/busybox md5sum /data.$n >/sum.$n
    n=$((n + 1))
done
while :; do
    n=$((n + 1))
    slot=$((n % 16)) other=$(((n + 7) % 16))
    /bin/busybox head -c 65536 /dev/urandom >/data.$slot
    /bin/busybox md5sum /data.$slot >/sum.$slot
    /bin/busybox md5sum -s -c /sum.$other || echo "TORN at $n"
    echo "linux guest $n"
    /bin/busybox usleep 20000
done
"""


def linux_guest() -> tuple[Path, Path]:
    """Paths of the kernel and the initramfs, fetched and made if they are not there.

    Raises RuntimeError saying which package could not be had, and what the command said.
    """
    kernel, initramfs = KEPT / "vmlinuz", KEPT / "initramfs.gz"
    KEPT.mkdir(parents=True, exist_ok=True)
    if not kernel.exists():
        found = sorted((_unpacked(_kernel_package()) / "boot").glob("vmlinuz-*"))
        if not found:
            raise RuntimeError(f"{KERNEL_PACKAGE} has no /boot/vmlinuz-*")
        shutil.copyfile(found[-1], kernel)
    busybox = KEPT / "busybox"
    if not busybox.exists():
        tree = _unpacked("busybox-static")
        shutil.copyfile(next(path for path in (tree / "bin/busybox", tree / "usr/bin/busybox") if path.exists()), busybox)
    initramfs.write_bytes(gzip.compress(_initramfs(busybox.read_bytes()), 1))
    return kernel, initramfs


def counters(console: Path) -> list[int]:
    """The counters of all whole lines on a console."""
    text = console.read_bytes().decode("ascii", "replace").replace("\r", "") if console.exists() else ""
    return [int(number) for number in LINE.findall(text.rpartition("\n")[0])]


def _run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _kernel_package() -> str:
    """The package with the kernel itself: the one asked for only depends on it."""
    try:
        depends = _run("apt-cache", "depends", KERNEL_PACKAGE)
    except RuntimeError:
        _run("apt-get", "update", "-qq")
        depends = _run("apt-cache", "depends", KERNEL_PACKAGE)
    found = re.search(r"Depends: (linux-image-\d\S*)", depends)
    if found is None:
        raise RuntimeError(f"{KERNEL_PACKAGE} depends on no kernel: {depends}")
    return found[1]


def _unpacked(package: str) -> Path:
    """The package's files, without installing it."""
    tree = KEPT / package
    if not tree.exists():
        partial = KEPT / f"{package}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            _run("apt-get", "download", "-q", package, cwd=partial)
        except RuntimeError:
            _run("apt-get", "update", "-qq")  # the list is older than the archive
            _run("apt-get", "download", "-q", package, cwd=partial)
        _run("dpkg-deb", "-x", str(next(partial.glob("*.deb"))), str(partial / "tree"))
        (partial / "tree").rename(tree)
        shutil.rmtree(partial)
    return tree


def _initramfs(busybox: bytes) -> bytes:
    """A cpio archive (newc) with what the init needs, and a console for it."""
    entries = [
        ("dev", stat.S_IFDIR | 0o755, b"", (0, 0)),
        ("dev/console", stat.S_IFCHR | 0o600, b"", (5, 1)),
        ("dev/urandom", stat.S_IFCHR | 0o644, b"", (1, 9)),
        ("bin", stat.S_IFDIR | 0o755, b"", (0, 0)),
        ("bin/busybox", stat.S_IFREG | 0o755, busybox, (0, 0)),
        ("init", stat.S_IFREG | 0o755, INIT.encode(), (0, 0)),
        ("TRAILER!!!", 0, b"", (0, 0)),
    ]
    out = bytearray()
    for inode, (name, mode, data, (major, minor)) in enumerate(entries, 1):
        numbers = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name) + 1, 0)
        out += b"070701" + b"".join(b"%08X" % number for number in numbers) + name.encode() + b"\0"
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return bytes(out)
