"""When Triton's kernels are used, when those for CPUs, when plain torch; with stand-ins: no GPU is needed."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ideoflow.ops import kernels
from ideoflow.ops.kernels import cpu_kernels
from ideoflow.ops.kernels import torch_kernels as plain
from ideoflow.ops.rms_norm import RMSNorm
from ideoflow.ops.rows import Rows, quantize_rows

EPS = 1e-5
NAMES = ("norm_scale", "gate_norm_add", "norm_rotate", "swiglu")
JOINED = ("gate_norm_add_norm_scale", "norm_rotate_pair", "round_rows")  # by Triton alone
X, WEIGHT, SCALE, ROW = torch.randn(5, 48), torch.randn(48), torch.randn(3, 48), torch.tensor([0, 2, 1, 1, 0])


def rms(weight: Tensor, eps: float = EPS) -> RMSNorm:
    norm = RMSNorm(len(weight), eps=eps, device="meta")
    norm.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad=False)
    return norm


NORM, NORM_OF_HEADS, HEADS = rms(WEIGHT), rms(WEIGHT[:12]), X.unflatten(1, (4, 12))
ARGUMENTS = {
    "norm_scale": (NORM, X, SCALE, ROW),
    "gate_norm_add": (NORM, X, X, SCALE, ROW),
    "norm_rotate": (NORM_OF_HEADS, X.unflatten(1, (4, 12)), X[:, :12], X[:, 12:24]),
    "swiglu": (X, X),
    "gate_norm_add_norm_scale": (NORM, X, X, SCALE, rms(WEIGHT.flip(0)), SCALE + 1, ROW),
    "norm_rotate_pair": (NORM_OF_HEADS, HEADS, rms(WEIGHT[12:24]), HEADS + 1, X[:, :12], X[:, 12:24]),
}


def cast(arguments: tuple, dtype: torch.dtype) -> tuple:
    """The same with norms and floating-point tensors in that type."""

    def one(argument):
        if isinstance(argument, RMSNorm):
            return rms(argument.weight.to(dtype), argument.epsilon)
        return argument.to(dtype) if isinstance(argument, Tensor) and argument.is_floating_point() else argument

    return tuple(map(one, arguments))


def first(arguments: tuple) -> Tensor:
    return next(each for each in arguments if isinstance(each, Tensor))


class StandIn(SimpleNamespace):
    """Kernels that round once, as Triton's do, and note for which they were called on how many tokens."""

    INTERPRETED = True
    FAILURES = (RuntimeError,)

    def __init__(self) -> None:
        super().__init__(calls=[], **{name: self.kernel(name) for name in NAMES + JOINED})

    def kernel(self, name: str) -> Callable[..., Tensor]:
        def run(*arguments, into=None):
            self.calls.append((name, len(first(arguments))))
            dtype = first(arguments).dtype
            given = cast(arguments, torch.float32)
            if name == "gate_norm_add_norm_scale":
                total = plain.gate_norm_add(*given[:4], given[6]).to(dtype)
                return total, self.form(plain.norm_scale(given[4], total.float(), *given[5:]), dtype, into)
            if name == "norm_rotate_pair":
                pairs = (given[:2], given[2:4])
                return tuple(plain.norm_rotate(*own, *given[4:]).to(dtype) for own in pairs)
            result = given[0] if name == "round_rows" else getattr(plain, name)(*given)
            return self.form(result, dtype, into)

        return run

    @staticmethod
    def form(result: Tensor, dtype: torch.dtype, into: torch.dtype | None) -> Tensor | Rows:
        return result.to(dtype) if into is None else Rows(*quantize_rows(result, into), dtype)

    def uses(self, name: str, tokens: int = 5) -> int:
        return self.calls.count((name, tokens))


@pytest.fixture
def triton(monkeypatch) -> StandIn:
    """Takes the place of the Triton kernels, of which nothing is known yet."""
    stand_in = StandIn()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(kernels, "_triton_kernels", lambda: stand_in)
    monkeypatch.setattr(kernels, "_checked", set())
    monkeypatch.setattr(kernels, "_broken", set())
    return stand_in


