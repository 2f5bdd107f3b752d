"""The product of the linear layers: like torch's, forward and backward, on whichever path this machine takes."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ideoflow.ops import linear as module
from ideoflow.ops.linear import Linear, linear

needs_onednn = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise") or not torch.backends.mkldnn.is_available(),
    reason="this build of torch has no oneDNN",
)


@pytest.fixture(params=[False, pytest.param(True, marks=needs_onednn)], ids=["torch", "onednn"])
def path(request, monkeypatch):
    """Both paths, whichever is faster here."""
    monkeypatch.setattr(module, "ONEDNN_IS_FASTER", request.param)
    monkeypatch.setattr(module, "SMALLEST", 1)
    return request.param


def relative(ours, theirs):
    return ((ours.double() - theirs).abs().max() / theirs.abs().max().clamp_min(1e-6)).item()


shapes = st.tuples(st.integers(1, 70), st.integers(1, 70), st.integers(1, 70), st.booleans(), st.integers(0, 10**6))


@needs_onednn
@given(shapes)
@settings(max_examples=60, deadline=None)
def test_values_and_gradients_are_those_of_float64(shape):
    rows, inner, outer, biased, seed = shape
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inner, generator=generator)
    weight = torch.randn(outer, inner, generator=generator)
    bias = torch.randn(outer, generator=generator) if biased else None
    upstream = torch.randn(rows, outer, generator=generator)
    exact = [part.double().requires_grad_() for part in (x, weight, bias) if part is not None]
    ours = [part.clone().requires_grad_() for part in (x, weight, bias) if part is not None]

    expected = F.linear(*exact)
    expected.backward(upstream.double())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ONEDNN_IS_FASTER", True)
        patch.setattr(module, "SMALLEST", 1)
        got = linear(*ours)
        got.backward(upstream)

    assert type(got.grad_fn).__name__ == "_OneDnnProductBackward"
    assert relative(got, expected) <= 2e-5
    for mine, theirs in zip(ours, exact, strict=True):
        assert relative(mine.grad, theirs.grad) <= 2e-5


@pytest.mark.parametrize("shape", [(7, 16), (3, 5, 16), (2, 1, 3, 16), (16,), (0, 16)])
def test_any_number_of_leading_dimensions(path, shape):
    layer, x = Linear(16, 8), torch.randn(shape, requires_grad=True)
    out = layer(x)
    out.sum().backward()

    torch.testing.assert_close(out, F.linear(x, layer.weight, layer.bias), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(shape), atol=1e-5, rtol=1e-5)


def test_strided_inputs(path):
    x, weight = torch.randn(20, 12), torch.randn(12, 9).t()

    torch.testing.assert_close(linear(x[::2, :], weight), x[::2, :] @ weight.t(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(linear(x.t()[:, :9], weight[:, :9]), x.t()[:, :9] @ weight[:, :9].t())


def test_second_derivatives(path):
    x, weight = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)

    def penalty(product):
        (slope,) = torch.autograd.grad(product(x, weight).square().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), [x, weight])

    for ours, theirs in zip(penalty(linear), penalty(F.linear), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_function_transforms_and_forward_derivatives(path):
    x, weight = torch.randn(3, 4), torch.randn(5, 4)

    _, slope = torch.func.jvp(lambda x: linear(x, weight), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(slope, torch.ones_like(x) @ weight.t())
    many = torch.func.vmap(lambda row: linear(row[None], weight)[0])(x)
    torch.testing.assert_close(many, x @ weight.t())
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        slope = torch.autograd.forward_ad.unpack_dual(linear(dual, weight)).tangent
    torch.testing.assert_close(slope, torch.ones_like(x) @ weight.t())


def test_autocast_rounds_as_it_does_for_torch(path):
    layer, x = Linear(16, 8), torch.randn(4, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_torchs(path, dtype):
    layer, x = Linear(16, 8).to(dtype), torch.randn(4, 16, dtype=dtype)

    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


@needs_onednn
def test_it_compiles_in_one_graph(monkeypatch):
    monkeypatch.setattr(module, "ONEDNN_IS_FASTER", True)
    monkeypatch.setattr(module, "SMALLEST", 1)
    layer, x = Linear(16, 8), torch.randn(4, 16)
    compiled = torch.compile(lambda x: layer(x) * 2, fullgraph=True, backend="aot_eager")

    torch.testing.assert_close(compiled(x), layer(x) * 2)
    torch.testing.assert_close(
        torch.autograd.grad(compiled(x).sum(), layer.weight), torch.autograd.grad((layer(x) * 2).sum(), layer.weight)
    )
