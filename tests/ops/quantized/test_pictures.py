"""What quantized blocks do to the bundled model's pictures, beside the same pictures in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ideoflow import sketch
from ideoflow.ops import KINDS, Float8Linear, quantize_
from ideoflow.ops.quantized_linear import has_product
from ideoflow.sketch.wording import line
from tools.sketch.score import held_out

SETTINGS = dict(num_inference_steps=12, guidance_scale=sketch.GUIDANCE, guidance_schedule=None, mu=0.0, std=1.75)


def draw(kind: str | None) -> list[np.ndarray]:
    """Four held-out captions, with both transformers quantized."""
    pipeline = sketch.load()
    pipeline.set_progress_bar_config(disable=True)
    if kind:
        for transformer in (pipeline.transformer, pipeline.unconditional_transformer):
            quantize_(transformer, kind)
    samples = held_out(4)
    pictures = pipeline(
        [line(sample.caption) for sample in samples],
        size=[(sample.width, sample.height) for sample in samples],
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(samples))],
        **SETTINGS,
    ).images
    return [np.asarray(picture).astype(float) for picture in pictures]


@pytest.fixture(scope="module")
def in_float32() -> list[np.ndarray]:
    return draw(None)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_pictures_stay_close_to_those_in_float32(kind, in_float32):
    check(kind, draw(kind), in_float32)


@pytest.mark.slow
@pytest.mark.skipif(not has_product(torch.float8_e4m3fn, torch.device("cpu")), reason="torch multiplies none here")
def test_pictures_stay_close_where_float8_is_multiplied_too(in_float32, monkeypatch):
    monkeypatch.setattr(Float8Linear, "multiplies", lambda self, tokens: True)  # as on CUDA; slow here
    check("fp8 products", draw("fp8"), in_float32)


def check(kind: str, drawn: list[np.ndarray], in_float32: list[np.ndarray]) -> None:
    difference = [np.abs(a - b).mean() for a, b in zip(drawn, in_float32, strict=True)]
    psnr = [10 * np.log10(255**2 / ((a - b) ** 2).mean()) for a, b in zip(drawn, in_float32, strict=True)]
    print(
        f"{kind}: mean absolute difference {np.mean(difference):.2f} of 255, PSNR {np.mean(psnr):.1f} dB, each", end=" "
    )
    print(", ".join(f"{each:.1f}" for each in psnr))
    # Far from what is measured, so that another machine's rounding cannot fail it; other noise gives less.
    assert np.mean(difference) <= 12
    assert np.mean(psnr) >= 18