def call(name: str, arguments: tuple | None = None) -> Tensor:
    return getattr(kernels, name)(*(arguments or ARGUMENTS[name]))


@pytest.mark.parametrize("name", NAMES)
def test_a_right_kernel_is_checked_once_for_each_type_and_width_and_then_used(name, triton):
    for _ in range(3):
        assert torch.equal(call(name), getattr(plain, name)(*ARGUMENTS[name]))
    assert triton.uses(name) == 3
    checks = len(triton.calls) - 3
    assert checks in (1, 2)  # with and without rows
    call(name, cast(ARGUMENTS[name], torch.bfloat16))
    assert len(triton.calls) == 3 + checks + 1 + checks
    assert len(kernels._checked) == 2


def test_the_check_leaves_random_numbers_as_they_are(triton):
    before = torch.get_rng_state()
    call("norm_scale")
    assert torch.equal(torch.get_rng_state(), before)


WRONG = {
    "eps is left out": ("norm_scale", lambda f, n, *a: f(rms(n.weight, 0.0), *a)),
    "rows are left out": ("norm_scale", lambda f, n, x, s, r: f(n, x, s[:1], None)),
    "the weight is left out": ("norm_scale", lambda f, n, *a: f(rms(torch.ones_like(n.weight)), *a)),
    "the last channel is left out": ("norm_scale", lambda f, *a: f(*a) * (torch.arange(48) < 47)),
    "a hundredth too much": ("norm_scale", lambda f, *a: f(*a) * 1.01),
    "not a number": ("norm_scale", lambda f, *a: f(*a) * torch.nan),
    "nothing is added": ("gate_norm_add", lambda f, n, h, *a: f(n, torch.zeros_like(h), *a)),
    "gates of other rows": ("gate_norm_add", lambda f, n, h, y, g, r: f(n, h, y, g, None if r is None else 1 - r)),
    "turned the other way": ("norm_rotate", lambda f, n, x, c, s: f(n, x, c, -s)),
    "heads in another order": ("norm_rotate", lambda f, n, x, *a: f(n, x.flip(1), *a)),
    "the wrong half": ("swiglu", lambda f, x1, x3: f(x3, x1)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("name, wrong", WRONG.values(), ids=list(WRONG))
def test_a_wrong_kernel_gives_way_to_plain_for_good_and_warns_once(name, wrong, dtype, triton):
    right = getattr(triton, name)
    setattr(triton, name, lambda *arguments: wrong(right, *arguments))
    arguments = cast(ARGUMENTS[name], dtype)
    with pytest.warns(RuntimeWarning, match=f"`{name}` is not used.*WrongResult: off by"):
        result = call(name, arguments)
    assert torch.equal(result, getattr(plain, name)(*arguments))
    made = len(triton.calls)
    with warnings.catch_warnings(action="error"):
        call(name, arguments)
        call(name)
    assert len(triton.calls) == made


def test_the_other_kernels_stay_in_use(triton):
    triton.swiglu = lambda x1, x3: x1
    with pytest.warns(RuntimeWarning):
        call("swiglu")
    call("norm_scale")
    assert triton.uses("norm_scale") == 1


def fail(error: Exception) -> Callable[..., Tensor]:
    def raise_it(*arguments):
        raise error

    return raise_it


def test_a_kernel_that_does_not_compile_gives_way_to_plain(triton):
    triton.swiglu = fail(RuntimeError("Failed to find C compiler"))
    with pytest.warns(RuntimeWarning, match="RuntimeError: Failed to find C compiler"):
        assert torch.equal(call("swiglu"), plain.swiglu(X, X))


def test_a_kernel_may_fail_to_compile_for_later_arguments(triton):
    call("swiglu")
    triton.swiglu = fail(RuntimeError("ptxas"))
    with pytest.warns(RuntimeWarning, match="ptxas"):
        assert torch.equal(call("swiglu"), plain.swiglu(X, X))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), TypeError("a mistake in the code")])
