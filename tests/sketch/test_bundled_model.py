"""The bundled model: small, opened by both pipelines, the same pictures from each, and it draws what captions say."""

from __future__ import annotations

import random

import diffusers
import numpy as np
import pytest
import torch

from ideoflow import sketch
from ideoflow.sketch.wording import line
from ideoflow.sketch.world import sample
from tools.sketch.score import held_out, score

SETTINGS = dict(num_inference_steps=12, guidance_scale=sketch.GUIDANCE, guidance_schedule=None, mu=0.0, std=1.75)


@pytest.fixture(scope="module")
def pipeline():
    pipe = sketch.load()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def peer():
    pipe = diffusers.Ideogram4Pipeline.from_pretrained(sketch.path())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def test_it_is_at_most_25_megabytes_and_tells_what_it_is():
    files = [f for f in sketch.path().rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 25e6
    card = (sketch.path() / "README.md").read_text()
    assert all(word in card for word in ("Data", "Recipe", "Quality", "minutes"))


@pytest.mark.parametrize("size", [(112, 144), pytest.param((128, 96), marks=pytest.mark.long)])
def test_the_peers_pipeline_draws_the_same_latents_and_pictures(pipeline, peer, size):
    captions = [line(sample(i, split="held_out").caption) for i in (0, 1)]
    where = dict(width=size[0], height=size[1], max_sequence_length=160)
    ours = pipeline(captions, generator=seeded(5), output_type="latent", **where, **SETTINGS).images
    theirs = peer(captions, generator=seeded(5), output_type="latent", **where, **SETTINGS).images
    assert relative(ours, theirs) <= 1e-4
    ours = pipeline(captions, generator=seeded(5), **where, **SETTINGS).images
    theirs = peer(captions, generator=seeded(5), **where, **SETTINGS).images
    for a, b in zip(ours, theirs, strict=True):
        assert np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max() <= 1


def test_a_picture_does_not_depend_on_what_it_is_packed_with(pipeline):
    samples = [sample(i, split="held_out") for i in range(6)]
    captions = [line(s.caption) for s in samples]
    sizes = [(s.width, s.height) for s in samples]

    def latents(order: list[int]) -> dict[int, torch.Tensor]:
        drawn = pipeline(
            [captions[i] for i in order],
            size=[sizes[i] for i in order],
            generator=[seeded(i) for i in order],
            output_type="latent",
            **SETTINGS,
        ).images
        return dict(zip(order, drawn, strict=True))

    together = latents(list(range(6)))
    shuffled = latents(random.Random(0).sample(range(6), 6))
    for i in range(6):
        alone = latents([i])[i]
        assert relative(together[i], alone) <= 1e-5
        assert relative(shuffled[i], alone) <= 1e-5


def test_it_draws_held_out_captions(pipeline):
    def draw(captions, sizes, seeds):
        return pipeline(captions, size=sizes, generator=[seeded(s) for s in seeds], **SETTINGS).images

    result = score(draw, held_out(30), line)
    # Far below what the model card says, so that a change of rounding cannot fail it, and far above chance.
    assert result.background[0] >= 0.85
    assert result.shapes_in_place[0] >= 0.7
    assert result.words_in_place[0] >= 0.2


def test_fused_projections_draw_the_same_latents(pipeline):
    caption = line(sample(0, split="held_out").caption)

    def draw():
        return pipeline(caption, size=(96, 96), generator=seeded(5), output_type="latent", **SETTINGS).images

    expected = draw()
    pipeline.fuse_projections()
    branches = (pipeline.transformer, pipeline.unconditional_transformer)
    parts = [part for branch in branches for block in branch.layers for part in (block.attention, block.feed_forward)]
    assert all(part.fused_projections for part in parts)
    assert relative(draw(), expected) <= 1e-4
    pipeline.unfuse_projections()
    assert not any(part.fused_projections for part in parts)
    assert torch.equal(draw(), expected)


@pytest.mark.parametrize(
    "arguments",
    [
        {"size": 128},
        {"size": [(64, 64)]},
        {"size": (0, 0)},
        {"size": (100, 100)},
        {"caption_tokens": "x"},
        {"pictures": 0},
    ],
)
def test_attention_is_tuned_for_pictures_that_can_be(pipeline, arguments):
    with pytest.raises((ValueError, TypeError), match=f"`{next(iter(arguments))}` is"):
        pipeline.tune_attention(**arguments)


def test_a_pipeline_in_int8_is_not_half_written(tmp_path):
    pipe = sketch.load()
    pipe.quantize("int8")
    with pytest.raises(ValueError, match="int8 weights"):
        pipe.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
