"""Each element-wise function against float64, plain, for CPUs and in Triton: compiled, or interpreted on a CPU.

The interpreter must be asked for before Triton is imported, so `test_interpreter.py` runs this file in a process of its
own with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ideoflow.ops import kernels
from ideoflow.ops.kernels import cpu_kernels
from ideoflow.ops.kernels import torch_kernels as plain
from ideoflow.ops.kernels.torch_kernels import rotate
from ideoflow.ops.rms_norm import RMSNorm

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
EPS = 1e-5
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
TOKENS = st.integers(1, 9) | st.just(70)
WIDTHS = st.integers(1, 40) | st.sampled_from([64, 255, 257, 1536])
# The interpreter takes a second for what torch does in a millisecond.
hypothetical = settings(
    deadline=None, max_examples=10 if INTERPRETED else 40, suppress_health_check=[HealthCheck.too_slow]
)


@dataclass(frozen=True)
class Implementation:
    """Where the four functions are, on which device they run, and how many times they round."""

    module: ModuleType
    device: str

    def assert_close(self, result: Tensor, expected: Tensor, terms: Tensor, rounds_once: bool = True) -> None:
        """`terms` is the sum of the absolute values that `expected` sums; plain torch rounds between operations."""
        numbers = torch.finfo(result.dtype)
        error = (result.cpu().double() - expected).abs()
        if self.module is plain or not rounds_once:
            allowed = 3 * numbers.eps * terms + 64 * numbers.smallest_normal * numbers.eps
        else:  # after some operations in float32
            last_place = numbers.eps * expected.abs() + numbers.smallest_normal * numbers.eps
            # The interpreter cuts bfloat16 off where a GPU rounds to the nearest.
            cut_off = INTERPRETED and self.module is not cpu_kernels and result.dtype == torch.bfloat16
            allowed = last_place * (1 if cut_off else 0.5) + 2**-20 * terms
        assert result.shape == expected.shape
        assert (error <= allowed).all(), (error / allowed).max()

    def draw(self, seed: int, dtype: torch.dtype) -> Draw:
        return Draw(torch.Generator().manual_seed(seed), dtype, self.device)


@dataclass(frozen=True)
class Draw:
    """Random tensors of one type."""

    generator: torch.Generator
    dtype: torch.dtype
    device: str

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device, self.dtype)

    def tokens(self, *shape: int, strided: bool) -> Tensor:
        """Tokens of very different size; if strided, a view of wider ones, as of a fused product."""
        sizes = 10 ** torch.empty(shape[0]).uniform_(-3, 1, generator=self.generator)
        wide = self(shape[0], *shape[1:-1], 3 * shape[-1]) if strided else self(*shape)
        wide *= sizes.to(wide).view(-1, *(1 for _ in shape[1:]))
        return wide[..., shape[-1] : 2 * shape[-1]] if strided else wide

    def rows(self, times: int, tokens: int) -> Tensor | None:
        if times == 1:
            return None
        return torch.randint(times, (tokens,), generator=self.generator).to(self.device)


@pytest.fixture(scope="session", params=["plain", "cpu_kernels", "triton"])
def implementation(request: pytest.FixtureRequest) -> Implementation:
    if request.param != "triton":
        return Implementation({"plain": plain, "cpu_kernels": cpu_kernels}[request.param], "cpu")
    if find_spec("triton") is None:
        pytest.skip("triton is not installed")
    if not (INTERPRETED or torch.cuda.is_available()):
        pytest.skip("no CUDA device; test_interpreter.py runs this under Triton's interpreter")
    from ideoflow.ops.kernels import triton_kernels

    return Implementation(triton_kernels, "cpu" if INTERPRETED else "cuda")


@pytest.fixture
def compiled(implementation: Implementation) -> Implementation:
    if implementation.device != "cuda":
        pytest.skip("needs the compiled kernels, on a CUDA device")
    return implementation


def rms(weight: Tensor, eps: float = EPS) -> RMSNorm:
    norm = RMSNorm(len(weight), eps=eps, device="meta")
    norm.weight = nn.Parameter(weight, requires_grad=False)
    return norm


def wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.cpu().double() for x in tensors)


def norm(x: Tensor, weight: Tensor) -> Tensor:
    x, weight = wide(x, weight)
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


def at_tokens(modulation: Tensor, row: Tensor | None) -> Tensor:
    return wide(modulation)[0] if row is None else wide(modulation)[0][row.cpu()]


@hypothetical
@given(TOKENS, WIDTHS, st.integers(1, 4), DTYPES, st.booleans(), st.integers(0, 99))
@example(70, 257, 3, torch.bfloat16, True, 1)
@example(5, 1536, 1, torch.float16, False, 2)
@example(3, 1, 2, torch.float32, False, 3)
def test_norm_scale_is_near_float64(implementation, tokens, width, times, dtype, strided, seed):
    draw = implementation.draw(seed, dtype)
    x, weight = draw.tokens(tokens, width, strided=strided), draw(width)
    scale, row = draw(times, 4 * width)[:, :width], draw.rows(times, tokens)
    expected = norm(x, weight) * at_tokens(scale, row)
    implementation.assert_close(implementation.module.norm_scale(rms(weight), x, scale, row), expected, expected.abs())


@hypothetical
@given(TOKENS, WIDTHS, st.integers(1, 4), DTYPES, st.booleans(), st.integers(0, 99))
@example(70, 257, 3, torch.bfloat16, True, 1)
@example(5, 1536, 1, torch.float16, False, 2)
@example(3, 1, 2, torch.float32, False, 3)
def test_gate_norm_add_is_near_float64(implementation, tokens, width, times, dtype, strided, seed):
    draw = implementation.draw(seed, dtype)
    h, y = draw(tokens, width), draw.tokens(tokens, width, strided=strided)
    weight, gate, row = draw(width), draw(times, 4 * width)[:, width : 2 * width], draw.rows(times, tokens)
    gated = at_tokens(gate, row) * norm(y, weight)
    expected, terms = wide(h)[0] + gated, wide(h)[0].abs() + gated.abs()
    implementation.assert_close(implementation.module.gate_norm_add(rms(weight), h, y, gate, row), expected, terms)


@hypothetical
@given(TOKENS, st.integers(1, 9), st.integers(1, 20) | st.just(128), DTYPES, st.booleans(), st.integers(0, 99))
@example(70, 3, 5, torch.bfloat16, True, 1)
@example(2, 9, 128, torch.float16, False, 2)
@example(3, 1, 1, torch.float32, False, 3)
def test_norm_rotate_is_near_float64(implementation, tokens, heads, half, dtype, strided, seed):
    draw = implementation.draw(seed, dtype)
    x, weight = draw.tokens(tokens, heads, 2 * half, strided=strided), draw(2 * half)
    cos, sin = draw(tokens, 2 * half), draw(tokens, 2 * half)
    expected = rotate(norm(x, weight), *wide(cos, sin))
    terms = rotate(norm(x, weight).abs(), *(table.abs() for table in wide(cos, sin)))
    implementation.assert_close(implementation.module.norm_rotate(rms(weight), x, cos, sin), expected, terms)


@hypothetical
@given(TOKENS, WIDTHS, DTYPES, st.booleans(), st.integers(0, 99))
@example(70, 257, torch.bfloat16, True, 1)
@example(5, 1536, torch.float16, False, 2)
@example(3, 1, torch.float32, False, 3)
def test_swiglu_is_near_float64(implementation, tokens, width, dtype, strided, seed):
    draw = implementation.draw(seed, dtype)
    x1, x3 = draw.tokens(tokens, width, strided=strided), draw.tokens(tokens, width, strided=strided)
    gate, value = wide(x1, x3)
    expected = gate * gate.sigmoid() * value
    rounds_once = implementation.module is not cpu_kernels
    implementation.assert_close(implementation.module.swiglu(x1, x3), expected, expected.abs(), rounds_once)


@pytest.mark.filterwarnings("ignore:overflow encountered")  # of numpy, in the interpreter
def test_swiglu_saturates(implementation):
    x1 = torch.tensor([[-300.0, -100.0, 0.0, 100.0, 300.0]], device=implementation.device)
    result = implementation.module.swiglu(x1, torch.full_like(x1, 2.0))
    assert result.cpu().tolist() == [[0, 0, 0, 200, 600]]


def test_the_full_models_shapes(implementation):
    draw = implementation.draw(0, torch.bfloat16)
    module = implementation.module
    query, key, _ = draw.tokens(5, 3 * 4608, strided=False).chunk(3, dim=-1)
    weight, scale, row = draw(4608), draw(2, 4608), torch.tensor([0, 1, 1, 0, 1], device=implementation.device)

    scaled = norm(key, weight) * at_tokens(scale, row)
    implementation.assert_close(module.norm_scale(rms(weight), key, scale, row), scaled, scaled.abs())
    added, terms = wide(query)[0] + scaled, wide(query)[0].abs() + scaled.abs()
    implementation.assert_close(module.gate_norm_add(rms(weight), query, key, scale, row), added, terms)

    heads, cos, sin = query.unflatten(-1, (18, 256)), draw(5, 256), draw(5, 256)
    turned = rotate(norm(heads, weight[:256]), *wide(cos, sin))
    terms = rotate(norm(heads, weight[:256]).abs(), *(table.abs() for table in wide(cos, sin)))
    implementation.assert_close(module.norm_rotate(rms(weight[:256]), heads, cos, sin), turned, terms)

    x1, x3 = draw.tokens(5, 2 * 12288, strided=False).chunk(2, dim=-1)
    fed = nn.functional.silu(wide(x1)[0]) * wide(x3)[0]
    implementation.assert_close(module.swiglu(x1, x3), fed, fed.abs(), rounds_once=module is not cpu_kernels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_once_is_nearer_to_float64_than_plain(implementation, dtype):
    if implementation.module is plain:
        pytest.skip("compares the other implementation with this one")
    if INTERPRETED and implementation.module is not cpu_kernels and dtype == torch.bfloat16:
        pytest.skip("the interpreter cuts bfloat16 off where a GPU rounds to the nearest")
    draw = implementation.draw(0, dtype)
    h, y, weight, gate = draw(8, 512), draw(8, 512), draw(512), draw(1, 512)
    expected = wide(h)[0] + wide(gate)[0] * norm(y, weight)
    errors = [
        (module.gate_norm_add(rms(weight), h, y, gate).cpu().double() - expected).abs().mean()
        for module in (implementation.module, plain)
    ]
    assert errors[0] < errors[1]


def test_the_public_functions_use_the_kernels_here(implementation, monkeypatch, recwarn):
    if implementation.module in (plain, cpu_kernels):
        pytest.skip("needs the Triton kernels")
    monkeypatch.setattr(kernels, "_checked", set())
    draw = implementation.draw(0, torch.bfloat16)
    x, weight, scale, heads = draw(3, 48), draw(48), draw(1, 48), draw(3, 4, 12)
    assert kernels.available(x)
    triton = implementation.module
    assert torch.equal(kernels.norm_scale(rms(weight), x, scale), triton.norm_scale(rms(weight), x, scale))
    assert torch.equal(kernels.gate_norm_add(rms(weight), x, x, scale), triton.gate_norm_add(rms(weight), x, x, scale))
    arguments = rms(weight[:12]), heads, x[:, :12], x[:, 12:24]
    assert torch.equal(kernels.norm_rotate(*arguments), triton.norm_rotate(*arguments))
    assert torch.equal(kernels.swiglu(x[:, :24], x[:, 24:]), triton.swiglu(x[:, :24], x[:, 24:]))
    assert {key[0] for key in kernels._checked} == {"norm_scale", "gate_norm_add", "norm_rotate", "swiglu"}
    assert not [w for w in recwarn if "Triton" in str(w.message)]


def test_a_kernel_made_wrong_gives_way_to_plain(implementation, monkeypatch):
    if implementation.module in (plain, cpu_kernels):
        pytest.skip("needs the Triton kernels")
    monkeypatch.setattr(kernels, "_checked", set())
    monkeypatch.setattr(kernels, "_broken", set())
    right = implementation.module.norm_scale
    monkeypatch.setattr(
        implementation.module, "norm_scale", lambda norm, *others: right(rms(norm.weight, 0.0), *others)
    )
    draw = implementation.draw(0, torch.float32)
    x, weight, scale = draw(3, 48), draw(48), draw(1, 48)
    with pytest.warns(RuntimeWarning, match="`norm_scale` is not used.*WrongResult"):
        result = kernels.norm_scale(rms(weight), x, scale)
    assert torch.equal(result, plain.norm_scale(rms(weight), x, scale))


def test_a_stream_may_have_more_than_2_to_the_31_elements(compiled):
    x = torch.empty(2**31 + 64, dtype=torch.float16, device="cuda").as_strided((3, 64), (2**30, 1))
    x.copy_(torch.randn(3, 64))
    weight = torch.ones(64, dtype=torch.float16, device="cuda")
    assert torch.equal(
        compiled.module.norm_scale(rms(weight), x, weight[None]),
        compiled.module.norm_scale(rms(weight), x.contiguous(), weight[None]),
    )


def test_a_captured_graph_replays_the_kernels(compiled):
    draw = compiled.draw(0, torch.bfloat16)
    x, weight, scale = draw(3, 48), draw(48), draw(1, 48)
    kernels.norm_scale(rms(weight), x, scale)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = kernels.norm_scale(rms(weight), x, scale)
    x.copy_(draw(3, 48))
    graph.replay()
    assert torch.equal(result, kernels.norm_scale(rms(weight), x, scale))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [1, 500, 2000])
def test_the_kernels_for_cpus_take_some_tokens_at_a_time_and_give_the_same(block, dtype, monkeypatch):
    draw = Draw(torch.Generator().manual_seed(0), dtype, "cpu")
    x, h, weight, scale, row = draw(37, 48), draw(37, 48), draw(48), draw(3, 48), torch.randint(3, (37,))
    calls = {
        "norm_scale": (rms(weight), x, scale, row),
        "gate_norm_add": (rms(weight), h, x, scale, row),
        "norm_rotate": (rms(weight[:12]), x.unflatten(1, (4, 12)), h[:, :12], h[:, 12:24]),
    }
    whole = {name: getattr(cpu_kernels, name)(*arguments) for name, arguments in calls.items()}
    monkeypatch.setattr(cpu_kernels, "BLOCK", block)
    assert len(list(cpu_kernels._parts(x))) == min(37, -(-37 * 48 // block))
    for name, arguments in calls.items():
        assert torch.equal(getattr(cpu_kernels, name)(*arguments), whole[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_is_torchs_own_arithmetic_bit_for_bit(dtype):
    """Other implementations of the model compute these terms with these modules in this order."""
    draw = Draw(torch.Generator().manual_seed(0), dtype, "cpu")
    x, h, modulation, row = draw(6, 48), draw(6, 48), draw(3, 48), torch.tensor([0, 2, 1, 1, 0, 2])
    module = nn.RMSNorm(48, eps=EPS, dtype=dtype).requires_grad_(False)
    module.weight.copy_(draw(48))
    assert torch.equal(plain.norm_scale(rms(module.weight), x, modulation, row), module(x) * modulation[row])
    expected = h + modulation[row] * module(x)
    assert torch.equal(plain.gate_norm_add(rms(module.weight), h, x, modulation, row), expected)
    heads, cos, sin = draw(6, 3, 48), draw(6, 48), draw(6, 48)
    assert torch.equal(plain.norm_rotate(rms(module.weight), heads, cos, sin), rotate(module(heads), cos, sin))
    assert torch.equal(plain.swiglu(x, h), nn.functional.silu(x) * h)
