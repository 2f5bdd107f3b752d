"""What users of diffusers' models expect: checkpointing, casting, offloading, attention backends, compilation."""

from __future__ import annotations

import random

import pytest
import torch
from diffusers.models.attention_dispatch import attention_backend
from diffusers.training_utils import EMAModel
from torch._dynamo.testing import CompileCounterWithBackend

from ideoflow.model.attention import Ideogram4AttnProcessor
from ideoflow.packing import Layout


def gradients(model, inputs) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**inputs).sample.square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def step(model, stream) -> torch.Tensor:
    features, layout, latents, times = stream
    return model.velocity(latents, times, model.prepare(features, layout))


# Training


def test_gradient_checkpointing_changes_no_gradient_and_recomputes_each_layer(ours, inputs):
    ours.train()
    expected = gradients(ours, inputs)
    ours.enable_gradient_checkpointing()
    assert ours.is_gradient_checkpointing
    calls = []
    for layer in ours.layers:
        layer.register_forward_pre_hook(lambda module, args: calls.append(module))
    checkpointed = gradients(ours, inputs)
    assert len(calls) == 2 * len(ours.layers)
    assert all(torch.equal(checkpointed[name], expected[name]) for name in expected)
    ours.disable_gradient_checkpointing()
    assert not ours.is_gradient_checkpointing


def test_gradient_checkpointing_applies_to_a_step(ours, inputs, stream_inputs):
    expected = step(ours.train(), stream_inputs(inputs))
    ours.enable_gradient_checkpointing()
    output = step(ours, stream_inputs(inputs))
    output.sum().backward()
    assert torch.equal(output, expected)
    assert ours.layers[0].attention.to_q.weight.grad.any()


def test_an_average_of_the_weights_can_be_kept(ours, inputs):
    average = EMAModel(ours.parameters())
    gradients(ours.train(), inputs)
    average.step(ours.parameters())


def test_mixed_precision_training_is_near_full_precision(ours, inputs):
    expected = gradients(ours, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = gradients(ours, inputs)
    for name, gradient in expected.items():
        assert mixed[name].dtype == torch.float32
        if gradient.norm() > 1e-3:
            assert (mixed[name] - gradient).norm() < 0.1 * gradient.norm(), name


# Memory


@pytest.mark.parametrize("storage", [torch.float8_e4m3fn, torch.float16])
def test_layerwise_casting_computes_what_the_peer_computes(pair, inputs, real, storage):
    outputs = []
    for model in pair:
        model.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)
        outputs.append(model(**inputs).sample[real(inputs)])
    ours = pair[1]
    assert ours.layers[0].attention.to_q.weight.dtype == storage
    assert ours.embed_image_indicator.weight.dtype == ours.t_embedding.mlp_in.weight.dtype == torch.float32
    assert (outputs[1] - outputs[0]).abs().max() <= 2e-5 * outputs[0].abs().max()


def test_layerwise_casting_can_be_trained_under_autocast(ours, inputs):
    ours.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = ours.train()(**inputs).sample.square().mean()
    loss.backward()


@pytest.mark.parametrize(
    "kind", [{"offload_type": "block_level", "num_blocks_per_group": 1}, {"offload_type": "leaf_level"}], ids=str
)
def test_group_offloading_to_disk_wakes_every_part_of_forward_and_of_a_step(
    make_pair, inputs, stream_inputs, tmp_path, kind
):
    """Parameters are gone from memory between calls, so a part that is not woken gives another result."""
    expected_model, model = make_pair()[1], make_pair()[1]
    model.enable_group_offload("cpu", offload_to_disk_path=str(tmp_path), **kind)
    stream = stream_inputs(inputs)
    with torch.no_grad():
        for _ in range(2):
            # Norms with hooks are called as modules, which round elsewhere.
            assert torch.allclose(model(**inputs).sample, expected_model(**inputs).sample, atol=1e-5)
            assert torch.allclose(step(model, stream), step(expected_model, stream), atol=1e-5)


def test_contexts_and_layouts_move_with_the_tensors_that_hooks_move(ours):
    from accelerate.utils import send_to_device

    context = ours.prepare(torch.randn(2, 20), Layout.of_samples([(2, 1, 2)]))
    moved = send_to_device(((context.layout, context.layout.bounds), {"context": context}), "meta")
    assert moved[0][0].position_ids.device.type == moved[0][1].cu_seqlens.device.type == "meta"
    assert moved[1]["context"].text.device.type == moved[1]["context"].layout.image.device.type == "meta"


# Attention


