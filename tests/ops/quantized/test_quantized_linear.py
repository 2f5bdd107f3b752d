"""One quantized layer: what it stores, its products against float64, gradients, and types that must not change."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ideoflow.ops import KINDS, Float8Linear, Int8Linear
from ideoflow.ops.linear import Linear
from ideoflow.ops.quantized_linear import _try_product, float8_product, has_product, int8_product
from ideoflow.ops.rows import expand, quantize_rows

FLOAT8_STEP = 2.0**-4  # half the distance of neighbours in float8_e4m3fn, relative; 3 bits of mantissa
FLOAT8_SMALLEST_STEP = 2.0**-10  # the same below its smallest normal number, absolute
EXACT = 1 + 1e-5  # room for the float32 arithmetic around a rounding

both = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
some = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 10_000)


def ordinary(in_features: int, out_features: int, seed: int = 0, bias: bool = True) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(in_features, out_features, bias=bias)


def tokens_of(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def exact(layer: Float8Linear | Int8Linear) -> Tensor:
    """The weight that the layer stands for, in float64."""
    return layer.weight.double() * layer.weight_scale.double()[:, None]


def oracle(layer: Float8Linear | Int8Linear, x: Tensor) -> Tensor:
    bias = 0 if layer.bias is None else layer.bias.double()
    return x.double() @ exact(layer).T + bias


# What is stored


@both
def test_it_stores_a_byte_a_weight_and_a_float32_scale_a_row(kind):
    linear = ordinary(24, 10)
    layer = kind.from_linear(linear)
    assert {name: (t.dtype, t.shape) for name, t in layer.state_dict().items()} == {
        "weight": (kind.storage, (10, 24)),
        "weight_scale": (torch.float32, (10,)),
        "bias": (torch.float32, (10,)),
    }
    assert layer.weight.element_size() == 1
    assert torch.equal(layer.bias, linear.bias)


@some
@given(rows=st.integers(1, 9), columns=st.integers(1, 40), magnitude=st.floats(-30, 30), seed=seeds)
def test_rows_are_rounded_to_the_nearest_of_int8(rows, columns, magnitude, seed):
    x = tokens_of(rows, columns, seed) * 10**magnitude
    stored, scale = quantize_rows(x, torch.int8)
    assert stored.abs().amax(1).eq(127).all()  # the whole range is used
    error = (stored.double() * scale.double()[:, None] - x.double()).abs()
    assert (error <= 0.5 * EXACT * scale[:, None]).all()


@some
@given(rows=st.integers(1, 9), columns=st.integers(1, 40), magnitude=st.floats(-30, 30), seed=seeds)
def test_rows_are_rounded_to_the_nearest_of_float8(rows, columns, magnitude, seed):
    x = tokens_of(rows, columns, seed) * 10**magnitude
    stored, scale = quantize_rows(x, torch.float8_e4m3fn)
    assert stored.float().abs().amax(1).eq(448).all()
    error = (stored.double() * scale.double()[:, None] - x.double()).abs()
    assert (error <= EXACT * torch.maximum(FLOAT8_STEP * x.abs(), FLOAT8_SMALLEST_STEP * scale[:, None])).all()


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 1e-40])
def test_rows_of_zeros_and_of_next_to_nothing_are_finite(dtype, value):
    stored, scale = quantize_rows(torch.full((2, 5), value), dtype)
    assert torch.isfinite(scale).all() and (scale > 0).all()
    assert (stored.double() * scale.double()[:, None] - value).abs().max() <= 1e-38


@both
def test_an_outlier_costs_its_own_row_only(kind):
    linear = ordinary(32, 4, bias=False)
    before = exact(kind.from_linear(linear))
    with torch.no_grad():
        linear.weight[1, 7] = 1e6
    after = exact(kind.from_linear(linear))
    assert after[1, 7] == pytest.approx(1e6, rel=1e-6)
    assert torch.equal(after[[0, 2, 3]], before[[0, 2, 3]])


@both
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_expanding_rounds_once(kind, dtype):
    layer = kind.from_linear(ordinary(33, 17))
    wide = layer.weight.to(torch.promote_types(dtype, torch.float32)) * layer.weight_scale[:, None]
    assert torch.equal(expand(layer.weight, layer.weight_scale, dtype), wide.to(dtype))


# Products


@both
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@some
@given(
    tokens=st.integers(0, 40), widths=st.tuples(st.integers(1, 70), st.integers(1, 70)), bias=st.booleans(), seed=seeds
)
def test_the_expanded_product_is_that_of_the_stored_weights(kind, dtype, tokens, widths, bias, seed):
    layer = kind.from_linear(ordinary(*widths, seed, bias))
    x = tokens_of(tokens, widths[0], seed).to(dtype).requires_grad_()
    out = layer(x)
    assert out.dtype == dtype and out.shape == (tokens, widths[1])
    spread = x.detach().double().abs() @ exact(layer).abs().T + (0 if layer.bias is None else layer.bias.abs())
    # Rounded: the weight, each sum, and the result without and with the bias.
    rounding = torch.finfo(dtype).eps * (2 if dtype == torch.bfloat16 else widths[0] + 4)
    assert ((out.detach().double() - oracle(layer, x.detach())).abs() <= rounding * spread).all()


def check_int8(x: Tensor, linear: nn.Linear) -> None:
    """Within what rounding each number to the nearest step can cost, against stored and against original weights."""
    layer = Int8Linear.from_linear(linear)
    out = int8_product(x, layer.weight, layer.weight_scale).double()
    x, stored, original = x.double(), exact(layer), linear.weight.double()
    token_step = (x.abs().amax(1, keepdim=True) / 127).clamp_min(torch.finfo(torch.float32).tiny)
    weight_step = layer.weight_scale.double()
    float32 = 4 * torch.finfo(torch.float32).eps * (x.abs() @ stored.abs().T)
    bound = 0.5 * token_step * stored.abs().sum(1)
    assert ((out - x @ stored.T).abs() <= EXACT * bound + float32).all()
    bound = bound + 0.5 * weight_step * x.abs().sum(1, keepdim=True)
    assert ((out - x @ original.T).abs() <= EXACT * bound + float32).all()


@some
@given(tokens=st.integers(2, 40), widths=st.tuples(st.integers(2, 70), st.integers(2, 70)), seed=seeds)
def test_the_int8_product_is_within_its_steps(tokens, widths, seed):
    check_int8(tokens_of(tokens, widths[0], seed), ordinary(*widths, seed, bias=False))


FLOAT8, CPU = torch.float8_e4m3fn, torch.device("cpu")
needs_float8 = pytest.mark.skipif(not has_product(FLOAT8, CPU), reason="torch multiplies no float8 by rows on this CPU")
products = pytest.mark.parametrize("product", [pytest.param(float8_product, marks=needs_float8), int8_product])


def check_float8(x: Tensor, layer: Float8Linear) -> None:
    out = float8_product(x, layer.weight, layer.weight_scale).double()
    x, stored = x.double(), exact(layer)
    token_step = (x.abs().amax(1, keepdim=True) / 448).clamp_min(torch.finfo(torch.float32).tiny)
    bound = torch.maximum(FLOAT8_STEP * x.abs(), FLOAT8_SMALLEST_STEP * token_step) @ stored.abs().T
    rounding = torch.finfo(torch.bfloat16).eps * (x.abs() @ stored.abs().T)
    assert ((out - x @ stored.T).abs() <= bound + rounding).all()


@needs_float8
@some
@given(tokens=st.integers(1, 40), widths=st.tuples(st.integers(1, 5), st.integers(1, 5)), seed=seeds)
def test_the_float8_product_is_within_its_steps(tokens, widths, seed):
    wide, high = (16 * width for width in widths)
    check_float8(tokens_of(tokens, wide, seed), Float8Linear.from_linear(ordinary(wide, high, seed, bias=False)))


@needs_float8
def test_outliers_of_a_token_stay_within_its_steps():
    x = tokens_of(6, 64)
    x[2, 5], x[4] = 3e4, x[4] * 1e-6
    linear = ordinary(64, 48, bias=False)
    check_int8(x, linear)
    check_float8(x, Float8Linear.from_linear(linear))


def test_the_largest_sums_fit():
    width = 12288  # of the published model's feed-forward
    layer = Int8Linear.from_linear(nn.Linear(width, 2, bias=False))
    nn.init.constant_(layer.weight, -127)
    out = int8_product(torch.ones(3, width), layer.weight, layer.weight_scale)
    assert torch.allclose(out, -127 * width * layer.weight_scale.expand(3, 2))


@products
def test_a_row_of_zeros_gives_zeros(product):
    kind = Float8Linear if product is float8_product else Int8Linear
    linear = ordinary(32, 16, bias=False)
    with torch.no_grad():
        linear.weight[3] = 0
    layer = kind.from_linear(linear)
    x = tokens_of(5, 32)
    x[1] = 0
    out = product(x, layer.weight, layer.weight_scale)
    assert torch.isfinite(out).all()
    assert not out[1].any() and not out[:, 3].any()
    assert not layer(x.requires_grad_())[:, 3].any()


@products
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_token_that_is_not_finite_stays_so_and_spoils_no_other(product, value):
    layer = (Float8Linear if product is float8_product else Int8Linear).from_linear(ordinary(32, 16, bias=False))
    x = tokens_of(4, 32)
    clean = product(x, layer.weight, layer.weight_scale)
    x[2, 9] = value
    out = product(x, layer.weight, layer.weight_scale)
    assert not torch.isfinite(out[2]).any()
    assert torch.equal(out[[0, 1, 3]], clean[[0, 1, 3]])


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (7,), (0,), (2, 3), (2, 0, 3)])
def test_it_takes_any_leading_shape_and_gives_the_type_of_its_input(kind, dtype, shape):
    layer = kind.from_linear(ordinary(32, 16))
    x = torch.randn(*shape, 32).to(dtype)
    out = layer(x)
    assert out.shape == (*shape, 16) and out.dtype == dtype
    if out.numel():
        assert torch.allclose(out.double(), oracle(layer, x), atol=0.03)


@pytest.mark.skipif(not Int8Linear(8, 8).multiplies(torch.ones(2, 8)), reason="needs a processor with VNNI")
@pytest.mark.parametrize("tokens", [2, 16, 17])
def test_a_processor_with_vnni_multiplies_in_int8(tokens):
    layer = Int8Linear.from_linear(ordinary(13, 7, bias=False))
    x = tokens_of(tokens, 13)
    assert torch.equal(layer(x), int8_product(x, layer.weight, layer.weight_scale))


@pytest.mark.parametrize("shape", [(1, 13, 7), (5, 1, 7), (5, 13, 1)])
def test_sizes_of_one_whose_strides_mislead_the_processors_kernel_are_expanded(shape):
    tokens, wide, high = shape
    layer = Int8Linear.from_linear(ordinary(wide, high))
    x = tokens_of(tokens, wide)
    assert not layer.multiplies(x)
    if tokens == 1:
        x = x.as_strided((1, wide), (0, 1))
    assert torch.allclose(layer(x).double(), oracle(layer, x), atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@both
@pytest.mark.parametrize("tokens", [1, 16, 17, 300])
def test_on_cuda_it_gives_what_it_gives_on_the_cpu(kind, tokens):
    layer = kind.from_linear(ordinary(256, 384)).cuda()
    x = tokens_of(tokens, 256).bfloat16()
    rounded, scale = quantize_rows(x.float(), kind.storage)  # as the product rounds it, whatever the CPU multiplies
    at_home = (rounded.float() * scale[:, None]) @ exact(layer.cpu()).float().T + layer.bias
    layer.cuda()
    if not layer.multiplies(x.cuda()):
        at_home = oracle(layer.cpu(), x).float()
        layer.cuda()
    assert torch.allclose(layer(x.cuda()).cpu().float(), at_home, rtol=0.02, atol=0.02)


def test_on_cuda_each_kind_multiplies_where_the_kernels_take_it(monkeypatch):
    capability = {"value": (9, 0)}
    monkeypatch.setattr("ideoflow.ops.quantized_linear._capability", lambda x: capability["value"])
    monkeypatch.setattr("ideoflow.ops.quantized_linear.has_product", lambda storage, device: had["value"])
    had = {"value": True}
    x = torch.empty(17, 64, device="meta")
    assert Float8Linear(64, 32, device="meta").multiplies(x)
    assert not Float8Linear(64, 40, device="meta").multiplies(x)
    assert not Float8Linear(64, 32, device="meta").multiplies(x[:0])
    assert Int8Linear(64, 40, device="meta").multiplies(x)
    assert not Int8Linear(64, 36, device="meta").multiplies(x)
    assert not Int8Linear(64, 40, device="meta").multiplies(x[:16])
    capability["value"] = (8, 6)
    assert not Float8Linear(64, 32, device="meta").multiplies(x)
    assert Int8Linear(64, 40, device="meta").multiplies(x)
    capability["value"] = (0, 0)  # another accelerator
    assert not Int8Linear(64, 40, device="meta").multiplies(x)
    capability["value"], had["value"] = (9, 0), False  # a torch without the product
    assert not Float8Linear(64, 32, device="meta").multiplies(x)
    assert not Int8Linear(64, 40, device="meta").multiplies(x)


# Gradients


@both
def test_the_gradient_of_the_input_is_that_of_the_stored_weights(kind):
    layer = kind.from_linear(ordinary(21, 13))
    x = tokens_of(6, 21).requires_grad_()
    out = layer(x)
    grad = tokens_of(6, 13, seed=1)
    out.backward(grad)
    assert torch.allclose(out.detach().double(), oracle(layer, x.detach()), atol=1e-5)
    assert torch.allclose(x.grad.double(), grad.double() @ exact(layer), atol=1e-5)
    assert torch.allclose(layer.bias.grad, grad.sum(0), atol=1e-5)
    assert layer.weight.grad is None and layer.weight_scale.grad is None


@both
def test_gradients_are_those_of_finite_differences(kind):
    layer = kind.from_linear(ordinary(5, 4).double())
    assert torch.autograd.gradcheck(layer, tokens_of(3, 5).double().requires_grad_())


@both
def test_no_expanded_weight_is_kept_for_the_backward_pass(kind):
    layer = kind.from_linear(ordinary(64, 48, bias=False))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(tokens_of(3, 64).requires_grad_())
    assert sum(t.numel() * t.element_size() for t in kept) == 48 * 64 + 4 * 48


# Types


@both
@pytest.mark.parametrize(
    "move",
    [
        lambda m: m.to(torch.bfloat16),
        lambda m: m.half(),
        lambda m: m.double(),
        lambda m: m.to("cpu", torch.float16),
        lambda m: m.to("meta"),
        lambda m: nn.Sequential(m).bfloat16()[0],
    ],
    ids=["to", "half", "double", "device and dtype", "meta", "within another"],
)
def test_the_weight_and_its_scale_outlive_changes_of_type(kind, move):
    layer = kind.from_linear(ordinary(24, 10))
    weight, scale = layer.weight.detach().clone(), layer.weight_scale.clone()
    layer = move(layer)
    assert (layer.weight.dtype, layer.weight_scale.dtype) == (kind.storage, torch.float32)
    assert layer.compute_dtype == layer.bias.dtype
    assert layer.weight.device == layer.weight_scale.device == layer.bias.device
    if not layer.weight.is_meta:
        assert torch.equal(layer.weight.float(), weight.float()) and torch.equal(layer.weight_scale, scale)


@both
def test_autocast_chooses_the_type_as_it_does_for_ordinary_layers(kind):
    linear = ordinary(24, 10)
    with torch.autocast("cpu", torch.bfloat16):
        expected, out = linear(tokens_of(3, 24)), kind.from_linear(linear)(tokens_of(3, 24))
    assert out.dtype == expected.dtype == torch.bfloat16
    assert torch.allclose(out, expected, atol=0.1)


@both
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_the_ordinary_layer_that_it_gives_back_has_the_expanded_weight(kind, dtype):
    layer = kind.from_linear(ordinary(24, 10).half())
    linear = layer.to_linear(dtype)
    assert type(linear) is Linear and linear.weight.dtype == linear.bias.dtype == (dtype or torch.float16)
    assert torch.equal(linear.weight, exact(layer).float().to(linear.weight.dtype))
    again = kind.from_linear(layer.to_linear(torch.float32))
    assert torch.equal(again.weight.float(), layer.weight.float())


@both
def test_it_compiles_as_one_graph(kind):
    layer = kind.from_linear(ordinary(32, 16))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = tokens_of(5, 32)
    assert torch.allclose(compiled(x), layer(x), atol=1e-5)
    x.requires_grad_()
    assert torch.allclose(compiled(x), layer(x), atol=1e-5)


# Errors


@both
def test_an_input_of_another_width_or_of_integers_is_refused(kind):
    layer = kind(8, 4)
    with pytest.raises(ValueError, match=r"`x` must have the shape \(\.\.\., 8\), got \(4, 6\)"):
        layer(torch.ones(4, 6))  # 24 numbers would make 3 tokens of 8
    with pytest.raises(TypeError, match=r"`x` must be a floating-point tensor, got torch\.int64"):
        layer(torch.ones(4, 8, dtype=torch.long))


@both
def test_weights_of_another_type_are_refused_and_change_nothing(kind):
    layer = kind.from_linear(ordinary(8, 4))
    before = layer.weight.detach().float().clone()
    with pytest.raises(RuntimeError, match=r"`weight` must be torch\.\w+, got torch\.float32: a \w+ loads no other"):
        layer.load_state_dict({**layer.state_dict(), "weight": torch.ones(4, 8)})
    half = {**layer.state_dict(), "weight_scale": torch.ones(4).half()}
    with pytest.raises(RuntimeError, match=r"`weight_scale` must be torch\.float32, got torch\.float16"):
        layer.load_state_dict(half)
    assert torch.equal(layer.weight.float(), before)


def test_products_are_asked_for_by_trying(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("Only tensorwise scaling is supported")

    ask = _try_product.__wrapped__  # past the cache
    assert ask(torch.int8, CPU)
    monkeypatch.setattr(torch, "_scaled_mm", refuse)
    monkeypatch.setattr(torch, "_int_mm", refuse)
    assert not ask(torch.int8, CPU) and not ask(FLOAT8, CPU)


def test_the_question_is_compiled_as_its_answer():
    ask = torch.compile(
        lambda x: x + 1 if has_product(torch.int8, x.device) else x - 1, backend="eager", fullgraph=True
    )
    assert torch.equal(ask(torch.zeros(2)), torch.ones(2) if has_product(torch.int8, CPU) else -torch.ones(2))
