"""Draws the tables: ``python -m colo.protocol.diagram --write docs/protocol.md``.

Each drawing replaces what stands between ``<!-- table: NAME -->`` and ``<!-- end: NAME -->`` in the document.
``--check`` writes nothing and fails when the document and the tables differ.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from colo.protocol import migration
from colo.protocol.failover import FAILOVER_ROWS, FailoverStatus
from colo.protocol.migration.pings import PINGS
from colo.protocol.migration.table import ENDING_EVENTS
from colo.protocol.rows import Row
from colo.protocol.states import FACTS, OVER, PRIMARY, SECONDARY, states
from colo.protocol.table import LATE, ROWS, unexpected
from colo.protocol.words import FROM_PEER, Action, Condition, Event, Mode, Phase, Role, State

_ENDINGS = frozenset(
    {Event.CHANNEL_LOST, Event.DEADLINE, Event.FAILED, Event.FAILOVER_REQUESTED, Event.TAKEOVER_LOST}
)


def _node(state: State | FailoverStatus | migration.State) -> str:
    name: str = state.value
    return name.replace("-", "_")


def _diagram(edges: Iterator[tuple[str, str, str]]) -> Iterator[str]:
    yield "```mermaid"
    yield "stateDiagram-v2"
    for origin, target, label in edges:
        yield f"    {origin} --> {target}: {label}"
    yield "```"


def _main_path(role: Role) -> list[Row]:
    """The served rows that carry the protocol on; how connections end is drawn apart."""
    rows = []
    for row in ROWS:
        if row.role is not role or not row.served or row.state in OVER or row.next_state in OVER:
            continue
        if row.next_state is row.state and row.event not in FROM_PEER:
            continue
        rows.append(row)
    return rows


def draw_states(role: Role) -> Iterator[str]:
    """One role's way from connection to checkpoint after checkpoint."""

    def edges() -> Iterator[tuple[str, str, str]]:
        yield "[*]", _node(State.START), "a connection"
        for row in _main_path(role):
            when = ", ".join(_conditions(row))
            yield _node(row.state), _node(row.next_state), row.event.value + (f" [{when}]" if when else "")

    yield from _diagram(edges())


def draw_ending(role: Role) -> Iterator[str]:
    """How a connection of that role ends; ``connected`` stands for every state that has a connection."""

    def edges() -> Iterator[tuple[str, str, str]]:
        drawn: dict[tuple[str, str], list[str]] = {}
        for row in ROWS:
            if row.role is not role or row.next_state not in OVER:
                continue
            if row.state in OVER and row.next_state is row.state:
                continue
            origin = _node(row.state) if row.state in OVER else "connected"
            if row.next_state is State.FINISHING_COMMIT:
                origin = "commit_under_way"
            labels = drawn.setdefault((origin, _node(row.next_state)), [])
            if row.event.value not in labels:
                labels.append(row.event.value)
        yield from ((origin, target, ", ".join(labels)) for (origin, target), labels in drawn.items())

    yield from _diagram(edges())


def _conditions(row: Row) -> list[str]:
    return [condition.value for condition in Condition if condition in row.when]


def draw_rows(role: Role) -> Iterator[str]:
    """All rows of a role but those that every state shares."""
    yield "| state | event | when | next state | actions |"
    yield "|---|---|---|---|---|"
    for row in ROWS:
        shared = row.event in _ENDINGS or (row.state in OVER and row.event in LATE)
        shared |= row.event is Event.APPLIED and row.next_state is row.state
        if row.role is not role or shared:
            continue
        actions = "; ".join(action.value for action in row.actions) or "–"
        if row.commits:
            actions = f"**committed**; {actions}" if row.actions else "**committed**"
        if not row.served:
            actions += " *(not yet served)*"
        when = ", ".join(_conditions(row)) or "–"
        moved = row.next_state.value if row.next_state is not row.state else "(stays)"
        yield f"| {row.state.value} | {row.event.value} | {when} | {moved} | {actions} |"


def draw_endings(role: Role) -> Iterator[str]:
    """What the rows that every state shares do, and what an unexpected event does, state by state."""
    yield "| state | event | when | next state | actions |"
    yield "|---|---|---|---|---|"
    for state in states(role):
        for row in ROWS:
            if row.role is not role or row.state is not state or row.event not in _ENDINGS:
                continue
            if row.next_state is state and not row.actions:
                continue
            actions = "; ".join(action.value for action in row.actions) or "–"
            when = ", ".join(_conditions(row)) or "–"
            yield f"| {state.value} | {row.event.value} | {when} | {row.next_state.value} | {actions} |"
        outcome = unexpected(role, state)
        actions = "; ".join(action.value for action in outcome.actions) or "–"
        target = outcome.next_state.value
        yield f"| {state.value} | *anything else* | – | {target} | ProtocolError; {actions} |"


