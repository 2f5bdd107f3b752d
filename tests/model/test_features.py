"""What users of diffusers' models expect: checkpointing, casting, offloading, attention backends, compilation."""

from __future__ import annotations

import random

import pytest
import torch
from diffusers.models.attention_dispatch import attention_backend
from diffusers.training_utils import EMAModel
from peft import LoraConfig
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


@pytest.mark.parametrize("storage", [torch.float8_e4m3fn, torch.float16])
def test_layerwise_casting_can_be_trained_under_autocast(ours, inputs, storage):
    ours.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)
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
    from ideoflow.ops import ragged_attention

    shapes, dispatch = [], ragged_attention.dispatch_attention_fn
    monkeypatch.setattr(
        ragged_attention,
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


PIECES = 3  # of a block between graph breaks: before, inside and behind attention


def test_blocks_compiled_for_all_layouts_compile_a_fixed_number_of_graphs(make_pair):
    """Each piece for all tokens, and for the last block, which computes those of images: then never again."""
    compiled, model = make_pair()[1], make_pair()[1]
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled.fuse_projections()
    compiled.compile_blocks(backend=counter)
    draw = random.Random(0)

    def run(samples, ahead=False):
        layout = Layout.of_samples(samples)
        features, latents = torch.randn(len(layout.text), 20), torch.randn(len(layout.image), 8)
        times = torch.rand(len(samples))
        outputs = []
        for one in (compiled, model):
            context = one.prepare(features if len(layout.text) else None, layout)
            outputs.append(one.velocity(latents, times, context, modulation=one.modulate(times) if ahead else None))
        assert torch.allclose(*outputs, atol=1e-5)

    def mixed():
        return [(draw.randint(1, 9), draw.randint(2, 6), draw.randint(2, 6)) for _ in range(draw.randint(2, 5))]

    alone = [[(5, 2, 3)], [(3, 5, 4)], [(0, 3, 2)], [(0, 5, 5)]]
    together = [[(0, 3, 2), (0, 4, 4)], [(5, 2, 3)] * 2, *(mixed() for _ in range(8))]
    with torch.no_grad():
        run(alone[0])
        assert counter.frame_count == 2 * PIECES
        for samples in alone + together:
            for ahead in (False, True):
                run(samples, ahead)
        assert counter.frame_count == 2 * PIECES


@pytest.mark.long
def test_each_set_of_adapters_compiles_its_own_graphs_once_past_torchs_limit(make_pair):
    """Torch gives up compiling at 8 graphs of one piece; blocks with adapters are blocks of another structure."""
    model = make_pair()[1]
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    model.compile_blocks(backend=counter)
    counts = []

    @torch.no_grad()
    def run():
        before = counter.frame_count
        for samples in ([(5, 2, 3)], [(0, 3, 2), (0, 4, 4)], [(1, 2, 3), (4, 2, 2)]):
            layout = Layout.of_samples(samples)
            context = model.prepare(torch.randn(len(layout.text), 20) if len(layout.text) else None, layout)
            model.velocity(torch.randn(len(layout.image), 8), torch.rand(len(samples)), context)
        return counter.frame_count - before

    for number in range(5):
        name = f"adapter{number}"
        model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "w1"]), adapter_name=name)
        counts.append(run())
        assert run() == 0
        model.delete_adapters(name)
    assert all(0 < count <= 2 * PIECES for count in counts)


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


# Exporting


@pytest.mark.parametrize("per_token_times", [False, True])
def test_the_model_is_exported_for_rows_of_any_length(make_pair, make_rows, real, per_token_times):
    """One program for all ids, as the peer's is: padding is computed there, and comes out zero all the same."""
    model = make_pair()[1]
    text, image, padding = (0, 3), (0, 2), (-1, 0)
    rows = make_rows([[text] * 3 + [image] * 4 + [padding], [text] + [(1, 2)] * 6 + [(2, 0)]], 0, per_token_times)
    others = make_rows(
        [[text] * 2 + [(0, 0)] + [image] * 6 + [padding] * 2, [(5, 2)] * 11, [(1, 2), (2, 2)] * 5 + [(2, 3)]],
        1,
        per_token_times,
    )
    length, batch = torch.export.Dim("length", min=2, max=4096), torch.export.Dim("batch", min=2, max=64)
    dims = {name: {0: batch} | ({1: length} if x.ndim > 1 else {}) for name, x in rows.items()}
    with torch.no_grad():
        program = torch.export.export(model, (), rows, dynamic_shapes=dims).module()
        for given in (rows, others):
            found, expected = program(**given).sample, model(**given).sample
            assert torch.allclose(found, expected, atol=1e-5)
            assert not found[~real(given)].any()


def test_a_stream_of_a_fixed_layout_is_exported_without_padding(ours, inputs, stream_inputs):
    class Step(torch.nn.Module):
        def __init__(self, model, layout):
            super().__init__()
            self.model, self.layout = model, layout

        def forward(self, features, latents, times):
            return self.model.velocity(latents, times, self.model.prepare(features, self.layout))

    features, layout, latents, times = stream_inputs(inputs)
    step_of = Step(ours, layout)
    with torch.no_grad():
        program = torch.export.export(step_of, (features, latents, times)).module()
        assert torch.allclose(program(features, latents, times), step_of(features, latents, times), atol=1e-5)


# Autocast


@pytest.mark.parametrize("way", ["forward", "prepare", "project_text", "modulate", "velocity"])
@pytest.mark.parametrize(("weights", "cast"), [(torch.bfloat16, torch.float16), (torch.float16, torch.bfloat16)])
def test_autocast_to_the_other_half_precision_is_refused_in_words(ours, inputs, stream_inputs, weights, cast, way):
    """Torch has no rule for both at once, and says "Unexpected floating ScalarType"."""
    features, layout, latents, times = stream_inputs(inputs)
    context = ours.prepare(features, layout)
    ours.to(weights)
    calls = {
        "forward": lambda: ours(**inputs),
        "prepare": lambda: ours.prepare(features, layout),
        "project_text": lambda: ours.project_text(features),
        "modulate": lambda: ours.modulate(times),
        "velocity": lambda: ours.velocity(latents, times, context),
    }
    with torch.autocast("cpu", cast), pytest.raises(ValueError, match=f"weights are {weights} .* autocast .* {cast}"):
        calls[way]()


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16, torch.float16])
def test_autocast_takes_weights_in_float32_or_its_own_type(ours, inputs, weights):
    ours.to(weights)
    cast = torch.bfloat16 if weights == torch.float32 else weights
    with torch.autocast("cpu", cast):
        assert ours(**inputs).sample.dtype == cast
