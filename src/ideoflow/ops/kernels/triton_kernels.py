"""The same in Triton: one pass over memory each, float32 inside, one rounding at the end, modulation rows unexpanded.

Nothing here checks its arguments: `ideoflow.ops.kernels` does, and hands over what these take. Every tensor is
contiguous in its last dimension and may be strided in the others; results are contiguous.
"""

from __future__ import annotations

import os
import subprocess

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..rms_norm import RMSNorm

# Triton reads it when a kernel is decorated, so it holds for as long as this module does.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# What is raised where a kernel does not compile: Triton calls other compilers, and one of them may be missing.
FAILURES = (triton.TritonError, RuntimeError, OSError, subprocess.SubprocessError)
SWIGLU_BLOCK = 1024  # channels of a program: 4 warps, and 16 bytes of each factor for a thread in half precision
HEADS_BLOCK = 1024  # channel pairs that a program rotates at a time


def norm_scale(norm: RMSNorm, x: Tensor, scale: Tensor, row: Tensor | None = None) -> Tensor:
    """See `ideoflow.ops.kernels.norm_scale`."""
    tokens, channels = x.shape
    out = torch.empty((tokens, channels), dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(channels)
    _norm_scale[(tokens,)](
        x, norm.weight, scale, row, out, norm.epsilon, x.stride(0), scale.stride(0), channels, block,
        num_warps=_warps(block),
    )  # fmt: skip
    return out


def gate_norm_add(norm: RMSNorm, h: Tensor, y: Tensor, gate: Tensor, row: Tensor | None = None) -> Tensor:
    """See `ideoflow.ops.kernels.gate_norm_add`."""
    tokens, channels = y.shape
    out = torch.empty((tokens, channels), dtype=y.dtype, device=y.device)
    block = triton.next_power_of_2(channels)
    _gate_norm_add[(tokens,)](
        h, y, norm.weight, gate, row, out, norm.epsilon, h.stride(0), y.stride(0), gate.stride(0), channels, block,
        num_warps=_warps(block),
    )  # fmt: skip
    return out


def norm_rotate(norm: RMSNorm, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `ideoflow.ops.kernels.norm_rotate`."""
    tokens, heads, head_dim = x.shape
    out = torch.empty((tokens, heads, head_dim), dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(head_dim // 2)
    group = min(triton.next_power_of_2(heads), max(1, HEADS_BLOCK // block))
    _norm_rotate[(tokens,)](
        x, norm.weight, cos, sin, out, norm.epsilon, x.stride(0), x.stride(1), cos.stride(0), sin.stride(0),
        heads, head_dim, group, block, num_warps=_warps(2 * group * block),
    )  # fmt: skip
    return out


def swiglu(x1: Tensor, x3: Tensor) -> Tensor:
    """See `ideoflow.ops.kernels.swiglu`."""
    tokens, channels = x1.shape
    out = torch.empty((tokens, channels), dtype=x1.dtype, device=x1.device)
    block = min(triton.next_power_of_2(channels), SWIGLU_BLOCK)
    grid = (tokens, triton.cdiv(channels, block))
    _swiglu[grid](x1, x3, out, x1.stride(0), x3.stride(0), channels, block, num_warps=4)
    return out


def _warps(block: int) -> int:
    """16 channels for a thread: two loads of 16 bytes in half precision."""
    return min(max(block // 512, 1), 16)


# One program for each token. Its number is widened, because a long stream has more than 2^31 elements. Kernels that
# normalise load and sum by the same lines, on purpose: each is compiled, and read, by itself.


@triton.jit
def _norm_scale(
    x, weight, scale, row, out, eps, x_stride, scale_stride, CHANNELS: tl.constexpr, BLOCK: tl.constexpr
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
    result = values * inverse_rms * factor
    tl.store(out + token * CHANNELS + channel, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gate_norm_add(
    h, y, weight, gate, row, out, eps, h_stride, y_stride, gate_stride, CHANNELS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    if row is not None:
        gate += tl.load(row + token).to(tl.int64) * gate_stride
    values = tl.load(y + token * y_stride + channel, mask=inside, other=0.0).to(tl.float32)
    residual = tl.load(h + token * h_stride + channel, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    factor *= tl.load(gate + channel, mask=inside, other=0.0).to(tl.float32)
    inverse_rms = tl.rsqrt(tl.sum(values * values, axis=0) / CHANNELS + eps)
    result = residual + values * inverse_rms * factor
    tl.store(out + token * CHANNELS + channel, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _norm_rotate(
    x, weight, cos, sin, out, eps, token_stride, head_stride, cos_stride, sin_stride,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    HALF: tl.constexpr = HEAD_DIM // 2
    i = tl.arange(0, BLOCK)[None, :]
    # The token's tables are read once for all of its heads.
    first_weight = tl.load(weight + i, mask=i < HALF, other=0.0).to(tl.float32)
    second_weight = tl.load(weight + HALF + i, mask=i < HALF, other=0.0).to(tl.float32)
    cos += token * cos_stride
    sin += token * sin_stride
    first_cos = tl.load(cos + i, mask=i < HALF, other=0.0).to(tl.float32)
    second_cos = tl.load(cos + HALF + i, mask=i < HALF, other=0.0).to(tl.float32)
    first_sin = tl.load(sin + i, mask=i < HALF, other=0.0).to(tl.float32)
    second_sin = tl.load(sin + HALF + i, mask=i < HALF, other=0.0).to(tl.float32)
    x += token * token_stride
    out += token * HEADS * HEAD_DIM
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
def _swiglu(x1, x3, out, x1_stride, x3_stride, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    gate = tl.load(x1 + token * x1_stride + channel, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(x3 + token * x3_stride + channel, mask=inside, other=0.0).to(tl.float32)
    result = gate / (1.0 + tl.exp(-gate)) * value
    tl.store(out + token * CHANNELS + channel, result.to(out.dtype.element_ty), mask=inside)
