"""What makes the model faster and leaves its numbers: fused projections, compiled blocks, the fastest attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName

from .attention_backends import time_backends
from .fused_projections import FusedProjections
from .ragged_attention import attend_between_graphs

RECOMPILE_LIMIT = 64  # of compiled blocks, in place of torch's 8: two graphs of each piece for each set of adapters


class Accelerated:
    """What the model inherits beside its network, and beside diffusers' `AttentionMixin`."""

    def compile_blocks(self: Any, **options: Any) -> None:
        """Compile the blocks once for streams of any length and layout; attention runs between the compiled graphs.

        Weights may be changed and replaced afterwards, fused or not. A model that `torch.compile` compiles as a whole
        does not see that fused weights were put elsewhere: unfuse it first.

        What `compile_repeated_blocks` of diffusers does, which compiles anew for each layout of segments.

        Args:
            options: those of `torch.compile`, all but `dynamic` and `fullgraph`.
        """
        for processor in self.attn_processors.values():
            processor.attend = attend_between_graphs
        # Each adapter is a model of another structure; at the limit torch would go on without compiling.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
        self.compile_repeated_blocks(dynamic=True, **options)

    def tune_attention(self: Any, lengths: Sequence[int], rounds: int = 5) -> dict[str, float]:
        """Time the attention backends that this machine has at a stream like those to come, and use the fastest.

        Only exact ones are tried, in this model's type, on its device, with its heads, and each is compared with
        float64 first. Those that cannot be used are logged with the reason (level INFO). `reset_attention_backend`
        undoes it.

        Args:
            lengths: tokens of each segment, text and image.
            rounds: calls of each backend, in turn; the median counts.

        Returns:
            Seconds of each backend that can be used, the fastest first.

        Raises:
            ValueError: no length, or one that is not a positive integer.
            RuntimeError: no backend runs where the weights lie.
        """
        if not lengths or not all(isinstance(length, int) and length > 0 for length in lengths):
            raise ValueError(f"`lengths` is {lengths!r}: give the tokens of each segment, such as [1500, 4596].")
        shape = (self.config.num_attention_heads, self.config.attention_head_dim)
        seconds = time_backends(shape, lengths, self.dtype, self.device, rounds)
        if not seconds:
            raise RuntimeError(f"No attention backend runs in {self.dtype} on {self.device}: tune before offloading.")
        for processor in self.attn_processors.values():
            processor._attention_backend = AttentionBackendName(next(iter(seconds)))
        return seconds

    def fuse_projections(self: Any) -> None:
        """Compute q, k and v as one product in each block, and w1 and w3, unless their weights are to have gradients.

        Names, files and adapters stay as they are. `fuse_qkv_projections`, as diffusers has it, does the first alone.
        Call it before offloading is set up.
        """
        for module in self.modules():
            if isinstance(module, FusedProjections):
                module.fuse_projections()

    def unfuse_projections(self: Any) -> None:
        """Undo `fuse_projections`."""
        for module in self.modules():
            if isinstance(module, FusedProjections):
                module.unfuse_projections()
