"""Caches of what weights gave: no way in which a component can change is missed, and nothing else is computed anew."""

import copy
import random
from contextlib import contextmanager

import pytest
import torch
from diffusers.training_utils import EMAModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ideoflow import Ideogram4Pipeline, Ideogram4Transformer2DModel
from ideoflow.engine import Denoiser, denoiser
from ideoflow.ops.weights import _checksums, contents_key, snapshot
from ideoflow.pipeline.text_cache import TextCache
from tests.thinned import thinned

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*outside what the weights were trained on"),
    pytest.mark.filterwarnings("ignore::ideoflow.captions.CaptionWarning"),
]
TAPS = (0, 1)
TEXT_WIDTH = 32


def randomise(module, seed):
    """Weights drawn anew, at a scale that keeps signals of order one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(draw / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 1 + 0.1 * draw)
    return module.eval()


@pytest.fixture(scope="module")
def components(loaded_pipeline):
    """A pipeline of one layer and a text encoder of two."""
    parts = copy.deepcopy(loaded_pipeline.components)
    encoder = parts["text_encoder"]
    encoder.language_model.layers = encoder.language_model.layers[: len(TAPS)]
    config = {key: value for key, value in parts["transformer"].config.items() if key[0] != "_"}
    config |= {"num_layers": 1, "llm_features_dim": TEXT_WIDTH * len(TAPS)}
    transformer = randomise(Ideogram4Transformer2DModel(**config), 3)
    return {**parts, "transformer": transformer, "unconditional_transformer": None, "text_encoder_taps": TAPS}


@pytest.fixture
def pipe(components):
    return Ideogram4Pipeline(**copy.deepcopy(components))


def embedded(pipe, caption="a b"):
    """What a request keeps of a caption."""
    requests = pipe.make_requests(caption, 32, 32, 1, guidance_scale=1, guidance_schedule=None)
    return requests[0].conditional.text


def embedded_afresh(pipe):
    """The same by a pipeline that has no cache."""
    kept, pipe.text_cache = pipe.text_cache, TextCache(0)
    try:
        return embedded(pipe)
    finally:
        pipe.text_cache = kept


def assert_fresh(pipe):
    assert torch.equal(embedded(pipe), embedded_afresh(pipe))


# Every parameter and buffer, changed in every way

WAYS = {}


def way(change):
    WAYS[change.__name__] = change
    return change


def other(tensor):
    return tensor.detach() * 1.5 + 0.1


@way
def in_place(module, name, tensor):
    with torch.no_grad():
        tensor.copy_(other(tensor))


@way
def in_inference_mode(module, name, tensor):
    with torch.inference_mode():
        tensor.mul_(1.5)


@way
def through_data(module, name, tensor):
    tensor.data.copy_(other(tensor))


@way
def through_data_one_element(module, name, tensor):
    tensor.data.view(-1)[tensor.numel() // 2] += 0.5


@way
def through_data_negated(module, name, tensor):
    tensor.data.neg_()


@way
def through_data_doubled(module, name, tensor):
    tensor.data.mul_(2)


@way
def through_data_rows_in_another_order(module, name, tensor):
    tensor.data.copy_(tensor.data.flip(0))


@way
def through_data_columns_in_another_order(module, name, tensor):
    tensor.data.copy_(tensor.data.flip(-1))


@way
def through_numpy(module, name, tensor):
    tensor.detach().numpy()[...] *= 1.5


@way
def data_put_elsewhere(module, name, tensor):
    tensor.data = other(tensor)


@way
def replaced(module, name, tensor):
    put(module, name, other(tensor))


@way
def replaced_where_the_old_one_lay(module, name, tensor):
    new = other(tensor)
    setattr(module, name, None)
    del tensor
    put(module, name, new)


@way
def assigned(module, name, tensor):
    if name in module.state_dict():
        module.load_state_dict({**module.state_dict(), name: other(tensor)}, assign=True)


@way
def swapped(module, name, tensor):
    if name in module._parameters:
        torch.utils.swap_tensors(tensor, nn.Parameter(other(tensor)))


@way
def cast_and_cast_back(module, name, tensor):
    module.to(torch.bfloat16).to(torch.float32)


@way
def averaged(module, name, tensor):
    average = EMAModel([nn.Parameter(other(tensor))])
    average.copy_to([tensor])


def put(module, name, value):
    if name in module._parameters:
        setattr(module, name, nn.Parameter(value))
    else:
        module.register_buffer(name, value, persistent=name not in module._non_persistent_buffers_set)


def tensors_of(*modules):
    """(module, name) of each parameter and buffer that holds numbers."""
    for module in modules:
        for part in module.modules():
            for name, tensor in [*part._parameters.items(), *part._buffers.items()]:
                if tensor is not None and tensor.is_floating_point():
                    yield part, name


@contextmanager
def changed(change, module, name):
    """A tensor changed in a way, and put back afterwards, which is a change of its own."""
    kept = {
        key: value.detach().clone()
        for key, value in [*module._parameters.items(), *module._buffers.items()]
        if value is not None
    }
    change(module, name, getattr(module, name))
    yield
    for key, value in kept.items():
        getattr(module, key).data = value.clone()


KEPT = ["in_place", "through_data", "through_data_one_element", "through_numpy", "replaced", "swapped", "averaged"]


@pytest.mark.parametrize("change", thinned(WAYS, KEPT))
def test_captions_are_embedded_anew_after_any_tensor_changed_in_any_way(pipe, change):
    transformer = pipe.transformer
    parts = [pipe.text_encoder.language_model, transformer.llm_cond_norm, transformer.llm_cond_proj]
    before, moved = embedded(pipe), 0
    for module, name in tensors_of(*parts):
        with changed(WAYS[change], module, name):
            now = embedded(pipe)
            assert torch.equal(now, embedded_afresh(pipe)), (change, module, name)
            moved += not torch.equal(now, before)
        assert torch.equal(embedded(pipe), before), ("put back after", change, module, name)
    assert moved >= 10  # the last norm, layers' ends and rows of other words count for nothing here


def steps_of(pipe, step, cached=True):
    """Latents of a new request after a step by `step`."""
    (request,) = pipe.make_requests(
        "a", 32, 32, 3, guidance_scale=1, guidance_schedule=None, latents=torch.ones(1, 4, 16)
    )
    step([request])
    return request.latents


def steps_afresh(pipe, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(denoiser, "SCHEDULES", 0)  # computes every step's modulation in the step
        return steps_of(pipe, Denoiser(pipe.transformer, None).step)


def close(ours, theirs):
    return (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("change", thinned(WAYS, KEPT))
def test_requests_that_begin_are_modulated_anew_after_any_tensor_changed_in_any_way(pipe, change, monkeypatch):
    engine = pipe.engine()
    before, moved = steps_of(pipe, engine.advance), 0
    for module, name in tensors_of(*pipe.transformer.time_layers):
        with changed(WAYS[change], module, name):
            now = steps_of(pipe, engine.advance)
            assert close(now, steps_afresh(pipe, monkeypatch)), (change, module, name)
            moved += not close(now, before)
        assert close(steps_of(pipe, engine.advance), before)
    assert moved >= 6


VISIBLE = ["in_place", "data_put_elsewhere", "replaced", "replaced_where_the_old_one_lay", "assigned", "swapped"]


@pytest.mark.parametrize("change", VISIBLE)
def test_requests_under_way_see_every_change_but_those_through_data(pipe, change, monkeypatch):
    engine = pipe.engine()
    module = pipe.transformer.layers[0].adaln_modulation
    (request,) = pipe.make_requests("a", 32, 32, 3, guidance_scale=1, guidance_schedule=None)
    engine.advance([request])
    twin = copy.copy(request)

    WAYS[change](module, "weight", module.weight)
    engine.advance([request])
    with monkeypatch.context() as patch:
        patch.setattr(denoiser, "SCHEDULES", 0)
        Denoiser(pipe.transformer, None).step([twin])

    assert close(request.latents, twin.latents)


# What is no tensor

CHANGES = {}


def component(change):
    CHANGES[change.__name__] = change
    return change


def add_one(module, args, output):
    return output + 1 if isinstance(output, torch.Tensor) else (output[0] + 1, *output[1:])


@component
def a_hook_on_a_layer(pipe):
    pipe.text_encoder.language_model.layers[0].mlp.register_forward_hook(add_one)


@component
def a_hook_on_the_projection(pipe):
    pipe.transformer.llm_cond_proj.register_forward_hook(add_one)


@component
def a_hook_before_the_norm(pipe):
    pipe.transformer.llm_cond_norm.register_forward_pre_hook(lambda module, args: (args[0] + 1,))


@component
def a_forward_of_ones_own(pipe):
    layer = pipe.text_encoder.language_model.layers[1].mlp
    plain = layer.forward
    layer.forward = lambda x: plain(x) * 2


@component
def an_epsilon(pipe):
    pipe.text_encoder.language_model.layers[0].input_layernorm.variance_epsilon = 0.5


@component
def another_activation(pipe):
    pipe.text_encoder.language_model.layers[0].mlp.act_fn = nn.Tanh()


@component
def another_module(pipe):
    new = nn.Linear(64, 32)
    pipe.transformer.llm_cond_proj = new


@component
def a_parametrization(pipe):
    class Double(nn.Module):
        def forward(self, x):
            return 2 * x

    nn.utils.parametrize.register_parametrization(pipe.transformer.llm_cond_proj, "weight", Double())


@component
def the_tokenizer(pipe):
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    pipe.tokenizer.chat_template = pipe.tokenizer.chat_template.replace("assistant", "designer")


@component
def the_chat_template(pipe):
    pipe.tokenizer.chat_template = pipe.tokenizer.chat_template.replace("assistant", "painter")


@component
def the_taps(pipe):
    pipe.register_to_config(text_encoder_taps=[1, 0])


@component
def the_text_encoder(pipe):
    pipe.text_encoder = randomise(copy.deepcopy(pipe.text_encoder), 77)


@component
def the_transformer(pipe):
    pipe.transformer = randomise(copy.deepcopy(pipe.transformer), 78)


@component
def the_type(pipe):
    pipe.to(torch.float64)


@component
def load_state_dict(pipe):
    state = {name: other(t) for name, t in pipe.text_encoder.state_dict().items()}
    pipe.text_encoder.load_state_dict(state, assign=True)


@component
def an_average_of_all_weights(pipe):
    parameters = list(pipe.text_encoder.parameters())
    EMAModel([nn.Parameter(other(parameter)) for parameter in parameters]).copy_to(parameters)


@component
def a_new_word(pipe):
    """As textual inversion writes it."""
    pipe.text_encoder.get_input_embeddings().weight.data[pipe.tokenizer.encode("a")[0]] = torch.ones(TEXT_WIDTH)


def adapter(pipe, scale=1.0):
    generator = torch.Generator().manual_seed(5)
    return {
        "llm_cond_proj.lora_A.weight": torch.randn(2, TEXT_WIDTH * len(TAPS), generator=generator) * scale,
        "llm_cond_proj.lora_B.weight": torch.randn(TEXT_WIDTH, 2, generator=generator),
    }


@component
def load_lora_adapter(pipe):
    pipe.transformer.load_lora_adapter(adapter(pipe), prefix=None, adapter_name="one")


@component
def scale_of_an_adapter(pipe):
    load_lora_adapter(pipe)
    embedded(pipe)
    pipe.transformer.set_adapters("one", 0.3)


@component
def fuse_lora_on_the_model(pipe):
    load_lora_adapter(pipe)
    embedded(pipe)
    pipe.transformer.fuse_lora()
    assert_fresh(pipe)
    pipe.transformer.unload_lora()


@component
def disable_lora(pipe):
    fuse_lora_on_the_model(pipe)
    load_lora_adapter(pipe)
    embedded(pipe)
    pipe.transformer.disable_lora()


@component
def layerwise_casting(pipe):
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)


@component
def a_peft_adapter_on_the_text_encoder(pipe):
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(0)
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    inject_adapter_in_model(config, pipe.text_encoder)


@pytest.mark.parametrize("change", CHANGES)
def test_captions_are_embedded_anew_after_any_other_change(pipe, change):
    before = embedded(pipe)

    CHANGES[change](pipe)

    now = embedded(pipe)
    assert torch.equal(now, embedded_afresh(pipe)) and torch.equal(now, embedded(pipe))
    assert now.shape != before.shape or not torch.equal(now.double(), before.double())


@pytest.mark.parametrize("last", ["unload_lora", "enable_lora"])
def test_captions_are_embedded_anew_when_an_adapter_is_gone_or_back(pipe, last):
    load_lora_adapter(pipe)
    embedded(pipe)
    if last == "enable_lora":
        pipe.transformer.disable_lora()
        embedded(pipe)
    getattr(pipe.transformer, last)()

    assert_fresh(pipe)


@pytest.mark.parametrize("first", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("second", [None, torch.bfloat16, torch.float16])
def test_each_type_of_autocast_has_captions_of_its_own(pipe, first, second):
    def under(dtype, make):
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            return make(pipe)

    under(first, embedded)

    assert torch.equal(under(second, embedded), under(second, embedded_afresh))


def test_a_hook_on_all_modules_is_seen(pipe):
    embedded(pipe)
    handle = nn.modules.module.register_module_forward_hook(
        lambda m, a, output: output + 1 if m is pipe.transformer.llm_cond_proj else None
    )
    try:
        assert_fresh(pipe)
    finally:
        handle.remove()


# What is no change

HALVES = [("A", (2, 32)), ("B", (32, 2))]
STILL = {
    "nothing": lambda pipe: None,
    "moved there and back": lambda pipe: pipe.text_encoder.to("cpu"),
    "copied weights": lambda pipe: pipe.text_encoder.load_state_dict(copy.deepcopy(pipe.text_encoder.state_dict())),
    "equal weights assigned": lambda pipe: pipe.text_encoder.load_state_dict(
        copy.deepcopy(pipe.text_encoder.state_dict()), assign=True
    ),
    "weights put elsewhere": lambda pipe: [setattr(p, "data", p.data.clone()) for p in pipe.transformer.parameters()],
    "an equal tokenizer": lambda pipe: setattr(pipe, "tokenizer", copy.deepcopy(pipe.tokenizer)),
    "model offload": lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
    "group offload": lambda pipe: pipe.enable_group_offload(torch.device("cpu"), offload_type="leaf_level"),
    "a hook elsewhere": lambda pipe: pipe.transformer.layers[0].register_forward_hook(lambda *_: None),
    "an adapter elsewhere": lambda pipe: pipe.transformer.load_lora_adapter(
        {
            "layers.0.attention.to_q.lora_A.weight": torch.ones(2, 32),
            "layers.0.attention.to_q.lora_B.weight": torch.ones(32, 2),
        },
        prefix=None,
    ),
    "fused projections": lambda pipe: pipe.fuse_projections(),
    "a call": lambda pipe: pipe("a b", 32, 32, 1, guidance_scale=1, guidance_schedule=None, output_type="latent"),
}


@pytest.mark.parametrize("still", STILL)
def test_captions_are_kept_while_nothing_that_counts_has_changed(pipe, still):
    before = embedded(pipe)
    hits = pipe.text_cache.hits

    STILL[still](pipe)

    assert torch.equal(embedded(pipe), before) and pipe.text_cache.hits > hits and pipe.text_cache.misses == 1


def test_modulations_are_computed_once_for_requests_that_begin_together(pipe, monkeypatch):
    made, plain = [], Ideogram4Transformer2DModel.modulate
    monkeypatch.setattr(
        Ideogram4Transformer2DModel, "modulate", lambda model, times: (made.append(len(times)), plain(model, times))[1]
    )
    requests = pipe.make_requests(
        ["a", "b"], 32, 32, 3, guidance_scale=1, guidance_schedule=None, num_images_per_prompt=2
    )

    pipe.engine().complete(requests)

    assert made == [3]


# Keys


@pytest.mark.parametrize("key", [contents_key, lambda module: snapshot([module])])
def test_weights_that_are_not_in_memory_have_no_key(key):
    with torch.device("meta"):
        assert key(nn.Linear(3, 3)) is None


def test_keys_are_those_of_contents_on_every_type_and_layout():
    torch.manual_seed(0)
    for dtype in (
        torch.float64,
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.float8_e4m3fn,
        torch.int8,
        torch.bool,
    ):
        weight = (torch.randn(37, 11) * 3).to(dtype)
        odd = torch.cat([torch.zeros(3, dtype=torch.uint8), weight.view(torch.uint8).view(-1)])[3:].clone()
        twins = [weight.clone(), weight.t().contiguous().t(), odd.view(dtype).view(37, 11)]
        assert all(_checksums([twin]) == _checksums([weight]) for twin in twins), dtype


@settings(max_examples=200, deadline=None)
@given(
    dtype=st.sampled_from(
        [torch.float64, torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.uint8]
    ),
    size=st.one_of(st.integers(1, 40), st.sampled_from([1021, 8 * 1021, 8 * 1021 + 5, 300_000])),
    seed=st.integers(0, 2**16),
    how=st.sampled_from(["bit", "byte", "signs", "swap", "reverse", "shift"]),
)
def test_any_change_of_any_bytes_changes_the_checksum(dtype, size, seed, how):
    draw = random.Random(seed)
    octets = torch.randint(0, 256, (size * dtype.itemsize,), generator=torch.Generator().manual_seed(seed)).to(
        torch.uint8
    )
    before, changed = octets.view(dtype), octets.clone()
    i, j = draw.randrange(len(octets)), draw.randrange(len(octets))
    if how == "bit":
        changed[i] ^= 1 << draw.randrange(8)
    elif how == "byte":
        changed[i] += draw.randrange(1, 256)
    elif how == "signs":
        changed[dtype.itemsize - 1 :: dtype.itemsize] ^= 128
    elif how == "swap":
        changed[[i, j]] = octets[[j, i]]
    elif how == "reverse":
        changed = octets.flip(0)
    else:
        changed = octets.roll(1)
    same = torch.equal(changed, octets)

    assert (_checksums([changed.view(dtype)]) == _checksums([before])) == same


def test_four_bit_weights_are_counted_with_their_scales():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, quant_type="nf4", compute_dtype=torch.float32)
    layer.load_state_dict({"weight": torch.randn(64, 64, generator=torch.Generator().manual_seed(0))})
    layer = layer.to("cpu")
    layer(torch.ones(1, 64))
    key = contents_key(layer)

    assert key is not None and contents_key(layer) == key
    layer.weight.quant_state.absmax.mul_(2)
    scaled = contents_key(layer)
    assert scaled != key
    layer.weight.data[0] += 1
    assert contents_key(layer) != scaled


def test_torchao_weights_are_counted():
    quantization = pytest.importorskip("torchao.quantization")
    layer = nn.Sequential(nn.Linear(64, 64))
    quantization.quantize_(layer, quantization.Int8WeightOnlyConfig())
    key = contents_key(layer)

    assert key is not None and contents_key(layer) == key
    inner = layer[0].weight.__tensor_flatten__()[0]
    getattr(layer[0].weight, inner[0]).view(-1)[0] += 1
    assert contents_key(layer) != key
