"""What QEMU does by version: each fact once, with the version it was seen on, and what follows from them.

A fact holds from its ``since`` up to, not including, its ``until``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from colo.errors import QemuUnsupported


class Version(NamedTuple):
    """A QEMU version: ``7.2.22`` compares as a tuple."""

    major: int
    minor: int
    micro: int = 0

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.micro}"

    @classmethod
    def parse(cls, text: str) -> Version:
        """From ``QEMU emulator version 10.0.13 (Debian …)`` or ``10.0.13``.

        Raises ValueError when there is no version in it.
        """
        found = re.search(r"(?:version )?(\d+)\.(\d+)(?:\.(\d+))?", text)
        if found is None:
            raise ValueError(f"no QEMU version in {text!r}")
        return cls(int(found[1]), int(found[2]), int(found[3] or 0))


ANCIENT = Version(0, 0)
FUTURE = Version(10_000, 0)


class Fact(NamedTuple):
    """One observed behaviour."""

    name: str
    since: Version
    until: Version
    seen_on: str
    what: str


FACTS: tuple[Fact, ...] = (
    Fact(
        "no_colo",
        ANCIENT,
        Version(4, 0),
        "documentation",
        "COLO's primary and secondary first worked in a release in 4.0",
    ),
    Fact(
        "tcg_deadlock",
        ANCIENT,
        Version(11, 0),
        "7.2.22, 10.0.13",
        "with TCG a COLO primary stops for good after its first checkpoint; with KVM it works",
    ),
    Fact(
        "broken_primary",
        Version(10, 0, 0),
        Version(10, 0, 7),
        "10.0.0 to 10.0.6, by their release notes; 10.0.13 works",
        "a COLO primary finishes as a plain migration",
    ),
    Fact(
        "broken_primary",
        Version(10, 1, 0),
        Version(10, 1, 1),
        "10.1.0",
        "a COLO primary finishes as a plain migration",
    ),
    Fact(
        "return_path_first",
        Version(11, 0),
        FUTURE,
        "11.1.3; not 10.0.13; versions between were not tried, there QEMU's own refusal decides",
        "x-colo is refused unless the capability return-path is on; the primary then opens the return "
        "path and pings",
    ),
    Fact(
        "enable_colo",
        ANCIENT,
        Version(11, 0),
        "7.2.22, 10.0.13; not 11.1.3; versions between were not tried",
        "the stream carries ENABLE_COLO, and a QEMU secondary needs it; from then on one rejects it",
    ),
    Fact(
        "switchover_start",
        Version(10, 0),
        FUTURE,
        "10.0.13, 11.1.3",
        "SWITCHOVER_START can precede a checkpoint's live state",
    ),
    Fact(
        "ignore_shared",
        Version(4, 0),
        FUTURE,
        "7.2.22, 10.0.13, 11.1.3",
        "the capability x-ignore-shared leaves shared memory backends out of the stream",
    ),
    Fact(
        "ram_compression",
        ANCIENT,
        Version(9, 1),
        "7.2.22 has it, 10.0.13 has not",
        "the capability compress sends COMPRESS_PAGE records",
    ),
    Fact(
        "yank",
        Version(6, 0),
        FUTURE,
        "7.2.22, 10.0.13, 11.1.3",
        "the out-of-band command yank frees a migration that hangs in its peer",
    ),
    Fact(
        "monitor_queue",
        Version(2, 12),
        FUTURE,
        "7.2.22, 10.0.13, 11.1.3",
        "a monitor takes 8 commands that the main loop has not answered, then reads no more: out-of-band commands "
        "do not come through either",
    ),
    Fact(
        "hangs_at_its_end",
        ANCIENT,
        Version(10, 0),
        "7.2.22 in 10 of 300; 10.0.13 and 11.1.3 in none of 150",
        "told to end (SIGTERM) while commands wait on its monitor, it says SHUTDOWN and then hangs for good: kill it",
    ),
    Fact(
        "runs_on_at_its_end",
        ANCIENT,
        FUTURE,
        "11.1.3 in 3 of 1000, 7.2.22 in 1 of 220; 10.0.13 in none of 220",
        "a COLO primary that is told to end (SIGTERM, quit) says SHUTDOWN and COLO_EXIT, hangs for good, and its VM runs "
        "on (RESUME): kill it; only the end of its process is a proof",
    ),
    Fact(
        "silent_debug_exit",
        ANCIENT,
        Version(10, 0),
        "7.2.22; 10.0.13 and 11.1.3 say SHUTDOWN guest-shutdown",
        "a guest that ends the process by isa-debug-exit does so without an event",
    ),
    Fact(
        "colo_revives_shutdown",
        ANCIENT,
        FUTURE,
        "7.2.22, 10.0.13, 11.1.3, 4 of 4 each",
        "with -no-shutdown, a COLO primary's next checkpoint starts the VM again that its guest has powered off",
    ),
    Fact(
        "colo_aborts_after_panic",
        ANCIENT,
        FUTURE,
        "7.2.22, 10.0.13, 11.1.3, 4 of 4 each",
        "with -action panic=pause, a COLO primary aborts at the checkpoint after its guest's panic",
    ),
    Fact(
        "keys_while_stopped",
        ANCIENT,
        FUTURE,
        "7.2.22, 10.0.13, 11.1.3",
        "input (send-key) that comes while the VM stands still, as in a checkpoint, is dropped",
    ),
    Fact(
        "vapic_needs_its_rom",
        ANCIENT,
        FUTURE,
        "7.2.22, 10.0.13, 11.1.3, with KVM and SeaBIOS",
        "the device kvm-tpr-opt refuses to load when the option ROM that it patched is not in the guest's RAM below 1 MiB",
    ),
)


@dataclass(frozen=True)
class Quirks:
    """The facts about one version."""

    version: Version
    facts: tuple[Fact, ...]

    def has(self, name: str) -> bool:
        """Whether the fact called ``name`` holds. Raises KeyError when there is no such fact."""
        if name not in _NAMES:
            raise KeyError(name)
        return any(fact.name == name for fact in self.facts)

    @property
    def needs_return_path(self) -> bool:
        """x-colo needs the capability return-path set before it."""
        return self.has("return_path_first")

    @property
    def has_ignore_shared(self) -> bool:
        """The capability x-ignore-shared exists."""
        return self.has("ignore_shared")

    @property
    def has_compression(self) -> bool:
        """The capability compress exists."""
        return self.has("ram_compression")

    def require_colo(self, accelerator: str, role: str = "primary") -> None:
        """Refuse a version that cannot be a COLO ``role`` under ``accelerator`` (``kvm`` or ``tcg``).

        Raises QemuUnsupported with the reason and what to do.
        """
        for fact in self.facts:
            if fact.name in ("no_colo", "broken_primary") and (role == "primary" or fact.name == "no_colo"):
                raise QemuUnsupported(
                    f"QEMU {self.version} cannot be a COLO {role}: {fact.what}. Use 7.2, 10.0.7 or "
                    "later of 10.0, or 11.1"
                )
        if accelerator != "kvm" and role == "primary" and self.has("tcg_deadlock"):
            raise QemuUnsupported(
                f"QEMU {self.version} cannot be a COLO primary with {accelerator}: its VM would stop "
                "for good after the first checkpoint. Start it with -accel kvm, or use QEMU 11.1"
            )


_NAMES = {fact.name for fact in FACTS}


def quirks_of(version: Version) -> Quirks:
    """The facts that hold for ``version``."""
    return Quirks(version, tuple(fact for fact in FACTS if fact.since <= version < fact.until))
