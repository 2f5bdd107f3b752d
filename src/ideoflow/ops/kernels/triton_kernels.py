"""The same in Triton: one launch each, float32 inside, one rounding at the end, modulation rows unexpanded.

What products read is written in the type of the tokens, or as `Rows` in the type `into`: a program has a whole token,
so it knows the largest magnitude before anything is written. Nothing here checks its arguments: `ideoflow.ops.kernels`
does, and hands over what these take. Every tensor is contiguous in its last dimension and may be strided in the others;
results are contiguous.
"""

from __future__ import annotations

import os
import subprocess

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..rms_norm import RMSNorm
from ..rows import LARGEST, SMALLEST_SCALE, Rows

# Triton reads it when a kernel is decorated, so it holds for as long as this module does.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# What is raised where a kernel does not compile: Triton calls other compilers, and one of them may be missing.
FAILURES = (triton.TritonError, RuntimeError, OSError, subprocess.SubprocessError)
_SMALLEST_SCALE = tl.constexpr(SMALLEST_SCALE)
SWIGLU_BLOCK = 1024  # channels of a program: 4 warps, and 16 bytes of each factor for a thread in half precision
HEADS_BLOCK = 1024  # channel pairs that a program rotates at a time


def norm_scale(
    norm: RMSNorm, x: Tensor, scale: Tensor, row: Tensor | None = None, into: torch.dtype | None = None
) -> Tensor | Rows:
    """See `ideoflow.ops.kernels.norm_scale`."""
    tokens, channels = x.shape
    out, scales, largest = _room(x, into)
    block = triton.next_power_of_2(channels)
    _norm_scale[(tokens,)](
        x, norm.weight, scale, row, out, scales, norm.epsilon, x.stride(0), scale.stride(0), channels, block, largest,
        num_warps=_warps(block),
    )  # fmt: skip
    return _result(out, scales, x.dtype)


def gate_norm_add(norm: RMSNorm, h: Tensor, y: Tensor, gate: Tensor, row: Tensor | None = None) -> Tensor:
    """See `ideoflow.ops.kernels.gate_norm_add`."""
    tokens, channels = y.shape
    out = torch.empty((tokens, channels), dtype=y.dtype, device=y.device)
    block = triton.next_power_of_2(channels)
    _gate_norm_add[(tokens,)](
        h, y, norm.weight, gate, None, None, row, out, None, None, norm.epsilon, 0.0,
        h.stride(0), y.stride(0), gate.stride(0), 0, channels, block, 0.0, num_warps=_warps(block),
    )  # fmt: skip
    return out


def gate_norm_add_norm_scale(
    norm: RMSNorm,
    h: Tensor,
    y: Tensor,
    gate: Tensor,
    next_norm: RMSNorm,
    scale: Tensor,
    row: Tensor | None = None,
    into: torch.dtype | None = None,
) -> tuple[Tensor, Tensor | Rows]:
    """See `ideoflow.ops.kernels.gate_norm_add_norm_scale`."""
    tokens, channels = y.shape
    total = torch.empty((tokens, channels), dtype=y.dtype, device=y.device)
    out, scales, largest = _room(y, into)
    block = triton.next_power_of_2(channels)
    _gate_norm_add[(tokens,)](
        h, y, norm.weight, gate, next_norm.weight, scale, row, total, out, scales, norm.epsilon, next_norm.epsilon,
        h.stride(0), y.stride(0), gate.stride(0), scale.stride(0), channels, block, largest, num_warps=_warps(block),
    )  # fmt: skip
    return total, _result(out, scales, y.dtype)


