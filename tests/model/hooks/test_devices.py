"""Every way into the transformer, under every hook that moves weights or inputs, over devices that are pretended."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook, dispatch_model
from torch import Tensor

from ideoflow.fitting.apply import SwapHook
from tests.thinned import thinned

from .pretend import FAR, NEAR, honest, pretending

# Ways in: of padded rows, and of a stream in each of the forms that callers keep between steps.


def forward(model, rows, stream):
    return model(**rows).sample


def prepare_and_velocity(model, rows, stream):
    features, layout, latents, times = stream
    return model.velocity(latents, times, model.prepare(features, layout))


def projected_and_velocity(model, rows, stream):
    features, layout, latents, times = stream
    return model.velocity(latents, times, model.prepare_projected(model.project_text(features), layout))


def modulated_velocity(model, rows, stream):
    features, layout, latents, times = stream
    context = model.prepare(features, layout)
    return model.velocity(latents, times, context, modulation=model.modulate(times))


WAYS = [forward, prepare_and_velocity, projected_and_velocity, modulated_velocity]


# Hooks, as users set them.


def parts(model) -> list[str]:
    return [name for name, _ in model.named_children() if name != "layers"]


def on_one_device(model):
    dispatch_model(model, {"": NEAR}, main_device=NEAR, force_hooks=True)


def on_two_devices(model):
    places = {name: NEAR for name in parts(model)} | {"layers.0": NEAR, "layers.1": FAR}
    dispatch_model(model, places, main_device=NEAR)


def ends_on_the_second_device(model):
    places = {name: FAR for name in parts(model)} | {"input_proj": NEAR, "layers.0": NEAR, "layers.1": FAR}
    dispatch_model(model, places, main_device=NEAR)


def a_block_offloaded(model):
    places = {name: NEAR for name in parts(model)} | {"layers.0": NEAR, "layers.1": "cpu"}
    dispatch_model(model, places, main_device=NEAR)


def sequentially_offloaded(model):
    cpu_offload(model, torch.device(NEAR), offload_buffers=True)


def offloaded_as_a_whole(model):
    cpu_offload_with_hook(model, torch.device(NEAR))


def in_turn(model):
    from accelerate.hooks import add_hook_to_module

    add_hook_to_module(model, SwapHook(torch.device(NEAR), [], True))


def in_groups(model, **options):
    model.enable_group_offload(torch.device(NEAR), **options)


BLOCKS = dict(offload_type="block_level", num_blocks_per_group=1)
LEAVES = dict(offload_type="leaf_level")
HOOKS = {
    "none": lambda model: None,
    "one device": on_one_device,
    "two devices": on_two_devices,
    "second device last": ends_on_the_second_device,
    "a block offloaded": a_block_offloaded,
    "sequential": sequentially_offloaded,
    "whole": offloaded_as_a_whole,
    "in turn": in_turn,
    "blocks": lambda model: in_groups(model, **BLOCKS),
    "pairs of blocks": lambda model: in_groups(model, offload_type="block_level", num_blocks_per_group=2),
    "blocks, not waiting": lambda model: in_groups(model, **BLOCKS, non_blocking=True),
    "blocks by stream": lambda model: in_groups(model, **BLOCKS, use_stream=True),
    "blocks by stream, recorded": lambda model: in_groups(model, **BLOCKS, use_stream=True, record_stream=True),
    "leaves": lambda model: in_groups(model, **LEAVES),
    "leaves by stream": lambda model: in_groups(model, **LEAVES, use_stream=True),
    "leaves by stream, recorded": lambda model: in_groups(model, **LEAVES, use_stream=True, record_stream=True),
}

QUICK = ["none", "two devices", "a block offloaded", "sequential", "whole", "blocks, not waiting", "leaves by stream"]

# accelerate's `CpuOffload` moves inputs with the module alone, so that later ones must be there already.
PLACES = {"none": ("cpu",), "whole": (NEAR,)}


@pytest.fixture(autouse=True)
def backend(monkeypatch):
    """What group offloading asks of a device: streams that do nothing, since nothing here runs beside anything."""
    stream = SimpleNamespace(synchronize=lambda: None)
    module = SimpleNamespace(
        Stream=lambda: stream, stream=lambda _: nullcontext(), current_stream=lambda: stream, empty_cache=lambda: None
    )
    monkeypatch.setattr(torch, "maia", module, raising=False)


def found(way, model, put, rows, stream, place) -> Tensor:
    return honest(way(model, put(rows, place), _placed(stream, put, place)))


def _placed(stream, put, place):
    features, layout, latents, times = stream
    return put(features, place), layout.to(place), put(latents, place), put(times, place)


@pytest.mark.parametrize("hooks", thinned(HOOKS, QUICK))
def test_every_way_in_gives_what_it_gives_without_hooks(ours, inputs, stream_inputs, hooks):
    """Inputs on the CPU, as users have them, and on the device, as pipelines do; twice, since some hooks learn."""
    stream = stream_inputs(inputs)
    with torch.no_grad():
        expected = [way(ours, inputs, stream) for way in WAYS]
    with pretending(ours) as put:
        HOOKS[hooks](ours)
        for place in PLACES.get(hooks, ("cpu", NEAR)) * 2:
            for way, wanted in zip(WAYS, expected, strict=True):
                try:
                    given = found(way, ours, put, inputs, stream, place)
                except RuntimeError as error:
                    raise AssertionError(f"{way.__name__} with inputs on {place}: {error}") from error
                assert torch.allclose(given, wanted, atol=1e-5), (way.__name__, place)


def test_a_tensor_says_where_it_is_and_refuses_to_meet_another(ours):
    """The pretence itself: without it these tests would say nothing."""
    with pretending(ours) as put:
        here, there = put(torch.ones(3), NEAR), put(torch.ones(3), FAR)
        assert str((here + 1).device) == NEAR and str(there.to(NEAR).device) == NEAR
        with pytest.raises(RuntimeError, match="same device"):
            here + there
        with pytest.raises(RuntimeError, match="same device"):
            ours.input_proj(put(torch.ones(1, 8), NEAR))


@pytest.mark.parametrize("offload", [None, BLOCKS, LEAVES], ids=["casting alone", "blocks", "leaves"])
def test_layerwise_casting_holds_for_every_way_in(ours, inputs, stream_inputs, offload):
    """Weights that float16 holds exactly, so that keeping them in it changes nothing."""
    stream = stream_inputs(inputs)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(parameter.half().float())
        expected = [way(ours, inputs, stream) for way in WAYS]
    with pretending(ours) as put:
        if offload is not None:
            in_groups(ours, **offload)
        ours.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)
        assert ours.layers[0].attention.to_q.weight.dtype == torch.float16
        place = "cpu" if offload is None else NEAR
        for way, wanted in zip(WAYS, expected, strict=True):
            assert torch.allclose(found(way, ours, put, inputs, stream, place), wanted, atol=1e-5), way.__name__
