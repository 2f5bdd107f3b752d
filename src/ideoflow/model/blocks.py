"""The parts of the transformer over a stream of tokens, in the paper's order: feed-forward, block, final layer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.compiled_block import CompiledBlock
from ..ops.fused_projections import FusedProjections
from ..ops.hooks import is_plain
from ..ops.kernels import at_tokens, swiglu
from ..ops.linear import Linear
from ..ops.rms_norm import RMSNorm
from ..packing import Bounds
from .attention import Ideogram4Attention
from .stream import Stream


class FeedForward(FusedProjections, nn.Module):
    """SwiGLU."""

    _projections = ("w1", "w3")

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.w1 = Linear(dim, hidden_dim, bias=False)
        self.w2 = Linear(hidden_dim, dim, bias=False)
        self.w3 = Linear(dim, hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(swiglu(*self.project(x), reader=self.w2))


class Ideogram4TransformerBlock(CompiledBlock, nn.Module):
    """Attention and feed-forward, each normalised before and after, scaled and gated by the time."""

    def __init__(
        self, hidden_size: int, intermediate_size: int, num_heads: int, norm_eps: float, adaln_dim: int
    ) -> None:
        super().__init__()
        self.attention = Ideogram4Attention(hidden_size, num_heads)
        self.feed_forward = FeedForward(hidden_size, intermediate_size)
        self.attention_norm1 = RMSNorm(hidden_size, eps=norm_eps)
        self.ffn_norm1 = RMSNorm(hidden_size, eps=norm_eps)
        self.attention_norm2 = RMSNorm(hidden_size, eps=norm_eps)
        self.ffn_norm2 = RMSNorm(hidden_size, eps=norm_eps)
        self.adaln_modulation = Linear(adaln_dim, 4 * hidden_size)

    def modulation(self, conditioning: Tensor) -> Tensor:
        """(times, adaln_dim) to (times, 4 * channels): scale, gate, scale and gate as they multiply."""
        scale1, gate1, scale2, gate2 = self.adaln_modulation(conditioning).chunk(4, dim=-1)
        return torch.cat((1 + scale1, gate1.tanh(), 1 + scale2, gate2.tanh()), dim=-1)

    def forward(
        self,
        hidden_states: Tensor | Stream,
        conditioning: Tensor | None,
        time_of_token: Tensor,
        rotary: tuple[Tensor, Tensor],
        bounds: Bounds,
        attention_kwargs: dict[str, Any] | None = None,
        modulation: Tensor | None = None,
    ) -> Tensor | Stream:
        """One layer over the stream.

        Returns:
            (tokens, channels), or of the tokens alone that `bounds` wants; a `Stream` if one was given.

        Args:
            hidden_states: (tokens, channels), or a `Stream` of them, which this changes.
            conditioning: (times, adaln_dim), one row for each distinct time; None where `modulation` is given.
            time_of_token: (tokens,) row of `conditioning`, or of `modulation`, of each token.
            rotary: cos and sin, each (tokens, head_dim).
            bounds: the segments of the stream.
            attention_kwargs: passed to the attention processor.
            modulation: (times, 4 * channels) from `modulation`, where it is known already.
        """
        if modulation is None:
            assert conditioning is not None
            modulation = self.modulation(conditioning)
        scale1, gate1, scale2, gate2 = modulation.chunk(4, dim=-1)
        given = hidden_states
        stream = given if isinstance(given, Stream) else Stream(given, time_of_token)
        scaled = stream.read(self.attention_norm1, scale1, self.attention)
        attended = self.attention(scaled, rotary, bounds, **(attention_kwargs or {}))
        if bounds.wanted is not None:
            stream.keep(bounds.wanted)
        stream.add(self.attention_norm2, attended, gate1)
        fed = self.feed_forward(stream.read(self.ffn_norm1, scale2, self.feed_forward))
        stream.add(self.ffn_norm2, fed, gate2)
        return stream if stream is given else stream.whole()


def takes_stream(block: nn.Module) -> bool:
    """Whether nothing but the block's own `forward` sees what it is given: no hook, no subclass, no compiled graph."""
    own = is_plain(block, Ideogram4TransformerBlock) and block._compiled_call_impl is None
    return own and not torch.compiler.is_compiling()


class FinalLayer(nn.Module):
    """From hidden states to velocities."""

    def __init__(self, hidden_size: int, out_channels: int, adaln_dim: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.linear = Linear(hidden_size, out_channels)
        self.adaln_modulation = Linear(adaln_dim, hidden_size)

    def modulation(self, conditioning: Tensor) -> Tensor:
        """(times, adaln_dim) to the scale (times, channels); the conditioning, a silu, goes through a second one."""
        return 1 + self.adaln_modulation(F.silu(conditioning))

    def forward(
        self,
        hidden_states: Tensor,
        conditioning: Tensor | None,
        time_of_token: Tensor,
        modulation: Tensor | None = None,
    ) -> Tensor:
        """(tokens, channels) to (tokens, out_channels), from conditioning or, where it is known, from `modulation`."""
        if modulation is None:
            assert conditioning is not None
            modulation = self.modulation(conditioning)
        return self.linear(self.norm_final(hidden_states) * at_tokens(modulation, time_of_token))
