"""Arbiters by their URIs."""

from __future__ import annotations

from colo.arbiter.arbiter import Arbiter, ArbiterIdentity
from colo.errors import ArbitrationError


def arbiter_from_uri(uri: str, *, role: str = "", vm: str = "", uuid: str = "") -> Arbiter:
    """The arbiter that ``uri`` names: ``file:DIR``, ``etcd:http(s)://HOST:PORT,…/PREFIX``, ``exec:COMMAND`` or
    ``none``. Never makes one.

    ``role``: "primary" or "secondary", for humans and the fencing script. ``vm``: the VM's name: an arbiter of another VM is
    refused, and ``exec:``'s script is told; "" takes any. ``uuid``: the VM's UUID, likewise.

    Raises ArbitrationError when the URI names no arbiter, it is another VM's, or it cannot work (not made yet, no directory,
    wrong modes, …); the message says what to do.
    """
    kind, colon, rest = uri.partition(":")
    if kind == "file" and rest:
        from colo.arbiter.file_arbiter import FileArbiter

        arbiter: Arbiter = FileArbiter(rest, role=role, vm=vm)
    elif kind == "etcd" and rest:
        from colo.arbiter.etcd.arbiter import EtcdArbiter

        arbiter = EtcdArbiter(uri, role=role, vm=vm)
    elif kind == "exec" and rest.strip():
        from colo.arbiter.exec_arbiter import ExecArbiter

        arbiter = ExecArbiter(rest, role=role, vm=vm, uuid=uuid)
    elif kind == "none" and not colon:
        from colo.arbiter.no_arbiter import NoArbiter

        arbiter = NoArbiter(role=role)
    else:
        raise _no_arbiter(uri)
    _check_uuid(arbiter, uri, uuid)
    return arbiter


def init_arbiter(uri: str, *, vm: str, uuid: str = "") -> ArbiterIdentity:
    """Make the arbiter that ``uri`` names the one of this VM, once: ``file:DIR`` (which must exist) or ``etcd:…``.

    Again, for the same VM, it only says whose it is. Raises ArbitrationError when it is another VM's, or it cannot be made.
    """
    kind, colon, rest = uri.partition(":")
    if kind == "file" and rest:
        from colo.arbiter.file_making import make_file_arbiter

        return make_file_arbiter(rest, vm=vm, uuid=uuid)
    if kind == "etcd" and rest:
        from colo.arbiter.etcd.arbiter import make_etcd_arbiter

        return make_etcd_arbiter(uri, vm=vm, uuid=uuid)
    if (kind == "exec" and rest.strip()) or (kind == "none" and not colon):
        raise ArbitrationError(f"{kind} keeps nothing, so there is nothing to make: give it to both sides as it is")
    raise _no_arbiter(uri)


def _check_uuid(arbiter: Arbiter, uri: str, uuid: str) -> None:
    identity = arbiter.identity
    if identity is not None and uuid and identity.uuid and identity.uuid != uuid.lower():
        arbiter.close()
        raise ArbitrationError(
            f"arbiter {uri} belongs to {identity.describe()}, not to the VM with UUID {uuid}: each VM has one of its own")


def _no_arbiter(uri: str) -> ArbitrationError:
    return ArbitrationError(
        f"{uri!r} names no arbiter: use file:DIR (a directory that both sides can reach), "
        "etcd:http(s)://HOST:PORT,HOST:PORT,…/PREFIX, exec:COMMAND (a fencing script), or none (both "
        "sides may then run at once)"
    )
