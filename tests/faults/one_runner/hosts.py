"""Three hosts and the network between them, on one machine.

A host is a network, a mount and a host name of its own (namespaces, kept by a process that sleeps in them) and a cgroup
that everything started on it is in: so a host can be frozen, thawed and killed from outside, as by its power switch. A router
between the hosts drops what goes from one to another, silently and one way or both, as a broken network does. What both the
hosts share (a directory) is mounted on each, and can be taken away from one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
SHARE = Path(__file__).with_name("share.py")
NAMES = ("primary", "secondary", "arbiter")
CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


def missing() -> str:
    """Why this machine cannot have hosts; "" if it can."""
    if os.geteuid() != 0:
        return "hosts are namespaces and cgroups: it takes root to make them"
    if cgroup_root() is None:
        return "no cgroup2 hierarchy that can be written to is mounted"
    for tool in ("ip", "nsenter", "unshare", "flock", "setpriv"):
        if not any(os.access(Path(folder) / tool, os.X_OK) for folder in os.environ["PATH"].split(":")):
            return f"no {tool} here: apt-get install iproute2 util-linux"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "no /dev/fuse: a share that hangs is made with it"
    return ""


def cgroup_root() -> Path | None:
    """Where cgroup2 is mounted."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup2" and "rw" in options.split(",") and (Path(where) / "cgroup.procs").exists():
            return Path(where)
    return None


class Host:
    """One of the hosts. ``folder`` is for its files; everybody can see it, as a test may look into any machine."""

    def __init__(self, name: str, address: str, run_dir: Path, cgroup: Path) -> None:
        self.name = name
        self.address = address
        self.folder = run_dir / name[0]
        self.folder.mkdir(mode=0o700)
        self.cgroup = cgroup / name
        self.cgroup.mkdir()
        self._anchor = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "-n", "-m", "-u", "--propagation", "private",
             "sh", "-c", f"hostname {name}; echo; exec sleep infinity"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
        assert self._anchor.stdout is not None
        self._anchor.stdout.readline()  # the namespaces are there
        self.run("ip", "link", "set", "lo", "up")
        boot_id = self.folder / "boot_id"
        boot_id.write_text(Path("/proc/sys/kernel/random/uuid").read_text())
        self.run("mount", "--bind", str(boot_id), "/proc/sys/kernel/random/boot_id")

    @property
    def pid(self) -> int:
        """The process that keeps the namespaces."""
        return self._anchor.pid

    def command(self, argv: Sequence[str], *, inside: bool = True) -> list[str]:
        """``argv``, to be run on this host. With ``inside`` False it is not in its cgroup: it is not frozen or killed with it."""
        enter = ["nsenter", "-t", str(self.pid), "-n", "-m", "-u", f"--wd={ROOT}", "--", *argv]
        if not inside:
            return enter
        return ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(self.cgroup / "cgroup.procs"), *enter]

    def run(self, *argv: str) -> str:
        """Run it to its end, by the host's owner rather than on it. Raises CalledProcessError."""
        done = subprocess.run(self.command(argv, inside=False), check=True, capture_output=True, text=True, timeout=20)
        return done.stdout

    def start(self, argv: Sequence[str], **named: Any) -> subprocess.Popen[str]:
        """Start it on this host."""
        return subprocess.Popen(
            self.command(argv), cwd=ROOT, text=True, stdin=subprocess.DEVNULL, start_new_session=True, **named)

    def pids(self) -> list[int]:
        """All processes of this host."""
        return [int(line) for path in self.cgroup.rglob("cgroup.procs") for line in path.read_text().split()]

    def freeze(self) -> None:
        """Nothing of it executes any more, from one instant to the next."""
        (self.cgroup / "cgroup.freeze").write_text("1")

    def thaw(self) -> None:
        """And on."""
        (self.cgroup / "cgroup.freeze").write_text("0")

    def kill(self) -> None:
        """The power switch: returns when nothing is left."""
        (self.cgroup / "cgroup.kill").write_text("1")
        deadline = time.monotonic() + 20
        while self.pids():
            assert time.monotonic() < deadline, f"processes of {self.name} outlive SIGKILL: {self.pids()}"
            time.sleep(0.005)

    def socket(self, kind: socket.SocketKind) -> socket.socket:
        """A socket of this host's network, for this process."""
        made: list[socket.socket] = []

        def make() -> None:  # only this thread goes there
            with open(f"/proc/{self.pid}/ns/net", "rb") as network:
                if _LIBC.setns(network.fileno(), CLONE_NEWNET) == 0:
                    made.append(socket.socket(socket.AF_INET, kind))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        assert made, f"the network of {self.name} could not be entered"
        return made[0]

    def close(self) -> None:
        """Nothing of it is left but its folder."""
        with contextlib.suppress(OSError):
            self.thaw()
        self.kill()
        self._anchor.kill()
        self._anchor.wait()
        deadline = time.monotonic() + 5
        for path in (*sorted(self.cgroup.rglob("*/"), reverse=True), self.cgroup):
            while path.is_dir():
                with contextlib.suppress(OSError):
                    path.rmdir()
                    break
                assert time.monotonic() < deadline, f"{path} is in use"
                time.sleep(0.01)


