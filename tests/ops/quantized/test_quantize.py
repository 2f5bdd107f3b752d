"""A transformer whose blocks are quantized: which layers, what it refuses, state dicts, and adapters on top."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn

from ideoflow import Ideogram4Transformer2DModel
from ideoflow.ops import KINDS, QuantizedLinear, dequantize_, quantize_
from ideoflow.ops.linear import Linear

BLOCKS = 2  # of the fixture's model
PARTS = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0")
PARTS += ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
LAYERS = {f"layers.{i}.{part}" for i in range(BLOCKS) for part in PARTS}
TARGETS = ["to_q", "to_v", "to_out.0", "w2", "input_proj"]

both = pytest.mark.parametrize("kind", KINDS)


def expanded(model: Ideogram4Transformer2DModel) -> Ideogram4Transformer2DModel:
    """A copy with ordinary layers of the same weights."""
    model = copy.deepcopy(model)
    dequantize_(model, torch.float32)
    return model


def types(model: nn.Module) -> dict[str, type]:
    return {name: type(part) for name, part in model.named_modules()}


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


# Which layers


@both
def test_the_blocks_matrices_are_quantized_and_nothing_else(model, kind):
    before = types(model)
    others = {name: p for name, p in model.named_parameters() if name.removesuffix(".weight") not in LAYERS}
    assert set(quantize_(model, kind)) == LAYERS
    changed = {name for name, now in types(model).items() if now is not before[name]}
    assert changed == LAYERS
    assert all(type(model.get_submodule(name)) is KINDS[kind] for name in LAYERS)
    now = dict(model.named_parameters())
    assert all(now[name] is parameter for name, parameter in others.items())
    assert model.dtype == torch.float32


@both
def test_a_weight_takes_one_byte(model, kind):
    def size(model: nn.Module) -> int:
        return sum(t.nbytes for t in model.layers.state_dict().values())

    weights = {name: model.get_submodule(name).weight for name in LAYERS}
    before = size(model)
    quantize_(model, kind)
    assert before - size(model) == sum(3 * w.numel() - 4 * len(w) for w in weights.values())


def test_one_layers_old_weight_is_gone_before_the_next_is_quantized(model, monkeypatch):
    seen: list[weakref.ref] = []
    original = KINDS["int8"].from_linear.__func__

    def spy(cls, linear):
        assert all(ref() is None for ref in seen)
        seen.append(weakref.ref(linear.weight))
        return original(cls, linear)

    monkeypatch.setattr(KINDS["int8"], "from_linear", classmethod(spy))
    quantize_(model, "int8")
    assert len(seen) == len(LAYERS)


@both
def test_layers_that_skip_names_stay(model, kind):
    first = {name for name in LAYERS if name.startswith("layers.0.")}
    w2 = {name for name in LAYERS if name.endswith("w2")}
    done = quantize_(model, kind, skip=[r"layers\.0\..*", r".*\.w2"])
    assert set(done) == LAYERS - first - w2
    assert all(type(model.get_submodule(name)) is Linear for name in first | w2)


@both
def test_what_is_quantized_can_be_expanded(model, kind, predict):
    before, kinds = predict(model), types(model)
    quantize_(model, kind)
    scaled = {name: model.get_submodule(name).dequantize() for name in LAYERS}
    assert set(dequantize_(model, torch.float32)) == LAYERS
    assert types(model) == kinds
    assert all(torch.equal(model.get_submodule(name).weight, weight) for name, weight in scaled.items())
    assert relative(predict(model), before) <= 0.1
    assert dequantize_(model, torch.float32) == []


# Results


@both
def test_velocities_are_those_of_the_expanded_model(model, kind, predict, expanding):
    quantize_(model, kind)
    assert relative(predict(model), predict(expanded(model))) <= 1e-5


def test_products_in_int8_change_velocities_a_little(model, predict):
    before = predict(model)
    quantize_(model, "int8")
    assert 0 < relative(predict(model), before) <= 0.05


@both
def test_in_half_precision_it_is_the_expanded_model_in_half_precision(model, kind, predict, expanding):
    quantize_(model, kind)
    model.to(torch.bfloat16)
    assert model.dtype == torch.bfloat16
    plain = copy.deepcopy(model)
    dequantize_(plain)
    assert all(p.dtype == torch.bfloat16 for p in plain.parameters())
    assert torch.equal(predict(model), predict(plain))


# Fused projections


def parts(model) -> list:
    return [part for block in model.layers for part in (block.attention, block.feed_forward)]


@both
def test_quantized_projections_of_one_input_are_fused(model, kind, predict):
    assert set(quantize_(model, kind)) == LAYERS
    assert all(part.fused_projections for part in parts(model))
    together = predict(model)
    model.unfuse_projections()
    assert relative(together, predict(model)) <= 1e-5


@both
def test_fused_projections_can_be_quantized_and_expanded(model, kind, predict):
    apart = copy.deepcopy(model)
    quantize_(apart, kind)
    model.fuse_projections()
    assert set(quantize_(model, kind)) == LAYERS
    assert torch.equal(predict(model), predict(apart))
    dequantize_(model, torch.float32)
    assert not any(part.fused_projections for part in parts(model))
    before = predict(model)
    model.fuse_projections()
    assert all(part.fused_projections for part in parts(model))
    assert relative(predict(model), before) <= 1e-5


# State dicts


@both
def test_a_file_has_the_published_names_and_loads_to_the_same_model(model, kind, predict, tmp_path):
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.mul_(0.5)
    quantize_(fresh, kind)
    quantize_(model, kind)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    loaded = load_file(tmp_path / "model.safetensors")
    assert {name for name in loaded if name.endswith("weight_scale")} == {f"{name}.weight_scale" for name in LAYERS}
    for name in LAYERS:
        assert loaded[f"{name}.weight"].dtype == KINDS[kind].storage
        assert loaded[f"{name}.weight_scale"].dtype == torch.float32
        assert loaded[f"{name}.weight_scale"].shape == loaded[f"{name}.weight"].shape[:1]
    assert not torch.equal(predict(fresh), predict(model))
    fresh.load_state_dict(loaded)
    assert torch.equal(predict(fresh), predict(model))


@both
def test_a_file_loads_into_a_model_without_memory(model, kind, predict):
    quantize_(model, kind)
    with torch.device("meta"):
        empty = Ideogram4Transformer2DModel.from_config(model.config).eval()
    quantize_(empty, kind)
    empty.load_state_dict(model.state_dict(), assign=True)
    assert relative(predict(empty), predict(model)) <= 1e-6


def test_a_file_of_another_kind_is_refused(model):
    other = copy.deepcopy(model)
    quantize_(model, "int8")
    for form in ("fp8", None):
        source = copy.deepcopy(other)
        if form:
            quantize_(source, form)
        with pytest.raises(RuntimeError, match=r"`layers\.0\.attention\.to_q\.weight` must be torch\.int8"):
            model.load_state_dict(source.state_dict())


# Adapters


def add_adapter(model: Ideogram4Transformer2DModel, **kwargs) -> None:
    torch.manual_seed(7)
    model.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=TARGETS, init_lora_weights=False, **kwargs))


@pytest.mark.usefixtures("expanding")
@both
@pytest.mark.parametrize("scale", [0.5, 1.0])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_an_adapter_changes_the_output_as_on_the_expanded_model(model, kind, predict, tmp_path, scale, dora):
    quantize_(model, kind)
    plain = expanded(model)
    add_adapter(plain, use_dora=dora)
    plain.save_lora_adapter(tmp_path)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    base = predict(model)
    model.load_lora_adapter(file, prefix=None)
    assert all(p.dtype == torch.float32 for name, p in model.named_parameters() if "lora_" in name)
    assert isinstance(model.layers[0].attention.to_q, LoraLayer)

    kwargs = dict(attention_kwargs={"scale": scale})
    assert relative(predict(model, **kwargs), predict(plain, **kwargs)) <= 1e-5
    assert relative(predict(model, **kwargs), base) > 0.01
    model.unload_lora()
    assert torch.equal(predict(model), base)


def test_an_adapter_changes_products_in_int8_about_as_much(model, predict):
    quantize_(model, "int8")
    plain = expanded(model)
    before = predict(model), predict(plain)
    for each in (model, plain):
        add_adapter(each)
    change, expected = predict(model) - before[0], predict(plain) - before[1]
    assert torch.isfinite(predict(model, attention_kwargs={"scale": 0.5})).all()
    assert (change - expected).norm() <= 0.1 * expected.norm()


@both
def test_a_model_with_an_adapter_can_be_quantized_and_expanded(model, kind, predict, expanding):
    add_adapter(model)
    original = predict(model)
    assert set(quantize_(model, kind)) == LAYERS
    assert isinstance(model.layers[0].attention.to_q, LoraLayer)
    assert isinstance(model.layers[0].attention.to_q.base_layer, QuantizedLinear)
    quantized = predict(model)
    assert relative(quantized, original) <= 0.1
    assert set(dequantize_(model, torch.float32)) == LAYERS
    assert isinstance(model.layers[0].attention.to_q, LoraLayer)
    assert relative(predict(model), quantized) <= 1e-5


@both
def test_an_adapters_gradients_are_those_on_the_expanded_model(model, kind, inputs):
    quantize_(model, kind)
    plain = expanded(model)
    grads = []
    for each in (model, plain):
        each.requires_grad_(False)
        add_adapter(each)
        each.enable_gradient_checkpointing()
        each.train()
        each(**inputs).sample.pow(2).mean().backward()
        grads.append({name: p.grad for name, p in each.named_parameters() if p.requires_grad})
    assert grads[0].keys() == grads[1].keys() and len(grads[0]) == 2 * (4 * BLOCKS + 1)
    for name, grad in grads[0].items():
        assert (grad - grads[1][name]).norm() <= 1e-4 * grads[1][name].norm(), name


@both
def test_an_adapter_in_half_precision_stays_in_it(model, kind, predict):
    model.to(torch.bfloat16)
    quantize_(model, kind)
    add_adapter(model)
    assert torch.isfinite(predict(model)).all()
    lora = model.layers[0].attention.to_q.lora_A["default"].weight
    assert lora.dtype in (torch.bfloat16, torch.float32)
    assert not torch.equal(lora.float(), lora.to(torch.float8_e4m3fn).float())  # not rounded to 8 bits on the way


@both
def test_fusing_an_adapter_raises_and_changes_nothing(model, kind, predict):
    quantize_(model, kind)
    torch.manual_seed(7)
    config = LoraConfig(r=4, target_modules=["to_q", "w2"], init_lora_weights=False)
    model.add_adapter(config)
    before = predict(model)
    with pytest.raises(ValueError, match=r"`fuse_lora` changes weights.*stored in few bits"):
        model.fuse_lora()
    assert torch.equal(predict(model), before)


# Errors


def test_what_cannot_be_quantized_is_refused_and_left_alone(model):
    with pytest.raises(TypeError, match=r"`module` is a Linear: give an Ideogram4Transformer2DModel"):
        quantize_(nn.Linear(2, 2), "fp8")
    with pytest.raises(ValueError, match=r"`kind` is 'fp4': choose one of fp8, int8"):
        quantize_(model, "fp4")
    with pytest.raises(ValueError, match=r"`skip` holds 'w9', which matches no layer.*layers\.0\.attention\.to_q"):
        quantize_(model, "fp8", skip=["w9"])
    with pytest.raises(ValueError, match=r"`skip` holds '\(', which is no regular expression"):
        quantize_(model, "fp8", skip="(")
    with pytest.raises(ValueError, match=r"`dtype` is torch\.int8: give a floating-point type"):
        dequantize_(model, torch.int8)
    assert not any(isinstance(part, QuantizedLinear) for part in model.modules())


@both
def test_a_model_that_is_quantized_already_is_refused(model, kind):
    quantize_(model, "int8", skip=r"layers\.0\..*")
    before = types(model)
    with pytest.raises(TypeError, match=r"has a Int8Linear in torch\.int8 as layers\.1\.attention\.to_q, but only"):
        quantize_(model, kind)
    assert types(model) == before


@both
def test_weights_that_are_not_finite_are_refused(model, kind):
    with torch.no_grad():
        model.layers[1].feed_forward.w3.weight[2, 3] = torch.nan
    before = types(model)
    with pytest.raises(ValueError, match=r"weights in layers\.1\.feed_forward\.w3 that are not finite"):
        quantize_(model, kind)
    assert types(model) == before


def test_hooks_on_layers_are_refused(model):
    layerwise = copy.deepcopy(model)
    layerwise.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    with pytest.raises(ValueError, match="quantize it before offloading or layerwise casting"):
        quantize_(layerwise, "fp8")
    add_hook_to_module(model.layers[1].feed_forward.w1, ModelHook())
    with pytest.raises(ValueError, match=r"the first on layers\.1\.feed_forward\.w1"):
        quantize_(model, "fp8")


def test_int8_weights_are_not_saved_where_they_could_not_be_opened_again(model, tmp_path):
    quantize_(model, "int8")
    with pytest.raises(ValueError, match="int8 weights, which are not written"):
        model.save_pretrained(tmp_path / "int8")
    assert not (tmp_path / "int8").exists()
    dequantize_(model, torch.float32)
    model.save_pretrained(tmp_path / "expanded")
    Ideogram4Transformer2DModel.from_pretrained(tmp_path / "expanded")
