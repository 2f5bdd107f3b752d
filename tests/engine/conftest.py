"""Requests of random captions and noise over the tiny random transformers."""

import pytest
import torch

from ideoflow.engine import Engine, Request
from ideoflow.schedule import logit_normal_sigmas


@pytest.fixture(scope="session")
def transformers(tiny_folder):
    from ideoflow import Ideogram4Transformer2DModel

    return [
        Ideogram4Transformer2DModel.from_pretrained(tiny_folder / name).eval()
        for name in ("transformer", "unconditional_transformer")
    ]


@pytest.fixture
def engine(transformers):
    return Engine(*transformers)


@pytest.fixture
def make_request(engine):
    """A function that makes a request from a seed; equal arguments make equal requests."""

    def make(seed, text_tokens=5, grid=(2, 3), steps=12, guidance=7.0, **options):
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(text_tokens, 13 * 32, generator=generator)
        schedule = guidance if isinstance(guidance, tuple) else (guidance,) * steps
        return Request(
            conditional=engine.prepare_conditional(features, grid),
            unconditional=engine.prepare_unconditional(grid),
            latents=torch.randn(grid[0] * grid[1], 16, generator=generator),
            sigmas=logit_normal_sigmas(len(schedule), 16 * grid[1], 16 * grid[0]),
            guidance=schedule,
            grid=grid,
            **options,
        )

    return make
