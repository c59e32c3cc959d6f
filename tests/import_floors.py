"""Draws the floors of the code: ``python tests/import_floors.py [CHECKOUT]``.

An arrow is an import of one of our modules by another, wherever it stands: at the top of a file, in
a function, or under ``TYPE_CHECKING``. ``from a import b`` is an arrow to ``a.b`` where that is a
module, else to ``a``. Names in strings are none.

    longest chain   most modules that import each other one after the other, each counted once
    floors          the same over rooms: a folder of ``loop``, a file that lies in ``loop`` itself,
                    ``connectors``, ``strategies``
    arrows back up  imports that close a circle
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

ROOMS = ("loop", "connectors", "strategies")
ROOT = Path(__file__).resolve().parent.parent
Arrows = dict[str, set[str]]


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Our modules by dotted name, packages among them."""
    found = {}
    for path in (p for room in ROOMS for p in sorted((root / room).rglob("*.py"))):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    if (face := root / "goldloop.py").exists():
        found["goldloop"] = face
    return found


def imported(path: Path, ours: Mapping[str, Path]) -> Iterator[str]:
    """The modules of ours that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in ours else node.module for name in inside]
        else:
            continue
        yield from (name for name in names if name in ours)


def arrows(root: Path = ROOT) -> Arrows:
    """Who imports whom."""
    ours = modules(root)
    return {name: set(imported(path, ours)) - {name} for name, path in ours.items()}


def room_of(module: str) -> str:
    """The room that a module lies in."""
    top, *rest = module.split(".")
    return ".".join([top, *rest[:1]]) if top == "loop" else top


def between_rooms(of_modules: Arrows) -> Arrows:
    """Who imports whom, room by room."""
    found: Arrows = {room_of(module): set() for module in of_modules}
    for module, targets in of_modules.items():
        found[room_of(module)] |= {room_of(target) for target in targets} - {room_of(module)}
    return found


def back_arrows(graph: Arrows) -> list[tuple[str, str]]:
    """Imports that lead back to a module which is still being imported: one per circle or more."""
    back: list[tuple[str, str]] = []
    finished: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        for target in sorted(graph[module]):
            if target in above:
                back.append((module, target))
            elif target not in finished:
                visit(target, (*above, target))
        finished.add(module)

    for module in sorted(graph):
        if module not in finished:
            visit(module, (module,))
    return back


def longest_chain(graph: Arrows) -> tuple[str, ...]:
    """The longest row of modules of which each imports the next; back arrows are left out."""
    back = set(back_arrows(graph))

    @cache
    def below(module: str) -> tuple[str, ...]:
        chains = [below(t) for t in sorted(graph[module]) if (module, t) not in back]
        return (module, *max(chains, key=len, default=()))

    return max(map(below, sorted(graph)), key=len)


def main() -> None:
    """Prints chain, floors and back arrows of a checkout."""
    of_modules = arrows(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
    chain, floors = longest_chain(of_modules), longest_chain(between_rooms(of_modules))
    back = back_arrows(of_modules)
    print(f"{len(of_modules)} modules")
    print(f"longest chain: {len(chain)}: {' > '.join(chain)}")
    print(f"floors: {len(floors)}: {' > '.join(floors)}")
    print(f"arrows back up: {len(back)}" + "".join(f"\n    {a} -> {b}" for a, b in back))


if __name__ == "__main__":
    main()
