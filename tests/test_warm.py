"""What runs in a fork of a warm process is what `python` would have run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

SHOW = """
import json, os, sys
json.dump([sys.argv[1:], os.getcwd(), os.environ.get("GIVEN"), __name__, sys.stdin.read()], sys.stdout)
print("aside", file=sys.stderr)
sys.exit(7)
"""
WAIT = """
import os, sys, time
try:
    print(os.getpid(), flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture
def script(tmp_path):
    return tmp_path / "script.py"


def test_arguments_folder_environment_streams_and_exit_code_are_those_of_a_process(warm, script, tmp_path):
    script.write_text(SHOW)
    (tmp_path / "in").mkdir()
    ends = [
        subprocess.run(
            [*python, script, "a b", "ü"],
            cwd=tmp_path / "in", env=os.environ | {"GIVEN": "x=y"}, input="read", capture_output=True, text=True,
        )
        for python in (warm, [sys.executable])
    ]  # fmt: skip
    assert len({(end.returncode, end.stdout, end.stderr) for end in ends}) == 1 and ends[0].returncode == 7


def test_the_command_is_the_same(warm):
    for arguments in (["--version"], ["generate", "missing.json"], ["nonsense"]):
        command = ["-m", "ideoflow", *arguments]
        ends = [subprocess.run([*p, *command], capture_output=True, text=True) for p in (warm, [sys.executable])]
        assert len({(end.returncode, end.stdout, end.stderr) for end in ends}) == 1, ends


@pytest.mark.parametrize("text", ["raise ValueError('because')", "import sys; sys.exit('because')"])
def test_a_failure_is_told(warm, script, text):
    script.write_text(text)
    end = subprocess.run([*warm, script], capture_output=True, text=True)
    assert end.returncode == 1 and "because" in end.stderr


def start(warm, script) -> tuple[subprocess.Popen, int]:
    script.write_text(WAIT)
    process = subprocess.Popen([*warm, script], stdout=subprocess.PIPE, text=True)
    return process, int(process.stdout.readline())


def test_an_interrupt_is_passed_on(warm, script):
    process, _ = start(warm, script)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130


def test_killing_kills(warm, script):
    process, child = start(warm, script)
    process.kill()
    process.communicate()  # ends when nobody is left who could write
    while os.path.exists(f"/proc/{child}"):
        time.sleep(0.01)


def test_death_by_a_signal_is_passed_back(warm, script):
    process, child = start(warm, script)
    os.kill(child, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
