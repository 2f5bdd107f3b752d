"""A part that was replaced is called: no fast way computes in its place. The peer, changed alike, is the measure."""

from __future__ import annotations

import copy

import diffusers
import pytest
import torch
from peft import LoraConfig
from torch import nn

from ideoflow.engine import Denoiser, Request
from ideoflow.model.attention import Ideogram4AttnProcessor
from ideoflow.schedule import logit_normal_sigmas

BLOCK = [
    "",
    ".adaln_modulation",
    ".attention",
    *(f".attention.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0", "norm_q", "norm_k")),
    ".feed_forward",
    *(f".feed_forward.{name}" for name in ("w1", "w2", "w3")),
    *(f".{name}" for name in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2")),
]
PARTS = [
    *(f"layers.{number}{name}" for number in range(2) for name in BLOCK),
    *("input_proj", "llm_cond_norm", "llm_cond_proj", "embed_image_indicator", "adaln_proj"),
    *("t_embedding", "t_embedding.mlp_in", "t_embedding.mlp_out"),
    *("final_layer", "final_layer.norm_final", "final_layer.linear", "final_layer.adaln_modulation"),
]
NORMS = [name for name in PARTS if "norm" in name]


def bent(output: torch.Tensor) -> torch.Tensor:
    """Each channel by another factor, which no norm undoes."""
    return output * torch.linspace(0.5, 1.5, output.shape[-1])


def scaled(module: nn.Module) -> None:
    """Make the module one of a subclass whose `forward` gives other numbers."""
    kind = type(module)
    own = {"forward": lambda self, *args, **kwargs: bent(kind.forward(self, *args, **kwargs))}
    module.__class__ = type(f"Scaled{kind.__name__}", (kind,), own)


def near(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= 2e-5 * theirs.abs().max())


def test_the_list_of_parts_is_the_models(ours):
    """So that a part that comes later is not forgotten."""
    lists = (nn.ModuleList,)
    assert set(PARTS) == {name for name, part in ours.named_modules() if name and not isinstance(part, lists)}


@pytest.mark.parametrize("fused", [False, True], ids=["as it comes", "fused"])
def test_a_subclass_with_its_own_forward_is_called(make_pair, inputs, real, stream_inputs, fused):
    peer, ours = make_pair()
    where = real(inputs)
    if fused:
        ours.fuse_projections()
    features, layout, latents, times = stream_inputs(inputs)
    with torch.no_grad():
        plain = peer(**inputs).sample[where]
        image = ours.velocity(latents, times, ours.prepare(features, layout))
        for name in PARTS:
            kinds = [type(model.get_submodule(name)) for model in (peer, ours)]
            for model in (peer, ours):
                scaled(model.get_submodule(name))
            theirs, mine = (model(**inputs).sample[where] for model in (peer, ours))
            assert not near(theirs, plain) and near(mine, theirs), name
            stepped = ours.velocity(latents, times, ours.prepare(features, layout))
            assert not near(stepped, image), name
            for model, kind in zip((peer, ours), kinds, strict=True):
                model.get_submodule(name).__class__ = kind
            assert near(ours(**inputs).sample[where], plain), name


@pytest.mark.parametrize("kind", ["torch", "diffusers", "layer", "none"])
def test_any_norm_may_take_the_place_of_one(make_pair, inputs, real, kind):
    make = {
        "torch": lambda width: nn.RMSNorm(width, eps=1e-3, elementwise_affine=False),
        "diffusers": lambda width: diffusers.models.normalization.RMSNorm(width, eps=1e-2),
        "layer": nn.LayerNorm,
        "none": lambda width: nn.Identity(),
    }[kind]
    outputs = []
    for model in make_pair():
        for name in NORMS:
            part = model.get_submodule(name)
            width = 32 if name == "final_layer.norm_final" else part.weight.shape[0]
            model.set_submodule(name, make(width))
        with torch.no_grad():
            outputs.append(model(**inputs).sample[real(inputs)])
    assert near(*reversed(outputs))


