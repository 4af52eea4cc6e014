"""The stand-by's command line, from the primary's: the same machine, waiting, over the shared RAM files.

What makes the guest's machine stays as it is. What belongs to the running process goes (monitors, pid
file, daemon), what the two would fight over is kept apart (log files are appended to, not emptied; a unix
socket that is in use gets a name of its own), and what cannot be done is refused with the reason.
"""

from __future__ import annotations

import os
import shlex
import stat
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from colo.errors import QemuError
from colo.qemu.options import Option, Properties, split_options
from colo.qemu.process import QemuProcess

REMOVED = frozenset(
    [
        "daemonize",
        "pidfile",
        "qmp",
        "qmp-pretty",
        "monitor",
        "mon",
        "S",
        "incoming",
        "loadvm",
        "gdb",
        "s",
        "qtest",
        "qtest-log",
        "D",
        "mem-path",
        "mem-prealloc",
    ]
)
"""They belong to the primary's process, or to how its RAM was kept."""

REFUSED = {
    "chroot": "the stand-by's sockets and RAM files lie outside of it",
    "runas": "the stand-by could not reach its private sockets as that user; run colo as that user instead",
    "readconfig": "what the file says is not seen here: write its options out",
    "preconfig": "the machine is put together over QMP, which cannot be repeated",
    "add-fd": "only the process that started the primary has the descriptor",
    "snapshot": "the primary's disk writes are in a temporary file of its own",
}

MAIN_RAM_IDS = ("pc.ram", "microvm.ram", "mach-virt.ram", "ppc_spapr.ram", "s390.ram", "riscv_virt_board.ram")
"""Default RAM ids of the common machines; of others QEMU itself is asked."""

CHARACTER_OPTIONS = ("serial", "parallel", "debugcon")
PROXY_OBJECTS = ("filter-mirror", "filter-redirector", "filter-rewriter", "colo-compare")
MONITOR_OBJECTS = ("monitor-qmp", "monitor-hmp")
WINDOWS = ("gtk", "sdl", "curses", "cocoa", "spice-app")
BACKEND_KEPT = frozenset(
    ("qom-type", "id", "size", "x-use-canonical-path-for-ramblock-id", "merge", "dump", "share", "mem-path")
)


@dataclass(frozen=True)
class StandbyCommand:
    """What :func:`derive_standby` made: ``argv``; the file behind each shared RAM block; notes for the
    user."""

    argv: tuple[str, ...]
    shared: Mapping[str, Path] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def derive_standby(
    argv: Sequence[str] | str,
    *,
    ram_files: Mapping[str, str | os.PathLike[str]] | None = None,
    blocks: Sequence[tuple[str, int]] = (),
    share_ram: bool = True,
    machine_type: str = "",
) -> StandbyCommand:
    """The stand-by's command line from the primary's ``argv`` (a list, or a string as a shell takes it).

    ``blocks`` are the stream's RAM blocks (idstr, bytes); ``ram_files`` maps blocks to the files that hold
    them, of which those that QEMU can map are put behind its RAM with ``share_ram``. ``machine_type`` from
    the stream takes the place of an alias (``pc`` is another machine in another QEMU). QMP and ``-incoming``
    sockets are not part of it: :class:`colo.qemu.standby.Standby` adds them.

    Raises QemuError when an option cannot be carried over: which, and why.
    """
    words = shlex.split(argv) if isinstance(argv, str) else list(argv)
    if not words:
        raise QemuError("the primary's command line is empty")
    derivation = _Derivation(words[0], split_options(words[1:]))
    derivation.refuse()
    derivation.remove()
    derivation.characters()
    derivation.machine(machine_type)
    if share_ram and ram_files:
        derivation.share({idstr: Path(path) for idstr, path in ram_files.items()}, dict(blocks))
    derivation.options += [Option("incoming", "defer")]
    return StandbyCommand(
        (words[0], *(word for option in derivation.options for word in option.words())),
        derivation.shared,
        tuple(derivation.notes),
    )


