"""``colo arbiter``: make the arbiter of a VM, see who holds it, and say that a holder is gone for good."""

from __future__ import annotations

import argparse
import getpass
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from colo.arbiter import Arbiter, Holder, arbiter_from_uri, init_arbiter
from colo.arbiter.arbiter import reopen_command
from colo.cli.terminal.output import print_mapping
from colo.errors import ArbitrationError, ArbitrationLost, ColoError
from colo.text import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's description, and its own subcommands."""
    parser.description = (
        "An arbiter belongs to one VM, is made once, and says which process holds it. ARBITER is file:DIR (or the "
        "directory's path) or etcd:http(s)://HOST:PORT,…/PREFIX.")
    commands = parser.add_subparsers(dest="arbiter_command", required=True, metavar="COMMAND")

    init = _command(commands, "init", _init, "make it, once; again, it only says whose it is")
    init.add_argument("--vm", required=True, metavar="NAME", help="whose it is")
    init.add_argument("--uuid", default="", help="the VM's UUID (QEMU's -uuid)")

    show = _command(commands, "show", _show, "whose it is, and who holds it since when")
    show.add_argument("--vm", default="", metavar="NAME", help="refuse it if it is another VM's")

    for name, run, text in (
        ("release", _release, "you say that its holder is gone for good: nobody holds it any more"),
        ("reopen", _reopen, "let a VM that was ended on purpose be started again"),
    ):
        command = _command(commands, name, run, text)
        command.add_argument("--vm", required=True, metavar="NAME", help="whose it is")
        command.add_argument("--yes", action="store_true", help="do not ask")


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("uri", metavar="ARBITER", type=arbiter_uri, help="file:DIR, DIR, or etcd:…")
    parser.add_argument("--json", action="store_true", help="JSON")
    parser.set_defaults(run=run)
    return parser


def arbiter_uri(text: str) -> str:
    """An arbiter's URI; the path of a directory is one, too."""
    return f"file:{text}" if text.startswith(("/", "./", "../")) or text in {".", ".."} or ":" not in text else text


def _init(arguments: argparse.Namespace) -> int:
    identity = init_arbiter(arguments.uri, vm=arguments.vm, uuid=arguments.uuid)
    with arbiter_from_uri(arguments.uri, vm=arguments.vm) as arbiter:
        holder = arbiter.holder()
        found = {"arbiter": arbiter.uri, "vm": identity.vm, "uuid": identity.uuid, "id": identity.id,
                 "generation": holder.generation, "holder": holder.describe()}
    print_mapping(found, json_output=arguments.json)
    return 0


def _show(arguments: argparse.Namespace) -> int:
    with _kept(arguments) as arbiter:
        _print(arbiter, arbiter.holder(), json_output=arguments.json)
    return 0


def _release(arguments: argparse.Namespace) -> int:
    with _kept(arguments) as arbiter:
        holder = arbiter.holder()
        if holder.closed:
            raise ArbitrationLost(
                "nobody runs the VM: it was ended on purpose; to start it again: "
                f"{reopen_command(arbiter.uri, arguments.vm)}")
        if holder.runner is not None and holder.runner.alive():
            raise ArbitrationLost(f"the VM runs on this host, as {holder.describe()}: end that process first")
        if arbiter.seen(holder):
            raise ArbitrationLost(f"the session of {holder.describe()} is alive: end it there first")
        if not holder.free:
            _confirm(
                arguments,
                f"generation {holder.generation} of VM {arguments.vm!r} is held by {holder.describe()}. If the VM still runs "
                "there, or ever will again, it will run twice")
            holder = arbiter.release(holder.generation, reason=f"released by {_who()}")
        _print(arbiter, holder, json_output=arguments.json)
    return 0


def _reopen(arguments: argparse.Namespace) -> int:
    with _kept(arguments) as arbiter:
        holder = arbiter.holder()
        if holder.closed:
            _confirm(arguments, f"VM {arguments.vm!r} was ended on purpose ({holder.reason or 'no reason given'}), by "
                                f"{holder.describe()}")
            holder = arbiter.release(holder.generation, reason=f"reopened by {_who()}")
        elif not holder.free:
            raise ArbitrationLost(
                f"the VM was not ended on purpose: generation {holder.generation} is held by {holder.describe()}")
        _print(arbiter, holder, json_output=arguments.json)
    return 0


def _kept(arguments: argparse.Namespace) -> Arbiter:
    arbiter = arbiter_from_uri(arguments.uri, vm=arguments.vm)
    if arbiter.identity is None:
        raise ArbitrationError(f"{arguments.uri.partition(':')[0]} keeps nothing: nobody can be shown or released")
    return arbiter


def _confirm(arguments: argparse.Namespace, what: str) -> None:
    """Go on only with the user's word."""
    if arguments.yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ColoError(f"{what}. Say --yes if that is what you want; nothing was changed")
    print(f"{printable(what)}. Go on? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise ColoError("nothing was changed")


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}"
    return f"{user} on {socket.gethostname()}"


def _state(holder: Holder) -> str:
    if holder.closed:
        return "closed"
    if holder.free:
        return "free"
    return "unknown" if holder.unknown else "held"


def _print(arbiter: Arbiter, holder: Holder, *, json_output: bool) -> None:
    identity = arbiter.identity
    assert identity is not None
    runner = holder.runner
    found: dict[str, Any] = {
        "arbiter": arbiter.uri, "vm": identity.vm, "uuid": identity.uuid, "id": identity.id, "generation": holder.generation,
        "state": _state(holder), "holder": holder.describe(), "reason": holder.reason,
    }
    if json_output:
        found |= {
            "role": holder.role, "since_s": holder.since_s, "runner": asdict(runner) if runner else None,
            "alive": runner.alive() if runner else None, "session_seen": arbiter.seen(holder),
        }
    elif runner is not None:
        alive = runner.alive()
        found["process"] = "cannot be told from here" if alive is None else "lives, on this host" if alive else "gone"
        if (seen := arbiter.seen(holder)) is not None:
            found["session"] = "alive" if seen else "not heard of, which proves nothing"
    print_mapping(found, json_output=json_output)
