"""Saving that is killed or interrupted at any of its steps on the disk: the old model, the new one or none, no mix."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ideoflow import Ideogram4Transformer2DModel, files, sketch
from ideoflow.checkpoints import CheckpointError
from ideoflow.checkpoints.convert import convert
from ideoflow.files import MACHINE
from tests.thinned import thinned

STEPS = ("fsync", "rename", "replace")  # by which what is written reaches the disk and gets its name


@pytest.fixture(scope="module")
def models() -> tuple[Ideogram4Transformer2DModel, Ideogram4Transformer2DModel]:
    """The model that is there, and the one that is saved."""
    old, new = (Ideogram4Transformer2DModel.from_pretrained(sketch.path() / "transformer") for _ in range(2))
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.add_(1)
    return old, new


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> list[str]:
    """Have `act` called before the step of that number; returns the list of the steps, which fills."""
    taken: list[str] = []

    def before(name: str) -> None:
        real = getattr(os, name)

        def step(*arguments, **options):
            taken.append(name)
            if len(taken) == number:
                act()
            return real(*arguments, **options)

        monkeypatch.setattr(os, name, step)

    for name in STEPS:
        before(name)
    return taken


def cut_short(work: Callable[[], object], number: int, how: str) -> None:
    """Do the work until that step, where the process is killed or interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        if how == "interrupted":

            def interrupt() -> None:
                raise KeyboardInterrupt

            at_step(patch, number, interrupt)
            with pytest.raises(KeyboardInterrupt):
                work()
            return
        child = os.fork()
        if not child:
            try:
                at_step(patch, number, lambda: os.kill(os.getpid(), signal.SIGKILL))
                work()
            finally:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL


def bias(folder: Path) -> float | None:
    """A number that tells the two models apart; None where there is no model."""
    if not folder.exists():
        return None
    found = load_file(folder / "diffusion_pytorch_model.safetensors")
    reference = load_file(sketch.path() / "transformer" / "diffusion_pytorch_model.safetensors")
    assert found.keys() == reference.keys() and (folder / "config.json").is_file()
    apart = {float((found[name] - reference[name].float()).mean().round()) for name in reference}
    assert len(apart) == 1  # no mixture
    return apart.pop()


@pytest.mark.parametrize(
    ("how", "work"),
    thinned(
        [("killed", "save_pretrained"), ("interrupted", "save_pretrained"), ("interrupted", "convert")],
        [("killed", "save_pretrained")],
    ),
)
@pytest.mark.parametrize("there", [False, True])
def test_a_model_is_there_whole_or_not_at_all_and_the_next_save_clears_up(models, tmp_path, how, work, there):
    old, new = models
    new.save_pretrained(tmp_path / "source")
    target = tmp_path / "target"

    def run() -> None:
        if work == "convert":
            convert(tmp_path / "source", target, "diffusers", overwrite=True)
        else:
            new.save_pretrained(target)

    def prepare() -> None:
        if there:
            old.save_pretrained(target)

    with pytest.MonkeyPatch.context() as patch:
        prepare()
        steps = at_step(patch, 0, lambda: None)
        run()
    assert {"fsync", "rename"} <= {*steps}
    for number in range(1, len(steps) + 1):
        for path in tmp_path.iterdir():
            if path.name != "source":
                files._remove(path)
        prepare()
        cut_short(run, number, how)
        found = bias(target)
        left = [path.name for path in tmp_path.iterdir() if path.name.endswith(f"{MACHINE}.replaced")]
        assert found in ({0.0, 1.0} if there and not left else {None, 1.0})
        files.clean(target)  # as the next save does
        assert bias(target) in ({0.0, 1.0} if there else {None, 1.0})
        assert sorted(path.name for path in tmp_path.iterdir()) in (["source"], ["source", "target"])


def opened(folder: Path, models, reader=Ideogram4Transformer2DModel.from_pretrained) -> str:
    """Whether the old or the new model is in a folder that opens, or that it is refused by name."""
    try:
        found = reader(folder).state_dict()
    except CheckpointError as error:
        assert str(folder / "config.json") in str(error) and "was cut short" in str(error)
        return "refused"
    [same] = [
        name
        for name, model in zip(("old", "new"), models, strict=True)
        if all(torch.equal(found[key], tensor) for key, tensor in model.state_dict().items())
    ]
    return same


@pytest.mark.parametrize(
    ("how", "before"),
    [pytest.param("killed", "10GB", marks=pytest.mark.long), ("killed", "6MB"), ("interrupted", "6MB")],
)
def test_a_folder_of_more_than_a_model_is_old_or_new_or_refused(models, tmp_path, how, before):
    """Shards take their places one after another: those of two models that have the same names are never read."""
    old, new = models
    target = tmp_path / "target"

    def run() -> None:
        new.save_pretrained(target, max_shard_size="6MB")

    def prepare() -> None:
        files._remove(target)
        old.save_pretrained(target, max_shard_size=before)
        (target / "notes.txt").write_text("mine")

    prepare()
    with pytest.MonkeyPatch.context() as patch:
        steps = at_step(patch, 0, lambda: None)
        run()
    assert steps.count("replace") > 4
    found = set()
    for number in range(1, len(steps) + 1):
        if 1 < number <= steps.index("replace"):
            continue  # nothing is moved yet
        prepare()
        cut_short(run, number, how)
        found.add(opened(target, models))
        assert (target / "notes.txt").read_text() == "mine"
    assert found == ({"old", "refused", "new"} if how == "killed" else {"old", "new"})
    run()
    assert opened(target, models) == "new"
    assert not [path for folder in (tmp_path, target) for path in folder.iterdir() if path.name.startswith(".")]