def test_other_errors_are_not_hidden(error, triton):
    triton.swiglu = fail(error)
    with pytest.raises(type(error)):
        call("swiglu")
    assert not kernels._broken


def uses_plain(triton: StandIn, function: Callable[..., Tensor], *arguments) -> Tensor:
    result = function(*arguments)
    assert not triton.calls
    return result


def test_gradients_go_through_plain(triton):
    weight = nn.Parameter(WEIGHT.clone())
    uses_plain(triton, kernels.norm_scale, rms(weight), X, SCALE, ROW).sum().backward()
    assert weight.grad is not None
    with torch.no_grad():
        kernels.norm_scale(rms(weight), X, SCALE, ROW)
    assert triton.uses("norm_scale") == 1


def test_forward_gradients_go_through_plain(triton):
    with forward_ad.dual_level():
        x = forward_ad.make_dual(X, torch.ones_like(X))
        assert forward_ad.unpack_dual(uses_plain(triton, kernels.swiglu, x, X)).tangent is not None


def test_autocast_goes_through_plain(triton):
    with torch.autocast("cpu", torch.bfloat16):
        uses_plain(triton, kernels.norm_scale, NORM, X, SCALE, ROW)


def test_torch_compile_sees_plain(triton):
    with torch.no_grad():
        compiled = torch.compile(kernels.swiglu, backend="eager", fullgraph=True)
        uses_plain(triton, compiled, X, X)


def test_mixed_types_go_through_plain(triton):
    assert uses_plain(triton, kernels.norm_scale, NORM, X.bfloat16(), SCALE, ROW).dtype == torch.float32


def test_other_types_and_devices_go_through_plain(triton):
    uses_plain(triton, kernels.swiglu, X.double(), X.double())
    uses_plain(triton, kernels.swiglu, X.to("meta"), X.to("meta"))


def test_subclasses_go_through_plain(triton):
    class Sharded(Tensor):
        pass

    sharded = rms(WEIGHT)
    sharded.weight = nn.Parameter(WEIGHT.as_subclass(Sharded), requires_grad=False)
    uses_plain(triton, kernels.norm_scale, sharded, X, SCALE, ROW)


def test_what_the_kernels_cannot_read_goes_through_plain(triton):
    assert uses_plain(triton, kernels.swiglu, X[:0], X[:0]).shape == (0, 48)
    uses_plain(triton, kernels.swiglu, X[None], X[None])
    uses_plain(triton, kernels.swiglu, X.mT, X.mT)
    uses_plain(triton, kernels.norm_scale, NORM, X, X, None)  # a row for each token
    uses_plain(triton, kernels.norm_rotate, rms(WEIGHT[:9]), X[:, None, :9], X[:, :9], X[:, :9])
    wide = torch.randn(2, kernels.MAX_WIDTH + 1)
    uses_plain(triton, kernels.norm_scale, rms(wide[0]), wide, wide[:1])


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("norm_scale", (rms(WEIGHT[1:]), X, SCALE, ROW)),
        ("norm_scale", (NORM, X, SCALE[:, 1:], ROW)),
        ("norm_scale", (NORM, X, SCALE, ROW[1:])),
        ("norm_scale", (NORM, X, SCALE, None)),
        ("gate_norm_add", (NORM, X[:3], X, SCALE, ROW)),
        ("norm_rotate", (NORM_OF_HEADS, X.unflatten(1, (4, 12)), X[1:, :12], X[1:, :12])),
        ("swiglu", (X, X[:, 1:])),
    ],
)
def test_arguments_that_do_not_fit_raise_torchs_error_and_no_memory_is_read(name, arguments, triton):
    with pytest.raises(RuntimeError):
        call(name, arguments)
    assert not triton.calls


