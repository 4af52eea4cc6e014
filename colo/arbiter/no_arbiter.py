"""The arbiter ``none``: nobody is asked."""

from __future__ import annotations

import secrets
import warnings

from colo.arbiter.arbiter import Claim
from colo.arbiter.forgetful import ForgetfulArbiter
from colo.arbiter.runner import Runner

COST = (
    "arbiter none: when the link is cut, both sides can run the VM at once and damage what they "
    "share (disks, addresses); use file:DIR, etcd:HOSTS/PREFIX or exec:COMMAND wherever that matters"
)


class NoArbiter(ForgetfulArbiter):
    """Every claim wins, on both sides. Warns each time one is made."""

    uri = "none"
    excludes = False

    def __init__(self, *, role: str = "") -> None:
        super().__init__(role)
        # Without a registry of what was said already: it is said on every start.
        warnings.warn_explicit(COST, RuntimeWarning, __file__, 1, module=__name__, registry=None)

    def claim(self, generation: int, *, reason: str = "", runner: Runner | None = None) -> Claim:
        runner = runner or Runner.of()
        with self._lock:
            self._check_standing(generation)
            return self._win(generation + 1, secrets.token_hex(16), reason, runner)
