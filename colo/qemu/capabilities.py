"""The migration capabilities and parameters that others left on a QEMU: switched off for as long as we need it, or refused.

An earlier migration, libvirt, or ``-global migration.…`` may have left any of them. What a COLO primary, or a stand-by
that is to load a checkpoint, cannot have is in two tables; a capability that is on and in neither is one that a newer QEMU
has, and is switched off too. All of it is put back afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from colo.errors import QemuError, QemuUnsupported
from colo.qemu.process import Qemu
from colo.qemu.qmp import QmpCommandError

LEFTOVERS: Mapping[str, str] = {
    "auto-converge": "it slows the guest down for a first copy that has time",
    "background-snapshot": "x-colo is refused beside it",
    "block": "it copies disks, which the other side does not take",
    "compress": "it was not asked for (ColoSettings.compress)",
    "dirty-bitmaps": "its section is not one that a checkpoint has",
    "dirty-limit": "it slows the guest down for a first copy that has time",
    "late-block-activate": "it leaves disks inactive after an incoming migration",
    "mapped-ram": "it is for files",
    "multifd": "it sends pages over channels of their own, which the other side does not open",
    "pause-before-switchover": "the VM would stand still until somebody says migrate-continue",
    "postcopy-blocktime": "it belongs to postcopy",
    "postcopy-preempt": "it opens a channel that the other side does not take",
    "postcopy-ram": "its stream is of another kind",
    "rdma-pin-all": "it is for RDMA",
    "release-ram": "it throws pages away that the next checkpoints need",
    "return-path": "this version's COLO does without",
    "switchover-ack": "the VM would wait for a word that the other side does not say",
    "validate-uuid": "the other side does not compare it",
    "x-ignore-shared": "shared memory would be left out of the stream",
    "xbzrle": "it was not asked for (ColoSettings.xbzrle)",
    "zero-blocks": "it copies disks, which the other side does not take",
    "zero-copy-send": "it needs multifd",
}
"""Capabilities by name, with the reason why a checkpoint cannot have them."""

OURS = frozenset(("events", "x-colo", "return-path"))
"""What we ourselves leave on a QEMU that is killed or lost with us; switching them off again is no news."""

USUAL_PARAMETERS: Mapping[str, tuple[Any, str]] = {
    "downtime-limit": (300, "the first copy ends with a stop as long as this many ms"),
    "avail-switchover-bandwidth": (0, "it decides when the first copy may end"),
    "mode": ("normal", "the stream would be of another kind"),
    "multifd-compression": ("none", "it belongs to multifd"),
    "direct-io": (False, "it is for files"),
}
"""Parameters that must have one value, which is also QEMU's own default."""

REFUSED_PARAMETERS: Mapping[str, str] = {
    "tls-creds": "its stream would be encrypted by QEMU, and the other side takes none such. Clear it with "
    "migrate-set-parameters tls-creds='' and encrypt by a tunnel",
}
"""Parameters whose loss the user would not want."""


def capability_list(capabilities: Mapping[str, bool]) -> list[dict[str, object]]:
    """``migrate-set-capabilities``' argument."""
    return [{"capability": name, "state": state} for name, state in capabilities.items()]


def capabilities_of(qemu: Qemu) -> dict[str, bool]:
    """Its capabilities, each with its state. Raises QmpError when it does not answer."""
    entries = qemu.qmp.records("query-migrate-capabilities")
    return {entry.string("capability"): entry.flag("state") for entry in entries}


def require_migratable(qemu: Qemu) -> None:
    """Refuse a QEMU that says itself that it cannot migrate.

    Raises QemuUnsupported when its devices or its processor forbid it, in its own words.
    """
    reasons = qemu.qmp.record("query-migrate").items("blocked-reasons")
    if reasons:
        words = "; ".join(str(reason).strip() for reason in reasons)
        raise QemuUnsupported(
            f"QEMU says that its VM cannot be migrated, so it cannot be protected: {words}. Start it without what this names"
        )


class MigrationSettings:
    """Capabilities and parameters of one QEMU, as they were before :meth:`take` changed them."""

    def __init__(
        self, qemu: Qemu, capabilities: Mapping[str, bool], parameters: Mapping[str, Any], notices: tuple[str, ...]
    ) -> None:
        self._qemu = qemu
        self._capabilities = dict(capabilities)
        self._parameters = dict(parameters)
        self.notices = notices
        """One text for each setting of somebody else's that does not hold for now."""

    @classmethod
    def take(
        cls, qemu: Qemu, capabilities: Mapping[str, bool], parameters: Mapping[str, Any] | None = None, *,
        refuse: bool = True,
    ) -> MigrationSettings:
        """Set ``capabilities`` and ``parameters``, and switch off every other that is on.

        A capability that this QEMU does not have may be given as False. ``refuse``: False for a QEMU of our own, whose
        settings nobody else wants.

        Raises QemuUnsupported when a parameter is set that may not be ignored.
        Raises QmpError when QEMU refuses, in its own words, or does not answer.
        """
        present = capabilities_of(qemu)
        values = qemu.qmp.record("query-migrate-parameters").members
        if refuse:
            for name, why in REFUSED_PARAMETERS.items():
                if values.get(name):
                    raise QemuUnsupported(f"QEMU's migration parameter {name} is {values[name]!r}: {why}")
        wanted = {name: state for name, state in capabilities.items() if state or name in present}
        notices = []
        for name, state in present.items():
            if state and not wanted.get(name, False):
                wanted[name] = False
                if name not in OURS:
                    why = LEFTOVERS.get(name, "it is not known here")
                    notices.append(f"capability {name} was on and is off while the VM is protected: {why}")
        changed = {name: value for name, value in USUAL_PARAMETERS.items() if values.get(name, value[0]) != value[0]}
        for name, (value, why) in changed.items():
            notices.append(f"parameter {name} was {values[name]!r} and is {value!r} while the VM is protected: {why}")
        new = {name: value for name, (value, _) in changed.items()} | dict(parameters or {})
        if not refuse:
            new |= {name: "" for name in REFUSED_PARAMETERS if values.get(name)}
        settings = cls(
            qemu,
            {name: present.get(name, False) for name, state in wanted.items() if present.get(name, False) != state}
            | ({"x-colo": False} if "x-colo" in present else {}),
            {name: values[name] for name, value in new.items() if name in values and values[name] != value},
            tuple(notices),
        )
        qemu.qmp.execute("migrate-set-capabilities", {"capabilities": capability_list(wanted)})
        if new:
            try:
                qemu.qmp.execute("migrate-set-parameters", new)
            except QmpCommandError:
                settings.restore()
                raise
        return settings

    def restore(self, timeout_s: float = 2.0) -> bool:
        """Put them back; False if QEMU does not let us (it is gone, or a migration runs). x-colo is off afterwards.

        Idempotent.
        """
        capabilities, parameters = self._capabilities, self._parameters
        try:
            if capabilities:
                # x-colo first: it forbids and demands others.
                with contextlib.suppress(QmpCommandError):
                    self._set({"x-colo": False}, timeout_s)
                self._set(capabilities, timeout_s)
            if parameters:
                self._qemu.qmp.execute("migrate-set-parameters", parameters, timeout_s=timeout_s)
        except QemuError:
            return False
        self._capabilities, self._parameters = {}, {}
        return True

    def _set(self, capabilities: Mapping[str, bool], timeout_s: float) -> None:
        arguments = {"capabilities": capability_list(capabilities)}
        self._qemu.qmp.execute("migrate-set-capabilities", arguments, timeout_s=timeout_s)
