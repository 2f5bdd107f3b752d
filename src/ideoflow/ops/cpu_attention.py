"""Attention on a CPU as plain products, where they beat the fused kernel: long segments without a gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from .guards import may_be_fast
from .linear import ONEDNN_IS_FASTER, linear
from .scratch_bytes import NARROWEST, QUERIES, SMALLEST


def _has_fast_bfloat16() -> bool:
    """Whether bfloat16 products are much faster than torch's fused kernel, which computes them in float32.

    With AMX the fused kernel is fast itself.
    """
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        and not torch.cpu._is_amx_tile_supported()
    )


FASTER = {torch.float32: ONEDNN_IS_FASTER, torch.bfloat16: ONEDNN_IS_FASTER and _has_fast_bfloat16()}


def is_faster(query: Tensor, key: Tensor) -> bool:
    """Whether `attend` is the faster way for such queries and keys (segments, length, heads, head_dim)."""
    return (
        FASTER.get(query.dtype, False)
        and query.device.type == "cpu"
        and key.shape[-1] >= NARROWEST
        and key.shape[1] * key.shape[-1] >= SMALLEST
        and not torch.is_grad_enabled()
        and may_be_fast(query, key)
    )


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention within each segment: scores and softmax in float32, the rest in the inputs' type.

    Args:
        query: (segments, queries, heads, head_dim).
        key: (segments, length, heads, head_dim).
        value: (segments, length, heads, head_dim).

    Returns:
        (segments, queries, heads, head_dim).
    """
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    scale = query.shape[-1] ** -0.5
    for segment in range(query.shape[0]):
        for head in range(query.shape[2]):
            keys = key[segment, :, head].float().contiguous()
            values = value[segment, :, head].t().contiguous()  # (head_dim, length): a weight of `linear`
            for begin in range(0, query.shape[1], QUERIES):
                part = slice(begin, begin + QUERIES)
                scores = linear(query[segment, part, head].float() * scale, keys)
                out[segment, part, head] = linear(torch.softmax(scores, dim=-1).to(value.dtype), values)
    return out
