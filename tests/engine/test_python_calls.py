"""Python between launches: calls of a step that a block costs, which at small sizes take longer than its kernels.

They are counted, since time is no matter of tests: a step of six blocks against one of twelve.
"""

import sys
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.modeling_utils import get_parameter_dtype

from ideoflow import Ideogram4Transformer2DModel
from ideoflow.engine import Denoiser, Request, graphs
from ideoflow.ops import quantize_
from ideoflow.schedule import logit_normal_sigmas

CONFIG = dict(
    attention_head_dim=32,
    num_attention_heads=2,
    intermediate_size=64,
    adaln_dim=16,
    llm_features_dim=26,
    mrope_section=(6, 5, 5),
)
WARM = 4  # steps, of which the second is recorded


class Replayed:
    """Launches nothing where a graph would be launched."""

    runs_on = staticmethod(lambda device: True)
    room = staticmethod(lambda device: 2**30)

    def __init__(self, device):
        pass

    def warm_up(self, run):
        return run()

    def capture(self, run, pool):
        self.output = run().clone()
        pool.graphs.add(self)

    def replay(self):
        pass


@torch.no_grad()
def calls(layers, **options):
    """Calls of a step of both branches, each of so many blocks."""
    transformers = [Ideogram4Transformer2DModel(num_layers=layers, **CONFIG).eval() for _ in range(2)]
    for transformer in transformers:
        transformer.requires_grad_(False)
        transformer.fuse_projections()
    denoiser = Denoiser(*transformers, **options)
    request = Request(
        conditional=denoiser.prepare_conditional(torch.randn(3, 26), (2, 2)),
        unconditional=denoiser.prepare_unconditional((2, 2)),
        latents=torch.randn(4, 128),
        sigmas=logit_normal_sigmas(WARM + 1, 512, 512),
        guidance=(7.0,) * (WARM + 1),
        grid=(2, 2),
    )
    for _ in range(WARM):
        denoiser.step([request])
    seen = SimpleNamespace(calls=0)

    def count(frame, event, argument):
        seen.calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        denoiser.step([request])
    finally:
        sys.setprofile(before)
    return seen.calls


@pytest.mark.parametrize(
    ("graphs_are_used", "most"), [(False, 480), (True, 60)], ids=["launched one by one", "replayed"]
)
def test_a_block_costs_so_many_calls(monkeypatch, graphs_are_used, most):
    """Of both branches together twice as many: 418 and 43 were counted, 823 and 355 before walks were cut."""
    monkeypatch.setattr(graphs, "CudaGraph", Replayed)
    few, many = (calls(layers, cuda_graphs=graphs_are_used) for layers in (6, 12))

    assert (many - few) / 12 <= most


def cast(model):
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)


@pytest.mark.parametrize(
    "change", [lambda model: None, lambda model: model.to(torch.float16), lambda model: quantize_(model, "int8"), cast]
)
def test_the_model_says_the_type_that_diffusers_says(change):
    model = Ideogram4Transformer2DModel(num_layers=2, **CONFIG)
    change(model)

    assert model.dtype == get_parameter_dtype(model)
