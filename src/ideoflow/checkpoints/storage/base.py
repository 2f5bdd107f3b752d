"""What a kind of storage says of itself: how files hold the weight of a linear layer in few bytes.

Which kind a weight is of, and its shape, are told without torch, which is imported where tensors are made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

from ..source import TensorInfo

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ...model import Ideogram4Transformer2DModel

Infos = Mapping[str, TensorInfo]  # by what follows the layer's name and a dot: "weight", "weight_scale", ...
Parts = Mapping[str, "Tensor"]  # the same, read
AT_ONCE = 2**22  # values that are worked on at once, so that what this takes stays small


class Storage(ABC):
    """One kind of storage. Kinds have no state: a weight's parts are given to every method."""

    name: ClassVar[str]

    @abstractmethod
    def claims(self, infos: Infos) -> bool:
        """Whether a layer with such parts is of this kind."""

    @abstractmethod
    def shape(self, infos: Infos, note: Callable[[str], bytes]) -> tuple[int, ...]:
        """(out, in) of the weight; `note` gives the bytes of a part by suffix, for kinds that keep the shape in one.

        Raises:
            CheckpointError: parts that do not fit each other.
        """

    def check(self, parts: Parts, what: str) -> None:
        """Raise a CheckpointError that begins with `what` where values in the bytes of a part are not finite."""
        return None

    @abstractmethod
    def rows(self, parts: Parts, start: int, stop: int) -> dict[str, Tensor]:
        """The parts of rows `start` to `stop` of the weight: q, k or v of a fused projection."""

    @abstractmethod
    def expand(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        """The weight (out, in), computed in float32 and rounded to `dtype` once."""

    def layer(self, parts: Parts, dtype: torch.dtype) -> nn.Linear | None:
        """A layer without bias that keeps the weight as stored and computes in `dtype`; None where none can be had."""
        return None

    def finish(self, model: Ideogram4Transformer2DModel, dtype: torch.dtype) -> None:
        """Say to a model what others ask of it that has layers of this kind, once all of them are in their places."""
        return None
