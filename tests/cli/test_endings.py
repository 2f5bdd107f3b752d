"""How the program ends: whatever is given to it, and whatever becomes of its streams, one line and an exit code."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = (sys.executable, "-m", "ideoflow")
CAPTION = str(Path(__file__).parents[2] / "examples" / "captions" / "heart.json")
SIMULATE = ["simulate", "-j", "512x512:4", "--cost", "1,1", "--count", "3"]
# Every command, with arguments that it prints something for.
PRINTING = {
    "help": ["--help"],
    "version": ["--version"],
    "generate": ["generate", "--help"],
    "simulate": SIMULATE,
    "plan": ["plan", "--help"],
    "train": ["train", "--help"],
    "check": ["caption", "check", CAPTION],
    "fix": ["caption", "fix", CAPTION],
    "inspect": ["inspect", "sketch"],
    "inspect for programs": ["inspect", "sketch", "--json"],
    "convert": ["convert", "--help"],
}


def ended(process: subprocess.CompletedProcess[str], code: int, lines: int = 1) -> str:
    assert process.returncode == code, process.stderr
    assert "Traceback" not in process.stderr and "Exception ignored" not in process.stderr
    assert len(process.stderr.splitlines()) == lines, process.stderr
    return process.stderr


def shell(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", line], cwd=cwd, capture_output=True, text=True, check=False)


def quoted(arguments: list[str]) -> str:
    return " ".join([*PROGRAM, *arguments])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("name", PRINTING)
def test_output_to_a_full_disk(name, tmp_path):
    done = shell(f"{quoted(PRINTING[name])} > /dev/full", tmp_path)
    assert ended(done, 1) == "error: standard output cannot be written: No space left on device.\n"


@pytest.mark.parametrize("name", ["help", "simulate", "fix", "inspect", "version"])
def test_closed_output(name, tmp_path):
    done = shell(f"{quoted(PRINTING[name])} >&-", tmp_path)
    assert ended(done, 1) == "error: standard output cannot be written: Bad file descriptor.\n"


@pytest.mark.parametrize("name", ["help", "simulate", "inspect for programs"])
def test_a_reader_that_goes_away_hears_nothing(name, tmp_path):
    done = shell(f"set -o pipefail; {quoted(PRINTING[name])} | true", tmp_path)
    assert done.returncode in (0, 1)  # whether the pipe was closed before all was written
    assert done.stderr == ""


@pytest.mark.parametrize("arguments", [["caption", "check", "-"], ["caption", "fix", "-"], ["generate", "-"]], ids=str)
def test_closed_input_is_empty_input(arguments, tmp_path):
    assert "empty" in ended(shell(f"{quoted(arguments)} <&-", tmp_path), 2)


def test_closed_errors_change_nothing(tmp_path):
    done = shell(f"{quoted(SIMULATE)} 2>&-", tmp_path)
    assert done.returncode == 0 and "fair" in done.stdout
    assert shell(f"{quoted(['inspect', 'missing'])} 2>&-", tmp_path).returncode == 2


def test_names_that_the_terminal_has_no_characters_for(tmp_path):
    (tmp_path / "ü.json").write_bytes(Path(CAPTION).read_bytes())
    line = f"PYTHONIOENCODING=ascii PYTHONUTF8=0 LC_ALL=C {quoted(['caption', 'check', 'ü.json'])}"
    done = shell(line, tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and "ok" in done.stdout


@pytest.mark.parametrize("seconds", [0.05, 0.15, 0.3, 0.5, 0.8, 1.5, 3.0])
def test_an_interrupt_at_any_moment_of_the_start(seconds, tmp_path):
    """Of a command that imports torch; whatever it is at by then, it ends with its line and no traceback."""
    arguments = ["plan", "--memory", "24GB"]
    ready = "from ideoflow._program import run; import sys; sys.stdout.write('x'); sys.stdout.flush(); run()"
    process = subprocess.Popen(
        [sys.executable, "-c", ready, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.read(1) == "x"
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert "Traceback" not in errors
    assert process.returncode in (0, 130)
    assert process.returncode == 0 or errors.startswith("error: interrupted")


def test_an_ignored_interrupt_stays_ignored(tmp_path):
    """As in the background of a shell."""
    ignore = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); print(end='x', flush=True)"
    code = f"{ignore}; from ideoflow._program import run; run()"
    process = subprocess.Popen([sys.executable, "-c", code, *SIMULATE], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.read(1) == "x"
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    assert process.returncode == 0 and "fair" in output
