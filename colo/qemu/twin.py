"""A stand-by's twin: the same machine, to find out whether it loads a checkpoint. It runs nothing, and is thrown away.

It may touch nothing that the primary or the stand-by uses: it has RAM of its own, a sparse file that holds no more than the
lowest MiB of each block (a device may look there when it loads: KVM's `kvm-tpr-opt` refuses when its ROM is not); it opens
disks without locking them (inactive, as after an incoming migration, and they stay so), and has nobody behind its
serial lines, displays and network cards. What the guest sees of its devices is the same.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from colo.errors import QemuUnsupported
from colo.qemu.command_line import CHARACTER_OPTIONS, StandbyCommand
from colo.qemu.options import Option, Properties, split_options

LOW_BYTES = 1 << 20
"""What of each RAM block a twin has: on a PC, the BIOS's and option ROMs' memory."""
DROPPED = frozenset(("vnc", "spice", "display", "trace", "overcommit", "mem-prealloc", "pidfile", "gdb", "D"))
HELD_OBJECTS = frozenset(("input-linux", "input-barrier"))
"""Objects that take something of the host's for themselves, and that no device needs."""
PREALLOCATING = ("prealloc", "prealloc-threads", "prealloc-context", "host-nodes", "policy")
RAM_KEPT = frozenset(("qom-type", "id", "size", "x-use-canonical-path-for-ramblock-id"))
NEEDS_ITS_OWN = {
    "vhost-user": "its back-end serves one QEMU",
    "vhost-vsock": "its context id is the stand-by's",
    "vhost-vdpa": "its device is the stand-by's",
    "vhost-scsi": "its target is the stand-by's",
    "vfio-": "its device is the stand-by's",
    "usb-host": "its device is the stand-by's",
    "tpm-": "the chip behind it is the stand-by's",
}
"""Devices and back-ends, by how their names begin, that only one QEMU can have."""
USER_KEPT = frozenset(("type", "id", "model", "mac", "addr", "name", "net", "host", "ipv4", "ipv6", "dhcpstart"))
TAP_KEPT = frozenset(("type", "id", "model", "mac", "addr", "name", "vhost", "vhostforce", "queues", "vnet_hdr", "sndbuf"))


def twin_command(standby: StandbyCommand, directory: Path) -> StandbyCommand:
    """The twin's command line, from the stand-by's; makes the sparse files for its RAM in ``directory``.

    Raises QemuUnsupported when it has something that a second QEMU cannot have beside it.
    """
    argv = standby.argv
    files = {os.path.abspath(path): idstr for idstr, path in standby.shared.items()}
    shared: dict[str, Path] = {}
    options = []
    for option in split_options(argv[1:]):
        _refuse(option)
        value = option.value or ""
        if option.name in DROPPED or option.name == "S":
            continue
        if option.name == "object":
            text = _object(value, files, shared, directory)
            if text is not None:
                options.append(Option("object", text))
        elif option.name == "chardev":
            options.append(Option("chardev", _silent(Properties(value, "backend"))))
        elif option.name in CHARACTER_OPTIONS and not value.startswith(("chardev:", "none")):
            options.append(Option(option.name, "null"))
        elif option.name in ("netdev", "nic", "net"):
            options.append(Option(option.name, _alone(option.name, value, len(options))))
        elif option.name == "audiodev":
            options.append(Option("audiodev", f"none,id={Properties(value, 'driver').get('id')}"))
        else:
            options.append(option)
    options += [Option("display", "none"), Option("S")]
    nice = shutil.which("nice")
    program = (nice, "-n", "19", argv[0]) if nice else (argv[0],)
    return StandbyCommand((*program, *(word for option in options for word in option.words())), shared)


def rehearsal_command(standby: StandbyCommand) -> StandbyCommand:
    """The stand-by's command line as it is, only that it takes no memory before it is needed, and never runs.

    Nor does it make unix sockets: one that it left behind would look as if the primary had it.
    """
    options = []
    for option in split_options(standby.argv[1:]):
        if option.name in ("S", "overcommit", "mem-prealloc"):
            continue
        if option.name == "object":
            properties = Properties(option.value or "", "qom-type")
            if properties.get("qom-type").startswith("memory-backend-"):
                properties.drop([key for key in properties.names() if key not in RAM_KEPT])
                properties.set("qom-type", "memory-backend-ram")
                properties.set("reserve", False)
                options.append(Option("object", str(properties)))
                continue
        if _is_unix_server(option):
            properties = Properties(option.value or "", "backend")
            options.append(Option(option.name, _silent(properties) if option.name == "chardev" else "null"))
            continue
        options.append(option)
    options.append(Option("S"))
    return StandbyCommand((standby.argv[0], *(word for option in options for word in option.words())))


