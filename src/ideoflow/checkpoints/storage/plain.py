"""Tensors as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import CheckpointError
from .base import Infos, Parts, Storage

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FLOATS = {"F64", "F32", "F16", "BF16", "F8_E5M2"}


class Plain(Storage):
    """A floating-point tensor of any shape."""

    name = "plain"

    def claims(self, infos: Infos) -> bool:
        return set(infos) == {"weight"} and infos["weight"].dtype in FLOATS

    def shape(self, infos: Infos, note: Callable[[str], bytes]) -> tuple[int, ...]:
        return infos["weight"].shape

    def rows(self, parts: Parts, start: int, stop: int) -> dict[str, Tensor]:
        return {"weight": parts["weight"][start:stop]}

    def expand(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        weight = parts["weight"]
        if not weight.is_floating_point():
            raise CheckpointError(f"a weight of type {weight.dtype} has no meaning by itself.")
        return weight.to(dtype)
