"""Whole pipelines under diffusers' offloading, over devices that are pretended: the same latents as without."""

from __future__ import annotations

import copy

import pytest
import torch
from PIL import Image

from ideoflow.engine import Denoiser
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


def enlarge(pipeline, folder) -> torch.Tensor:
    from ideoflow import Ideogram4InpaintPipeline

    pipe = Ideogram4InpaintPipeline.from_pipe(pipeline)
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe.upscale(
        Image.linear_gradient("L").resize((48, 32)), PROMPT, 2, tile=64, strength=0.6, preset="V4_TURBO_12",
        generator=torch.Generator().manual_seed(0), output_type="latent", keep=folder,
    )  # fmt: skip
    return drawn.images


ON_CPU = {  # not to devices that are pretended, whose numbers cannot be written to files
    "sequential": lambda pipeline: pipeline.enable_sequential_cpu_offload(device="cpu"),
    "model": lambda pipeline: pipeline.enable_model_cpu_offload(device="cpu"),
    "blocks": lambda pipeline: pipeline.enable_group_offload(
        torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1, exclude_modules=["vae", "text_encoder"]
    ),
    "leaves": lambda pipeline: pipeline.enable_group_offload(torch.device("cpu"), offload_type="leaf_level"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("hooks", ON_CPU)
def test_tiles_that_are_kept_are_those_of_the_weights_wherever_these_are(pipeline, tmp_path, monkeypatch, hooks):
    expected = enlarge(pipeline, tmp_path / "here")
    other = type(pipeline)(**copy.deepcopy(pipeline.components))
    ON_CPU[hooks](pipeline)
    with monkeypatch.context() as patched:
        patched.setattr(Denoiser, "compute", lambda *_: pytest.fail("a tile was drawn"))
        assert torch.allclose(enlarge(pipeline, tmp_path / "here"), expected, atol=1e-5)
    other.transformer.layers[1].attention.to_q.weight.data.mul_(1.01)
    ON_CPU[hooks](other)
    with pytest.raises(ValueError, match="holds tiles of another picture or of other settings"):
        enlarge(other, tmp_path / "here")


def on_disk(pipeline, folder):
    pipeline.enable_group_offload(torch.device("cpu"), offload_type="leaf_level", offload_to_disk_path=str(folder))


def let_go(pipeline, folder):
    for parameter in pipeline.text_encoder.parameters():
        parameter.data = parameter.data.new_empty(0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("away", [on_disk, let_go])
def test_weights_that_cannot_be_read_are_refused_before_tiles_are_drawn(pipeline, tmp_path, monkeypatch, away):
    monkeypatch.setattr(Denoiser, "compute", lambda *_: pytest.fail("a tile was drawn"))
    away(pipeline, tmp_path / "disk")

    with pytest.raises(ValueError, match="cannot be read where they are offloaded to"):
        enlarge(pipeline, tmp_path / "tiles")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("hooks", thinned(HOOKS, ["model", "leaves by stream"]))
def test_an_offloaded_pipeline_draws_the_same_twice(pipeline, hooks):
    expected = draw(pipeline)
    modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    with pretending(*modules):
        HOOKS[hooks](pipeline)
        for _ in range(2):
            assert torch.allclose(draw(pipeline), expected, atol=1e-3)
