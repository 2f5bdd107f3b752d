"""Fused projections: one product for the layers of one input, whose weights stay theirs under every name and use."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from ideoflow import Ideogram4Transformer2DModel
from ideoflow.model.blocks import FeedForward
from ideoflow.ops import fused_projections as fused
from ideoflow.ops.linear import Linear
from tests.thinned import thinned


@pytest.fixture
def products(monkeypatch) -> list[int]:
    """Rows of the weight of each product that a `Linear` computes."""
    rows = []
    right = Linear.forward
    monkeypatch.setattr(Linear, "forward", lambda self, x: rows.append(len(self.weight)) or right(self, x))
    return rows


def step(model, stream) -> torch.Tensor:
    features, layout, latents, times = stream
    with torch.no_grad():
        return model.velocity(latents, times, model.prepare(features, layout))


def test_one_product_takes_the_place_of_three_and_of_two(ours, inputs, stream_inputs, products, config):
    stream = stream_inputs(inputs)
    expected = step(ours, stream)
    apart = list(products)
    products.clear()
    names = list(ours.state_dict())
    ours.fuse_projections()
    assert torch.allclose(step(ours, stream), expected, atol=1e-6)
    width = config["attention_head_dim"] * config["num_attention_heads"]
    layers, feed = config["num_layers"], config["intermediate_size"]
    # The last block asks for the queries of image tokens alone, so its projections stay apart.
    assert products.count(3 * width) == layers - 1 and products.count(2 * feed) == layers
    assert len(apart) - len(products) == 2 * (layers - 1) + layers
    assert list(ours.state_dict()) == names

    ours.unfuse_projections()
    products.clear()
    assert torch.equal(step(ours, stream), expected) and products == apart


def test_fusing_takes_no_memory(ours):
    before = sum(p.nbytes for p in ours.parameters())
    ours.fuse_projections()
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in ours.parameters()}
    assert sum(storages.values()) == before


def test_fusing_anew_moves_nothing(ours):
    ours.fuse_projections()
    places = [p.data_ptr() for p in ours.parameters()]
    ours.unfuse_projections()
    ours.fuse_projections()
    assert [p.data_ptr() for p in ours.parameters()] == places
    assert ours.layers[0].feed_forward._fused.weight.data_ptr() == ours.layers[0].feed_forward.w1.weight.data_ptr()


def test_diffusers_name_fuses_attention_alone(ours):
    ours.fuse_qkv_projections()
    assert all(block.attention.fused_projections for block in ours.layers)
    assert not any(block.feed_forward.fused_projections for block in ours.layers)
    ours.unfuse_qkv_projections()
    assert not any(block.attention.fused_projections for block in ours.layers)


def test_processors_of_diffusers_find_the_fused_projection(ours):
    attention = ours.layers[0].attention
    assert not hasattr(attention, "to_qkv") and not hasattr(ours.layers[0].feed_forward, "to_qkv")
    names = list(ours.state_dict())
    ours.fuse_qkv_projections()
    x = torch.randn(5, attention.to_q.in_features, generator=torch.Generator().manual_seed(0))
    apart = torch.cat([layer(x) for layer in (attention.to_q, attention.to_k, attention.to_v)], dim=-1)
    assert torch.allclose(attention.to_qkv(x), apart, rtol=1e-5, atol=1e-6) and list(ours.state_dict()) == names
    ours.unfuse_qkv_projections()
    assert not hasattr(attention, "to_qkv")


def test_gradients_of_the_weights_are_those_of_separate_layers(make_pair, inputs):
    together, apart = make_pair()[1], make_pair()[1]
    together.fuse_projections()
    for model in (together, apart):
        model.train()(**inputs).sample.square().sum().backward()
    for (name, own), other in zip(together.named_parameters(), apart.parameters(), strict=True):
        assert torch.equal(own.grad, other.grad), name


def test_a_gradient_of_the_input_passes_the_fused_product_of_frozen_weights(make_pair, inputs, products, config):
    together, apart = make_pair()[1], make_pair()[1]
    together.fuse_projections()
    gradients = []
    for model in (together, apart):
        model.requires_grad_(False)
        latents = inputs["hidden_states"].clone().requires_grad_()
        model(**(inputs | {"hidden_states": latents})).sample.square().sum().backward()
        gradients.append(latents.grad)
    assert 2 * config["intermediate_size"] in products
    assert torch.allclose(*gradients, atol=1e-5)


def test_training_moves_the_fused_weights(ours, inputs, stream_inputs):
    """The optimizer holds the layers' own parameters, which are views."""
    stream = stream_inputs(inputs)
    ours.fuse_projections()
    optimizer = torch.optim.SGD(ours.parameters(), 0.1)
    ours(**inputs).sample.square().mean().backward()
    optimizer.step()
    together = step(ours, stream)
    ours.unfuse_projections()
    apart = step(ours, stream)
    assert (together - apart).abs().max() <= 1e-6 * apart.abs().max()


