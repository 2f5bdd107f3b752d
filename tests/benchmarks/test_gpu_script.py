"""`benchmarks/gpu.sh`: all parts run whatever becomes of one, and the summary and the exit status say what did."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
TESTS = ["test-kernels", "test-transformer", "test-precision", "test-graphs"]
PARTS = [*TESTS, "kernels", "roofline", "attention", "memory", "full"]

# Stands in for the interpreter: notes how it is called, and fails where it is told to.
STAND_IN = """#!/usr/bin/env bash
printf '%s\\n' "$*" >> "$CALLS"
[[ "$*" == "-c "* ]] && exit "$GPU"
[[ "$*" == *"$BREAK"* ]] && exit "$STATUS"
echo "ran $*"
"""


@pytest.fixture
def script(tmp_path):
    """Run the script with the stand-in; gives its exit status, its summary and the calls."""
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(STAND_IN)
    python.chmod(0o755)

    def run(*names: str, **more: str) -> tuple[int, list[str], list[str]]:
        calls.write_text("")
        files = {"PYTHON": str(python), "OUT": str(tmp_path / "out"), "CALLS": str(calls)}
        kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
        environment = kept | files | {"GPU": "0", "BREAK": "nothing"} | more
        done = subprocess.run([ROOT / "benchmarks/gpu.sh", *names], env=environment, capture_output=True, text=True)
        summary = tmp_path / "out/gpu-logs/summary.txt"
        lines = summary.read_text().splitlines() if summary.exists() else []
        return done.returncode, lines, calls.read_text().splitlines()

    return run


def test_all_parts_run(script):
    status, summary, calls = script()
    assert status == 0
    assert [line.split(":")[0] for line in summary] == ["== summary", *PARTS]
    assert all(": ok" in line for line in summary[1:])
    assert len(calls) == 1 + len(PARTS)


def test_the_tests_that_it_runs_are_there(script):
    _, _, calls = script()
    paths = [word for call in calls if "pytest" in call for word in call.split() if word.startswith("tests/")]
    assert paths and all((ROOT / path).exists() for path in paths)


def test_a_part_that_fails_stops_no_other_and_is_told(script):
    status, summary, _ = script(BREAK="benchmarks.kernels", STATUS="7")
    assert status == 1
    assert len(summary) == 1 + len(PARTS)
    assert [line.split(" after")[0] for line in summary if ": ok" not in line][1:] == ["kernels: FAILED with status 7"]


def test_a_part_that_was_not_finished_is_gone_on_with(script):
    status, summary, _ = script(BREAK="benchmarks.full", STATUS="3")
    assert status == 1 and summary[-1].startswith("full: not finished")

    status, summary, calls = script(RESUME="1")
    assert status == 0
    assert [line for line in summary if "done before" in line] == [f"{part}: done before" for part in PARTS[:-1]]
    (full,) = (call for call in calls if "benchmarks" in call)
    assert "benchmarks.full" in full and "--resume" in full


def test_without_a_gpu_it_says_how_to_try(script):
    status, summary, calls = script(GPU="1")
    assert status == 2 and not summary and len(calls) == 1
    assert script(GPU="1", TINY="1")[0] == 0


def test_with_minutes_or_names_the_most_worth_is_run_alone(script, tmp_path):
    where = f"--out {tmp_path}/out/gpu-minutes.json"
    assert script(MINUTES="8")[2] == [f"-m benchmarks.gpu --minutes 8 {where}"]
    assert script("bars", "graphs", TINY="1")[2] == [
        f"-m benchmarks.gpu --minutes 8 {where} --device cpu --tiny bars graphs"
    ]


def test_wheels_that_travel_along_are_installed_without_a_network(script, tmp_path):
    wheels = [tmp_path / name for name in ("a-1-py3-none-any.whl", "b-2-py3-none-any.whl")]
    for wheel in wheels:
        wheel.touch()
    install, run = script(MINUTES="8", WHEELS=str(tmp_path))[2]
    assert install.startswith("-m pip install --quiet --no-index --no-deps")
    assert install.endswith(" ".join(map(str, ["--target", tmp_path / "out/site", *wheels])))
    assert "benchmarks.gpu" in run


@pytest.mark.skipif(torch.cuda.is_available(), reason="would measure for hours")
def test_the_benchmarks_take_its_arguments(script, monkeypatch, capsys):
    """Of the one that has nothing to do without a GPU, once it has read them."""
    _, _, calls = script(RESUME="1")
    (call,) = (call for call in calls if "benchmarks.full " in call)
    monkeypatch.setattr(sys, "argv", call.split()[1:])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("benchmarks.full", run_name="__main__")
    assert stopped.value.code == 4  # nothing was measured
    assert "GPU" in capsys.readouterr().err


@pytest.mark.long
def test_every_part_runs_at_its_smallest(tmp_path):
    environment = os.environ | {"PYTHON": sys.executable, "OUT": str(tmp_path), "TINY": "1"}
    done = subprocess.run([ROOT / "benchmarks/gpu.sh"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for name in ("roofline", "attention", "memory", "full"):
        assert json.loads((tmp_path / f"{name}-gpu.json").read_text())["benchmark"] == name
    assert "over diffusers as it comes" in done.stdout.split("== summary")[1]
