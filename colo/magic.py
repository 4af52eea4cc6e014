"""What begins with other bytes than a migration stream's: named, so that the error says what to do."""

from __future__ import annotations

MULTIFD_MAGIC = 0x11223344.to_bytes(4, "big")

_KNOWN: tuple[tuple[bytes, str], ...] = (
    (
        MULTIFD_MAGIC,
        "this is a multifd channel (0x11223344), which carries pages only, and is not served: switch the capability "
        "multifd off at the source",
    ),
    (b"\x16\x03", "this is a TLS handshake: switch tls-creds off at the source, or end TLS before"),
    (b"LibvirtQemud", "this is a file of libvirt (virsh save, managedsave): colo inspect reads it"),
    (b"\x1f\x8b", "this is compressed with gzip: gzip -dc"),
    (b"BZh", "this is compressed with bzip2: bzip2 -dc"),
    (b"\xfd7zXZ\0", "this is compressed with xz: xz -dc"),
    (b"\x28\xb5\x2f\xfd", "this is compressed with zstd: zstd -dc"),
    (b"\x89LZO", "this is compressed with lzop: lzop -dc"),
    (b"QFI\xfb", "this is a qcow2 image: colo inspect reads the VM state of its internal snapshots"),
    (b"\x7fELF", "this is an ELF file (dump-guest-memory writes such): it is no migration stream"),
    (b"KDUMP", "this is a kdump file (dump-guest-memory writes such): it is no migration stream"),
    (b"{", "this is JSON (of a QMP monitor?): it is no migration stream"),
    (b"VMA\0", "this is a Proxmox backup (VMA): vma extract it, what it keeps of a VM's state is a stream"),
)


def what_is(start: bytes) -> str | None:
    """What begins with these bytes, and what to do; None if that is not known. ``start`` has at least 4 bytes, or is
    all there is: names of which only a part is here count, from 4 bytes on."""
    for magic, text in _KNOWN:
        if start.startswith(magic) or (len(start) >= 4 and magic.startswith(start)):
            return text
    return None