def _is_unix_server(option: Option) -> bool:
    value = option.value or ""
    if option.name == "chardev":
        properties = Properties(value, "backend")
        return properties.get("backend") == "socket" and bool(properties.get("path")) and properties.get("server") not in (
            "", "off")
    return option.name in CHARACTER_OPTIONS and value.startswith("unix:") and "server" in value


def _refuse(option: Option) -> None:
    if option.name not in ("device", "netdev", "nic", "net", "tpmdev"):
        return
    implied = {"device": "driver", "nic": "type", "tpmdev": "type"}.get(option.name, "type")
    kind = "tpm-" if option.name == "tpmdev" else Properties(option.value or "", implied).get(implied)
    for prefix, reason in NEEDS_ITS_OWN.items():
        if kind.startswith(prefix):
            raise QemuUnsupported(f"-{option.name} {option.value}: {reason}")


def _object(value: str, files: dict[str, str], shared: dict[str, Path], directory: Path) -> str | None:
    """An ``-object`` for the twin, or None: it needs none."""
    properties = Properties(value, "qom-type")
    kind = properties.get("qom-type")
    if kind in HELD_OBJECTS:
        return None
    if not kind.startswith("memory-backend-"):
        return value
    mem_path = properties.get("mem-path")
    idstr = files.get(os.path.abspath(mem_path)) if mem_path else None
    if idstr is not None:
        path = directory / f"ram-{len(shared)}"
        _sparse_copy(Path(mem_path), path)
        properties.set("mem-path", str(path))
        shared[idstr] = path
    properties.drop(PREALLOCATING)
    return str(properties)


def _sparse_copy(source: Path, target: Path) -> None:
    """``target`` as long as ``source``: its first bytes, then a hole, which takes no storage while nobody writes to it."""
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as copy, source.open("rb") as image:
        copy.write(image.read(LOW_BYTES))
        copy.truncate(os.fstat(image.fileno()).st_size)


def _silent(properties: Properties) -> str:
    mux = ",mux=on" if properties.get("mux") not in ("", "off") else ""
    return f"null,id={properties.get('id')}{mux}"


def _alone(name: str, value: str, number: int) -> str:
    """A network back-end with nobody behind it, but of the same kind: what a card offers its guest depends on that."""
    properties = Properties(value, "type")
    kind = properties.get("type")
    if kind in ("nic", "none", "hubport"):
        return value
    if kind in ("tap", "bridge"):
        properties.drop([key for key in properties.names() if key not in TAP_KEPT])
        properties.set("type", "tap")
        properties.set("script", "no")
        properties.set("downscript", "no")
        return str(properties)
    if kind == "user":
        properties.drop([key for key in properties.names() if key not in USER_KEPT])
        return str(properties)
    if name == "netdev":
        return f"hubport,id={properties.get('id')},hubid={number}"
    properties.drop([key for key in properties.names() if key not in ("type", "model", "mac", "addr", "name")])
    properties.set("type", "user")
    return str(properties)


def disks_taken_at_activation(argv: Sequence[str]) -> list[str]:
    """The disks of a command line that are opened for writing, and locked, only when the VM starts to run."""
    found = []
    for option in split_options(argv[1:]):
        value = option.value or ""
        if option.name in ("drive", "blockdev"):
            properties = Properties(value, "")
            path = properties.get("file", "filename", "file.filename")
            if path and properties.get("readonly", "read-only") not in ("on", "true") and properties.get("media") != "cdrom":
                found.append(path)
        elif option.name in ("hda", "hdb", "hdc", "hdd", "fda", "fdb", "sd", "mtdblock", "pflash", ""):
            found.append(value)
    return [path for path in dict.fromkeys(found) if path and not path.startswith(("null-", "json:"))]
