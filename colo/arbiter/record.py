"""What an arbiter keeps as text: its identity, and who holds a generation. Written by us, read as if by strangers."""

from __future__ import annotations

import json
import math
import re
import uuid as uuids
from typing import Any

from colo.arbiter.arbiter import ArbiterIdentity, Holder
from colo.arbiter.runner import Runner
from colo.errors import ArbitrationError
from colo.wire import GENERATION_MAX

RECORD_BYTES = 1024
"""A record has this many bytes or fewer, whatever is put into it."""
NAME_BYTES = 64
"""A VM's name, a host's and a reason, in UTF-8."""

_HEX32 = re.compile(r"[0-9a-f]{32}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ROLES = ("", "primary", "secondary")
_TIME_MAX_S = 253402300799  # the last second of the year 9999
_INTEGER_MAX = 2**63 - 1


def printable(text: str, limit_bytes: int = NAME_BYTES) -> str:
    """``text`` as a terminal may see it, cut to ``limit_bytes`` of UTF-8."""
    clean = "".join(c if c.isprintable() else "?" for c in text[:limit_bytes])
    return clean.encode("utf-8", "replace")[:limit_bytes].decode("utf-8", "ignore")


def new_identity(identifier: str, vm: str, uuid: str) -> ArbiterIdentity:
    """The identity of an arbiter for this VM. Raises ArbitrationError when the name or the UUID cannot be one."""
    if not vm or not vm.isprintable() or vm != vm.strip() or printable(vm) != vm:
        raise ArbitrationError(
            f"{vm!r} cannot be a VM's name here: use 1 to {NAME_BYTES} bytes of printable text (--vm NAME)")
    if uuid:
        try:
            uuid = str(uuids.UUID(uuid))
        except ValueError:
            raise ArbitrationError(f"{uuid!r} is no UUID: give the VM's (QEMU's -uuid), or leave it out") from None
    return ArbiterIdentity(identifier, vm, uuid)


def same_vm(have: ArbiterIdentity, vm: str, uuid: str) -> bool:
    """Is this the arbiter of the VM of that name, and of that UUID where both have one?"""
    return have.vm == vm and (not uuid or not have.uuid or have.uuid == uuid)


def identity_text(identity: ArbiterIdentity, **more: object) -> bytes:
    return _json({"id": identity.id, "vm": identity.vm, "uuid": identity.uuid, **more})


def parse_identity(text: bytes) -> tuple[ArbiterIdentity, dict[str, Any]] | None:
    """The identity, and whatever else its record holds; None when it is none."""
    fields = _object(text)
    if fields is None:
        return None
    identifier, vm, uuid = fields.get("id"), fields.get("vm"), fields.get("uuid")
    if not (isinstance(identifier, str) and _HEX32.fullmatch(identifier) and isinstance(vm, str) and isinstance(uuid, str)):
        return None
    if uuid and not _UUID.fullmatch(uuid):
        return None
    try:
        return new_identity(identifier, vm, uuid), fields
    except ArbitrationError:
        return None


def new_holder(
    generation: int, token: str, *, role: str = "", runner: Runner | None = None, since_s: float, reason: str,
    closed: bool = False,
) -> Holder:
    """A holder whose record fits."""
    return Holder(generation, role if role in _ROLES else "", runner, since_s, printable(reason), token, closed)


def holder_text(holder: Holder, identity: ArbiterIdentity) -> bytes:
    """The record of ``holder``, at most :data:`RECORD_BYTES` long."""
    runner = holder.runner
    record: dict[str, object] = {
        "generation": holder.generation, "token": holder.token, "vm": identity.vm, "uuid": identity.uuid, "role": holder.role,
        "since": holder.since_s, "reason": holder.reason, "closed": holder.closed,
    }
    if runner is not None:
        record |= {
            "host": printable(runner.host), "boot_id": printable(runner.boot_id), "machine": printable(runner.machine),
            "pid": runner.pid, "start_ticks": runner.start_ticks, "pid_namespace": runner.pid_namespace,
        }
    return _json(record)


def padded(text: bytes) -> bytes:
    """``text`` as long as every record: written over the one before, it leaves nothing of that."""
    return text.ljust(RECORD_BYTES - 1)[: RECORD_BYTES - 1] + b"\n"


def parse_holder(text: bytes, generation: int) -> Holder | None:
    """The holder of ``generation`` by its record; None when that says nothing usable, or speaks of another generation."""
    fields = _object(text)
    if fields is None or not _integer(fields.get("generation")) or fields["generation"] != generation:
        return None
    token, role, reason, since_s = fields.get("token"), fields.get("role"), fields.get("reason"), fields.get("since")
    if not (isinstance(token, str) and _HEX32.fullmatch(token)) or role not in _ROLES:
        return None
    if not isinstance(reason, str) or not isinstance(fields.get("closed"), bool):
        return None
    if isinstance(since_s, bool) or not isinstance(since_s, (int, float)) or not 0 <= since_s <= _TIME_MAX_S:
        return None  # NaN as well: it compares with nothing
    runner = None
    if "host" in fields:
        runner = _runner(fields)
        if runner is None:
            return None
    if role and runner is None:
        return None
    return Holder(generation, str(role), runner, float(since_s), printable(reason), token, fields["closed"])


def stated_generation(text: bytes) -> int | None:
    """Which generation a record speaks of, or None."""
    generation = (_object(text) or {}).get("generation")
    return generation if isinstance(generation, int) and _integer(generation) and generation < GENERATION_MAX else None


def _json(record: dict[str, object]) -> bytes:
    # Not escaped to ASCII: a name is then never longer than twice its bytes.
    return json.dumps(record, ensure_ascii=False).encode()


def _runner(fields: dict[str, Any]) -> Runner | None:
    texts = [fields.get(key) for key in ("host", "boot_id", "machine")]
    numbers = [fields.get(key) for key in ("pid", "start_ticks", "pid_namespace")]
    if not all(isinstance(text, str) and text == printable(text) for text in texts) or not all(map(_integer, numbers)):
        return None
    if not fields["host"] or not 0 < fields["pid"] < 2**31:
        return None
    return Runner(*(fields[key] for key in ("host", "boot_id", "pid", "start_ticks", "machine", "pid_namespace")))


def _integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _INTEGER_MAX


def _object(text: bytes) -> dict[str, Any] | None:
    """The JSON object that ``text`` is, or None. Nothing longer than a record is looked at."""
    if len(text) > RECORD_BYTES:
        return None
    try:
        fields = json.loads(text, parse_constant=lambda name: math.nan)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None
