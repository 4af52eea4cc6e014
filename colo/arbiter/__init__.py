"""Who may run: exactly one side, by something that both can ask (:mod:`colo.arbiter.arbiter` has the promises).

``file:DIR``
    A directory on storage that both sides can reach: a file that only one of two renames can move.
``etcd:http(s)://HOST:PORT,…/PREFIX``
    Keys in etcd, compared and written in one transaction.
``exec:COMMAND``
    The user's fencing script; its exit code decides.
``none``
    Nobody is asked. Both sides can then run at once.
"""

from __future__ import annotations

from colo.arbiter.admission import may_protect, take_first
from colo.arbiter.arbiter import Arbiter, ArbiterIdentity, Claim, Holder
from colo.arbiter.claiming import claim, until_decided
from colo.arbiter.runner import Runner
from colo.arbiter.uri import arbiter_from_uri, init_arbiter

__all__ = [
    "Arbiter",
    "ArbiterIdentity",
    "Claim",
    "Holder",
    "Runner",
    "arbiter_from_uri",
    "claim",
    "init_arbiter",
    "may_protect",
    "take_first",
    "until_decided",
]
