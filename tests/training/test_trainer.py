"""A run: the same wherever it is stopped and on however many processes, and stopped before it spoils its weights."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ideoflow import sketch
from ideoflow.training import run_state
from ideoflow.training.parallel import Group
from ideoflow.training.run import prepare, train
from ideoflow.training.settings import Settings
from ideoflow.training.trainer import Stopped
from ideoflow.training.watch import Watcher
from tests.chips import BFLOAT16

ALONE = Group(0, 1, torch.device("cpu"))
SMALL = dict(steps=6, tokens=600, rank=2, lr=2e-3, warmup=2, ema=0.9, save_every=2, device="cpu")


def settings(pictures: Path, out: Path, **options) -> Settings:
    return Settings.read(**SMALL | dict(data=str(pictures), out=str(out), cache=str(pictures / ".cache")) | options)


def losses(path: Path) -> dict[int, float]:
    return {int(line.split()[0]): float(line.split()[1]) for line in path.read_text().splitlines()}


class Count(Watcher):
    def __init__(self) -> None:
        self.steps = []
        self.saved: list[Path] = []

    def on_step(self, trainer, step) -> None:
        self.steps.append(step)

    def on_save(self, path) -> None:
        self.saved.append(path)


def test_a_run_trains_an_adapter_that_both_pipelines_load(pictures, tmp_path):
    count = Count()
    written = train(settings(pictures, tmp_path, steps=12, also=["comfy"], trigger="sks"), watchers=[count])
    assert [step.step for step in count.steps] == list(range(1, 13))
    assert all(step.samples >= 1 and 0 < step.filled <= 1 and step.norm > 0 for step in count.steps)
    assert len(run_state.saved(tmp_path / "checkpoints")) == 3 and len(count.saved) == 6
    adapter = tmp_path / "pytorch_lora_weights.safetensors"
    assert adapter in written and len(written) == 2
    assert any(t.any() for name, t in load_file(adapter).items() if "lora_B" in name)

    settings_of_a_picture = dict(
        width=112, height=96, num_inference_steps=3, guidance_scale=2.0, guidance_schedule=None, mu=0.0, std=1.75
    )
    caption = (pictures / "0.json").read_text()
    drawn = []
    for kind in (sketch.load(), diffusers.Ideogram4Pipeline.from_pretrained(sketch.path())):
        kind.set_progress_bar_config(disable=True)
        plain = kind(caption, generator=torch.Generator().manual_seed(1), **settings_of_a_picture).images[0]
        kind.load_lora_weights(tmp_path)
        drawn.append(kind(caption, generator=torch.Generator().manual_seed(1), **settings_of_a_picture).images[0])
        assert np.asarray(drawn[-1]).tolist() != np.asarray(plain).tolist()
    ours, theirs = (np.asarray(picture).astype(int) for picture in drawn)
    assert np.abs(ours - theirs).max() <= 1


@pytest.mark.parametrize("branch", ["conditional", "both"])
def test_full_training_changes_every_weight_but_the_text_projection_and_writes_a_model(pictures, tmp_path, branch):
    (folder,) = train(settings(pictures, tmp_path, method="full", branch=branch, steps=2, warmup=0, ema=0.0))
    before, after = sketch.load(), type(sketch.load()).from_pretrained(folder)
    for name in ("transformer", "unconditional_transformer"):
        old = getattr(before, name).state_dict()
        for key, value in getattr(after, name).state_dict().items():
            moved = not torch.equal(value, old[key])
            untouched = key.startswith("llm_cond") or key == "embed_image_indicator.weight"
            if name == "unconditional_transformer" and branch == "conditional":
                assert not moved, key
            elif not untouched:
                assert moved, key
            elif key.startswith("llm_cond"):
                assert not moved, key


def test_the_average_is_what_is_saved(pictures, tmp_path):
    trainer = prepare(settings(pictures, tmp_path, ema=0.5, steps=4), ALONE)
    trainer.run()
    saved = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    name = next(name for name in trainer.trained if "lora_B" in name)
    average = trainer.ema.values[name]
    key = name.replace(".default", "")
    assert torch.equal(saved[key], average)
    assert not torch.equal(average, trainer.trained[name])


@pytest.mark.long
@pytest.mark.parametrize(("kills", "steps"), [(2, 18), (10, 60)])
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(pictures, tmp_path, launch, finish, kills, steps):
    options = settings(pictures, tmp_path, steps=steps, save_every=3, lora_dropout=0.1, caption_dropout=0.2)
    options = {k: v for section in options.model_dump().values() for k, v in section.items()}
    whole = tmp_path / "whole"
    finish(launch(options | {"out": str(whole)}, tmp_path / "whole.txt"))

    draw, killed, out, log = random.Random(steps), 0, tmp_path / "killed", tmp_path / "killed.txt"
    while True:
        run = launch(options | {"out": str(out)}, log, resume=True)
        if killed < kills:
            reached = len(log.read_text().splitlines()) if log.exists() else 0
            wanted = reached + draw.randint(1, max(2, steps // (kills + 1)))
            while run.poll() is None and (not log.exists() or len(log.read_text().splitlines()) < wanted):
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 0.3))  # in a step, or while a checkpoint is written
            if run.poll() is None:
                run.send_signal(signal.SIGKILL)
                killed += 1
            run.communicate()
            continue
        finish(run)
        break
    for file in (
        "pytorch_lora_weights.safetensors",
        f"checkpoints/{run_state.NAME.format(steps)}/optimizer.safetensors",
    ):
        one, other = load_file(whole / file), load_file(out / file)
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parallel", "method"), [("ddp", "lora"), pytest.param("fsdp", "full", marks=pytest.mark.long)]
)
def test_two_processes_and_one_give_the_same_loss_curve(pictures, tmp_path, launch, finish, parallel, method):
    options = dict(data=str(pictures), cache=str(tmp_path / "cache"), parallel=parallel, method=method)
    options = SMALL | options | dict(steps=4, tokens=400, caption_dropout=0.2, ema=0.9)
    options |= dict(validation=0.25, validate_every=2)
    finish(launch(options | {"out": str(tmp_path / "two")}, tmp_path / "two.txt", processes=2))
    finish(launch(options | {"out": str(tmp_path / "one"), "accumulate": 2}, tmp_path / "one.txt"))
    two, one = losses(tmp_path / "two.txt"), losses(tmp_path / "one.txt")
    assert one.keys() == two.keys() == set(range(1, 5))
    assert all(abs(two[step] - one[step]) <= 1e-5 * one[step] for step in one)
    assert len({round(loss, 6) for loss in one.values()}) == 4
    two, one = losses(tmp_path / "two.validation"), losses(tmp_path / "one.validation")
    assert one.keys() == two.keys() == {0, 2, 4} and len({*one.values()}) == 3
    assert all(abs(two[step] - one[step]) <= 1e-5 * one[step] for step in one)
    # A run may go on with another number of processes, as long as a step takes the same batches.
    finish(
        launch(options | {"out": str(tmp_path / "two"), "accumulate": 2, "steps": 5}, tmp_path / "on.txt", resume=True)
    )
    assert losses(tmp_path / "on.txt").keys() == {5}


@pytest.mark.slow
def test_two_interrupted_processes_save_the_same_step_and_go_on(pictures, tmp_path, launch, finish):
    options = SMALL | dict(data=str(pictures), cache=str(tmp_path / "cache"), tokens=400, steps=200, save_every=500)
    out, log = tmp_path / "run", tmp_path / "losses.txt"
    run = launch(options | {"out": str(out)}, log, processes=2)
    while run.poll() is None and (not log.exists() or len(log.read_text().splitlines()) < 2):
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)  # to the launcher, which ends its processes
    run.communicate(timeout=300)
    (saved,) = run_state.saved(out / "checkpoints")
    reached = run_state.load(saved).step
    assert 2 <= reached < 200 and len(losses(log)) == reached
    again = options | {"out": str(out), "steps": reached + 1}
    finish(launch(again, log, processes=2, resume=True))
    assert losses(log).keys() == set(range(1, reached + 2))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(pictures, tmp_path):
    trainer = prepare(settings(pictures, tmp_path, steps=6), ALONE)
    bad = trainer.samples[3]
    good_load = type(bad).load

    class Broken:
        def __getattr__(self, name):
            return getattr(bad, name)

        def load(self):
            latents, text = good_load(bad)
            return latents * (float("nan") if trainer.step >= 2 else 1.0), text

    trainer.samples[3] = Broken()
    with pytest.raises(Stopped, match=rf"not taken.*nan.*{bad.name}.*last good checkpoint"):
        trainer.run()
    last = run_state.load(run_state.saved(tmp_path / "checkpoints")[-1])
    assert last.step >= 2
    assert all(w.isfinite().all() for w in last.weights.values())
    assert all(p.isfinite().all() for p in trainer.trained.values())


def test_an_exploding_loss_stops_the_run(pictures, tmp_path):
    trainer = prepare(settings(pictures, tmp_path, explode=1.0001, steps=50, lr=1.0, clip=0.0, warmup=0), ALONE)
    with pytest.raises(Stopped, match="times its recent average"):
        trainer.run()


@pytest.fixture(scope="module")
def ended(pictures, tmp_path_factory) -> Path:
    """The folder of a run of two steps. Read only."""
    out = tmp_path_factory.mktemp("ended")
    train(settings(pictures, out, steps=2))
    return out


def test_a_folder_with_a_run_is_not_overwritten(pictures, ended):
    with pytest.raises(ValueError, match="--resume"):
        train(settings(pictures, ended, steps=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"lr": 1e-3}, "`lr` is 0.001"), ({"tokens": 700}, "`tokens` is 700"), ({"accumulate": 2}, "2 batches")],
)
def test_a_run_does_not_go_on_with_other_settings(pictures, ended, options, message):
    trainer = prepare(settings(pictures, ended, **{"steps": 4} | options), ALONE)
    with pytest.raises(ValueError, match=message):
        trainer.resume()


def test_a_run_does_not_go_on_with_other_data(pictures, tmp_path, ended):
    other = tmp_path / "other"
    other.mkdir()
    for index in range(3):
        for end in ("png", "json"):
            (other / f"{index}.{end}").write_bytes((pictures / f"{index}.{end}").read_bytes())
    trainer = prepare(settings(other, ended, data=str(other), steps=4), ALONE)
    with pytest.raises(ValueError, match=r"other data|`data`"):
        trainer.resume()


def test_a_half_written_checkpoint_is_never_seen(pictures, tmp_path, monkeypatch):
    trainer = prepare(settings(pictures, tmp_path, steps=4), ALONE)
    trainer.run()
    folder = tmp_path / "checkpoints"
    before = run_state.saved(folder)

    def dies(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_state, "save_file", dies)
    trainer.step = 9
    with pytest.raises(KeyboardInterrupt):
        trainer.save()
    assert run_state.saved(folder) == before
    (before[-1] / "optimizer.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        run_state.load(before[-1])


def test_options_that_do_not_exist_or_fit_are_named(tmp_path):
    with pytest.raises(ValueError, match="no option `learning_rate`"):
        Settings.read(data="x", learning_rate=1)
    with pytest.raises(ValueError, match=r"`training.steps`.*0"):
        Settings.read(data="x", steps=0)
    with pytest.raises(ValueError, match="`data`: name a folder of pictures"):
        Settings.read()
    file = tmp_path / "a.toml"
    file.write_text("[training]\nstep = 3\n")
    with pytest.raises(ValueError, match=r"no option `training.step`.*steps"):
        Settings.read(file, data="x")
    file.write_text("[training\n")
    with pytest.raises(ValueError, match="is not TOML"):
        Settings.read(file)


def test_the_template_is_a_file_of_the_defaults(tmp_path):
    from ideoflow.training.settings import template

    file = tmp_path / "a.toml"
    file.write_text(template())
    assert Settings.read(file, data="x") == Settings.read(data="x")
    changed = Settings.read(data="x", lr=3e-4, targets=["a", "b"], dora=True)
    file.write_text(template(changed))
    assert Settings.read(file) == changed
    assert json.dumps(changed.model_dump())


def curve(pictures: Path, out: Path, **options) -> list[float]:
    count = Count()
    train(settings(pictures, out, **{"steps": 4, "ema": 0.0} | options), watchers=[count])
    return [step.loss for step in count.steps]


def test_gradient_checkpointing_changes_nothing_but_memory(pictures, tmp_path):
    plain, saving = (curve(pictures, tmp_path / str(x), gradient_checkpointing=x, lr=1e-2) for x in (False, True))
    assert all(abs(a - b) <= 1e-6 * a for a, b in zip(plain, saving, strict=True))


@pytest.mark.long
@pytest.mark.parametrize("method", ["lora", "full"])
def test_half_precision_stays_near_full(pictures, tmp_path, method):
    options = {"method": method, "lr": 1e-3, "steps": 2, "tokens": 400}
    exact = curve(pictures, tmp_path / "exact", **options)
    half = curve(pictures, tmp_path / "half", dtype="bfloat16", **options)
    assert half != exact and all(abs(a - b) <= 0.05 * a for a, b in zip(exact, half, strict=True))
    weights = run_state.load(run_state.saved(tmp_path / "half" / "checkpoints")[-1]).weights
    assert {w.dtype for w in weights.values()} == {torch.float32}


@pytest.fixture(scope="module")
def plain(pictures, tmp_path_factory) -> list[float]:
    """The losses of a run without any option."""
    return curve(pictures, tmp_path_factory.mktemp("plain"), lr=1e-2, warmup=0)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"dora": True}, marks=pytest.mark.long),
        {"loss_per": "token"},
        {"min_snr": 5.0},
        {"method": "full"},
        {"optimizer": "muon"},
        pytest.param({"method": "full", "optimizer": "muon"}, marks=BFLOAT16),  # in which it makes steps orthogonal
        {"targets": ["all"], "alpha": 8.0, "lora_dropout": 0.3},
        {"schedule": "cosine", "accumulate": 2, "clip": 0.0},
    ],
    ids=lambda options: " ".join(options),
)
def test_every_option_makes_another_run(pictures, tmp_path, plain, options):
    other = curve(pictures, tmp_path, lr=1e-2, warmup=0, **options)
    assert len(other) == 4 and all(np.isfinite(other)) and other[1:] != plain[1:]
