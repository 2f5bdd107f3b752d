"""Attention of each token to its own segment of the stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.attention import AttentionModuleMixin
from torch import Tensor, nn

from ..ops.fused_projections import FusedProjections
from ..ops.kernels import norm_rotate, norm_rotate_pair
from ..ops.linear import Linear
from ..ops.ragged_attention import attend
from ..ops.rms_norm import RMSNorm
from ..packing import Bounds


class Ideogram4AttnProcessor:
    """Computes one attention layer over a stream; `set_attention_backend` chooses the kernel."""

    _attention_backend = None
    _parallel_config = None
    attend: Callable[..., Tensor] = staticmethod(attend)  # another where blocks are compiled or streams shared

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

        if bounds.wanted is None:
            query, key = norm_rotate_pair(attn.norm_q, query, attn.norm_k, key, cos, sin)
        else:
            key = norm_rotate(attn.norm_k, key, cos, sin)
            cos, sin = cos.index_select(0, bounds.wanted), sin.index_select(0, bounds.wanted)
            query = norm_rotate(attn.norm_q, query, cos, sin)
        # Autocast leaves the normalised ones in float32; attention wants one type.
        query, key = query.to(value.dtype), key.to(value.dtype)

        attended = self.attend(query, key, value, bounds, self._attention_backend, self._parallel_config)
        return attn.to_out[0](attended.flatten(1))


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

    def row_type(self, tokens: Tensor) -> torch.dtype | None:
        """As of other projections; processors of other kinds are given tokens as they know them."""
        return super().row_type(tokens) if type(self.processor) is Ideogram4AttnProcessor else None
