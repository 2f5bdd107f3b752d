"""Attention backends: those that a machine has, timed at a model's own shapes, so that the fastest can be chosen."""

from __future__ import annotations

import logging
import statistics
import time
import warnings
from collections.abc import Sequence

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _check_attention_backend_requirements
from torch import Tensor

from ..packing import Bounds
from .ragged_attention import attend

logger = logging.getLogger(__name__)

# Exact ones by diffusers' names, but for those that fetch kernels from the hub.
CANDIDATES = (
    "native",
    "_native_flash",
    "_native_cudnn",
    "_native_efficient",
    "_native_math",
    "flash",
    "_flash_3",
    "flex",
    "xformers",
)
FARTHEST = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}  # from float64, of the largest value
CHECKED = 64  # queries at both ends of the stream, against float64


def exact(query: Tensor, key: Tensor, value: Tensor, bounds: Bounds) -> Tensor:
    """Attention in float64 of the first and the last queries of a stream, up to `CHECKED` of each.

    Args:
        query: (tokens, heads, head_dim), and likewise the other two.
        key: Keys of all tokens.
        value: Values of all tokens.
        bounds: The segments; all tokens are wanted.

    Returns:
        (first and last queries, heads, head_dim).
    """
    first, last = bounds.runs[0].length, bounds.runs[-1].length
    tokens, few = len(query), min(CHECKED, first, last)
    parts = ((slice(0, few), slice(0, first)), (slice(tokens - few, tokens), slice(tokens - last, tokens)))
    attended = []
    for queries, keys in parts:
        q, k, v = (x.double().transpose(0, 1) for x in (query[queries], key[keys], value[keys]))
        attended.append((q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(-1) @ v)
    return torch.cat(attended, dim=1).transpose(0, 1)


def distance(attended: Tensor, expected: Tensor) -> float:
    """How far (tokens, heads, head_dim) are from what `exact` gave, as a share of its largest value."""
    few = len(expected) // 2
    ends = torch.cat((attended[:few], attended[len(attended) - few :]))
    return float((ends - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def time_backends(
    shape: tuple[int, int],
    lengths: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    rounds: int = 5,
) -> dict[str, float]:
    """Seconds of each backend that runs here and is right on random numbers, the fastest first.

    The others are logged (level INFO) with what they failed from.

    Args:
        shape: (heads, head_dim).
        lengths: Tokens of each segment of the stream.
        dtype: The type of queries, keys and values.
        device: Where.
        rounds: Calls of each backend, in turn; the median counts.
    """
    generator = torch.Generator().manual_seed(0)
    size = (sum(lengths), *shape)
    query, key, value = (torch.randn(size, generator=generator).to(device, dtype) for _ in range(3))
    begins = torch.tensor((0, *lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32)
    bounds = Bounds.of(tuple(lengths), begins.to(device))
    expected = exact(query, key, value, bounds)
    right: dict[str, list[float]] = {}
    for name in CANDIDATES:
        backend = AttentionBackendName(name)
        try:
            _check_attention_backend_requirements(backend)
            with warnings.catch_warnings(action="ignore"):  # flex's, that it is slow unless compiled
                off = distance(attend(query, key, value, bounds, backend), expected)
        except Exception as error:  # whatever a library raises that cannot be used here
            reason = str(error).split("\n")[0] or type(error).__name__
            logger.info("Attention backend %s cannot be used: %s", name, reason)
            continue
        if off <= FARTHEST.get(dtype, 1e-4):
            right[name] = []
        else:
            logger.info("Attention backend %s is not used: it is %.1e of the largest value off.", name, off)
    for _ in range(rounds):
        for name, seconds in right.items():
            _wait(device)
            begun = time.perf_counter()
            attend(query, key, value, bounds, AttentionBackendName(name))
            _wait(device)
            seconds.append(time.perf_counter() - begun)
    medians = {name: statistics.median(seconds) for name, seconds in right.items()}
    return dict(sorted(medians.items(), key=lambda item: item[1]))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