@pytest.mark.parametrize("backend", ["native", "_native_math"])
def test_a_backend_set_on_the_model_or_around_the_call_is_used(ours, inputs, backend):
    expected = ours(**inputs).sample
    with attention_backend(backend):
        around = ours(**inputs).sample
    with attention_backend("native"):  # setting a model's backend also sets the one in force, which this restores
        ours.set_attention_backend(backend)
        assert {p._attention_backend.value for p in ours.attn_processors.values()} == {backend}
        assert torch.equal(ours(**inputs).sample, around)
    assert torch.allclose(around, expected, atol=1e-5)
    ours.reset_attention_backend()
    assert torch.equal(ours(**inputs).sample, expected)


def test_attention_goes_through_the_dispatcher(ours, inputs, monkeypatch):
    """Equal lengths in one batch, others one by one: rows of lengths 6, 6 and 11 are two calls a layer."""
    import ideoflow.model.attention as attention

    shapes, dispatch = [], attention.dispatch_attention_fn
    monkeypatch.setattr(
        attention,
        "dispatch_attention_fn",
        lambda query, key, value, **kwargs: shapes.append(tuple(query.shape)) or dispatch(query, key, value, **kwargs),
    )
    ours(**inputs)
    assert shapes == [(2, 6, 2, 16), (1, 11, 2, 16)] * 2


def test_processors_can_be_replaced_and_get_the_attention_kwargs(ours, inputs):
    seen = []

    class Processor(Ideogram4AttnProcessor):
        def __call__(self, *args, **kwargs):
            seen.append(kwargs)
            return super().__call__(*args, **kwargs)

    expected = ours(**inputs).sample
    assert len(ours.attn_processors) == 2
    ours.set_attn_processor(Processor())
    assert torch.equal(ours(**inputs, attention_kwargs={"scale": 1.0, "note": 5}).sample, expected)
    assert seen == [{"note": 5}] * 2
    ours.set_attn_processor({name: Ideogram4AttnProcessor() for name in ours.attn_processors})
    with pytest.raises(ValueError, match="number of processors"):
        ours.set_attn_processor({"layers.0.attention.processor": Ideogram4AttnProcessor()})


def test_an_attention_width_that_its_heads_do_not_divide_is_refused():
    from ideoflow.model.attention import Ideogram4Attention

    with pytest.raises(ValueError, match="divisible"):
        Ideogram4Attention(30, 4)


# Compilation


def test_compiled_blocks_compute_the_same_without_a_graph_for_each_length(make_pair):
    compiled, model = make_pair()[1], make_pair()[1]
    compiled.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    torch._dynamo.reset()
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=8):
        for samples in ([(5, 2, 3)], [(7, 2, 3)], [(2, 4, 5)], [(0, 3, 3)]):
            layout = Layout.of_samples(samples)
            features, latents = torch.randn(len(layout.text), 20), torch.randn(len(layout.image), 8)
            stream = (features, layout, latents, torch.rand(len(samples)))
            assert torch.allclose(step(compiled, stream), step(model, stream), atol=1e-5)


def test_blocks_compiled_for_all_layouts_compile_a_fixed_number_of_graphs(make_pair):
    """With and without text, one time or several, all tokens or those of images: then never again."""
    compiled, model = make_pair()[1], make_pair()[1]
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled.compile_blocks(backend=counter)
    draw = random.Random(0)

    def mixed():
        segments = draw.randint(2, 5)
        return [(draw.randint(1, 9), draw.randint(2, 6), draw.randint(2, 6)) for _ in range(segments)]

    first = [[(5, 2, 3)], [(0, 3, 2)], mixed(), [(0, 3, 2), (0, 4, 4)]]
    with torch.no_grad():
        for number, samples in enumerate(first + [mixed() for _ in range(20)] + [[(3, 5, 4)], [(0, 5, 5)]]):
            if number == len(first):
                graphs = counter.frame_count
            layout = Layout.of_samples(samples)
            features, latents = torch.randn(len(layout.text), 20), torch.randn(len(layout.image), 8)
            stream = (features if len(layout.text) else None, layout, latents, torch.rand(len(samples)))
            assert torch.allclose(step(compiled, stream), step(model, stream), atol=1e-5)

    assert counter.frame_count == graphs


def test_compiled_blocks_take_several_segments(make_pair, inputs):
    compiled, model = make_pair()[1], make_pair()[1]
    torch._dynamo.reset()
    compiled.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.allclose(compiled(**inputs).sample, model(**inputs).sample, atol=1e-5)


def test_the_whole_model_compiles(ours, inputs):
    torch._dynamo.reset()
    expected = ours(**inputs).sample
    assert torch.allclose(torch.compile(ours, backend="aot_eager")(**inputs).sample, expected, atol=1e-5)
