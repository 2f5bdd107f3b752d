"""The element-wise parts of a block, each in the fastest way there is: Triton on CUDA, few passes on a CPU, else plain.

Both fast ways take tensors of one type (float32, bfloat16 or float16) while no gradient is needed; with
TRITON_INTERPRET=1 in the environment Triton's interpreter also takes CPU tensors, for tests. Each Triton kernel is
compared with plain torch before its first result for a type and width is used. One that is wrong, or does not compile,
is not used again in the process, and a warning says so.

Where Triton runs, what a layer reads may be given as `Rows`, rounded for its product: `reader` is that layer, and its
`row_type`, if it has one, says in which type, or None for the type of the tokens.
"""

from __future__ import annotations

import os
import warnings
from functools import cache
from types import ModuleType
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from ..guards import may_be_fast, needs_gradient
from ..hooks import is_plain
from ..rms_norm import RMSNorm
from ..rows import Rows, quantize_rows
from . import cpu_kernels
from . import torch_kernels as plain
from .torch_kernels import at_tokens

__all__ = [
    "at_tokens",
    "available",
    "gate_norm_add",
    "gate_norm_add_norm_scale",
    "norm_rotate",
    "norm_rotate_pair",
    "norm_scale",
    "round_rows",
    "swiglu",
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_WIDTH = 16384  # channels that one program holds in registers

_checked: set[tuple[object, ...]] = set()  # (kernel, type, width, device) that agreed with plain torch
_broken: set[str] = set()  # kernels that are not used again, each form of the result for itself


class WrongResult(Exception):
    """A kernel does not agree with plain torch."""


def available(tensor: Tensor) -> bool:
    """Whether Triton can run here on tensors of this device and type."""
    if tensor.dtype not in DTYPES:
        return False
    if tensor.is_cuda:
        return _triton_kernels() is not None
    if tensor.device.type != "cpu" or os.environ.get("TRITON_INTERPRET") != "1":
        return False  # most CPU processes go this way, and never import triton
    kernels = _triton_kernels()
    return kernels is not None and kernels.INTERPRETED


def _in_triton(tensor: Tensor) -> bool:
    """Whether what is launched here goes through Triton: in a graph that is being compiled nothing does."""
    return not torch.compiler.is_compiling() and available(tensor)


def norm_scale(
    norm: nn.Module, x: Tensor, scale: Tensor, row: Tensor | None = None, reader: nn.Module | None = None
) -> Tensor | Rows:
    """Normalise and scale each token: norm(x) * scale[row].

    Args:
        norm: the blocks' `RMSNorm`, or what was put in its place, which is called.
        x: (tokens, channels).
        scale: (times, channels).
        row: (tokens,) integers, the row of `scale` of each token, each in [0, times); not looked at if times is 1.
        reader: the layer that reads the result, and nothing else does.

    Returns:
        (tokens, channels), in the form that the reader takes.
    """
    row = None if scale.shape[0] == 1 else row
    if _normalises(norm, x, 2) and _modulates(scale, row, x) and _takes(x, norm.weight, scale, row=row):
        return _fused("norm_scale", norm, x, scale, row, into=_row_type(reader, x))
    return plain.norm_scale(norm, x, scale, row)


def gate_norm_add(norm: nn.Module, h: Tensor, y: Tensor, gate: Tensor, row: Tensor | None = None) -> Tensor:
    """Add what a layer gave, normalised and gated: h + gate[row] * norm(y).

    Args:
        norm: as in `norm_scale`.
        h: (tokens, channels), what is added to.
        y: (tokens, channels), what is normalised.
        gate: (times, channels).
        row: (tokens,) integers, the row of `gate` of each token, each in [0, times); not looked at if times is 1.

    Returns:
        (tokens, channels).
    """
    row = None if gate.shape[0] == 1 else row
    fits = h.shape == y.shape and _modulates(gate, row, y)
    if fits and _normalises(norm, y, 2) and _takes(y, h, norm.weight, gate, row=row):
        return _fused("gate_norm_add", norm, h, y, gate, row)
    return plain.gate_norm_add(norm, h, y, gate, row)


def gate_norm_add_norm_scale(
    norm: nn.Module,
    h: Tensor,
    y: Tensor,
    gate: Tensor,
    next_norm: nn.Module,
    scale: Tensor,
    row: Tensor | None = None,
    reader: nn.Module | None = None,
) -> tuple[Tensor, Tensor | Rows]:
    """`gate_norm_add`, and of what it gives `norm_scale`: in Triton one launch, which reads and writes the stream once.

    Args:
        norm: as in `gate_norm_add`.
        h: (tokens, channels), what is added to.
        y: (tokens, channels), what is normalised by `norm`.
        gate: (times, channels).
        next_norm: as in `norm_scale`, of the sum.
        scale: (times, channels).
        row: (tokens,) integers, the row of `gate` and of `scale` of each token.
        reader: as in `norm_scale`.

    Returns:
        The sum (tokens, channels), and the same normalised and scaled, in the form that the reader takes.
    """
    own = None if gate.shape[0] == 1 else row
    fits = _in_triton(y) and h.shape == y.shape and gate.shape == scale.shape and _modulates(gate, own, y)
    if (
        fits
        and _normalises(norm, y, 2)
        and _normalises(next_norm, y, 2)
        and _takes(y, h, norm.weight, gate, next_norm.weight, scale, row=own)
    ):
        arguments = (norm, h, y, gate, next_norm, scale, own)
        result = _launch("gate_norm_add_norm_scale", *arguments, into=_row_type(reader, y))
        if result is not None:
            return result
    h = gate_norm_add(norm, h, y, gate, row)
    return h, norm_scale(next_norm, h, scale, row, reader)


def norm_rotate(norm: nn.Module, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Normalise each head and rotate it: the channel pairs (i, i + head_dim / 2) by the angles of their token.

    Args:
        norm: as in `norm_scale`, over a head.
        x: (tokens, heads, head_dim), head_dim even.
        cos: (tokens, head_dim) from `rotary_tables`.
        sin: (tokens, head_dim) from `rotary_tables`, negated in the first half.

    Returns:
        (tokens, heads, head_dim).
    """
    fits = x.shape[-1] % 2 == 0 and cos.shape == sin.shape == (x.shape[0], x.shape[-1])
    if fits and _normalises(norm, x, 3) and _takes(x, norm.weight, cos, sin):
        return _fused("norm_rotate", norm, x, cos, sin)
    return plain.norm_rotate(norm, x, cos, sin)


def norm_rotate_pair(
    first_norm: nn.Module, first: Tensor, second_norm: nn.Module, second: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """`norm_rotate` of queries and of keys, in Triton by one launch. Arguments as there, for both of one shape."""
    fits = _in_triton(first) and first.shape == second.shape and first.shape[-1] % 2 == 0
    if (
        fits
        and cos.shape == sin.shape == (first.shape[0], first.shape[-1])
        and _normalises(first_norm, first, 3)
        and _normalises(second_norm, second, 3)
        and _takes(first, second, first_norm.weight, second_norm.weight, cos, sin)
    ):
        result = _launch("norm_rotate_pair", first_norm, first, second_norm, second, cos, sin)
        if result is not None:
            return result
    return norm_rotate(first_norm, first, cos, sin), norm_rotate(second_norm, second, cos, sin)


def swiglu(x1: Tensor, x3: Tensor, *, reader: nn.Module | None = None) -> Tensor | Rows:
    """silu(x1) * x3, both (tokens, channels); in the form that the reader takes, as in `norm_scale`."""
    if x1.ndim == 2 and x1.shape == x3.shape and _takes(x1, x3):
        return _fused("swiglu", x1, x3, into=_row_type(reader, x1))
    return plain.swiglu(x1, x3)


def round_rows(x: Tensor, into: torch.dtype) -> Rows:
    """Round each token, (tokens, channels), to `into`, float8_e4m3fn or int8, as `quantize_rows` does."""
    if _in_triton(x) and x.ndim == 2 and x.shape[1] <= MAX_WIDTH and _takes(x):
        result = _launch("round_rows", x, into=into)
        if result is not None:
            return result
    return Rows(*quantize_rows(x, into), x.dtype)


@cache
def _triton_kernels() -> ModuleType | None:
    try:
        from . import triton_kernels
    except ImportError as error:
        if not (isinstance(error, ModuleNotFoundError) and error.name == "triton"):
            warnings.warn(f"Triton cannot be imported ({error}); plain torch is used.", RuntimeWarning, stacklevel=2)
        return None
    return triton_kernels


def _normalises(norm: nn.Module, x: Tensor, dims: int) -> TypeGuard[RMSNorm]:
    """Whether `norm` is the blocks' own, over the last of so many dimensions of x, and the kernels can hold that."""
    width = x.shape[-1]
    return is_plain(norm, RMSNorm) and x.ndim == dims and norm.weight.shape == (width,) and width <= MAX_WIDTH


def _modulates(modulation: Tensor, row: Tensor | None, x: Tensor) -> bool:
    """Whether `modulation` has a row for each token of x (tokens, channels)."""
    if x.ndim != 2 or modulation.ndim != 2 or modulation.shape[1] != x.shape[1]:
        return False
    if row is None:
        return modulation.shape[0] == 1
    return row.shape == x.shape[:1] and row.dtype in (torch.int32, torch.int64)


def _takes(x: Tensor, *others: Tensor, row: Tensor | None = None) -> bool:
    """Whether a fast way can compute on these now; what it cannot is left to plain torch, errors included."""
    if torch.compiler.is_compiling() or x.dtype not in DTYPES or not (x.device.type == "cpu" or available(x)):
        return False
    tensors = (x, *others)
    indexed = tensors if row is None else (*tensors, row)
    dtype, device = x.dtype, x.device
    for t in others:
        if t.dtype != dtype:
            return False
    if x.numel() == 0 or not may_be_fast(*indexed):
        return False
    for t in indexed:
        if t.device != device or t.stride(-1) != 1:
            return False
    return not needs_gradient(*tensors)


def _row_type(reader: nn.Module | None, x: Tensor) -> torch.dtype | None:
    """The type of `Rows` that the reader takes of tokens like x; None for those in the type of x."""
    if reader is None or x.shape[-1] > MAX_WIDTH or not available(x):
        return None
    ask = getattr(reader, "row_type", None)
    return None if ask is None else ask(x)


def _fused(name: str, *arguments: Any, into: torch.dtype | None = None) -> Any:
    """What the kernel for this device gives, unless it is wrong or does not compile: then what plain torch gives."""
    x: Tensor = next(each for each in arguments if isinstance(each, Tensor))
    if not available(x):
        return getattr(cpu_kernels, name)(*arguments)
    result = _launch(name, *arguments, into=into)
    if result is None and into is not None:  # readers of rows round tokens themselves
        result = _launch(name, *arguments)
    return getattr(plain, name)(*arguments) if result is None else result


def _launch(name: str, *arguments: Any, into: torch.dtype | None = None) -> Any:
    """What the Triton kernel gives, as rows in the type `into` if given; None if it is wrong or does not compile."""
    x: Tensor = next(each for each in arguments if isinstance(each, Tensor))
    form = {} if into is None else {"into": into}
    called = name if into is None else f"{name} into {str(into).removeprefix('torch.')}"
    key = (called, x.dtype, x.shape[1:], x.device)
    # The check waits for its result, which a graph that is being captured does not allow.
    checkable = key in _checked or not (x.is_cuda and torch.cuda.is_current_stream_capturing())
    if not checkable or called in _broken:
        return None
    kernels = _triton_kernels()
    assert kernels is not None
    try:
        with torch.cuda.device_of(x):  # Triton launches on the current device
            if key not in _checked:
                _check(name, x, form)
                _checked.add(key)
            return getattr(kernels, name)(*arguments, **form)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise  # no fault of the kernel's
    except (WrongResult, *kernels.FAILURES) as error:
        _broken.add(called)
        warnings.warn(
            f"The Triton kernel `{called}` is not used, plain torch takes its place: {type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=4,
        )
    return None


def _check(name: str, like: Tensor, form: dict[str, torch.dtype]) -> None:
    """Raise WrongResult if the kernel is off by more than rounding on random tokens of the width and type of `like`."""
    for arguments in _samples(name, like):
        given = getattr(_triton_kernels(), name)(*arguments, **form)
        results = given if isinstance(given, tuple) else (given,)
        for result, expected in zip(results, _expected(name, arguments, results), strict=True):
            _compare(result, expected)


def _expected(name: str, arguments: tuple[Any, ...], results: tuple[Tensor | Rows, ...]) -> tuple[Tensor, ...]:
    """What plain torch makes of the arguments in float32."""
    wide = [_wide(each) for each in arguments]
    if name == "round_rows":
        return (wide[0],)
    if name == "gate_norm_add_norm_scale":  # the sum is normalised as it was rounded
        norm, h, y, gate, next_norm, scale, row = wide
        return plain.gate_norm_add(norm, h, y, gate, row), plain.norm_scale(next_norm, _wide(results[0]), scale, row)
    if name == "norm_rotate_pair":
        first_norm, first, second_norm, second, *tables = wide
        return plain.norm_rotate(first_norm, first, *tables), plain.norm_rotate(second_norm, second, *tables)
    return (getattr(plain, name)(*wide),)


def _compare(result: Tensor | Rows, expected: Tensor) -> None:
    numbers = torch.finfo(result.dtype)
    size = expected.abs()
    largest = size.flatten(1).amax(1).view(-1, *(1 for _ in size.shape[1:]))  # of each token
    # One rounding, half a unit in the last place, and what sums and exponentials in float32 lose.
    allowed = numbers.eps * size.clamp(min=numbers.smallest_normal) + 2**-18 * largest
    if isinstance(result, Rows):
        stored, scales = result.values.dtype, result.scales[:, None]
        smallest = scales if stored == torch.int8 else scales * torch.finfo(stored).smallest_normal
        allowed = smallest + (0 if stored == torch.int8 else torch.finfo(stored).eps) * size + 2**-18 * largest
        error = (result.values.float() * scales - expected).abs()
    else:
        error = (result.float() - expected).abs()
    if not bool((error <= allowed).all()):
        raise WrongResult(f"off by up to {(error / allowed).max():.3g} times what rounding explains")


def _wide(argument: Any) -> Any:
    """The same in float32."""
    if isinstance(argument, RMSNorm):
        return _norm(argument.weight.float())
    return argument.float() if isinstance(argument, Tensor) and argument.is_floating_point() else argument


def _norm(weight: Tensor) -> RMSNorm:
    norm = RMSNorm(len(weight), eps=1e-5, device="meta")
    norm.weight = nn.Parameter(weight, requires_grad=False)
    return norm


def _samples(name: str, like: Tensor) -> list[tuple[Any, ...]]:
    """Arguments for the check: tokens of very different size, so that `eps` counts too."""
    generator = torch.Generator("cpu").manual_seed(0)  # the caller's random numbers stay as they are
    sizes = torch.tensor([1.0, 1e-3, 10.0], device="cpu")

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")

    def tokens() -> Tensor:
        x = draw(len(sizes), *like.shape[1:])
        return (x.transpose(0, -1) * sizes).transpose(0, -1).contiguous().to(like)

    channels = like.shape[-1]
    if name == "round_rows":
        return [(tokens(),)]
    if name == "swiglu":
        return [(tokens(), tokens())]
    norm, other = (_norm((1 + 0.1 * draw(channels)).to(like)) for _ in range(2))
    if name.startswith("norm_rotate"):
        heads = (norm, tokens()) if name == "norm_rotate" else (norm, tokens(), other, tokens())
        return [(*heads, *(draw(len(sizes), channels).to(like) for _ in "cs"))]
    first = (norm, tokens()) if name == "norm_scale" else (norm, draw(len(sizes), channels).to(like), tokens())
    modulation, row = draw(2, channels).to(like), torch.tensor([1, 0, 1], device=like.device)
    if name == "gate_norm_add_norm_scale":
        scale = draw(2, channels).to(like)
        return [(*first, modulation, other, scale, row), (*first, modulation[:1], other, scale[:1], None)]
    return [(*first, modulation, row), (*first, modulation[:1], None)]
