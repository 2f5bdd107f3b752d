"""docs/architecture.md is true: its walks name functions that are there and that call each other in that order."""

import ast
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "ideoflow"
PAGE = ROOT / "docs" / "architecture.md"
STEP = re.compile(r"^\d+\. `(?P<file>[\w/]+\.py)`: `(?P<function>[\w.]+)`", re.MULTILINE)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Step:
    file: str
    function: str  # with its class where it has one

    def __str__(self) -> str:
        return f"{self.file}: {self.function}"


def walks() -> dict[str, list[Step]]:
    """The steps under each heading that has some."""
    found = {}
    for part in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        steps = [Step(match["file"], match["function"]) for match in STEP.finditer(part)]
        if steps:
            found[part.splitlines()[0]] = steps
    return found


def functions_of(file: str) -> dict[str, ast.AST]:
    """Functions, classes, and methods behind their class's name."""
    found: dict[str, ast.AST] = {}
    for node in ast.parse((PACKAGE / file).read_text(encoding="utf-8")).body:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            found[node.name] = node
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{one.name}": one for one in node.body if isinstance(one, FUNCTIONS)}
    return found


def names_called(node: ast.AST) -> set[str]:
    """Names of what is called, or handed on to be called, in a function."""
    calls = [one for one in ast.walk(node) if isinstance(one, ast.Call)]
    called = [one.func for one in calls] + [argument for one in calls for argument in one.args]
    named = {one.attr for one in called if isinstance(one, ast.Attribute)}
    return named | {one.id for one in called if isinstance(one, ast.Name)}


def reached_from(step: Step) -> set[str]:
    """Names called by a function and by those of its own file that it calls; torch calls `forward` for a module."""
    functions = functions_of(step.file)
    by_name: dict[str, list[ast.AST]] = {}
    for name, node in functions.items():
        by_name.setdefault(name.rpartition(".")[2], []).append(node)
    seen: set[str] = set()
    ahead = names_called(functions[step.function])
    while ahead:
        name = ahead.pop()
        if name not in seen:
            seen.add(name)
            for node in by_name.get("forward" if name == "self" else name, []):
                ahead |= names_called(node)
    return seen


WALKS = walks()


def test_there_are_the_two_walks():
    assert list(WALKS) == ["From a caption to pixels", "From a path to weights on a device"]


@pytest.mark.parametrize("title", WALKS)
def test_a_walk_passes_through_few_files(title):
    assert len({step.file for step in WALKS[title]}) <= 8


@pytest.mark.parametrize("title", WALKS)
def test_each_function_of_a_walk_is_called_by_one_before_it(title):
    steps = WALKS[title]
    for step in steps:
        assert step.function in functions_of(step.file), f"{step} is not there"
    for number, step in enumerate(steps[1:], 1):
        name = step.function.rpartition(".")[2]
        name = "block" if step.function.endswith("Block.forward") else name
        assert any(name in reached_from(before) for before in steps[:number]), f"{step} is called by none before it"


def test_the_order_of_the_rooms_holds():
    done = subprocess.run([sys.executable, ROOT / "tools" / "house.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_page_names_every_room():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    page = PAGE.read_text(encoding="utf-8")
    assert [room for room in sorted(rooms) if f"`{room}/`" not in page] == []
