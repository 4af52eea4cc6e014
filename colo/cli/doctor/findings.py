"""What ``colo doctor`` says: findings, and the conclusion that follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

OK, LIMITED, NO = "ok", "limited", "no"


@dataclass(frozen=True)
class Finding:
    """One line of the answer: ``state`` is ok, limited or no; ``advice`` says what to do, if anything.

    ``essential``: without it this machine can neither protect a VM nor take one over. ``side`` names the one that cannot
    be had without it: ``primary`` or ``secondary``.
    """

    area: str
    name: str
    state: str
    text: str
    advice: str = ""
    essential: bool = False
    side: str = ""


@dataclass(frozen=True)
class Conclusion:
    """What follows from the findings for this machine; ``text`` names what is missing."""

    primary: bool
    secondary: bool
    text: str

    @property
    def works(self) -> bool:
        """Whether a VM can be protected, and taken over, here."""
        return self.primary and self.secondary


def conclude(findings: Sequence[Finding]) -> Conclusion:
    """The conclusion of all findings. Whatever is ``no`` is named in it, whether or not it is needed."""
    noes = [finding for finding in findings if finding.state == NO]
    missing = {
        side: [f"{f.area}: {f.name}" for f in noes if f.essential or f.side == side] for side in ("primary", "secondary")
    }
    primary, secondary = not missing["primary"], not missing["secondary"]
    if primary and secondary:
        text = "A VM can be protected and taken over on this machine."
        others = list(dict.fromkeys(f"{f.area}: {f.name}" for f in noes))
        if others:
            text += f" Not with everything that is here: `no` above for {_listed(others)}."
    elif primary:
        text = f"A VM can be protected on this machine, not taken over: `no` above for {_listed(missing['secondary'])}."
    elif secondary:
        text = f"A VM can be taken over on this machine, not protected: `no` above for {_listed(missing['primary'])}."
    else:
        names = list(dict.fromkeys(missing["primary"] + missing["secondary"]))
        text = f"A VM can be neither protected nor taken over on this machine: `no` above for {_listed(names)}."
    return Conclusion(primary, secondary, text)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:6])
    return shown + (f" and {len(names) - 6} more" if len(names) > 6 else "")
