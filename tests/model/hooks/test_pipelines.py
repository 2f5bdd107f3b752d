"""Whole pipelines under diffusers' offloading, over devices that are pretended: the same latents as without."""

from __future__ import annotations

import pytest
import torch

from tests.thinned import thinned

from .pretend import NEAR, honest, pretending
from .test_devices import backend  # noqa: F401 (a fixture)

PROMPT = '{"compositional_deconstruction":{"background":"white","elements":[]}}'


def draw(pipeline) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = pipeline(
        PROMPT,
        size=(64, 32),
        num_inference_steps=3,
        guidance_schedule=[7.0, 7.0, 1.0],
        generator=generator,
        output_type="pt",
    )
    return honest(drawn.images)


def grouped(**options):
    def enable(pipeline):
        pipeline.enable_group_offload(torch.device(NEAR), **options)

    return enable


HOOKS = {
    "moved": lambda pipeline: pipeline.to(NEAR),
    "sequential": lambda pipeline: pipeline.enable_sequential_cpu_offload(device=NEAR),
    "model": lambda pipeline: pipeline.enable_model_cpu_offload(device=NEAR),
    "blocks": grouped(offload_type="block_level", num_blocks_per_group=1, exclude_modules=["vae", "text_encoder"]),
    "leaves": grouped(offload_type="leaf_level"),
    "leaves by stream": grouped(offload_type="leaf_level", use_stream=True),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("hooks", thinned(HOOKS, ["model", "leaves by stream"]))
def test_an_offloaded_pipeline_draws_the_same_twice(pipeline, hooks):
    expected = draw(pipeline)
    modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    with pretending(*modules):
        HOOKS[hooks](pipeline)
        for _ in range(2):
            assert torch.allclose(draw(pipeline), expected, atol=1e-3)
