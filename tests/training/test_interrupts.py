"""A run that is interrupted, shares its folder or finds the disk full: nothing done is lost, and it is said."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from ideoflow.cli import app
from ideoflow.files import lock
from ideoflow.interrupts import Interrupted
from ideoflow.training import run_state
from ideoflow.training.progress import Log
from ideoflow.training.run import train
from ideoflow.training.settings import Settings
from ideoflow.training.trainer import Stopped
from ideoflow.training.watch import Watcher

SMALL = dict(steps=5, tokens=500, rank=2, lr=2e-3, warmup=0, ema=0.9, save_every=100, device="cpu", preview_steps=2,
             preview_guidance=2.0, lora_dropout=0.1)  # fmt: skip


def options(pictures: Path, out: Path, **more) -> dict:
    return SMALL | dict(data=str(pictures), out=str(out), cache=str(pictures / ".cache")) | more


def settings(pictures: Path, out: Path, **more) -> Settings:
    return Settings.read(**options(pictures, out, **more))


class At(Watcher):
    """Does something once, after a step."""

    def __init__(self, step: int, act) -> None:
        self.step, self.act, self.heard = step, act, 0

    def on_step(self, trainer, step) -> None:
        if step.step == self.step:
            self.act()

    def on_signal(self) -> None:
        self.heard += 1


def send(*numbers: signal.Signals):
    return lambda: [os.kill(os.getpid(), number) for number in numbers]


@pytest.fixture(scope="module")
def uninterrupted(pictures, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    train(settings(pictures, out))
    return out


def assert_same_end(one: Path, other: Path) -> None:
    for file in ("pytorch_lora_weights.safetensors", "checkpoints/step-0000005/optimizer.safetensors"):
        a, b = load_file(one / file), load_file(other / file)
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "numbers",
    [
        (signal.SIGINT,),
        pytest.param((signal.SIGTERM,), marks=pytest.mark.long),
        pytest.param((signal.SIGINT, signal.SIGTERM), marks=pytest.mark.long),
    ],
    ids=["INT", "TERM", "both"],
)
def test_an_interrupted_run_saves_its_step_and_goes_on_to_the_same_bits(pictures, tmp_path, uninterrupted, numbers):
    handlers = [signal.getsignal(number) for number in numbers]
    watcher = At(2, send(*numbers))
    with pytest.raises(Interrupted, match="after step 2, which is saved"):
        train(settings(pictures, tmp_path), watchers=[watcher])
    assert watcher.heard == 1
    assert [path.name for path in run_state.saved(tmp_path / "checkpoints")] == ["step-0000002"]
    assert not (tmp_path / "pytorch_lora_weights.safetensors").exists()
    assert [signal.getsignal(number) for number in numbers] == handlers
    train(settings(pictures, tmp_path), resume=True)
    assert_same_end(tmp_path, uninterrupted)


def test_a_second_interrupt_ends_a_run_at_once(pictures, tmp_path):
    with pytest.raises(KeyboardInterrupt) as caught:
        train(settings(pictures, tmp_path), watchers=[At(2, send(signal.SIGINT, signal.SIGINT))])
    assert not isinstance(caught.value, Interrupted) and not run_state.saved(tmp_path / "checkpoints")


def test_an_interrupt_in_the_last_step_lets_the_run_end(pictures, tmp_path, uninterrupted):
    train(settings(pictures, tmp_path), watchers=[At(5, send(signal.SIGTERM))])
    assert_same_end(tmp_path, uninterrupted)


def run(*arguments: object):
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


def flags(given: dict) -> list[str]:
    return [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGTERM], ids=["INT", "TERM"]
)
def test_resume_alone_goes_on_with_all_settings_of_the_run(pictures, tmp_path, uninterrupted, monkeypatch, number):
    out = tmp_path / "my runs" / "one"
    kept = Log.on_step

    def interrupt(self, trainer, step):
        kept(self, trainer, step)
        if step.step == 3:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Log, "on_step", interrupt)
    first = run(*flags(options(pictures, out)))
    assert first.exit_code == 130, first.output
    assert f"interrupted after step 3, which is saved; to go on: ideoflow train --resume --out '{out}'" in first.output
    monkeypatch.undo()
    second = run("--resume", "--out", out)
    assert second.exit_code == 0, second.output
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert_same_end(out, uninterrupted)
    previews = sorted(path.name for path in (out / "previews").iterdir())
    assert previews == ["all.png", "step-0000000.png", "step-0000005.png"]
    rows = [np.asarray(Image.open(out / "previews" / name)) for name in previews]
    assert (rows[0] == np.concatenate(rows[1:])).all() and (rows[1] != rows[2]).any()


def test_an_interrupt_before_the_first_step_is_one_line(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("ideoflow.training.run.load_pipeline", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    result = run(*flags(options(pictures, tmp_path)))
    assert result.exit_code == 130 and "interrupted; what is encoded is kept" in result.output


def test_resume_of_what_is_no_run_says_so(tmp_path):
    result = run("--resume", "--out", tmp_path)
    assert result.exit_code == 2 and "holds no run to go on with" in " ".join(result.output.split())


def test_a_second_run_in_a_folder_is_refused_before_anything_is_loaded(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("ideoflow.training.run.load_pipeline", lambda *_: pytest.fail("something was loaded"))
    with lock(tmp_path / "lock", "the run"):
        for resume in ([], ["--resume"]):
            result = run(*flags(options(pictures, tmp_path)), *resume)
            assert result.exit_code == 2
            assert f"is in use by process {os.getpid()}" in " ".join(result.output.split())


def test_the_lock_of_a_killed_run_holds_nobody_up(pictures, tmp_path):
    script = "import sys, time; from pathlib import Path; from ideoflow.files import lock\n"
    script += "with lock(Path(sys.argv[1]), 'x'): print('held', flush=True); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "lock")], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(ValueError, match=f"in use by process {holder.pid}"):
        train(settings(pictures, tmp_path, steps=1))
    holder.kill()
    holder.wait()
    assert train(settings(pictures, tmp_path, steps=1))


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_loaded(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("ideoflow.training.run.load_pipeline", lambda *_: pytest.fail("something was loaded"))
    (tmp_path / "file").write_text("")
    result = run(*flags(options(pictures, tmp_path / "file")))
    assert result.exit_code == 2 and "--out" in result.output and "Traceback" not in result.output


def limit(size: int):
    """A limit on the size of files, which ends writing as a full disk does."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.fixture
def unlimited():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("what", ["checkpoint", "log"])
def test_a_full_disk_is_one_line_and_the_last_good_checkpoint_stays(pictures, tmp_path, unlimited, what):
    chosen = settings(pictures, tmp_path, rank=16, save_every=2)
    watchers = [At(3, limit(20_000 if what == "checkpoint" else 10))]
    with pytest.raises(
        Stopped, match=r"the run stopped after step \d: .*File too large.*last good.*step-0000002"
    ) as error:
        train(chosen, watchers=watchers + ([Log(tmp_path)] if what == "log" else []))
    assert ("log.jsonl" if what == "log" else "step-0000004") in str(error.value) and "\n" not in str(error.value)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-0000002"]
    assert train(chosen, resume=True)


def test_a_full_disk_while_encoding_is_one_line(pictures, tmp_path, unlimited):
    chosen = settings(pictures, tmp_path, cache=str(tmp_path / "cache"))
    limit(5_000)()  # enough for what sees whether the folder can be written, too little for a caption's features
    with pytest.raises(OSError, match=r"cache.*File too large"):
        train(chosen)
    assert not list((tmp_path / "cache").rglob("*.partial"))
