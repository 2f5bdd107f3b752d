"""Layers that a branch never uses: left in the file, and read again when the model is saved."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import nn

from .errors import CheckpointError
from .forms import StoredWeight
from .source import Source


class Resting(nn.Module):
    """Stands for a layer whose weights stay in their file. A state dict has them all the same.

    Args:
        source: The file.
        weights: Of this layer.
        dtype: That they would have been loaded in.
    """

    def __init__(self, source: Source, weights: list[StoredWeight], dtype: torch.dtype) -> None:
        super().__init__()
        self.source, self.weights, self.dtype = source, weights, dtype

    def forward(self, *args: Any) -> NoReturn:
        raise RuntimeError(
            f"`{self.weights[0].name}` was left in {self.source.path}, since the unconditional branch takes no text:"
            " load the model with `text_projection=True` to use it with text tokens."
        )

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for weight in self.weights:
            try:
                parts = {key: self.source.read(info.name) for key, info in weight.infos.items()}
            except (CheckpointError, OSError) as error:
                raise CheckpointError(
                    f"`{weight.name}` was left in its file, which is needed to save the model: {error}"
                ) from error
            destination[prefix + weight.parameter] = weight.storage.expand(parts, self.dtype)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Weights that would be loaded stay where they are: nothing here uses them."""
        unexpected: list[str] = args[-2]
        for key in [key for key in unexpected if key.startswith(prefix)]:
            unexpected.remove(key)

    def _apply(self, fn: Any, recurse: bool = True) -> Resting:
        self.dtype = fn(torch.empty(1, dtype=self.dtype)).dtype
        return self
