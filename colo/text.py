"""Text from elsewhere (a peer, a file, QEMU) as it may be shown."""

from __future__ import annotations


def printable(text: str) -> str:
    """``text`` with whatever could steer a terminal, begin a line of its own in a log, turn the order of what follows, or
    is no character of XML, told by its number."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" if ord(c) < 256 else f"\\u{ord(c):04x}" for c in text)
