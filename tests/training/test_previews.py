"""Previews: drawn by the pipeline's own engine, as the pipeline draws, without a trace in the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ideoflow import Caption, sketch
from ideoflow.training.parallel import Group
from ideoflow.training.previews import Previews
from ideoflow.training.run import prepare, train
from ideoflow.training.settings import Settings

ALONE = Group(0, 1, torch.device("cpu"))


def settings(pictures: Path, out: Path, **options) -> Settings:
    defaults = dict(
        data=str(pictures), out=str(out), cache=str(pictures / ".cache"), device="cpu", steps=3, tokens=600, rank=2,
        lr=1e-2, warmup=0, ema=0.5, preview_steps=2, preview_guidance=2.0,
    )  # fmt: skip
    return Settings.read(**defaults | options)


def test_a_run_with_previews_trains_the_same_bits_as_one_without(pictures, tmp_path):
    weights = []
    for name in ("with", "without"):
        chosen = settings(pictures, tmp_path / name, lora_dropout=0.3, preview_every=1)
        train(chosen, watchers=[Previews(chosen)] if name == "with" else [])
        weights.append(load_file(tmp_path / name / "pytorch_lora_weights.safetensors"))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert (tmp_path / "with" / "previews" / "all.png").exists() and not (tmp_path / "without" / "previews").exists()


def test_previews_are_what_the_pipeline_draws_with_the_averaged_weights(pictures, tmp_path):
    caption = Caption.parse(pictures / "1.json").line()
    chosen = settings(pictures, tmp_path, previews=[str(pictures / "1.json"), caption], preview_size="96x112", steps=3)
    previews = Previews(chosen)
    train(chosen, watchers=[previews])
    assert [step for step, _ in previews.rows] == [0, 3]
    pipeline = sketch.load()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(tmp_path)  # the average is what was saved
    drawn = pipeline(
        [caption, caption],
        size=(96, 112),
        num_inference_steps=2,
        guidance_scale=2.0,
        guidance_schedule=None,
        mu=0.0,
        std=1.5,
        generator=[torch.Generator().manual_seed(i) for i in (0, 1)],
    ).images
    for ours, theirs in zip(previews.rows[-1][1], drawn, strict=True):
        assert ours.size == (96, 112)
        assert np.abs(np.asarray(ours).astype(int) - np.asarray(theirs).astype(int)).max() <= 1
    before, after = (np.asarray(row[0]) for _, row in previews.rows)
    assert (before != after).any()
    assert (
        Image.open(tmp_path / "previews" / "step-0000003.png").size[0]
        == Image.open(tmp_path / "previews" / "all.png").size[0]
    )


def test_without_named_captions_the_datas_first_are_drawn_in_their_sizes(pictures, tmp_path):
    chosen = settings(pictures, tmp_path)
    trainer = prepare(chosen, ALONE)
    previews = Previews(chosen)
    previews.on_begin(trainer)
    assert previews.captions == [sample.caption for sample in trainer.samples[:4]]
    assert previews.sizes == [(16 * s.grid[1], 16 * s.grid[0]) for s in trainer.samples[:4]]
    with pytest.raises(ValueError, match="WIDTHxHEIGHT"):
        Previews(settings(pictures, tmp_path, preview_size="96")).on_begin(trainer)
