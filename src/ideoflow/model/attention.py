"""Attention of each token to its own segment of the stream, without a mask."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry, dispatch_attention_fn
from torch import Tensor, nn

from ..ops import cpu_attention, kernels
from ..ops.fused_projections import FusedProjections
from ..ops.hooks import is_plain
from ..ops.linear import Linear
from ..packing import Bounds
from .rope import rotate


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


class Ideogram4AttnProcessor:
    """Computes one attention layer over a stream; `set_attention_backend` chooses the kernel."""

    _attention_backend = None
    _parallel_config = None
    breaks_graphs = False  # set while the blocks are compiled for all layouts

    def __call__(
        self,
        attn: Ideogram4Attention,
        hidden_states: Tensor,  # (tokens, channels)
        rotary: tuple[Tensor, Tensor],  # cos and sin, each (tokens, head_dim)
        bounds: Bounds,
        **kwargs: Any,
    ) -> Tensor:
        cos, sin = rotary
        if bounds.wanted is None:
            projected = attn.project(hidden_states)
        else:
            wanted = hidden_states.index_select(0, bounds.wanted)
            projected = attn.to_q(wanted), attn.to_k(hidden_states), attn.to_v(hidden_states)
        # (tokens, heads, head_dim)
        query, key, value = (x.unflatten(-1, (attn.num_heads, attn.head_dim)) for x in projected)

        # Autocast leaves the normalised ones in float32; the kernels want one type.
        key = norm_rotate(attn.norm_k, key, cos, sin).to(value.dtype)
        if bounds.wanted is not None:
            cos, sin = cos.index_select(0, bounds.wanted), sin.index_select(0, bounds.wanted)
        query = norm_rotate(attn.norm_q, query, cos, sin).to(value.dtype)

        attend = _attend_outside_graphs if self.breaks_graphs else Ideogram4AttnProcessor._attend
        attended = attend(self, query, key, value, bounds)
        return attn.to_out[0](attended.flatten(1))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bounds: Bounds) -> Tensor:
        """Attend within each segment: (queries, heads, head_dim) and twice (tokens, heads, head_dim) to the first."""
        backend = self._attention_backend or _AttentionBackendRegistry.get_active_backend()[0]
        return attend_by(backend, query, key, value, bounds, self._parallel_config)


def attend_by(
    backend: AttentionBackendName, query: Tensor, key: Tensor, value: Tensor, bounds: Bounds, parallel: Any = None
) -> Tensor:
    """Attend within each segment by a backend: a ragged kernel of its, else a batch for each run of equal lengths.

    Args:
        backend: Of diffusers' names.
        query: (queries, heads, head_dim), of the tokens that `bounds` wants.
        key: (tokens, heads, head_dim).
        value: (tokens, heads, head_dim).
        bounds: The segments.
        parallel: diffusers' configuration of context parallelism.

    Returns:
        (queries, heads, head_dim).
    """
    if bounds.mask is not None:
        rows = (x.unflatten(0, (bounds.runs[0].segments, -1)) for x in (query, key, value))
        return dispatch_attention_fn(*rows, attn_mask=bounds.mask, backend=backend, parallel_config=parallel).flatten(
            0, 1
        )
    ragged = RAGGED_KERNELS.get(backend)
    if ragged is not None and bounds.segments > 1 and _varlen_takes(query):
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
def _attend_outside_graphs(
    processor: Ideogram4AttnProcessor, query: Tensor, key: Tensor, value: Tensor, bounds: Bounds
) -> Tensor:
    """Attention between compiled graphs: one with the lengths of segments inside would hold for one layout alone."""
    attended = processor._attend(query, key, value, bounds)
    # Of one run a view, of several none: the graph that follows would be another one.
    return attended if attended.requires_grad else attended.data


def _varlen_takes(query: Tensor) -> bool:
    """Whether the variable-length kernel can compute attention for such a query (tokens, heads, head_dim)."""
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    head_dim = query.shape[-1]
    capability = torch.cuda.get_device_capability(query.device)
    # Flash attention: Ampere or later, and its backward for wide heads only where shared memory is large.
    wide_backward = query.requires_grad and head_dim > 192 and capability in ((8, 6), (8, 9), (12, 0), (12, 1))
    return capability >= (8, 0) and head_dim <= 256 and head_dim % 8 == 0 and not wide_backward


class RMSNorm(nn.RMSNorm):
    """Torch's norm, computed in the type of its weight: what autocast hands it is narrower."""

    @property
    def epsilon(self) -> float:
        """What is added to the mean square."""
        assert self.eps is not None
        return self.eps

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


def norm_rotate(norm: nn.Module, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Normalise and rotate each head of x (tokens, heads, head_dim), in one pass where a kernel can."""
    if is_plain(norm, RMSNorm):
        return kernels.norm_rotate(x, norm.weight, norm.epsilon, cos, sin)
    return rotate(norm(x), cos, sin)


class Ideogram4Attention(FusedProjections, nn.Module, AttentionModuleMixin):
    """Self-attention with normalised queries and keys, rotary positions, and segments that do not see each other."""

    processor: Ideogram4AttnProcessor

    _projections = ("to_q", "to_k", "to_v")
    _default_processor_cls = Ideogram4AttnProcessor
    _available_processors = [Ideogram4AttnProcessor]  # noqa: RUF012 (the mixin declares it so)

    def __init__(self, hidden_size: int, num_heads: int, eps: float = 1e-5) -> None:
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(f"`hidden_size`={hidden_size} must be divisible by `num_heads`={num_heads}.")
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads

        self.to_q = Linear(hidden_size, hidden_size, bias=False)
        self.to_k = Linear(hidden_size, hidden_size, bias=False)
        self.to_v = Linear(hidden_size, hidden_size, bias=False)
        self.norm_q = RMSNorm(self.head_dim, eps=eps)
        self.norm_k = RMSNorm(self.head_dim, eps=eps)
        self.to_out = nn.ModuleList([Linear(hidden_size, hidden_size, bias=False)])
        self.processor = Ideogram4AttnProcessor()

    def forward(
        self, hidden_states: Tensor, rotary: tuple[Tensor, Tensor], bounds: Bounds, **attention_kwargs: Any
    ) -> Tensor:
        """(tokens, channels) to (wanted tokens, channels); `attention_kwargs` go to the processor."""
        return self.processor(self, hidden_states, rotary, bounds, **attention_kwargs)