def draw_facts(role: Role) -> Iterator[str]:
    yield "| state | what it is | read from the peer | deadline | epoch's clock |"
    yield "|---|---|---|---|---|"
    for (owner, state), fact in FACTS.items():
        if owner is role:
            clock = "runs" if fact.in_epoch else "–"
            phase = fact.phase.name.lower()
            yield f"| {state.value} | {fact.says} | {fact.reads.value} | {phase} | {clock} |"


def draw_phases() -> Iterator[str]:
    yield "| deadline | what is timed |"
    yield "|---|---|"
    for phase in Phase:
        yield f"| {phase.name.lower()} | {phase.value} |"


def draw_modes() -> Iterator[str]:
    yield "| mode | RECEIVED is sent | LOADED is sent | committed for the primary | served |"
    yield "|---|---|---|---|---|"
    for mode in Mode:
        condition = Condition[mode.name]
        received = _where(SECONDARY, condition, Action.SEND_VMSTATE_RECEIVED)
        loaded = _where(SECONDARY, condition, Action.SEND_VMSTATE_LOADED)
        commit = {
            row.event.value
            for row in ROWS
            if row.role is PRIMARY
            and row.commits
            and condition in row.when
            and row.state in {State.AWAIT_RECEIVED, State.AWAIT_LOADED}
        }
        served = "no" if mode is Mode.HYBRID else "yes"
        yield f"| {mode.value} | on {received} | on {loaded} | {', '.join(sorted(commit))} | {served} |"


def _where(role: Role, condition: Condition, action: Action) -> str:
    rows = (row for row in ROWS if row.role is role and condition in row.when and action in row.actions)
    found = {row.event.value for row in rows}
    return ", ".join(sorted(found))


def draw_failover() -> Iterator[str]:
    def edges() -> Iterator[tuple[str, str, str]]:
        yield "[*]", _node(FailoverStatus.NONE), "the session begins"
        for (status, event), target in FAILOVER_ROWS.items():
            if target is not status:
                yield _node(status), _node(target), event.value

    yield from _diagram(edges())


def draw_failover_rows() -> Iterator[str]:
    yield "| status | event | next status |"
    yield "|---|---|---|"
    for (status, event), target in FAILOVER_ROWS.items():
        yield f"| {status.value} | {event.value} | {target.value} |"


def draw_migration_states(role: migration.Role) -> Iterator[str]:
    """One role's way from the start to a completed migration; how one ends otherwise is in a table of its own."""

    def edges() -> Iterator[tuple[str, str, str]]:
        yield "[*]", _node(migration.State.NOT_STARTED), "a migration"
        for row in migration.ROWS:
            if row.role is not role or _ends(row):
                continue
            when = ", ".join(_migration_conditions(row))
            yield _node(row.state), _node(row.next_state), row.event.value + (f" [{when}]" if when else "")

    yield from _diagram(edges())


def _migration_conditions(row: migration.Row) -> list[str]:
    return [condition.value for condition in migration.Condition if condition in row.when]


def draw_migration_facts(role: migration.Role) -> Iterator[str]:
    yield "| state | what it is | status | read from the peer | deadline | the VM is | runs at this side |"
    yield "|---|---|---|---|---|---|---|"
    for (owner, state), fact in migration.FACTS.items():
        if owner is role:
            runs = "yes" if fact.runs_here else "no"
            yield (f"| {state.value} | {fact.says} | {fact.status.value} | {fact.reads.value} | {fact.phase.name.lower()} "
                   f"| {_PLACES[role][fact.place]} | {runs} |")


_PLACES = {
    migration.Role.SOURCE: {place: place.value for place in migration.VmPlace},
    migration.Role.DESTINATION: {
        migration.VmPlace.HERE: "there", migration.VmPlace.THERE: "here", migration.VmPlace.UNDECIDED: "undecided"},
}
"""Who has the VM, as this side says it."""


def draw_migration_rows(role: migration.Role) -> Iterator[str]:
    """The rows that carry a migration on. Those that hand out what makes the destination run are marked."""
    yield "| state | event | when | next state | actions |"
    yield "|---|---|---|---|---|"
    for row in migration.ROWS:
        if row.role is role and not _ends(row):
            done = _actions(row.actions, "**handed out**" if row.hands_out else "")
            when = ", ".join(_migration_conditions(row)) or "–"
            yield f"| {row.state.value} | {row.event.value} | {when} | {_moved(row)} | {done} |"


