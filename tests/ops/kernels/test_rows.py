"""The Triton kernels that do the work of several: sums that are normalised at once, pairs, and rows in one byte.

Each against float64, in every form that it can write. `test_interpreter.py` runs this file in a process of its own with
TRITON_INTERPRET=1; on a CUDA device it runs as it is.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ideoflow.ops.kernels.torch_kernels import rotate
from ideoflow.ops.rms_norm import RMSNorm
from ideoflow.ops.rows import LARGEST, Rows, quantize_rows

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
FLOAT8, INT8 = torch.float8_e4m3fn, torch.int8
EPS = 1e-5
TOKENS = st.integers(1, 9)
WIDTHS = st.integers(1, 40) | st.sampled_from([64, 255, 257, 1536])
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
FORMS = st.sampled_from([None, FLOAT8, INT8])
some = settings(deadline=None, max_examples=12 if INTERPRETED else 40, suppress_health_check=[HealthCheck.too_slow])
pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="needs CUDA, or the interpreter"),
    pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow", "ignore:divide by zero"),  # numpy's
]
DEVICE = "cpu" if INTERPRETED else "cuda"


@pytest.fixture(scope="module")
def triton():
    """The kernels; in an interpreter that rounds to the nearest, as a GPU does, where Triton's own cuts off."""
    from ideoflow.ops.kernels import triton_kernels

    if not INTERPRETED:
        yield triton_kernels
        return
    import triton.language as tl
    from triton.runtime import interpreter

    types = {tl.bfloat16: torch.bfloat16, tl.float8e4nv: FLOAT8}
    plain = interpreter._convert_float

    def convert(data, given, wanted, mode):
        if given == tl.float32 and wanted in types:
            rounded = torch.from_numpy(np.ascontiguousarray(data)).to(types[wanted])
            return (
                rounded.view(torch.uint8 if wanted == tl.float8e4nv else torch.int16)
                .numpy()
                .view(np.uint8 if wanted == tl.float8e4nv else np.uint16)
            )
        return plain(data, given, wanted, mode)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_convert_float", convert)
        yield triton_kernels


