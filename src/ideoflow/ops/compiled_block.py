"""Blocks that are compiled once for all streams: each call brings its inputs into the one form that graphs hold for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..packing import Bounds
from .fused_projections import FusedProjections
from .hooks import is_hooked, offload_hooks

RECORDING_MODES = ("reduce-overhead", "max-autotune")  # of `torch.compile`


class CompiledBlock:
    """What a block inherits before `nn.Module`.

    The block's `forward` takes `conditioning`, or in its place `modulation`, which its method of that name makes from
    it. Graphs are for a modulation that is known, and for two times or more: torch compiles anew for a size of one.
    """

    records_cuda_graphs = False  # whether what is compiled records CUDA graphs of its own

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the block as `torch.nn.Module.compile` does."""
        asked = kwargs.get("options") or {}
        self.records_cuda_graphs = kwargs.get("mode") in RECORDING_MODES or bool(asked.get("triton.cudagraphs"))
        super().compile(*args, **kwargs)  # type: ignore[misc]
        block: Any = self
        block._compiled_call_impl = partial(self._call_in_one_form, block._compiled_call_impl)

    def _call_in_one_form(
        self,
        compiled: Callable[..., Tensor],
        hidden_states: Tensor,
        conditioning: Tensor | None,
        time_of_token: Tensor,
        rotary: tuple[Tensor, Tensor],
        bounds: Bounds,
        attention_kwargs: dict[str, Any] | None = None,
        modulation: Tensor | None = None,
    ) -> Tensor:
        # The arguments of the block's own `forward`, spelled out so that they may be given by name; graphs hold for
        # one way of giving them, which is that of the last line.
        self._unfuse_stale()
        # A subclass may have a `forward` of its own, and a hook may have to bring the weights first.
        if modulation is None and CompiledBlock in type(self).__bases__ and not is_hooked(self):  # type: ignore[arg-type]
            modulation = self.modulation(conditioning)  # type: ignore[attr-defined]
        if modulation is not None:  # no view, since graphs hold for views of the same base alone
            modulation = torch.cat((modulation, modulation)) if len(modulation) == 1 else modulation.clone()
        return compiled(hidden_states, conditioning, time_of_token, rotary, bounds, attention_kwargs, modulation)

    def _unfuse_stale(self) -> None:
        """Unfuse weights that lie elsewhere than when they were fused, or that hooks will move: graphs see neither."""
        moves = bool(offload_hooks(self))  # type: ignore[arg-type]
        for part in self.children():  # type: ignore[attr-defined]
            if isinstance(part, FusedProjections):
                part.unfuse_projections() if moves else part.unfuse_stale()