def draw_migration_endings(role: migration.Role) -> Iterator[str]:
    """What ends a migration before it is through; states and events of the same outcome in one line."""
    yield "| state | event | when | next state | actions |"
    yield "|---|---|---|---|---|"
    where: dict[tuple[str, str, str, str], list[str]] = {}
    for state in migration.states(role):
        merged: dict[tuple[str, str, str], list[str]] = {}
        for row in migration.ROWS:
            if row.role is role and row.state is state and _ends(row):
                when = ", ".join(_migration_conditions(row) if row.event in ENDING_EVENTS else ()) or "–"
                merged.setdefault((when, _moved(row), _actions(row.actions)), []).append(row.event.value)
        for (when, moved, done), events in merged.items():
            rest = ["*anything else*"] if migration.Event.FAILED.value in events else []
            where.setdefault((", ".join([*events, *rest]), when, moved, done), []).append(state.value)
    for (what, when, moved, done), names in where.items():
        yield f"| {', '.join(names)} | {what} | {when} | {moved} | {done} |"


def _ends(row: migration.Row) -> bool:
    """It ends the migration; a destination's refusal too, but for its answer at the end."""
    refused = row.event is migration.Event.SHUT_FAILED and row.state is not migration.State.AWAIT_ANSWER
    return refused or row.event in ENDING_EVENTS


def _moved(row: migration.Row) -> str:
    return row.next_state.value if row.next_state is not row.state else "(stays)"


def _actions(actions: tuple[migration.Action, ...], mark: str = "") -> str:
    return "; ".join([*([mark] if mark else []), *(action.value for action in actions)]) or "–"


def draw_migration_phases() -> Iterator[str]:
    yield "| deadline | what is timed |"
    yield "|---|---|"
    for phase in migration.Phase:
        yield f"| {phase.name.lower()} | {phase.value} |"


def draw_migration_statuses() -> Iterator[str]:
    yield "| status | the VM runs at the source | what may follow |"
    yield "|---|---|---|"
    for status, fact in migration.STATUSES.items():
        follow = ", ".join(each.value for each in fact.next) or "–"
        yield f"| {status.value} | {'yes' if fact.runs_here else 'no'} | {follow} |"


def draw_pings() -> Iterator[str]:
    yield "| PING | number | what it says |"
    yield "|---|---|---|"
    for each in PINGS:
        number = f"{each.first:#x}" if each.first == each.last else f"{each.first:#x} to {each.last:#x}"
        yield f"| {each.name} | {number} | {each.says} |"


DRAWINGS: dict[str, Callable[[], Iterator[str]]] = {
    "phases": draw_phases,
    "modes": draw_modes,
    **{
        f"{role.value} {name}": partial(draw, role)
        for role in Role
        for name, draw in (
            ("states", draw_states),
            ("facts", draw_facts),
            ("rows", draw_rows),
            ("ending", draw_ending),
            ("endings", draw_endings),
        )
    },
    "failover states": draw_failover,
    "failover rows": draw_failover_rows,
    "pings": draw_pings,
    "migration phases": draw_migration_phases,
    "migration statuses": draw_migration_statuses,
    **{
        f"{migration_role.value} {name}": partial(draw_migration, migration_role)
        for migration_role in migration.Role
        for name, draw_migration in (
            ("states", draw_migration_states),
            ("facts", draw_migration_facts),
            ("rows", draw_migration_rows),
            ("endings", draw_migration_endings),
        )
    },
}
"""What can stand between markers, by the marker's name."""

_BLOCK = re.compile(
    r"(?P<head><!-- table: (?P<name>[a-z ]+) -->\n)(?P<body>.*?)(?P<foot><!-- end: (?P=name) -->)", re.DOTALL
)


def redraw(document: str) -> str:
    """``document`` with every drawing made anew from the tables.

    Raises ValueError when a marker names no drawing, or a drawing has no place in the document.
    """
    seen: list[str] = []

    def replace(block: re.Match[str]) -> str:
        name = block["name"]
        if name not in DRAWINGS:
            raise ValueError(f"no drawing is called {name!r}; there are: {', '.join(DRAWINGS)}")
        seen.append(name)
        return f"{block['head']}\n{chr(10).join(DRAWINGS[name]())}\n\n{block['foot']}"

    result = _BLOCK.sub(replace, document)
    if missing := [name for name in DRAWINGS if name not in seen]:
        raise ValueError(f"the document has no markers for: {', '.join(missing)}")
    return result


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m colo.protocol.diagram", description="Draw the tables.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", type=Path, metavar="FILE", help="redraw the tables in FILE")
    what.add_argument("--check", type=Path, metavar="FILE", help="fail if FILE differs from the tables")
    options = parser.parse_args(arguments)
    path: Path = options.write or options.check
    before = path.read_text(encoding="utf-8")
    after = redraw(before)
    if options.write:
        path.write_text(after, encoding="utf-8")
    elif before != after:
        remedy = f"python -m colo.protocol.diagram --write {path}"
        print(f"{path} differs from the tables: run {remedy}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