def test_cpu_tensors_do_not_ask_for_triton(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(kernels, "_triton_kernels", lambda: pytest.fail("triton was asked for"))
    assert not kernels.available(X)


class Reader(nn.Module):
    """Reads rows of one type."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.dtype = dtype

    def row_type(self, tokens: Tensor) -> torch.dtype | None:
        return self.dtype


READ = ("norm_scale", "gate_norm_add_norm_scale", "swiglu")  # those that have a reader


@pytest.mark.parametrize("into", [torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("name", READ)
def test_what_a_product_reads_is_written_as_rows_of_its_type(name, into, triton):
    given = getattr(kernels, name)(*ARGUMENTS[name], reader=Reader(into))
    whole = getattr(kernels, name)(*ARGUMENTS[name])
    rows, expected = (each[1] if isinstance(each, tuple) else each for each in (given, whole))

    assert isinstance(rows, Rows) and rows.values.dtype == into and rows.dtype == expected.dtype
    assert torch.equal(rows.expand(), Rows(*quantize_rows(expected, into), expected.dtype).expand())
    # Each form is checked before it is used.
    forms = {key[0] for key in kernels._checked}
    assert {name, f"{name} into {str(into)[6:]}"} <= forms


@pytest.mark.parametrize("reader", [None, Reader(None), nn.Linear(48, 2)], ids=["none", "no rows", "any layer"])
def test_other_readers_are_given_tokens_in_their_own_type(reader, triton):
    assert isinstance(kernels.norm_scale(*ARGUMENTS["norm_scale"], reader=reader), Tensor)


def test_without_triton_nobody_is_asked_for_rows(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    reader = Reader(torch.int8)
    monkeypatch.setattr(reader, "row_type", lambda tokens: pytest.fail("asked"))
    for name in READ:
        getattr(kernels, name)(*ARGUMENTS[name], reader=reader)


@pytest.mark.parametrize("name", ["norm_scale", "swiglu"])
def test_rows_that_are_wrong_give_way_to_tokens_and_the_kernel_stays_in_use(name, triton):
    right = getattr(triton, name)

    def wrong(*arguments, into=None):
        result = right(*arguments, into=into)
        return result if into is None else Rows(result.values, 1.1 * result.scales, result.dtype)

    setattr(triton, name, wrong)
    with pytest.warns(RuntimeWarning, match=f"`{name} into int8` is not used.*WrongResult: off by"):
        result = getattr(kernels, name)(*ARGUMENTS[name], reader=Reader(torch.int8))
    assert torch.equal(result, getattr(plain, name)(*ARGUMENTS[name]))
    assert kernels._broken == {f"{name} into int8"}


@pytest.mark.parametrize("name, parts", [("gate_norm_add_norm_scale", ["gate_norm_add", "norm_scale"]),
                                         ("norm_rotate_pair", ["norm_rotate"])])  # fmt: skip
def test_work_that_is_joined_is_one_launch_and_gives_way_to_its_parts(name, parts, triton):
    for each, expected in zip(call(name), parts_of(name), strict=True):
        assert torch.equal(each, expected)
    assert triton.uses(name) == 1 and not any(triton.uses(part) for part in parts)

    setattr(triton, name, fail(RuntimeError("ptxas")))
    kernels._checked.clear()
    with pytest.warns(RuntimeWarning, match=f"`{name}` is not used.*ptxas"):
        results = call(name)
    for each, expected in zip(results, parts_of(name), strict=True):
        assert torch.equal(each, expected)
    assert all(triton.uses(part) for part in parts)


def parts_of(name: str) -> tuple[Tensor, Tensor]:
    """What the parts give one after another in plain torch."""
    if name == "norm_rotate_pair":
        first_norm, x, second_norm, y, *tables = ARGUMENTS[name]
        return plain.norm_rotate(first_norm, x, *tables), plain.norm_rotate(second_norm, y, *tables)
    norm, h, y, gate, following, scale, row = ARGUMENTS[name]
    total = plain.gate_norm_add(norm, h, y, gate, row)
    return total, plain.norm_scale(following, total, scale, row)


def test_gates_and_scales_of_another_number_of_times_are_not_joined(triton):
    norm, h, y, gate, following, scale, row = ARGUMENTS["gate_norm_add_norm_scale"]
    total, scaled = kernels.gate_norm_add_norm_scale(norm, h, y, gate, following, scale[:1], row)
    assert not triton.uses("gate_norm_add_norm_scale")
    assert torch.equal(scaled, plain.norm_scale(following, total, scale[:1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", JOINED[:2])
def test_on_a_cpu_and_with_gradients_the_parts_are_computed_one_by_one(name, dtype, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    arguments = cast(ARGUMENTS[name], dtype)
    monkeypatch.setattr(kernels, "_launch", lambda *_, **__: pytest.fail("launched"))
    first_of = cpu_kernels.norm_rotate if name == "norm_rotate_pair" else cpu_kernels.gate_norm_add
    picked = arguments[:2] + arguments[4:] if name == "norm_rotate_pair" else (*arguments[:4], arguments[6])
    assert torch.equal(getattr(kernels, name)(*arguments)[0], first_of(*picked))
    leaf = arguments[1].clone().requires_grad_()
    results = getattr(kernels, name)(arguments[0], leaf, *arguments[2:])
    sum(each.float().square().sum() for each in results).backward()
    assert torch.isfinite(leaf.grad).all() and leaf.grad.abs().sum() > 0


@pytest.mark.parametrize("name", JOINED[:2])
def test_gradients_of_joined_work_are_those_of_float64(name, triton):
    def gradients(dtype):
        arguments = cast(ARGUMENTS[name], dtype)
        leaves = [
            each.clone().requires_grad_() for each in arguments if isinstance(each, Tensor) and each.dtype == dtype
        ]
        given = iter(leaves)
        given = [next(given) if isinstance(each, Tensor) and each.dtype == dtype else each for each in arguments]
        results = getattr(kernels, name)(*given)
        return torch.autograd.grad(sum((each * each.detach().cos()).sum() for each in results), leaves)

    for ours, exact in zip(gradients(torch.float32), gradients(torch.float64), strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-4)
    assert not triton.calls


def test_rows_are_rounded_in_plain_torch_where_triton_does_not_run(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    rows, (values, scales) = kernels.round_rows(X, torch.int8), quantize_rows(X, torch.int8)
    assert torch.equal(rows.values, values) and torch.equal(rows.scales, scales) and rows.dtype == X.dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_cpu_takes_its_own_kernels_but_for_gradients_and_other_types(name, dtype, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    arguments = cast(ARGUMENTS[name], dtype)
    used = []
    right = getattr(cpu_kernels, name)
    monkeypatch.setattr(cpu_kernels, name, lambda *given: used.append(name) or right(*given))
    result = call(name, arguments)
    assert bool(used) == (dtype != torch.float64) and result.dtype == dtype
    assert torch.allclose(result.double(), getattr(plain, name)(*arguments).double(), rtol=0.02, atol=0.1)
    used.clear()
    at = int(name != "swiglu")  # behind the norm
    leaf = arguments[at].clone().requires_grad_()
    call(name, (*arguments[:at], leaf, *arguments[at + 1 :])).sum().backward()
    assert not used


WITHOUT_TRITON = """
import sys, types, warnings
import torch
from ideoflow.ops import kernels
sys.modules["triton"] = {triton}
sys.modules["triton.language"] = None
warnings.simplefilter("error", RuntimeWarning)
x = torch.randn(3, 8)
try:
    assert not kernels.available(x)
except RuntimeWarning as warning:
    print(warning)
"""


@pytest.mark.long
@pytest.mark.parametrize(
    "triton, printed",
    [
        ("None", ""),
        ("types.ModuleType('triton')", "Triton cannot be imported (import of triton.language"),
    ],
    ids=["not installed", "broken"],
)
def test_triton_may_be_absent(triton, printed, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    command = [sys.executable, "-c", WITHOUT_TRITON.format(triton=triton)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(printed) and bool(run.stdout) == bool(printed)
