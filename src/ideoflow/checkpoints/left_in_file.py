"""Layers that are never used here: left in their file, and read again when the model is saved."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from .errors import CheckpointError

Reader = partial[Tensor]  # its first argument is the source that it reads from


class LeftInFile(nn.Module):
    """Stands for a layer whose weights stay in their file. A state dict has them all the same.

    Args:
        readers: a reader for each tensor of the layer, by its name in the layer.
        why: the end of the error's sentence that a call raises.
        dtype: the type that the tensors would have been loaded in.
    """

    def __init__(self, readers: Mapping[str, Reader], why: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.readers, self.why, self.dtype = dict(readers), why, dtype

    def forward(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(f"The weights of this layer were left in their file: {self.why}")

    def check(self) -> None:
        """Raise where a file is gone that is needed to save the model."""
        gone = [file for read in self.readers.values() for file in read.args[0].files if not file.is_file()]
        if gone:
            raise CheckpointError(
                f"{gone[0]} is not there any more, and weights that are never used here were left in it: put it back,"
                " or save before files are moved."
            )

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name, read in self.readers.items():
            try:
                destination[prefix + name] = read().to(self.dtype)
            except (CheckpointError, OSError) as error:
                raise CheckpointError(
                    f"`{prefix}{name}` was left in its file, which is needed to save the model: {error}"
                ) from error

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Pass over weights that would be loaded: nothing here uses them."""
        unexpected: list[str] = args[-2]
        unexpected[:] = [key for key in unexpected if not key.startswith(prefix)]

    def _apply(self, fn: Any, recurse: bool = True) -> LeftInFile:
        self.dtype = fn(torch.empty(1, dtype=self.dtype)).dtype
        return self