def test_files_are_the_same(ours, tmp_path):
    ours.save_pretrained(tmp_path / "apart")
    ours.fuse_projections()
    for folder, shards in (("whole", "1GB"), ("parts", "20KB")):
        ours.save_pretrained(tmp_path / folder, max_shard_size=shards)
    expected = load_file(tmp_path / "apart" / "diffusion_pytorch_model.safetensors")
    whole = load_file(tmp_path / "whole" / "diffusion_pytorch_model.safetensors")
    assert expected.keys() == whole.keys() and all(torch.equal(expected[name], whole[name]) for name in expected)
    files = list((tmp_path / "parts").glob("*.safetensors"))
    assert len(files) > 1
    parts = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert expected.keys() == parts.keys() and all(torch.equal(expected[name], parts[name]) for name in expected)
    Ideogram4Transformer2DModel.from_pretrained(tmp_path / "parts")


def test_weights_may_be_loaded_into_fused_layers(make_pair, inputs, stream_inputs, products, config):
    model, other = make_pair()[1], make_pair()[1]
    for parameter in other.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.01)
    stream = stream_inputs(inputs)
    model.fuse_projections()
    model.load_state_dict(other.state_dict())
    expected = step(other, stream)
    products.clear()
    assert torch.allclose(step(model, stream), expected, atol=1e-6)
    assert 2 * config["intermediate_size"] in products


@pytest.mark.parametrize("change", ["assigned", "replaced", "set through .data", "another layer"])
def test_a_weight_that_was_put_elsewhere_is_the_one_that_counts(ours, inputs, stream_inputs, change):
    stream = stream_inputs(inputs)
    ours.fuse_projections()
    for block in ours.layers:
        for layer in (block.attention.to_k, block.feed_forward.w3):
            other = torch.randn_like(layer.weight)
            if change == "assigned":
                layer.load_state_dict({"weight": other}, assign=True)
            elif change == "replaced":
                layer.weight = nn.Parameter(other)
            elif change == "set through .data":
                layer.weight.data = other
        if change == "another layer":
            block.attention.to_k = Linear(*reversed(block.attention.to_k.weight.shape), bias=False)
            block.feed_forward.w3 = Linear(*reversed(block.feed_forward.w3.weight.shape), bias=False)
    found = step(ours, stream)
    assert not any(block.feed_forward.fused_projections for block in ours.layers)
    apart = copy.deepcopy(ours)
    assert not any(block.feed_forward.fused_projections for block in apart.layers)
    assert torch.allclose(found, step(apart, stream), atol=1e-6)


def test_a_hook_on_a_layer_fires(ours, inputs):
    ours.fuse_projections()
    seen = []
    for layer in (ours.layers[0].attention.to_v, ours.layers[0].feed_forward.w1):
        layer.register_forward_hook(lambda module, args, output: seen.append(module))
    with torch.no_grad():
        ours(**inputs)
    assert seen == [ours.layers[0].attention.to_v, ours.layers[0].feed_forward.w1]


@pytest.mark.parametrize("move", [lambda m: m.to(torch.bfloat16), lambda m: m.double(), lambda m: m.to("cpu")])
def test_a_model_that_is_moved_or_cast_is_fused_anew(ours, move, inputs, stream_inputs):
    ours.fuse_projections()
    move(ours)
    for block in ours.layers:
        for part in (block.attention, block.feed_forward):
            assert part.fused_projections and fused._lie_in(
                part._fused, [x.requires_grad_(False) for x in part._layers()]
            )


