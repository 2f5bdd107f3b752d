"""A small folder of pictures of different sizes with captions, and runs on it in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from ideoflow.sketch.world import sample

SCRIPT = Path(__file__).with_name("run_training.py")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Eight pictures of the sketch world, of at least four sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(8):
        drawn = sample(index)
        drawn.image.save(folder / f"{index}.png")
        (folder / f"{index}.json").write_text(json.dumps(drawn.caption))
    return folder


@pytest.fixture(scope="session")
def launch(warm):
    """Start `run_training.py` with options; `processes` > 1 goes through torchrun."""

    def start(options: dict, losses: Path, processes: int = 1, resume: bool = False) -> subprocess.Popen:
        command = [*warm]
        if processes > 1:
            command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
            command += ["--no-python", *warm]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "RESUME": "1" if resume else ""}
        return subprocess.Popen(
            [*command, str(SCRIPT), json.dumps(options), str(losses)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    return start


@pytest.fixture(scope="session")
def finish():
    """Wait for a started run and insist that it went well."""

    def wait(process: subprocess.Popen) -> str:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output[-3000:]
        return output

    return wait
