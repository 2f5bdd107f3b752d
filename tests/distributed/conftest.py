"""Processes of a plan: as torchrun starts them, but for their imports, which they are spared."""

import json
import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CASES = Path(__file__).with_name("cases.py")


@dataclass
class Ended:
    """How one rank ended: its exit code, what its case gave, and what it said."""

    code: int
    gave: object
    said: str


@pytest.fixture
def start(warm):
    """A function that starts the ranks of a command, each with the environment that torchrun gives it."""
    running = []

    def begin(ranks, *words, **options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in range(ranks):
            env = os.environ | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            running.append(subprocess.Popen([*warm, *map(str, words)], env=env, **pipes, **options))
        return running[-ranks:]

    yield begin
    for process in running:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture
def run(start):
    """A function that runs a case of `cases.py` in each rank of a plan, and gives how each ended."""

    def finish(ranks, case, *, timeout=120, **arguments):
        processes = start(ranks, CASES, case, json.dumps(arguments))
        ended = []
        for process in processes:
            out, err = process.communicate(timeout=timeout)
            lines = [line for line in out.splitlines() if line.startswith("gave ")]
            ended.append(Ended(process.returncode, json.loads(lines[-1][5:]) if lines else None, err))
        return ended

    return finish


@pytest.fixture
def outcome(run):
    """What a case gave in each rank, all of which must have ended well."""

    def of(ranks, case, **arguments):
        ended = run(ranks, case, **arguments)
        wrong = [f"rank {number}: {one.said}" for number, one in enumerate(ended) if one.code]
        assert not wrong, "\n".join(wrong)
        return [one.gave for one in ended]

    return of
