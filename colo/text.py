"""Text for people: sizes, and what comes from elsewhere (a peer, a file, QEMU) as it may be shown."""

from __future__ import annotations

UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def printable(text: str) -> str:
    """``text`` with whatever could steer a terminal, begin a line of its own in a log, turn the order of what follows, or
    is no character of XML, told by its number."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" if ord(c) < 256 else f"\\u{ord(c):04x}" for c in text)


def size(value: float) -> str:
    """Bytes for people: 1.5 MiB."""
    for unit, name in UNITS:
        if value >= unit:
            return f"{value / unit:.1f} {name}"
    return f"{value:.0f} B"