def norm_rotate(norm: RMSNorm, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `ideoflow.ops.kernels.norm_rotate`."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _rotate(norm, x, out, None, None, None, cos, sin)
    return out


def norm_rotate_pair(
    first_norm: RMSNorm, first: Tensor, second_norm: RMSNorm, second: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """See `ideoflow.ops.kernels.norm_rotate_pair`."""
    outs = torch.empty((2, *first.shape), dtype=first.dtype, device=first.device)
    _rotate(first_norm, first, outs[0], second_norm, second, outs[1], cos, sin)
    return outs[0], outs[1]


def _rotate(
    norm: RMSNorm,
    x: Tensor,
    out: Tensor,
    other_norm: RMSNorm | None,
    other: Tensor | None,
    other_out: Tensor | None,
    cos: Tensor,
    sin: Tensor,
) -> None:
    tokens, heads, head_dim = x.shape
    block = triton.next_power_of_2(head_dim // 2)
    group = min(triton.next_power_of_2(heads), max(1, HEADS_BLOCK // block))
    weight, eps = (None, 0.0) if other_norm is None else (other_norm.weight, other_norm.epsilon)
    strides = (0, 0) if other is None else other.stride()[:2]
    _norm_rotate[(tokens,)](
        x, norm.weight, out, other, weight, other_out, cos, sin, norm.epsilon, eps,
        x.stride(0), x.stride(1), *strides, cos.stride(0), sin.stride(0),
        heads, head_dim, group, block, num_warps=_warps(2 * group * block),
    )  # fmt: skip


def swiglu(x1: Tensor, x3: Tensor, into: torch.dtype | None = None) -> Tensor | Rows:
    """See `ideoflow.ops.kernels.swiglu`."""
    tokens, channels = x1.shape
    out, scales, largest = _room(x1, into)
    whole = triton.next_power_of_2(channels)
    block = min(whole, SWIGLU_BLOCK) if into is None else whole
    grid = (tokens, triton.cdiv(channels, block))
    _swiglu[grid](
        x1, x3, out, scales, x1.stride(0), x3.stride(0), channels, block, largest,
        num_warps=4 if into is None else _warps(block),
    )  # fmt: skip
    return _result(out, scales, x1.dtype)


def round_rows(x: Tensor, into: torch.dtype) -> Rows:
    """See `ideoflow.ops.kernels.round_rows`."""
    tokens, channels = x.shape
    out, scales, largest = _room(x, into)
    block = triton.next_power_of_2(channels)
    _round_rows[(tokens,)](x, out, scales, x.stride(0), channels, block, largest, num_warps=_warps(block))
    assert scales is not None
    return Rows(out, scales, x.dtype)


def _room(x: Tensor, into: torch.dtype | None) -> tuple[Tensor, Tensor | None, float]:
    """Where results for tokens like x go, and the scales of rows; the magnitude that a row's largest is scaled to."""
    out = torch.empty(x.shape, dtype=into or x.dtype, device=x.device)
    if into is None:
        return out, None, 0.0
    return out, torch.empty(x.shape[:1], dtype=torch.float32, device=x.device), LARGEST[into]


def _result(out: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Tensor | Rows:
    return out if scales is None else Rows(out, scales, dtype)


def _warps(block: int) -> int:
    """16 channels for a thread: two loads of 16 bytes in half precision."""
    return min(max(block // 512, 1), 16)


# One program for each token. Its number is widened, because a long stream has more than 2^31 elements. Kernels that
# normalise load and sum by the same lines, on purpose: each is compiled, and read, by itself.


@triton.jit
def _store(out, scales, token, channel, inside, result, CHANNELS: tl.constexpr, LARGEST: tl.constexpr):
    """Write a token's channels in the type of `out`; where LARGEST is not 0 all of them, and the scale of the row."""
    if LARGEST > 0.0:
        # Magnitudes are in the order of their bits, what is not a number above all: it must not go unseen.
        magnitude = result.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        largest = tl.max(magnitude, axis=0).to(tl.float32, bitcast=True)
        scale = tl.where(largest < LARGEST * _SMALLEST_SCALE, _SMALLEST_SCALE, largest / LARGEST)
        tl.store(scales + token, scale)
        result = result / scale
        if out.dtype.element_ty == tl.int8:
            result = (result + 12582912.0) - 12582912.0  # 1.5 * 2^23: to the nearest whole number, ties to even
    tl.store(out + token * CHANNELS + channel, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _norm_scale(
    x, weight, scale, row, out, scales, eps, x_stride, scale_stride,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    if row is not None:
        scale += tl.load(row + token).to(tl.int64) * scale_stride
    values = tl.load(x + token * x_stride + channel, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    factor *= tl.load(scale + channel, mask=inside, other=0.0).to(tl.float32)
    inverse_rms = tl.rsqrt(tl.sum(values * values, axis=0) / CHANNELS + eps)
    _store(out, scales, token, channel, inside, values * inverse_rms * factor, CHANNELS, LARGEST)


@triton.jit
def _gate_norm_add(
    h, y, weight, gate, next_weight, scale, row, total, out, scales, eps, next_eps,
    h_stride, y_stride, gate_stride, scale_stride,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    if row is not None:
        time = tl.load(row + token).to(tl.int64)
        gate += time * gate_stride
    values = tl.load(y + token * y_stride + channel, mask=inside, other=0.0).to(tl.float32)
    residual = tl.load(h + token * h_stride + channel, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    factor *= tl.load(gate + channel, mask=inside, other=0.0).to(tl.float32)
    inverse_rms = tl.rsqrt(tl.sum(values * values, axis=0) / CHANNELS + eps)
    added = (residual + values * inverse_rms * factor).to(total.dtype.element_ty)
    tl.store(total + token * CHANNELS + channel, added, mask=inside)
    if out is not None:
        # The next norm takes what was written, so that one launch gives the numbers of two.
        if row is not None:
            scale += time * scale_stride
        values = added.to(tl.float32)
        factor = tl.load(next_weight + channel, mask=inside, other=0.0).to(tl.float32)
        factor *= tl.load(scale + channel, mask=inside, other=0.0).to(tl.float32)
        inverse_rms = tl.rsqrt(tl.sum(values * values, axis=0) / CHANNELS + next_eps)
        _store(out, scales, token, channel, inside, values * inverse_rms * factor, CHANNELS, LARGEST)


@triton.jit
def _norm_rotate(
    x, weight, out, other, other_weight, other_out, cos, sin, eps, other_eps,
    token_stride, head_stride, other_token_stride, other_head_stride, cos_stride, sin_stride,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    HALF: tl.constexpr = HEAD_DIM // 2
    i = tl.arange(0, BLOCK)[None, :]
    # The token's tables are read once for all of its heads.
    cos += token * cos_stride
    sin += token * sin_stride
    first_cos = tl.load(cos + i, mask=i < HALF, other=0.0).to(tl.float32)
    second_cos = tl.load(cos + HALF + i, mask=i < HALF, other=0.0).to(tl.float32)
    first_sin = tl.load(sin + i, mask=i < HALF, other=0.0).to(tl.float32)
    second_sin = tl.load(sin + HALF + i, mask=i < HALF, other=0.0).to(tl.float32)
    _rotate_heads(
        x + token * token_stride, weight, out + token * HEADS * HEAD_DIM, first_cos, second_cos, first_sin, second_sin,
        eps, head_stride, HEADS, HEAD_DIM, GROUP, BLOCK,
    )  # fmt: skip
    if other is not None:
        _rotate_heads(
            other + token * other_token_stride, other_weight, other_out + token * HEADS * HEAD_DIM,
            first_cos, second_cos, first_sin, second_sin,
            other_eps, other_head_stride, HEADS, HEAD_DIM, GROUP, BLOCK,
        )  # fmt: skip


@triton.jit
def _rotate_heads(
    x, weight, out, first_cos, second_cos, first_sin, second_sin, eps, head_stride,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = HEAD_DIM // 2
    i = tl.arange(0, BLOCK)[None, :]
    first_weight = tl.load(weight + i, mask=i < HALF, other=0.0).to(tl.float32)
    second_weight = tl.load(weight + HALF + i, mask=i < HALF, other=0.0).to(tl.float32)
    for begin in range(0, HEADS, GROUP):
        head = begin + tl.arange(0, GROUP)[:, None]
        inside = (head < HEADS) & (i < HALF)
        first = tl.load(x + head * head_stride + i, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(x + head * head_stride + HALF + i, mask=inside, other=0.0).to(tl.float32)
        squares = tl.sum(first * first + second * second, axis=1)[:, None]
        inverse_rms = tl.rsqrt(squares / HEAD_DIM + eps)
        first = first * inverse_rms * first_weight
        second = second * inverse_rms * second_weight
        at = out + head * HEAD_DIM + i
        tl.store(at, (first * first_cos + second * first_sin).to(out.dtype.element_ty), mask=inside)
        tl.store(at + HALF, (second * second_cos + first * second_sin).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu(
    x1, x3, out, scales, x1_stride, x3_stride, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    gate = tl.load(x1 + token * x1_stride + channel, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(x3 + token * x3_stride + channel, mask=inside, other=0.0).to(tl.float32)
    _store(out, scales, token, channel, inside, gate / (1.0 + tl.exp(-gate)) * value, CHANNELS, LARGEST)


@triton.jit
def _round_rows(
    x, out, scales, x_stride, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    values = tl.load(x + token * x_stride + channel, mask=inside, other=0.0).to(tl.float32)
    _store(out, scales, token, channel, inside, values, CHANNELS, LARGEST)
