"""What stands in a pipeline for a branch that other ranks hold: its sizes, and no weights."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from diffusers.configuration_utils import FrozenDict
from torch import nn

from ..model import Context
from ..packing import Layout


class RemoteBranch(nn.Module):
    """A transformer on other ranks.

    Args:
        config: Its configuration.
        dtype: Its type.

    Attributes:
        config: Its configuration.
        attn_processors: None of its own.
    """

    def __init__(self, config: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = FrozenDict(config)
        self.attn_processors: dict[str, Any] = {}
        self.place = nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)  # tells device and type

    @property
    def dtype(self) -> torch.dtype:
        """The type that the branch computes in."""
        return self.place.dtype

    @property
    def device(self) -> torch.device:
        """Where rank 0 computes."""
        return self.place.device

    def prepare_projected(self, text: None, layout: Layout) -> Context:
        """The layout alone: the ranks of the branch make the rest."""
        width = self.config["num_attention_heads"] * self.config["attention_head_dim"]
        nothing = self.place.new_empty(0, width), *(self.place.new_empty(0, self.config["attention_head_dim"]),) * 2
        return Context(layout, *nothing)

    def velocity(self, *arguments: Any, **options: Any) -> NoReturn:
        """Refused: a step goes through the pipeline's engine, which asks the other ranks."""
        self._refuse("velocity")

    def __getattr__(self, name: str) -> Any:
        """Refuse what the transformer has and this has not."""
        if name in ("compile_blocks", "fuse_projections", "unfuse_projections", "tune_attention", "save_pretrained"):
            self._refuse(name)
        return super().__getattr__(name)

    def _refuse(self, name: str) -> NoReturn:
        raise ValueError(
            f"`{name}` needs the unconditional transformer's weights, which under `guidance=2` are on other ranks: do"
            " it in every process before the plan is applied."
        )
