"""The house: who may import whom, how long a file may be, how many a folder may hold. Every import and cimport is read."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "colo"

FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "wire", "magic", "limits", "connection", "abc", "text", "path_walk", "private", "forked", "wake", "trace"),
    ("_fast", "protocol"),
    ("vmdesc",),
    ("memory", "vmstate", "figures"),
    ("stream", "transport", "arbiter", "qemu", "emulator"),
    ("control", "lease", "vm", "survey"),
    ("fence", "epoch"),
    ("link", "takeover"),
    ("session",),
    ("cli",),
    ("__main__",),
)
"""From the ground up. A module imports from floors below its own, and from its own folder."""
GROUND = FLOORS[0]
"""Modules right in the package: they may import one another, but not in a circle."""
QUARTERS = (("kernels",), ("trackers", "send", "receive"))
"""The core's own floors."""
NEVER = {"session": "_fast"}
"""Who decides does not touch pages."""

LINES_MAX = 400
LONGER: dict[str, str] = {
}
"""Files that are longer, each with its reason."""
MODULES_MAX = 15

_CIMPORT = re.compile(r"^\s*(?:from\s+(colo[\w.]*)\s+(?:c?import)\s+(.+)|c?import\s+(colo[\w.]*))", re.M)
_NAMED = re.compile(r"import_module\(f?\"(colo[\w.]+)\"\)")


class Arrow(NamedTuple):
    """``importer`` imports ``imported``, both modules by their dotted names; ``names`` from it."""

    importer: str
    imported: str
    names: tuple[str, ...] = ()


def sources() -> list[Path]:
    return sorted(p for suffix in ("py", "pyi", "pyx", "pxd") for p in PACKAGE.rglob(f"*.{suffix}"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path) for path in sources()}


def _targets(importer: str, module: str, names: tuple[str, ...]) -> Iterator[Arrow]:
    """What ``from module import names`` is about: modules of that folder, or names of that module."""
    own = tuple(name for name in names if f"{module}.{name}" not in MODULES)
    for name in names:
        if f"{module}.{name}" in MODULES:
            yield Arrow(importer, f"{module}.{name}")
    if own:
        yield Arrow(importer, module, own)