class Draw:
    """Random tensors of one type on the device."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.generator, self.dtype = torch.Generator().manual_seed(seed), dtype

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(DEVICE, self.dtype)

    def tokens(self, count: int, width: int) -> Tensor:
        """Tokens of very different size, a view of wider ones as of a fused product."""
        sizes = 10 ** torch.empty(count).uniform_(-3, 1, generator=self.generator)
        return (self(count, 3 * width) * sizes.to(DEVICE, self.dtype)[:, None])[:, width : 2 * width]

    def norm(self, width: int) -> RMSNorm:
        made = RMSNorm(width, eps=EPS, device="meta")
        made.weight = torch.nn.Parameter(1 + 0.1 * self(width), requires_grad=False)
        return made

    def rows(self, times: int, tokens: int) -> Tensor | None:
        return None if times == 1 else torch.randint(times, (tokens,), generator=self.generator).to(DEVICE)


def wide(x: Tensor) -> Tensor:
    return x.cpu().double()


def normed(norm: RMSNorm, x: Tensor) -> Tensor:
    return wide(x) / (wide(x).square().mean(-1, keepdim=True) + EPS).sqrt() * wide(norm.weight)


def at(modulation: Tensor, row: Tensor | None) -> Tensor:
    return wide(modulation) if row is None else wide(modulation)[row.cpu()]


def assert_close(result: Tensor | Rows, expected: Tensor, terms: Tensor | None = None) -> None:
    """One rounding, to the nearest of the form that was written, and some operations in float32."""
    largest = expected.abs().amax(-1, keepdim=True)
    float32 = 2**-19 * torch.maximum(largest, expected.abs() if terms is None else terms)
    if isinstance(result, Rows):
        scales = wide(result.scales)[:, None]
        assert result.scales.dtype == torch.float32 and result.scales.shape == expected.shape[:1]
        assert torch.allclose(scales * LARGEST[result.values.dtype], largest, rtol=2**-16, atol=2**-110)
        got = result.values.cpu().double() * scales
        half = scales / 2 if result.values.dtype == INT8 else torch.maximum(2**-4 * expected.abs(), 2**-10 * scales)
        allowed = half * (1 + 2**-16) + float32
    else:
        got, numbers = wide(result), torch.finfo(result.dtype)
        allowed = numbers.eps / 2 * expected.abs() + numbers.smallest_normal * numbers.eps + float32
    assert got.shape == expected.shape
    assert ((got - expected).abs() <= allowed).all(), ((got - expected).abs() / allowed).max()


@some
@given(TOKENS, WIDTHS, st.integers(1, 4), DTYPES, FORMS, st.integers(0, 99))
@example(5, 1536, 3, torch.bfloat16, FLOAT8, 1)
@example(5, 257, 1, torch.float16, INT8, 2)
@example(3, 1, 2, torch.float32, FLOAT8, 3)
def test_norm_scale(triton, tokens, width, times, dtype, into, seed):
    draw = Draw(seed, dtype)
    x, norm, scale, row = draw.tokens(tokens, width), draw.norm(width), draw(times, width), draw.rows(times, tokens)

    result = triton.norm_scale(norm, x, scale, row, into)

    assert_close(result, normed(norm, x) * at(scale, row))


@some
@given(TOKENS, WIDTHS, st.integers(1, 4), DTYPES, FORMS, st.integers(0, 99))
@example(5, 1536, 3, torch.bfloat16, FLOAT8, 1)
@example(5, 257, 1, torch.float16, INT8, 2)
@example(7, 1536, 3, torch.bfloat16, None, 4)
@example(3, 1, 2, torch.float32, FLOAT8, 3)
def test_gate_norm_add_norm_scale(triton, tokens, width, times, dtype, into, seed):
    draw = Draw(seed, dtype)
    h, y, row = draw(tokens, width), draw.tokens(tokens, width), draw.rows(times, tokens)
    norm, following = draw.norm(width), draw.norm(width)
    gate, scale = draw(times, 4 * width)[:, width : 2 * width], draw(times, 4 * width)[:, :width]

    total, scaled = triton.gate_norm_add_norm_scale(norm, h, y, gate, following, scale, row, into)

    gated = at(gate, row) * normed(norm, y)
    assert_close(total, wide(h) + gated, wide(h).abs() + gated.abs())
    assert_close(scaled, normed(following, total) * at(scale, row))


@pytest.mark.parametrize("into", [None, FLOAT8, INT8], ids=str)
@pytest.mark.parametrize("times", [1, 3])
def test_one_launch_gives_the_numbers_of_two(triton, times, into):
    draw = Draw(0, torch.bfloat16)
    h, y, row = draw(6, 300), draw.tokens(6, 300), draw.rows(times, 6)
    norm, following, gate, scale = draw.norm(300), draw.norm(300), draw(times, 300), draw(times, 300)

    total, scaled = triton.gate_norm_add_norm_scale(norm, h, y, gate, following, scale, row, into)

    first = triton.gate_norm_add(norm, h, y, gate, row)
    then = triton.norm_scale(following, first, scale, row, into)
    assert torch.equal(total, first)
    if into is None:
        assert torch.equal(scaled, then)
    else:
        assert torch.equal(scaled.values.view(torch.uint8), then.values.view(torch.uint8))
        assert torch.equal(scaled.scales, then.scales)


@some
@given(TOKENS, st.integers(1, 9), st.integers(1, 20) | st.just(128), DTYPES, st.integers(0, 99))
@example(5, 18, 128, torch.bfloat16, 1)
@example(3, 1, 1, torch.float32, 3)
def test_norm_rotate_pair(triton, tokens, heads, half, dtype, seed):
    draw, head = Draw(seed, dtype), 2 * half
    # Views of a fused product, as the model has them.
    query, key, _ = (each.unflatten(1, (heads, head)) for each in draw(tokens, 3 * heads * head).chunk(3, dim=1))
    first, second, cos, sin = draw.norm(head), draw.norm(head), draw(tokens, head), draw(tokens, head)

    results = triton.norm_rotate_pair(first, query, second, key, cos, sin)

    for result, norm, x in zip(results, (first, second), (query, key), strict=True):
        terms = rotate(normed(norm, x).abs(), wide(cos).abs(), wide(sin).abs())
        assert_close(result, rotate(normed(norm, x), wide(cos), wide(sin)), terms)
        assert torch.equal(result, triton.norm_rotate(norm, x, cos, sin))


@some
@given(TOKENS, WIDTHS, DTYPES, FORMS, st.integers(0, 99))
@example(3, 12288, torch.bfloat16, FLOAT8, 1)
@example(3, 1537, torch.float16, INT8, 2)
def test_swiglu(triton, tokens, width, dtype, into, seed):
    draw = Draw(seed, dtype)
    x1, x3 = draw(tokens, 2 * width).chunk(2, dim=-1)  # of a fused product

    result = triton.swiglu(x1, x3, into)

    assert_close(result, wide(x1) * wide(x1).sigmoid() * wide(x3))


@some
@given(TOKENS, WIDTHS, DTYPES, st.sampled_from([FLOAT8, INT8]), st.integers(0, 99))
@example(3, 4608, torch.bfloat16, FLOAT8, 1)
@example(3, 4608, torch.bfloat16, INT8, 2)
def test_round_rows(triton, tokens, width, dtype, into, seed):
    x = Draw(seed, dtype).tokens(tokens, width)

    result = triton.round_rows(x, into)

    assert result.dtype == dtype and result.values.dtype == into
    assert_close(result, wide(x))
    assert torch.allclose(result.scales, quantize_rows(x.float(), into)[1], rtol=2**-22)


def every_kernel(triton, x: Tensor, into: torch.dtype) -> dict[str, Rows]:
    """Rows of each kernel where x goes through it: normed, gated, added to and so on."""
    draw = Draw(0, x.dtype)
    norm, ones = draw.norm(x.shape[1]), torch.ones_like(x[:1])
    return {
        "round_rows": triton.round_rows(x, into),
        "norm_scale": triton.norm_scale(norm, x, ones, None, into),
        "gate_norm_add_norm_scale, y": triton.gate_norm_add_norm_scale(
            norm, torch.zeros_like(x), x, ones, norm, ones, None, into
        )[1],
        "gate_norm_add_norm_scale, h": triton.gate_norm_add_norm_scale(
            norm, x, torch.zeros_like(x), ones, norm, ones, None, into
        )[1],
        "swiglu": triton.swiglu(torch.ones_like(x), x, into),
    }


@pytest.mark.parametrize("into", [FLOAT8, INT8], ids=str)
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 1e-40])
def test_rows_of_zeros_and_of_next_to_nothing_are_finite_and_stay_so(triton, into, value):
    x = torch.full((2, 40), value, device=DEVICE)
    for name, rows in every_kernel(triton, x, into).items():
        assert torch.isfinite(rows.scales).all() and (rows.scales > 0).all(), name
        assert rows.expand().abs().max() <= (1e-38 if name in ("round_rows", "swiglu") else 1e-34), name


@pytest.mark.parametrize("into", [FLOAT8, INT8], ids=str)
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_a_row_that_is_not_finite_has_a_scale_that_is_not_and_leaves_the_others(triton, into, value):
    draw = Draw(0, torch.float32)
    x, usual = draw(3, 40), None
    usual = every_kernel(triton, x.clone(), into)
    x[1, 7] = value
    for name, rows in every_kernel(triton, x, into).items():
        assert torch.isfinite(rows.scales).tolist() == [True, False, True], name
        assert not torch.isfinite(rows.expand()[1]).any(), name
        for token in (0, 2):
            assert torch.equal(rows.values[token].view(torch.uint8), usual[name].values[token].view(torch.uint8)), name


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_infinities_in_the_tokens_own_type_are_those_of_plain_torch(triton, value):
    from ideoflow.ops.kernels import torch_kernels as plain

    draw = Draw(0, torch.float32)
    x, h, norm, ones = draw(3, 40), draw(3, 40), draw.norm(40), torch.ones(1, 40, device=DEVICE)
    x[1, 7] = value
    total, scaled = triton.gate_norm_add_norm_scale(norm, h, x, ones, norm, ones, None)
    expected = plain.gate_norm_add(norm, h, x, ones)
    assert torch.equal(torch.isfinite(total), torch.isfinite(expected))
    assert torch.equal(torch.isfinite(scaled), torch.isfinite(plain.norm_scale(norm, expected, ones)))
    assert torch.equal(torch.isfinite(triton.swiglu(x, h)), torch.isfinite(plain.swiglu(x, h)))