def test_a_model_without_memory_gets_fused_with_its_weights(ours, config, inputs):
    with torch.device("meta"):
        empty = Ideogram4Transformer2DModel(**config)
    empty.fuse_projections()
    empty.to_empty(device="cpu")
    empty.load_state_dict(ours.state_dict())
    with torch.no_grad():
        assert torch.allclose(empty.eval()(**inputs).sample, ours(**inputs).sample, atol=1e-6)


def test_fusing_twice_and_unfusing_what_is_not_fused_do_no_harm(ours, inputs, stream_inputs):
    stream = stream_inputs(inputs)
    expected = step(ours, stream)
    ours.unfuse_projections()
    ours.fuse_projections()
    ours.fuse_projections()
    assert torch.allclose(step(ours, stream), expected, atol=1e-6)


def test_compiled_blocks_take_the_fused_product(make_pair, inputs, stream_inputs):
    model = make_pair(num_layers=1)[1]
    stream = stream_inputs(inputs)
    expected = step(model, stream)
    torch._dynamo.reset()
    model.fuse_projections()
    counter = CompileCounterWithBackend("aot_eager")
    model.compile_blocks(backend=counter)
    assert torch.allclose(step(model, stream), expected, atol=1e-5)
    sizes = {
        tuple(node.meta["example_value"].shape)[-1]
        for graph in counter.graphs
        for node in graph.graph.nodes
        if node.op == "call_function" and "linear" in str(node.target) and "example_value" in node.meta
    }
    assert 2 * model.config.intermediate_size in sizes


@pytest.mark.parametrize("change", thinned(["assigned", "copied", "merged"], ["copied"]))
def test_compiled_blocks_see_weights_that_were_changed_or_put_elsewhere(make_pair, inputs, stream_inputs, change):
    model, other = (make_pair(seed, num_layers=1)[1] for seed in (0, 1))  # compiling each takes seconds
    stream = stream_inputs(inputs)
    torch._dynamo.reset()
    model.fuse_projections()
    model.compile_blocks(backend="aot_eager")
    before = step(model, stream)
    if change == "merged":  # as adapters are merged safely
        with torch.no_grad():
            for own, new in zip(model.parameters(), other.parameters(), strict=True):
                own.data = new.data.clone()
    else:
        model.load_state_dict(other.state_dict(), assign=change == "assigned")
    found, expected = step(model, stream), step(other, stream)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, before, atol=1e-2)
    assert model.layers[0].feed_forward.fused_projections == (change == "copied")


def feed_forward() -> FeedForward:
    torch.manual_seed(0)
    module = FeedForward(32, 64)
    module.fuse_projections()
    return module


def test_weights_fused_in_inference_mode_can_be_trained():
    module = FeedForward(32, 64)
    with torch.inference_mode():
        module.fuse_projections()
    module(torch.randn(3, 32)).sum().backward()
    assert module.w1.weight.grad.any() and module.w3.weight.grad.any()


def test_gradients_of_functional_calls_are_those_of_separate_layers():
    module, x = feed_forward(), torch.randn(3, 32)
    weights = {name: weight.detach() for name, weight in module.named_parameters()}
    tangents = {name: torch.randn_like(weight) for name, weight in weights.items()}

    def loss(weights):
        return torch.func.functional_call(module, weights, (x,)).square().sum()

    def both():
        return torch.func.grad(loss)(weights), torch.func.jvp(loss, (weights,), (tangents,))[1]

    gradients, tangent = both()
    assert module.fused_projections
    module.unfuse_projections()
    expected, expected_tangent = both()
    assert all(torch.allclose(gradients[name], expected[name], atol=1e-6) for name in weights)
    assert torch.allclose(tangent, expected_tangent) and tangent.abs() > 0


def test_a_batched_input_passes():
    module, x = feed_forward().requires_grad_(False), torch.randn(5, 3, 32)
    with torch.no_grad():
        assert torch.allclose(torch.vmap(module)(x), torch.stack([module(one) for one in x]), atol=1e-6)


def test_a_backward_hook_fires():
    module, fired = feed_forward().requires_grad_(False), []
    module.w1.register_full_backward_hook(lambda *args: fired.append(True))
    module(torch.randn(3, 32, requires_grad=True)).sum().backward()
    assert fired


def test_a_model_without_memory_cannot_be_tuned(config):
    with torch.device("meta"):
        empty = Ideogram4Transformer2DModel(**config)
    with pytest.raises(RuntimeError, match="No attention backend runs"):
        empty.tune_attention([4])
