"""Hooks on the whole transformer see each pass, whoever asks for it: a caller of `forward`, an engine, a pipeline."""

from __future__ import annotations

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module

from ideoflow.model.context import Prepared

CAPTION = '{"compositional_deconstruction":{"background":"white","elements":[]}}'


@pytest.fixture
def stream(ours, inputs, stream_inputs):
    """Arguments of `velocity`."""
    features, layout, latents, times = stream_inputs(inputs)
    return latents, times, ours.prepare(features, layout)


def test_a_forward_hook_gets_and_gives_velocities(ours, stream):
    expected, seen = ours.velocity(*stream), []
    ours.register_forward_hook(lambda module, args, output: seen.append((module, args, output)))
    assert torch.equal(ours.velocity(*stream), expected)
    [(module, args, output)] = seen
    assert module is ours and args == () and isinstance(output, tuple) and torch.equal(output[0], expected)


@pytest.mark.parametrize("give", [lambda v: (2 * v,), lambda v: 2 * v], ids=["tuple", "tensor"])
def test_what_a_forward_hook_returns_is_taken(ours, stream, give):
    expected = ours.velocity(*stream)
    ours.register_forward_hook(lambda module, args, output: give(output[0]))
    assert torch.equal(ours.velocity(*stream), 2 * expected)


def test_a_pre_hook_gets_the_arguments_of_forward_and_may_change_them(ours, stream):
    latents, times, context = stream
    expected, seen = ours.velocity(2 * latents, times, context), []

    def hook(module, args, kwargs):
        seen.append(kwargs)
        return args, kwargs | {"hidden_states": 2 * kwargs["hidden_states"]}

    ours.register_forward_pre_hook(hook, with_kwargs=True)
    assert torch.equal(ours.velocity(latents, times, context), expected)
    [given] = seen
    assert given["hidden_states"] is latents and given["timestep"] is times
    assert isinstance(given["encoder_hidden_states"], Prepared) and given["encoder_hidden_states"].context is context
    assert given["return_dict"] is False and given["position_ids"] is given["segment_ids"] is given["indicator"] is None


def test_a_forward_hook_may_ask_for_keywords(ours, stream):
    seen = []
    ours.register_forward_hook(lambda module, args, kwargs, output: seen.append(kwargs["timestep"]), with_kwargs=True)
    ours.velocity(*stream)
    assert seen == [stream[1]]


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_backward_hooks_see_the_gradient_of_the_velocities(ours, stream):
    before, after = [], []
    ours.register_full_backward_pre_hook(lambda module, gradient: before.append(gradient))
    ours.register_full_backward_hook(lambda module, inputs, outputs: after.append(outputs))
    velocity = ours.velocity(*stream)
    velocity.sum().backward()
    assert torch.equal(before[0][0], torch.ones_like(velocity)) and torch.equal(after[0][0], torch.ones_like(velocity))


def test_they_fire_once_for_forward_and_not_for_what_prepares_a_pass(ours, inputs, stream_inputs):
    calls = []
    ours.register_forward_hook(lambda *_: calls.append("pass"))
    features, layout, _, times = stream_inputs(inputs)
    ours.prepare(features, layout)
    ours.prepare_projected(ours.project_text(features), layout)
    ours.modulate(times)
    assert calls == []
    ours(**inputs)
    assert calls == ["pass"]


def test_a_forward_of_ones_own_is_called_by_velocity(ours, stream):
    """Of a subclass, or put on the model, as wrappers of other libraries do."""
    expected = ours.velocity(*stream)
    forward = ours.forward
    ours.forward = lambda *args, **kwargs: (2 * forward(*args, **kwargs)[0],)
    assert torch.equal(ours.velocity(*stream), 2 * expected)
    del ours.forward
    ours.__class__ = type(
        "Own", (type(ours),), {"forward": lambda self, **k: (3 * type(self).__base__.forward(self, **k)[0],)}
    )
    assert torch.equal(ours.velocity(*stream), 3 * expected)


def test_an_offload_hook_fires_for_each_way_in(ours, inputs, stream_inputs):
    calls = []

    class Hook(ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            calls.append("in")
            return args, kwargs

        def post_forward(self, module, output):
            calls.append("out")
            return output

    add_hook_to_module(ours, Hook())
    features, layout, latents, times = stream_inputs(inputs)
    context = ours.prepare(features, layout)
    ours.velocity(latents, times, context)
    ours.prepare_projected(ours.project_text(features), layout)
    ours.modulate(times)
    ours(**inputs)
    assert calls == ["in", "out"] * 6


@pytest.mark.filterwarnings("ignore")
def test_a_pipelines_hook_sees_both_branches_at_each_step(pipeline, peer_pipeline):
    """As often as the peer's, and what it returns makes the picture."""
    options = dict(height=32, width=32, num_inference_steps=3, guidance_schedule=[7.0, 7.0, 1.0], output_type="pt")
    counts, pictures = [], []
    for pipe in (pipeline, peer_pipeline):
        calls: list[str] = []
        handles = []
        for name in ("transformer", "unconditional_transformer"):

            def hook(module, args, output, name=name, calls=calls):
                calls.append(name)
                return (0.5 * output[0],)

            handles.append(getattr(pipe, name).register_forward_hook(hook))
        try:
            drawn = pipe(CAPTION, generator=torch.Generator().manual_seed(0), **options).images
        finally:
            for handle in handles:
                handle.remove()
        counts.append(calls.count("transformer"))
        pictures.append(drawn)
    assert counts == [3, 3]
    assert torch.allclose(*pictures, atol=1e-3)
