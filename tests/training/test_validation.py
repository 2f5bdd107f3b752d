"""Held-out pictures: the same ones, times and noise at every look, and no trace of it in what is trained."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ideoflow import sketch
from ideoflow.sketch.world import sample
from ideoflow.training.batches import Draw
from ideoflow.training.dataset import scan
from ideoflow.training.objective import make_batch
from ideoflow.training.parallel import Group
from ideoflow.training.previews import Previews
from ideoflow.training.progress import Log, TensorBoard
from ideoflow.training.run import prepare, survey, train
from ideoflow.training.settings import Settings
from ideoflow.training.validation import SEED, VISITS, HeldOut
from ideoflow.training.watch import Watcher

ALONE = Group(0, 1, torch.device("cpu"))


def settings(pictures: Path, out: Path, **options) -> Settings:
    defaults = dict(
        data=str(pictures), out=str(out), cache=str(pictures / ".cache"), device="cpu", steps=4, tokens=500, rank=2,
        lr=1e-2, warmup=0, ema=0.5, lora_dropout=0.3, caption_dropout=0.2, validate_every=2,
    )  # fmt: skip
    return Settings.read(**defaults | options)


class Losses(Watcher):
    def __init__(self) -> None:
        self.found: dict[int, float] = {}

    def on_validation(self, trainer, loss) -> None:
        self.found[trainer.step] = loss


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> Path:
    """Pictures that are not among those that are trained on, and one that is."""
    folder = tmp_path_factory.mktemp("others")
    for index in (0, 100, 101, 102):
        drawn = sample(index)
        drawn.image.save(folder / f"{index}.png")
        (folder / f"{index}.json").write_text(json.dumps(drawn.caption))
    return folder


def test_a_run_with_validation_trains_the_same_bits_as_one_without(pictures, others, tmp_path):
    losses = Losses()
    with_ = train(settings(pictures, tmp_path / "with", validation=str(others)), watchers=[losses])
    without = train(settings(pictures, tmp_path / "without"))
    one, other = (load_file(written[0]) for written in (with_, without))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert list(losses.found) == [0, 2, 4] and len({*losses.found.values()}) == 3


def test_the_loss_is_the_mean_over_the_held_out_pictures_with_the_averaged_weights(pictures, others, tmp_path):
    trainer = prepare(settings(pictures, tmp_path, validation=str(others)), ALONE)
    trainer.run()
    first, second = trainer.validate(), trainer.validate()
    assert first == second and trainer.loss.training
    draws = [Draw(visit, index) for visit in range(VISITS) for index in range(4)]
    assert len(trainer.held_out.batches) > 1
    batch = make_batch(trainer.held_out.samples, draws, seed=SEED, mu=0.0, std=1.5)
    assert len(batch.times.unique()) == len(draws)
    trainer.loss.eval()
    with torch.no_grad(), trainer.averaged():
        whole = float(trainer.loss(batch)["conditional"])
    assert first == pytest.approx(whole, rel=1e-5)
    with torch.no_grad():
        assert float(trainer.loss(batch)["conditional"]) != pytest.approx(whole, rel=1e-5)  # weights as they are


def test_losses_of_runs_with_other_seeds_begin_the_same(pictures, others, tmp_path):
    values = [
        prepare(settings(pictures, tmp_path / str(seed), validation=str(others), seed=seed), ALONE).validate()
        for seed in (0, 1)
    ]
    assert values[0] == values[1]


@pytest.fixture(scope="module")
def tokenizer():
    return sketch.load().tokenizer


def test_validation_that_is_trained_on_as_well_is_said(pictures, others, tmp_path, tokenizer):
    survey(settings(pictures, tmp_path, validation=str(others)), tokenizer, [Log(tmp_path)])
    report = (tmp_path / "report.txt").read_text()
    assert "8 examples, 4 held out" in report
    assert f"note on {others}/0.png: it is held out, but the same picture is trained on" in report


def test_a_share_holds_out_whole_pictures_and_the_same_ones_every_time(tmp_path):
    for index in range(10):
        drawn = sample(index % 7)  # three pictures come twice
        drawn.image.save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.txt").write_text(f"picture {index}")
    for share, expected in ((0.01, 1), (0.3, 2), (0.99, 6)):
        surveys = [scan(tmp_path), scan(tmp_path)]
        for found in surveys:
            found.hold_out(share)
        first, again = surveys
        assert [e.name for e in first.held_out] == [e.name for e in again.held_out]
        held, trained = ({e.digest for e in part} for part in (first.held_out, first.examples))
        assert len(held) == expected and not held & trained and len(held | trained) == 7
        assert len(first.held_out) + len(first.examples) == 10


def test_a_run_with_a_share_goes_on_with_the_same_pictures(pictures, tmp_path):
    chosen = settings(pictures, tmp_path, validation="0.25", steps=2)
    trainer = prepare(chosen, ALONE)
    assert len(trainer.samples) == 6 and len(trainer.held_out.samples) == 2
    trainer.run()
    losses = Losses()
    train(settings(pictures, tmp_path, validation="0.25"), resume=True, watchers=[losses])
    assert list(losses.found) == [4]
    with pytest.raises(ValueError, match="other data"):
        prepare(settings(pictures, tmp_path, validation="0.5"), ALONE).resume()


@pytest.mark.parametrize("given", ["0", "1", "1.5", "-0.1", "nan", "inf", 0.0, 2])
def test_a_share_that_is_none_is_refused(given):
    with pytest.raises(ValueError, match=r"`data.validation`: give a share above 0 and below 1"):
        Settings.read(data="x", validation=given)
    assert Settings.read(data="x", validation=0.25).data.share == 0.25
    assert Settings.read(data="x", validation="folder").data.share is None


def test_what_cannot_be_held_out_is_said(pictures, tmp_path, tokenizer):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"`validation` .*empty: nothing to hold out"):
        survey(settings(pictures, tmp_path / "run", validation=str(tmp_path / "empty")), tokenizer)
    with pytest.raises(ValueError, match=r"`validation` \./nowhere: there is no such folder"):
        survey(settings(pictures, tmp_path / "run", validation="./nowhere"), tokenizer)
    sample(0).image.save(tmp_path / "empty" / "alone.png")
    (tmp_path / "empty" / "alone.txt").write_text("alone")
    with pytest.raises(ValueError, match=r"`validation` 0\.5: nothing to hold out"):
        survey(settings(tmp_path / "empty", tmp_path / "run", validation="0.5"), tokenizer)


def test_a_held_out_picture_that_no_batch_can_hold_is_named(pictures, others, tmp_path):
    trainer = prepare(settings(pictures, tmp_path, validation=str(others)), ALONE)
    with pytest.raises(ValueError, match=r"`tokens` is 20, but \d+.png, which is held out for validation, has \d+"):
        HeldOut(trainer.held_out.samples, 20, 0.0, 1.5)


def test_curves_and_pictures_can_be_read_in_tensorboard_and_in_the_log_after_going_on(pictures, others, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    options = dict(validation=str(others), preview_every=2, preview_steps=1, preview_guidance=1.0,
                   previews=["a red circle", "a blue square"], preview_size="64x48")  # fmt: skip
    for steps in (2, 4):
        chosen = settings(pictures, tmp_path, steps=steps, **options)
        watchers = [Log(tmp_path), TensorBoard(tmp_path), Previews(chosen)]
        train(chosen, resume=steps == 4, watchers=watchers)
    shown = events.EventAccumulator(str(tmp_path / "tensorboard"), {"images": 0, "scalars": 0}).Reload()
    for number in (0, 1):
        drawn = shown.Images(f"previews/{number}")
        assert [image.step for image in drawn] == [0, 2, 4]
        assert all((image.width, image.height) == (64, 48) for image in drawn)
    curve = {event.step: event.value for event in shown.Scalars("validation")}
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    logged = {line["step"]: line["validation"] for line in lines if "validation" in line}
    assert curve.keys() == logged.keys() == {0, 2, 4}
    assert all(math.isclose(curve[step], logged[step], rel_tol=1e-6) for step in logged)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