def test_modules_that_peft_saves_beside_an_adapter_are_called(ours, inputs):
    """It wraps them, and the copy in the wrapper is the one that is trained."""
    before = ours(**inputs).sample
    names = ["norm_q", "attention_norm1", "ffn_norm2"]
    ours.add_adapter(LoraConfig(r=2, target_modules=["to_q"], modules_to_save=names))
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if "modules_to_save" in name:
                parameter.mul_(2)
    assert not near(ours(**inputs).sample, before)


def test_a_linear_layer_with_its_own_forward_is_not_fused(ours, inputs):
    """Not even where all the layers of a product are of one such class."""
    expected = None
    for fuse in (False, True):
        model = copy.deepcopy(ours)
        for block in model.layers:
            for name in ("to_q", "to_k", "to_v"):
                scaled(getattr(block.attention, name))
        if fuse:
            model.fuse_projections()
        with torch.no_grad():
            output = model(**inputs).sample
        expected = output if expected is None else expected
    assert near(output, expected) and not near(output, ours(**inputs).sample)


def test_a_hook_on_all_modules_sees_norms_and_projections(ours, inputs):
    """As profilers set them."""
    ours.fuse_projections()
    seen = set()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.add(id(module)))
    try:
        with torch.no_grad():
            ours(**inputs)
    finally:
        handle.remove()
    assert {name for name, part in ours.named_modules() if name and id(part) not in seen} == {
        "layers",
        *(f"layers.{number}.attention.to_out" for number in range(2)),
    }


def test_a_processor_with_its_own_call_is_called(ours, inputs):
    class Bent(Ideogram4AttnProcessor):
        def __call__(self, *args, **kwargs):
            return bent(super().__call__(*args, **kwargs))

    before = ours(**inputs).sample
    ours.set_attn_processor(Bent())
    assert not near(ours(**inputs).sample, before)


@pytest.mark.parametrize("name", ["layers.0", "layers.1.adaln_modulation", "t_embedding", "final_layer", "adaln_proj"])
def test_an_engine_calls_them_too(make_pair, name):
    """It computes the modulation of whole schedules ahead, but not past a layer that was replaced or is hooked."""
    latents = []
    for change in (
        lambda part: None,
        scaled,
        lambda part: part.register_forward_hook(lambda m, i, output: bent(output)),
    ):
        model = make_pair()[1]
        change(model.get_submodule(name))
        denoiser = Denoiser(model, None)
        generator = torch.Generator().manual_seed(0)
        request = Request(
            conditional=denoiser.prepare_conditional(torch.randn(3, 20, generator=generator), (2, 3)),
            unconditional=None,
            latents=torch.randn(6, 8, generator=generator),
            sigmas=logit_normal_sigmas(3, 48, 32),
            guidance=(1.0,) * 3,
            grid=(2, 3),
        )
        for _ in range(3):
            denoiser.step([request])
        latents.append(request.latents)
    plain, replaced, hooked = latents
    assert not near(replaced, plain) and near(hooked, replaced)


def test_a_block_in_a_wrapper_of_another_class_is_stepped(ours):
    class Wrapper(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, *args, **kwargs):
            return self.block(*args, **kwargs)

    expected = Denoiser(copy.deepcopy(ours), None)
    ours.layers[0] = Wrapper(ours.layers[0])
    latents = []
    for denoiser in (expected, Denoiser(ours, None)):
        request = Request(
            conditional=denoiser.prepare_conditional(torch.ones(3, 20), (2, 3)),
            unconditional=None,
            latents=torch.arange(48.0).view(6, 8) / 48,
            sigmas=logit_normal_sigmas(2, 48, 32),
            guidance=(1.0,) * 2,
            grid=(2, 3),
        )
        denoiser.step([request])
        latents.append(request.latents)
    assert torch.allclose(*latents, atol=1e-6)
    with pytest.raises(RuntimeError, match="in the place of"):
        ours.modulate(torch.tensor([0.5]))
