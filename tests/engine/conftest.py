"""Requests of random captions and noise over the tiny random transformers."""

import pytest
import torch

from ideoflow.engine import Denoiser, Engine, Request
from ideoflow.schedule import logit_normal_sigmas


@pytest.fixture(scope="session")
def transformers(tiny_folder):
    from ideoflow import Ideogram4Transformer2DModel

    return [
        Ideogram4Transformer2DModel.from_pretrained(tiny_folder / name).eval()
        for name in ("transformer", "unconditional_transformer")
    ]


@pytest.fixture
def denoiser(transformers):
    return Denoiser(*transformers)


@pytest.fixture
def engine(denoiser):
    return Engine(denoiser)


@pytest.fixture
def make_request(denoiser):
    """A function that makes a request from a seed; equal arguments make equal requests."""

    def make(seed, text_tokens=5, grid=(2, 3), steps=12, guidance=7.0, **options):
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(text_tokens, 13 * 32, generator=generator)
        schedule = guidance if isinstance(guidance, tuple) else (guidance,) * steps
        return Request(
            conditional=denoiser.prepare_conditional(features, grid),
            unconditional=denoiser.prepare_unconditional(grid),
            latents=torch.randn(grid[0] * grid[1], 16, generator=generator),
            sigmas=logit_normal_sigmas(len(schedule), 16 * grid[1], 16 * grid[0]),
            guidance=schedule,
            grid=grid,
            **options,
        )

    return make


@pytest.fixture
def breaks(transformers, monkeypatch):
    """A function that lets the conditional transformer raise an error where `when` holds of the lengths."""

    def arrange(error, when):
        plain = type(transformers[0]).velocity

        def velocity(self, latents, times, context, **kwargs):
            if self is transformers[0] and when(context.layout.lengths):
                raise error
            return plain(self, latents, times, context, **kwargs)

        monkeypatch.setattr(type(transformers[0]), "velocity", velocity)

    return arrange