class Hosts:
    """The three hosts, by name, and the router between them. ``run_dir`` gets their folders."""

    def __init__(self, run_dir: Path) -> None:
        root = cgroup_root()
        assert root is not None
        self.run_dir = run_dir
        self.group = root / f"colo-{run_dir.name}"
        self.group.mkdir()
        self.share = run_dir / "share"
        self.share.mkdir(mode=0o700)
        self.mounted = run_dir / "mnt"
        """Where each host has what both share."""
        self.mounted.mkdir(mode=0o700)
        self._cut: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._servers: dict[str, subprocess.Popen[bytes]] = {}
        self._hosts: dict[str, Host] = {}
        try:
            self.router = Host("router", "", run_dir, self.group)
            for number, name in enumerate(NAMES):
                host = self._hosts[name] = Host(name, f"10.77.{number}.2", run_dir, self.group)
                near, far = f"10.77.{number}.1", host.address
                self.router.run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(host.pid))
                self.router.run("ip", "address", "add", f"{near}/24", "dev", name)
                self.router.run("ip", "link", "set", name, "up")
                host.run("ip", "address", "add", f"{far}/24", "dev", "eth0")
                host.run("ip", "link", "set", "eth0", "up")
                host.run("ip", "route", "add", "default", "via", near)
                self.mount(name)
            self.router.run("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
        except BaseException:
            self.close()
            raise

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def __iter__(self) -> Iterator[Host]:
        return iter(self._hosts.values())

    def cut(self, origin: str, target: str) -> None:
        """What ``origin`` sends to ``target`` is lost on the way, and nobody says so."""
        with self._lock:
            if (origin, target) not in self._cut:
                self._cut.add((origin, target))
                self._rule("add", origin, target)

    def mend(self, origin: str, target: str) -> None:
        """It arrives again."""
        with self._lock:
            if (origin, target) in self._cut:
                self._cut.remove((origin, target))
                self._rule("del", origin, target)

    def _rule(self, what: str, origin: str, target: str) -> None:
        self.router.run("ip", "rule", what, "from", self[origin].address, "to", self[target].address, "blackhole")

    def is_cut(self, origin: str, target: str) -> bool:
        """Whether it is."""
        return (origin, target) in self._cut

    def mount(self, name: str) -> None:
        """Give that host what both share, as a file server does."""
        server = subprocess.Popen(
            self[name].command([sys.executable, "-I", str(SHARE), str(self.share), str(self.mounted), str(self._hangs(name))],
                               inside=False),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
        assert server.stdout is not None
        assert server.stdout.readline() == b"mounted\n"
        self._servers[name] = server

    def unmount(self, name: str) -> None:
        """Take it away: an empty directory is in its place."""
        self[name].run("umount", "-l", str(self.mounted))
        server = self._servers.pop(name)
        server.wait(10)

    def hang(self, name: str) -> None:
        """That host's file server is out of reach: whoever asks for the share waits."""
        self._hangs(name).touch()

    def unhang(self, name: str) -> None:
        """It answers again."""
        self._hangs(name).unlink(missing_ok=True)

    def _hangs(self, name: str) -> Path:
        return self.run_dir / f"hangs.{name}"

    def reset(self) -> None:
        """As when they were new: nothing runs on the primary's and the secondary's host, the network is whole."""
        for name in NAMES[:2]:
            with contextlib.suppress(OSError):
                self[name].thaw()
            self[name].kill()
        for origin, target in list(self._cut):
            self.mend(origin, target)

    def close(self) -> None:
        """Nothing of them is left, but their folders."""
        for name in self._servers:
            self.unhang(name)
        for host in (*self._hosts.values(), *([self.router] if hasattr(self, "router") else [])):
            host.close()
        for server in self._servers.values():
            server.kill()
            server.wait()
        with contextlib.suppress(OSError):
            self.group.rmdir()