def arrows_of(path: Path) -> Iterator[Arrow]:
    importer, text = name_of(path), path.read_text()
    for module in _NAMED.findall(text):
        yield Arrow(importer, module)
    if path.suffix in (".py", ".pyi"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                yield from (Arrow(importer, alias.name) for alias in node.names if alias.name.split(".")[0] == "colo")
            elif isinstance(node, ast.ImportFrom):
                module = node.module or ""
                if node.level:
                    folder = importer if path.stem == "__init__" else importer.rpartition(".")[0]
                    for _ in range(node.level - 1):
                        folder = folder.rpartition(".")[0]
                    module = f"{folder}.{module}" if module else folder
                if module.split(".")[0] == "colo":
                    yield from _targets(importer, module, tuple(alias.name for alias in node.names))
        return
    assert not re.search(r"^\s*from\s+\.", text, re.M), f"{path}: a relative cimport; write colo._fast.…"
    for from_module, names, module in _CIMPORT.findall(text):
        if module:
            yield Arrow(importer, module)
        else:
            wanted = tuple(name.split(" as ")[0].strip(" (\\") for name in names.split(","))
            yield from _targets(importer, from_module, tuple(name for name in wanted if name))


ARROWS = [arrow for path in sources() for arrow in arrows_of(path) if arrow.imported != "colo"]


def folder_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "colo"


def floor_of(module: str) -> int:
    folder = folder_of(module)
    if folder == "colo":
        return len(FLOORS)
    return next(number for number, floor in enumerate(FLOORS) if folder in floor)


def test_every_folder_has_its_floor() -> None:
    known = {name for floor in FLOORS for name in floor}
    assert {folder_of(module) for module in MODULES} - {"colo"} == known


def test_imports_go_down() -> None:
    wrong = []
    for arrow in ARROWS:
        mine, theirs = folder_of(arrow.importer), folder_of(arrow.imported)
        if mine in ("colo", theirs) or (mine in GROUND and theirs in GROUND):
            continue
        if floor_of(arrow.imported) >= floor_of(arrow.importer):
            way = "up" if floor_of(arrow.imported) > floor_of(arrow.importer) else "sideways"
            wrong.append(f"{way}: {arrow.importer} imports {arrow.imported}")
        if NEVER.get(mine) == theirs:
            wrong.append(f"never: {arrow.importer} imports {arrow.imported}")
    assert not wrong, "\n".join(wrong)


def test_the_core_has_floors_of_its_own() -> None:
    def quarter(module: str) -> str:
        return (module.split(".") + [""] * 3)[2]

    level = {name: number for number, names in enumerate(QUARTERS) for name in names}
    wrong = [
        f"{arrow.importer} imports {arrow.imported}" for arrow in ARROWS
        if folder_of(arrow.importer) == folder_of(arrow.imported) == "_fast"
        and quarter(arrow.importer) != quarter(arrow.imported)
        and level.get(quarter(arrow.imported), 9) >= level.get(quarter(arrow.importer), -1)]
    assert not wrong, "\n".join(wrong)


def circles() -> list[list[str]]:
    """Modules that reach each other: Tarjan's strongly connected components of more than one."""
    graph: dict[str, set[str]] = {}
    for arrow in ARROWS:
        graph.setdefault(arrow.importer, set()).add(arrow.imported)
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = low[module] = len(order)
        stack.append(module)
        for imported in graph.get(module, ()):
            if imported not in order:
                visit(imported)
                low[module] = min(low[module], low[imported])
            elif imported in stack:
                low[module] = min(low[module], order[imported])
        if low[module] == order[module]:
            members = stack[stack.index(module):]
            del stack[stack.index(module):]
            if len(members) > 1:
                found.append(sorted(members))

    for module in sorted(graph):
        if module not in order:
            visit(module)
    return found


def test_no_imports_go_round() -> None:
    assert not circles(), "\n".join(" <-> ".join(circle) for circle in circles())


def sub_folder_arrows() -> dict[str, set[str]]:
    """Of every folder's sub-folders, by their dotted names: which of its others each imports."""
    found: dict[str, set[str]] = {}
    folders = {name_of(path.parent / "__init__.py") for path in sources() if path.parent != PACKAGE}
    for arrow in ARROWS:
        mine, theirs = arrow.importer.split("."), arrow.imported.split(".")
        same = next((n for n, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), 0)
        one, other = ".".join(mine[: same + 1]), ".".join(theirs[: same + 1])
        if same > 1 and {one, other} <= folders:
            found.setdefault(one, set()).add(other)
    return found


def test_sub_folders_import_one_another_one_way_only() -> None:
    left = sub_folder_arrows()
    while free := [one for one, others in left.items() if not any(other in left for other in others)]:
        for one in free:
            del left[one]
    assert not left, left


def test_private_names_stay_in_their_folder() -> None:
    wrong = [
        f"{arrow.importer} takes {name} of {arrow.imported}" for arrow in ARROWS for name in (*arrow.names, arrow.imported.rpartition(".")[2])
        if name.startswith("_") and not name.startswith("__") and name != "_fast"
        and arrow.importer.rpartition(".")[0] != arrow.imported.rpartition(".")[0]]
    assert not wrong, "\n".join(wrong)


def test_a_file_fits_one_idea() -> None:
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in sources()}
    longer = {name for name, lines in lengths.items() if lines > LINES_MAX}
    assert longer == set(LONGER), {name: lengths[name] for name in longer ^ set(LONGER)}


@pytest.mark.parametrize("folder", sorted({path.parent for path in sources()}), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_folder_fits_in_the_mind(folder: Path) -> None:
    names = {path.stem for path in folder.iterdir() if path.suffix in (".py", ".pyx", ".pxd")} - {"__init__"}
    limit = MODULES_MAX if folder != PACKAGE else len(GROUND) + 1
    assert len(names) <= limit, sorted(names)
