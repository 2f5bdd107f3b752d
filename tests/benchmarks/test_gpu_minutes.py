"""`benchmarks.gpu`: parts in order of worth within the minutes, whatever becomes of one; what was found is kept."""

import json
import os
import runpy
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.parts import PARTS, TESTS, Part, chosen, limit
from benchmarks.gpu.report import Report
from benchmarks.gpu.steps import LARGE, SMALL, met

ROOT = Path(__file__).parents[2]

# Parts that end in every way; each notes that it was there.
FAKES = """
import os, time

def well(scene):
    scene.tell({"found": 1}, ["one was found"])

def badly(scene):
    scene.tell({"found": 2}, ["two were found"])
    raise RuntimeError("of its own")

def slowly(scene):
    for number in scene.in_time(range(10**6)):
        scene.tell({"found": number}, [f"{number} found"])
        time.sleep(0.05)

def never(scene):
    scene.tell({"found": 3}, ["three were found"])
    time.sleep(3600)

def dead(scene):
    scene.tell({"found": 4}, ["four were found"])
    os._exit(7)

def shared(scene):
    scene.held["calls"] = scene.held.get("calls", 0) + 1
    scene.tell({"calls": scene.held["calls"]}, [])

def missing(scene):
    import a_package_that_is_not_here
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Measure parts of these names, for so many seconds; gives the file, the status and what was said."""
    (tmp_path / "fakes.py").write_text(FAKES)
    path = [str(tmp_path), str(ROOT / "src"), str(ROOT)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(command, "described", lambda: {"machine": "a test's"})
    monkeypatch.setattr(command, "GRACE", 0.5)
    monkeypatch.setattr(command, "KEPT_BACK", 0.5)

    def measure(*names, seconds=60.0, shares=None):
        out, said = tmp_path / "found.json", []
        options = Namespace(minutes=seconds / 60, out=out, device="cpu", tiny=True)
        shares = shares or [10] * len(names)
        parts = [
            Part(name, f"what is {name}", share, f"fakes:{name}") for name, share in zip(names, shares, strict=True)
        ]
        status = command.measure(options, parts, said.append)
        return json.loads(out.read_text())["parts"], status, said

    return measure


def test_a_part_that_fails_or_dies_stops_no_other_and_keeps_what_it_found(run):
    parts, status, said = run("badly", "missing", "dead", "well")

    assert [part["status"] for part in parts.values()] == ["failed"] * 3 + ["ok"] and status == 1
    assert parts["badly"]["error"] == "RuntimeError: of its own" and parts["badly"]["figures"] == {"found": 2}
    assert "a_package_that_is_not_here" in parts["missing"]["error"]
    assert parts["dead"]["error"] == "the process ended with 7" and parts["dead"]["figures"] == {"found": 4}
    assert "  four were found" in said[-1].splitlines()


def test_a_part_that_takes_too_long_is_cut_and_the_minutes_are_kept(run):
    parts, status, _ = run("slowly", "never", "well", seconds=100, shares=[4, 4, 92])

    assert [part["status"] for part in parts.values()] == ["cut", "cut", "ok"] and status == 3
    assert parts["slowly"]["figures"]["found"] >= 0 and parts["never"]["figures"] == {"found": 3}
    assert "went on after" in parts["never"]["error"] and "error" not in parts["slowly"]


def test_what_there_is_no_time_for_is_left_out(run):
    parts, status, _ = run("well", "shared", seconds=1)

    assert {part["status"] for part in parts.values()} == {"left out"} and status == 3


def test_parts_share_what_they_have_made(run):
    parts, status, _ = run("shared", "well")
    assert parts["shared"]["figures"] == {"calls": 1} and status == 0


def test_a_run_that_is_stopped_has_written_what_it_found(run, monkeypatch, tmp_path):
    measured = command.Worker.run

    def stopped(self, part, seconds, report):
        if part.name == "badly":
            raise SystemExit(1)
        measured(self, part, seconds, report)

    monkeypatch.setattr(command.Worker, "run", stopped)
    with pytest.raises(SystemExit):
        run("well", "badly", "dead")

    parts = json.loads((tmp_path / "found.json").read_text())["parts"]
    assert [part["status"] for part in parts.values()] == ["ok", "cut", "left out"]
    assert "one was found" in (tmp_path / "found-parts/summary.txt").read_text()


def test_the_parts_are_said_in_order_with_their_seconds(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", "--list", "--minutes", "8"])
    runpy.run_module("benchmarks.gpu", run_name="__main__")

    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == [part.name for part in PARTS]
    assert sum(int(line.split()[2]) for line in lines) == pytest.approx(480, abs=len(PARTS))


def test_the_tests_that_it_runs_are_there():
    assert all((ROOT / path).exists() for path in TESTS)


def test_what_is_no_part_is_refused_by_name():
    assert chosen(["graphs", "bars"]) == [part for part in PARTS if part.name in ("bars", "graphs")]
    with pytest.raises(ValueError, match="'graph' is no part: choose among tests, bars"):
        chosen(["graph"])


@given(st.lists(st.floats(0, 1), min_size=len(PARTS), max_size=len(PARTS)), st.floats(1, 3600))
def test_parts_never_take_more_than_there_is_whatever_each_leaves(used, seconds):
    left, first = seconds, []
    for number, share in enumerate(used):
        first.append(limit(PARTS[number:], left))
        left -= share * first[-1]
    assert left >= -1e-6 and all(
        one >= seconds * part.share / 1000 * (1 - 1e-9) for one, part in zip(first, PARTS, strict=True)
    )
    assert first[-1] >= left * (1 - 1e-9)  # what others leave is the last one's


@pytest.mark.parametrize("workers", [False, True])
def test_outcomes_are_read_while_pytest_runs(workers):
    lines = [
        ("PASSED", "tests/a.py::test_one"),
        ("FAILED", "tests/a.py::test_two[a b]"),
        ("ERROR", "tests/b.py::test_three"),
        ("SKIPPED", "tests/b.py::test_four"),
    ]
    if workers:
        text = "\n".join(f"[gw{i}] [ {i}%] {outcome} {name} " for i, (outcome, name) in enumerate(lines))
    else:
        text = "\n".join(f"{name} {outcome}  [ {i}%]" for i, (outcome, name) in enumerate(lines))
    text += "\n=== short test summary info ===\nFAILED tests/a.py::test_two[a b] - assert 0\n"

    found = command.outcomes(text)

    assert {outcome: len(names) for outcome, names in found.items()} == dict.fromkeys(found, 1)
    assert found["FAILED"][0].startswith("tests/a.py::test_two")


def test_a_line_says_whether_what_was_asked_is_met():
    def case(pixels, phase, **seconds):
        sides = {name: {"seconds": value, "share_of_matrix_rate": 0.9} for name, value in seconds.items()}
        return {"pixels": pixels, "phase": phase, "sides": sides}

    results = [
        case(512, "exact", **{"ideoflow": 0.07, "diffusers, trimmed, compiled": 0.078}),
        case(1024, "exact", **{"ideoflow": 0.25, "diffusers, trimmed, compiled": 0.354}),
        case(1024, "fp8", **{"ideoflow": 0.28, "ideoflow, fp8": 0.18}),
        case(512, "int8", **{"ideoflow": 0.07}),
    ]

    lines = [line for line in met(results, (SMALL, LARGE)) if "wanted" in line]

    assert [line.rsplit(": ", 1)[1] for line in lines] == ["NOT met", "met", "met", "met"]
    assert lines[0].startswith("ideoflow over diffusers, trimmed, compiled: 1.11, wanted 1.15")


def test_the_file_is_whole_whenever_it_is_read(tmp_path):
    report = Report({"minutes": 1}, PARTS, tmp_path / "found.json")
    for part in PARTS:
        report.put(part.name, status="ok", seconds=1.0, limit=2.0, headline=["a line"])
        known = json.loads((tmp_path / "found.json").read_text())
        assert known["benchmark"] == "gpu" and known["parts"][part.name]["status"] == "ok"
    assert report.exit_status == 0
    assert report.summary().splitlines()[1:3] == ["tests: ok, 1 of 2 s", "  a line"]


@pytest.mark.long
def test_every_part_runs_at_toy_size(tmp_path):
    out = tmp_path / "found.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--device",
        "cpu",
        "--tiny",
        "--minutes",
        "20",
        "--out",
        str(out),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    parts = json.loads(out.read_text())["parts"]
    assert {name: part.get("error") for name, part in parts.items()} == {part.name: None for part in PARTS}
    assert done.returncode == 0 and all(part["headline"] for part in parts.values()), done.stdout