class _Derivation:
    """One command line on its way from primary to stand-by."""

    def __init__(self, binary: str, options: list[Option]) -> None:
        self.binary = binary
        self.options = options
        self.notes: list[str] = []
        self.shared: dict[str, Path] = {}

    def refuse(self) -> None:
        """Stop at what cannot be carried over."""
        for option in self.options:
            reason = REFUSED.get(option.name)
            value = option.value or ""
            if option.name == "run-with" and any(
                Properties(value, "").get(key) for key in ("chroot", "user")
            ):
                reason = REFUSED["runas"]
            if option.name in ("netdev", "chardev", "nic", "net", "device", "blockdev", "drive"):
                properties = Properties(value, _implied(option.name))
                handed = [key for key in ("fd", "fds", "vhostfd", "vhostfds") if properties.get(key)]
                if handed:
                    reason = (
                        f"{handed[0]}= is a descriptor that only the process that started the primary has"
                    )
                if option.name == "device" and properties.get("driver") == "nvdimm":
                    reason = "an NVDIMM's content is in a file of the primary's host"
            if reason:
                text = f"-{option.name} {value}".strip()
                raise QemuError(
                    f"no stand-by can be derived from {text!r}: {reason}. "
                    "Give a command line for the stand-by without it"
                )

    def remove(self) -> None:
        """Drop what belongs to the primary's process."""
        orphans: set[str] = set()
        kept = []
        graphic = True
        for option in self.options:
            value = option.value or ""
            if option.name in REMOVED:
                if option.name == "mon":
                    orphans.add(Properties(value, "chardev").get("chardev"))
                continue
            if option.name == "object":
                properties = Properties(value, "qom-type")
                if properties.get("qom-type") in PROXY_OBJECTS + MONITOR_OBJECTS:
                    orphans.update(properties.values())
                    if properties.get("qom-type") in PROXY_OBJECTS:
                        self.notes.append(f"left out: -object {value} (the network proxy of a COLO pair)")
                    continue
            if option.name == "nographic":
                graphic = False
                kept.append(Option("display", "none"))
                continue
            if option.name == "display" and value.partition(",")[0] in WINDOWS:
                self.notes.append(f"-display {value} became none: the stand-by has no terminal or desktop")
                kept.append(Option("display", "none"))
                continue
            kept.append(option)
        self.options = [
            option
            for option in kept
            if option.name != "chardev" or Properties(option.value or "", "backend").get("id") not in orphans
        ]
        if not graphic and not any(option.name in ("nodefaults", "serial") for option in self.options):
            self.options += [Option("serial", "null"), Option("parallel", "null")]
        self.options.append(Option("monitor", "none"))

    def characters(self) -> None:
        """Keep serial lines and their like from fighting with the primary's, or waiting for somebody."""
        result = []
        count = 0
        for option in self.options:
            value = option.value or ""
            if option.name == "chardev":
                result.append(Option("chardev", self._chardev(Properties(value, "backend"))))
            elif option.name in CHARACTER_OPTIONS:
                if value.startswith("file:"):
                    name, count = f"colo-{option.name}-{count}", count + 1
                    backend = Properties("file", "backend")
                    for key, text in (("id", name), ("path", value[5:]), ("append", "on")):
                        backend.set(key, text)
                    result += [Option("chardev", str(backend)), Option(option.name, f"chardev:{name}")]
                elif value in ("stdio", "mon:stdio", "msmouse"):
                    self.notes.append(f"-{option.name} {value} became null: the stand-by has no terminal")
                    result.append(Option(option.name, "null"))
                elif value.startswith(("unix:", "tcp:", "telnet:", "mon:")):
                    result.append(Option(option.name, self._old_socket(value)))
                else:
                    result.append(option)
            else:
                result.append(option)
        self.options = result

    def _chardev(self, properties: Properties) -> str:
        kind = properties.get("backend")
        if kind == "stdio":
            self.notes.append(
                f"-chardev stdio,id={properties.get('id')} became null: the stand-by has no terminal"
            )
            return f"null,id={properties.get('id')}"
        if kind in ("file", "ringbuf") and properties.get("path"):
            properties.set("append", "on")
        elif kind == "socket" and properties.get("server") not in ("", "off"):
            properties.set("wait", "off")
            if properties.get("path"):
                properties.set("path", self._free_path(properties.get("path")))
        if properties.get("logfile"):
            properties.set("logappend", "on")
        return str(properties)

    def _old_socket(self, value: str) -> str:
        """``-serial unix:PATH,server=on``: never waits, never takes a socket over."""
        kind, _, rest = value.partition(":")
        if kind == "mon":
            return self._old_socket(rest) if rest.startswith(("unix:", "tcp:", "telnet:")) else rest
        properties = Properties(rest, "backend")
        if properties.get("server") not in ("", "off"):
            properties.set("wait", "off")
            if kind == "unix":
                properties.set("backend", self._free_path(properties.get("backend")))
        return f"{kind}:{properties}"

    def _free_path(self, path: str) -> str:
        """QEMU removes a socket that is in its way: one that is there belongs to the primary on this host."""
        try:
            taken = stat.S_ISSOCK(os.stat(path).st_mode)
        except OSError:
            return path
        if not taken:
            return path
        self.notes.append(f"{path} is in use on this host: the stand-by's is {path}.standby")
        return f"{path}.standby"

    def machine(self, machine_type: str) -> None:
        """Put the stream's machine type in the place of an alias."""
        if machine_type:
            self._set_machine("type", machine_type)

    def _set_machine(self, key: str, value: str) -> None:
        """Set a property of the machine, in the last option that has it, or the first there is, or a new
        one."""
        places = [index for index, option in enumerate(self.options) if option.name in ("machine", "M")]
        if not places:
            self.options.insert(0, Option("machine", f"{key}={value}"))
            return
        all_properties = [Properties(self.options[index].value or "", "type") for index in places]
        having = [number for number, properties in enumerate(all_properties) if properties.get(key)]
        number = having[-1] if having else 0
        all_properties[number].set(key, value)
        self.options[places[number]] = Option("machine", str(all_properties[number]))

    def share(self, files: Mapping[str, Path], sizes: Mapping[str, int]) -> None:
        """Put the files behind the machine's RAM: its own memory backends, or its one main block."""
        has_nodes = any(
            option.name == "numa" and Properties(option.value or "", "type").get("memdev")
            for option in self.options
        )
        main = self._main_backend()
        for index, option in enumerate(self.options):
            if option.name != "object":
                continue
            properties = Properties(option.value or "", "qom-type")
            if not properties.get("qom-type").startswith("memory-backend-"):
                continue
            name = properties.get("id")
            if properties.get("x-use-canonical-path-for-ramblock-id") in ("on", "true", "yes"):
                name = f"/objects/{name}"
            if name in files:
                self.options[index] = Option(
                    "object", self._backend(properties, files[name], sizes.get(name))
                )
                self.shared[name] = files[name]
        if main or has_nodes:
            if not self.shared:
                self.notes.append(
                    "the primary's memory backends are not in its stream: all pages will be sent"
                )
            return
        block = self._main_block(list(sizes) or list(files))
        if block is None or block not in files:
            self.notes.append("the machine's main RAM block is not known: all pages will be sent")
            return
        size_bytes = sizes.get(block) or files[block].stat().st_size
        backend = Properties("memory-backend-file", "qom-type")
        backend.set("id", block)
        backend.set("size", size_bytes)
        self.options.append(Option("object", self._backend(backend, files[block], size_bytes)))
        self._set_machine("memory-backend", block)
        self.shared[block] = files[block]

    def _main_backend(self) -> str:
        found = ""
        for option in self.options:
            if option.name in ("machine", "M"):
                found = Properties(option.value or "", "type").get("memory-backend") or found
        return found

    @staticmethod
    def _backend(properties: Properties, path: Path, size_bytes: int | None) -> str:
        """``properties`` of a memory backend as one over ``path``; never touching pages that it does not have
        to."""
        keys = [key for key in properties.names() if key not in BACKEND_KEPT]
        properties.drop(
            keys
        )  # preallocation writes to pages, host NUMA nodes and huge pages are the primary host's
        properties.set("qom-type", "memory-backend-file")
        properties.set("mem-path", os.path.abspath(path))
        properties.set("share", True)
        properties.set("dump", False)
        if size_bytes is not None:
            properties.set("size", size_bytes)
        return str(properties)

    def _main_block(self, names: Sequence[str]) -> str | None:
        known = [name for name in names if name in MAIN_RAM_IDS]
        if len(known) == 1:
            return known[0]
        machine = ""
        for option in self.options:
            if option.name in ("machine", "M"):
                machine = Properties(option.value or "", "type").get("type") or machine
        return default_ram_id(self.binary, machine)


def default_ram_id(binary: str, machine: str = "") -> str | None:
    """The name of a machine's main RAM block, asked of QEMU itself (``query-machines``); None if it has none.

    Raises QemuError when ``binary`` does not start.
    """
    with tempfile.TemporaryDirectory(prefix="colo-") as work:
        os.chmod(work, 0o700)
        with QemuProcess.start(
            [binary, "-nodefaults", "-display", "none", "-machine", "none", "-S"], work
        ) as qemu:
            for entry in qemu.qmp.records("query-machines"):
                if machine in (entry.string("name"), entry.string("alias", "")) or (
                    not machine and entry.flag("is-default", False)
                ):
                    return entry.string("default-ram-id", "") or None
    return None


def _implied(option: str) -> str:
    return {"chardev": "backend", "device": "driver", "netdev": "type", "nic": "model", "net": "type"}.get(
        option, ""
    )
