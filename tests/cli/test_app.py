"""The installed command `ideoflow` in a process of its own: help, version, a picture, errors without tracebacks."""

import subprocess
import sys
from pathlib import Path

import pytest

import ideoflow

COMMAND = Path(sys.executable).parent / "ideoflow"


def run(*arguments: str, cwd: Path, fails: int = 0, stdin: str = "") -> subprocess.CompletedProcess[str]:
    done = subprocess.run([COMMAND, *arguments], cwd=cwd, input=stdin, capture_output=True, text=True)
    assert done.returncode == fails, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_the_version(tmp_path: Path):
    assert run("--version", cwd=tmp_path).stdout.strip() == f"ideoflow {ideoflow.__version__}"


def test_the_package_runs_as_the_command():
    done = subprocess.run([sys.executable, "-m", "ideoflow", "--version"], capture_output=True, text=True)
    assert done.stdout.strip() == f"ideoflow {ideoflow.__version__}", done.stderr


@pytest.mark.parametrize("command", [[], ["generate"], ["caption"]])
def test_help_lists_what_there_is(tmp_path: Path, command: list[str]):
    text = run(*command, "--help", cwd=tmp_path).stdout
    assert "Usage" in text and "--help" in text


@pytest.mark.parametrize("what", ["import ideoflow", "import ideoflow.cli", "from ideoflow.cli import generate"])
def test_importing_does_not_load_torch(what: str):
    code = f"""
import sys
{what}
heavy = {{"torch", "diffusers", "transformers", "numpy"}} & set(sys.modules)
sys.exit(str(heavy) if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_picture_from_standard_input(tmp_path: Path, tiny_folder: Path):
    options = ["--model", str(tiny_folder), "--size", "32x32", "--steps", "1", "--seed", "1", "--device", "cpu"]
    done = run("generate", "-", *options, cwd=tmp_path, stdin="a red dot")
    assert (tmp_path / done.stdout.strip()).read_bytes().startswith(b"\x89PNG")


def test_a_mistake_is_one_line_and_code_2(tmp_path: Path):
    done = run("generate", "missing.json", cwd=tmp_path, fails=2)
    assert done.stderr.strip() == "error: missing.json: No such file or directory."
    assert done.stdout == ""


def test_the_public_names_are_there():
    for name in ideoflow.__all__:
        assert getattr(ideoflow, name) is not None
    assert set(ideoflow.__all__) <= set(dir(ideoflow))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        ideoflow.nonsense  # noqa: B018
