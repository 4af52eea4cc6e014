"""A QEMU command line taken apart: options with their values, and comma lists with doubled commas."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from colo.errors import QemuError

WITHOUT_VALUE = frozenset(
    [
        "h",
        "help",
        "version",
        "snapshot",
        "enable-kvm",
        "no-kvm",
        "S",
        "s",
        "daemonize",
        "nodefaults",
        "no-user-config",
        "nographic",
        "no-reboot",
        "no-shutdown",
        "no-acpi",
        "no-hpet",
        "no-fd-bootchk",
        "full-screen",
        "no-quit",
        "portrait",
        "only-migratable",
        "mem-prealloc",
        "singlestep",
        "one-insn-per-tb",
        "usb",
        "win2k-hack",
        "preconfig",
        "old-param",
        "semihosting",
        "xen-attach",
        "xen-domid-restrict",
        "enable-sync-profile",
        "alt-grab",
        "ctrl-grab",
        "no-frame",
        "enable-fips",
        "nouserconfig",
        "no-kvm-irqchip",
        "no-kvm-pit",
        "no-tsc",
    ]
)
"""Options that stand alone (qemu-options.hx of 2.12 to 11.1); every other takes the word after it."""


class Option(NamedTuple):
    """One option; ``name`` without its dash, or empty for a word that is none (a disk image)."""

    name: str
    value: str | None = None

    def words(self) -> list[str]:
        """As it stands on a command line."""
        dashed = [f"-{self.name}"] if self.name else []
        return dashed if self.value is None else [*dashed, self.value]


def split_options(arguments: Sequence[str]) -> list[Option]:
    """Take the words after the program's name apart. Raises QemuError when the last option lacks its value."""
    options = []
    words = iter(arguments)
    for word in words:
        if not word.startswith("-") or word == "-":
            options.append(Option("", word))
            continue
        name = word[2:] if word.startswith("--") else word[1:]
        if name in WITHOUT_VALUE:
            options.append(Option(name))
            continue
        value = next(words, None)
        if value is None:
            raise QemuError(f"the command line ends with {word}, which needs a value")
        options.append(Option(name, value))
    return options


class Properties:
    """A comma list like ``socket,id=c0,path=/a``: ordered, with the first word's key implied; or the same in
    JSON."""

    def __init__(self, text: str, implied: str) -> None:
        self.implied = implied
        self.json = text.lstrip().startswith("{")
        self._pairs: list[tuple[str, object]]
        if self.json:
            try:
                self._pairs = list(dict(json.loads(text)).items())
            except (ValueError, TypeError) as error:
                raise QemuError(f"not JSON as QEMU takes it: {text[:80]!r} ({error})") from None
            return
        self._pairs = []
        for index, part in enumerate(_split_commas(text)):
            key, equals, value = part.partition("=")
            if equals:
                self._pairs.append((key, value))
            elif index == 0 and implied:
                self._pairs.append((implied, part))
            elif part.startswith("no") and len(part) > 2 and implied == "backend":
                self._pairs.append((part[2:], "off"))  # the old spelling: nowait, nodelay
            else:
                self._pairs.append((part, "on"))

    def get(self, *keys: str) -> str:
        """The last value of any of ``keys``, or an empty string. JSON's true and false read as on and off."""
        found = ""
        for key, value in self._pairs:
            if key in keys:
                found = (
                    {True: "on", False: "off"}.get(value, str(value))
                    if isinstance(value, bool)
                    else str(value)
                )
        return found

    def set(self, key: str, value: object) -> None:
        """Give ``key`` this value, in its place or at the end."""
        if not self.json and isinstance(value, bool):
            value = "on" if value else "off"
        kept = [(k, v) for k, v in self._pairs if k != key]
        at = next((i for i, (k, _) in enumerate(self._pairs) if k == key), len(kept))
        kept.insert(min(at, len(kept)), (key, value))
        self._pairs = kept

    def drop(self, keys: Iterable[str]) -> None:
        """Remove ``keys``."""
        gone = set(keys)
        self._pairs = [(k, v) for k, v in self._pairs if k not in gone]

    def names(self) -> list[str]:
        """All keys, in order."""
        return [key for key, _value in self._pairs]

    def values(self) -> list[str]:
        """All values, as text."""
        return [str(value) for _key, value in self._pairs]

    def __str__(self) -> str:
        if self.json:
            return json.dumps(dict(self._pairs))
        parts = []
        for index, (key, value) in enumerate(self._pairs):
            text = str(value).replace(",", ",,")
            parts.append(text if index == 0 and key == self.implied else f"{key}={text}")
        return ",".join(parts)


def _split_commas(text: str) -> list[str]:
    """Split at single commas; a doubled one stands for itself."""
    parts, current, index = [], [], 0
    while index < len(text):
        if text[index] == ",":
            if text[index + 1 : index + 2] == ",":
                current.append(",")
                index += 2
                continue
            parts.append("".join(current))
            current = []
        else:
            current.append(text[index])
        index += 1
    return [*parts, "".join(current)]
