"""The order of the rooms: which file imports which, that there is no circle of imports, and that arrows point down.

`python tools/house.py` prints every room of the package (a folder, or a file at its top) with its lines, and the rooms
that it imports. It ends with 1, and says where, if files form a circle, a room imports one above it, or two files have
one name. An import within a function or for types alone counts like any other: it is as hard to follow.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "ideoflow"

# From the top to the ground. Rooms of one line are side by side: they may import each other's files, but for circles.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("__main__", "_program", "__init__"),
    ("cli",),
    ("serving", "distributed"),
    ("training", "editing", "batch"),
    ("simulate", "sketch"),
    ("pipeline",),
    ("fitting",),
    ("engine",),
    ("model",),
    ("latents", "text_encoder"),
    ("checkpoints",),
    ("ops",),
    ("captions", "packing", "schedule", "configuration", "pictures"),
    ("provenance", "presets", "cache_words", "cache_configs"),
    ("files", "images", "digests", "sizes", "placeholder", "change_options"),
    ("dtypes", "devices", "checks", "interrupts", "standard_streams", "bundled", "_version", "_imports"),
)
# Reachable from everywhere, since it imports nothing before it is asked: the package's own public names.
FRONT = "__init__.py"


@dataclass(frozen=True)
class Import:
    """One file's import of another: both as paths within the package, and the line where it stands."""

    importer: str
    imported: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def room(file: str) -> str:
    """The folder that a file lies in, or the file's own name at the top of the package."""
    first, *rest = file.split("/")
    return first if rest else first.removesuffix(".py")


def imports_of(package: Path) -> list[Import]:
    """Every import of one of the package's files by another; a folder's `__init__.py` stands for the folder."""
    files = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    found = []
    for file in sorted(files):
        for node in ast.walk(ast.parse((package / file).read_text(encoding="utf-8"))):
            for target, line in _targets(node, file, package.name, files):
                if target != file:
                    found.append(Import(file, target, line))
    return sorted(set(found), key=lambda one: (one.importer, one.line, one.imported))


def _targets(node: ast.AST, file: str, name: str, files: set[str]) -> Iterator[tuple[str, int]]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            parts = alias.name.split(".")
            if parts[0] == name and (target := _file(parts[1:], files)):
                yield target, node.lineno
    elif isinstance(node, ast.ImportFrom):
        parts = (node.module or "").split(".") if node.module else []
        if node.level:
            base = file.split("/")[:-1]
            parts = base[: len(base) - node.level + 1] + parts
        elif parts[:1] == [name]:
            parts = parts[1:]
        else:
            return
        for alias in node.names:  # `from . import latents` names a file, `from .latents import decode` one of its names
            if target := _file([*parts, alias.name], files) or _file(parts, files):
                yield target, node.lineno


def _file(parts: list[str], files: set[str]) -> str | None:
    path = "/".join(parts)
    candidates = (f"{path}.py", f"{path}/__init__.py") if path else ("__init__.py",)
    return next((one for one in candidates if one in files), None)


def circles(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """Sets of files that can all be reached from each other, largest first (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(file: str) -> None:
        index[file] = low[file] = len(index)
        stack.append(file)
        for other in arrows.get(file, ()):
            if other not in index:
                visit(other)
                low[file] = min(low[file], low[other])
            elif other in stack:
                low[file] = min(low[file], index[other])
        if low[file] == index[file]:
            place = stack.index(file)
            members = sorted(stack[place:])
            del stack[place:]
            if len(members) > 1:
                found.append(members)

    for file in sorted(arrows):
        if file not in index:
            visit(file)
    return sorted(found, key=lambda members: (-len(members), members))


def upward(imports: list[Import]) -> list[Import]:
    """Imports of a room by one below it, or by or of a room that `FLOORS` does not name."""
    height = {name: -floor for floor, names in enumerate(FLOORS) for name in names}
    lowest = min(height.values()) - 1
    return [
        one
        for one in imports
        if room(one.importer) != room(one.imported)
        and one.importer != FRONT
        and height.get(room(one.imported), 1) > height.get(room(one.importer), lowest)
    ]


def alike(package: Path) -> list[list[str]]:
    """Files of one name; but for a folder's own, and the command line's, which are named for their commands."""
    by_name: dict[str, list[str]] = {}
    for path in sorted(package.rglob("*.py")):
        file = path.relative_to(package).as_posix()
        if room(file) != "cli" and not path.name.startswith("__"):
            by_name.setdefault(path.name, []).append(file)
    return [files for files in by_name.values() if len(files) > 1]


def report(package: Path) -> tuple[str, bool]:
    """The rooms and arrows in words, and whether the order holds."""
    imports = imports_of(package)
    lines = Counter[str]()
    count = Counter[str]()
    for path in package.rglob("*.py"):
        here = room(path.relative_to(package).as_posix())
        lines[here] += len(path.read_text(encoding="utf-8").splitlines())
        count[here] += 1
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    text = []
    for name in sorted(lines, key=lambda name: (floor.get(name, -1), name)):
        below = Counter(room(i.imported) for i in imports if room(i.importer) == name and room(i.imported) != name)
        arrows = ", ".join(f"{other} {times}" for other, times in sorted(below.items()))
        text.append(f"{name:14} {count[name]:3} files {lines[name]:6} lines   -> {arrows or '(nothing)'}")
    text.append(f"{'all':14} {sum(count.values()):3} files {sum(lines.values()):6} lines")
    arrows_of: dict[str, set[str]] = {}
    for one in imports:
        arrows_of.setdefault(one.importer, set()).add(one.imported)
    wrong = [f"circle of {len(members)} files: {', '.join(members)}" for members in circles(arrows_of)]
    wrong += [f"upward: {one}" for one in upward(imports)]
    unknown = sorted(set(lines) - set(floor) - {room(FRONT)})
    wrong += [f"no floor is given to {name}: add it to FLOORS" for name in unknown]
    return "\n".join([*text, *wrong]), not wrong


def main() -> int:
    """Print the report; 1 where the order does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", nargs="?", type=Path, default=PACKAGE, help="folder of the package")
    text, holds = report(parser.parse_args().package)
    print(text)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
