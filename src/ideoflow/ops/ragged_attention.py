"""Attention of each token to its own segment of the stream, without a mask, by the kernels that a machine has."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry, dispatch_attention_fn
from torch import Tensor

from ..packing import Bounds
from . import cpu_attention


def _find_kernel(*places: tuple[str, str]) -> Callable[..., Tensor] | None:
    """The first function of these modules that can be had."""
    for module, name in places:
        try:
            return getattr(import_module(module), name)
        except (ImportError, OSError, RuntimeError):  # not installed, or built for another torch
            continue
    return None


_TORCH, _FLASH = ("torch.nn.attention.varlen", "varlen_attn"), ("flash_attn", "flash_attn_varlen_func")
# Kernels of a backend that take ragged segments on CUDA.
RAGGED_KERNELS = {
    AttentionBackendName.NATIVE: _find_kernel(_TORCH, _FLASH),
    AttentionBackendName.FLASH: _find_kernel(_FLASH),
    AttentionBackendName._FLASH_3: _find_kernel(("flash_attn_interface", "flash_attn_varlen_func")),
}


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Bounds,
    backend: AttentionBackendName | None = None,
    parallel: Any = None,
) -> Tensor:
    """Attend within each segment: by a ragged kernel of the backend, else a batch for each run of equal lengths.

    Args:
        query: (queries, heads, head_dim), of the tokens that `bounds` wants.
        key: (tokens, heads, head_dim).
        value: (tokens, heads, head_dim).
        bounds: the segments.
        backend: by diffusers' names; None for the one in force there.
        parallel: diffusers' configuration of context parallelism.

    Returns:
        (queries, heads, head_dim).
    """
    backend = backend or _AttentionBackendRegistry.get_active_backend()[0]
    if bounds.mask is not None:
        rows = (x.unflatten(0, (bounds.runs[0].segments, -1)) for x in (query, key, value))
        masked = dispatch_attention_fn(*rows, attn_mask=bounds.mask, backend=backend, parallel_config=parallel)
        return masked.flatten(0, 1)
    ragged = RAGGED_KERNELS.get(backend)
    if ragged is not None and bounds.segments > 1 and _ragged_takes(query):
        lengths = (bounds.cu_queries, bounds.cu_seqlens, bounds.most_queries, bounds.longest)
        result: Any = ragged(query, key, value, *lengths)
        return result[0] if isinstance(result, tuple) else result

    attended = []
    queries = query.split([run.segments * run.queries for run in bounds.runs])
    tokens = [run.segments * run.length for run in bounds.runs]
    for run, *parts in zip(bounds.runs, queries, key.split(tokens), value.split(tokens), strict=True):
        if run.queries == 0:
            continue
        # (segments, length, heads, head_dim): views, nothing is copied or padded
        batch = [x.unflatten(0, (run.segments, -1)) for x in parts]
        if backend == AttentionBackendName.NATIVE and cpu_attention.is_faster(*batch[:2]):
            out = cpu_attention.attend(*batch)
        else:
            out = dispatch_attention_fn(*batch, backend=backend, parallel_config=parallel)
        attended.append(out.flatten(0, 1))
    return attended[0] if len(attended) == 1 else torch.cat([value[:0], *attended])


@torch.compiler.disable
def attend_between_graphs(*arguments: Any) -> Tensor:
    """`attend` between compiled graphs: one with the lengths of segments inside would hold for one layout alone."""
    attended = attend(*arguments)
    # For one run `attend` gives a view, for several none, and the graph that follows would be another one.
    return attended if attended.requires_grad else attended.data


def _ragged_takes(query: Tensor) -> bool:
    """Whether the ragged kernels can compute attention for such a query (tokens, heads, head_dim)."""
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    head_dim = query.shape[-1]
    capability = torch.cuda.get_device_capability(query.device)
    # Flash attention: Ampere or later, and its backward for wide heads only where shared memory is large.
    wide_backward = query.requires_grad and head_dim > 192 and capability in ((8, 6), (8, 9), (12, 0), (12, 1))
    return capability >= (8, 0) and head_dim <= 256 and head_dim % 8 == 0 and not wide_backward
