"""LoKr and LoHa: adapters whose change of a weight is a product of factors other than LoRA's two matrices.

peft has layers for both, which derive the shapes of the factors from the layer's and so take only files that were made
the same way; these take any factors, and a part of the rows, as q, k and v are of a fused projection.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from peft.tuners.lycoris_utils import LycorisLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn


class Kronecker(nn.Module):
    """LoKr (Yeh et al., 2024): rows of `kron(left, right)`, each a matrix or a product of two.

    Args:
        left: One matrix (a, b), or two, (a, rank) and (rank, b).
        right: The same of (c, d).
        start: The first of the (a * c) rows that is wanted.
        stop: The one after the last; None for the end.
    """

    kind: ClassVar[str] = "LoKr"

    def __init__(
        self, left: tuple[Tensor, ...], right: tuple[Tensor, ...], start: int = 0, stop: int | None = None
    ) -> None:
        super().__init__()
        self.left = nn.ParameterList(nn.Parameter(one, requires_grad=False) for one in left)
        self.right = nn.ParameterList(nn.Parameter(one, requires_grad=False) for one in right)
        self.start, self.stop = start, stop

    def delta(self, dtype: torch.dtype) -> Tensor:
        """The change of the weight (out, in), computed in `dtype`."""
        left, right = (_product(part, dtype) for part in (self.left, self.right))
        return torch.kron(left, right)[self.start : self.stop]

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), without making the weight: by the right factor and then by the left."""
        blocks = x.unflatten(-1, (self.left[-1].shape[1], self.right[-1].shape[1]))  # (..., b, d)
        for matrix in reversed(self.right):
            blocks = F.linear(blocks, matrix)  # (..., b, c)
        blocks = blocks.transpose(-1, -2)
        for matrix in reversed(self.left):
            blocks = F.linear(blocks, matrix)  # (..., c, a)
        return blocks.transpose(-1, -2).flatten(-2)[..., self.start : self.stop]


class Hadamard(nn.Module):
    """LoHa (Hyeon-Woo et al., 2022): the product, entry by entry, of two products of two matrices.

    Args:
        left: (out, rank) and (rank, in).
        right: The same, of its own rank.
    """

    kind: ClassVar[str] = "LoHa"

    def __init__(self, left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.left = nn.ParameterList(nn.Parameter(one, requires_grad=False) for one in left)
        self.right = nn.ParameterList(nn.Parameter(one, requires_grad=False) for one in right)

    def delta(self, dtype: torch.dtype) -> Tensor:
        """The change of the weight (out, in), computed in `dtype`."""
        return _product(self.left, dtype) * _product(self.right, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), by the weight, which has no shorter way."""
        return F.linear(x, self.delta(self.left[0].dtype))


def _product(matrices: nn.ParameterList, dtype: torch.dtype) -> Tensor:
    first, *others = (matrix.to(dtype) for matrix in matrices)
    for matrix in others:
        first = first @ matrix
    return first


Factors = Kronecker | Hadamard


class FactoredLinear(nn.Module, LycorisLayer):
    """A linear layer with such adapters on it; to peft and diffusers an adapter layer as any other.

    Args:
        base_layer: Computed first, of whatever kind its weight is stored in.
    """

    adapter_layer_names = ("factors",)
    other_param_names = ("r", "alpha", "scaling")
    base_layer: nn.Module
    factors: nn.ModuleDict
    r: dict[str, int]
    alpha: dict[str, float]
    scaling: dict[str, float]
    merged_adapters: list[str]

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        LycorisLayer.__init__(self, base_layer)
        self.factors = nn.ModuleDict()

    def add(self, adapter_name: str, factors: Factors, scale: float) -> None:
        """Put an adapter on the layer.

        Args:
            adapter_name: A name that is free.
            factors: The factors of the weight's change.
            scale: The strength of the change at weight 1.
        """
        self.factors[adapter_name] = factors
        self.r[adapter_name], self.alpha[adapter_name], self.scaling[adapter_name] = 1, scale, scale
        layer: Any = self
        layer._move_adapter_to_device_of_base_layer(adapter_name)

    @property
    def _available_adapters(self) -> set[str]:
        return set(self.factors)

    def get_delta_weight(self, adapter_name: str, **_: Any) -> Tensor:
        """(out, in) in float32: what an adapter adds to the weight."""
        delta = self._of(adapter_name).delta(torch.float32)
        return delta * self.scaling[adapter_name]

    def _of(self, adapter_name: str) -> Factors:
        factors = self.factors[adapter_name]
        assert isinstance(factors, (Kronecker, Hadamard))
        return factors

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output and what the active adapters add, in the type of the former."""
        acting = self._acting()
        result: Tensor = self.base_layer(x, *args, **kwargs)
        for name in acting:
            factors = self._of(name)
            result = result + (factors(x.to(factors.left[0].dtype)) * self.scaling[name]).to(result.dtype)
        return result

    def _acting(self) -> list[str]:
        """Names of the adapters that are neither off nor in the weight already."""
        layer: Any = self
        if layer.disable_adapters:
            if layer.merged:
                layer.unmerge()
            return []
        return [one for one in layer.active_adapters if one in self.factors and one not in self.merged_adapters]

    # What peft's base class asks of layers that are made by a configuration, as these are not.
    def create_adapter_parameters(self, adapter_name: str, r: int, **kwargs: Any) -> None:
        raise NotImplementedError

    def reset_adapter_parameters(self, adapter_name: str) -> None:
        raise NotImplementedError

    def update_layer(self, adapter_name: str, r: int, alpha: float, **kwargs: Any) -> None:
        raise NotImplementedError

    def _get_delta_activations(self, adapter_name: str, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        raise NotImplementedError


def factored_adapters(model: nn.Module) -> set[str]:
    """Names of the LoKr and LoHa adapters of a model."""
    return {name for part in model.modules() if isinstance(part, FactoredLinear) for name in part.factors}


def add_factored(model: nn.Module, adapter_name: str, layers: Mapping[str, tuple[Factors, float]]) -> None:
    """Put an adapter on layers of a model, under whatever adapters they have already, and have it alone act.

    Args:
        model: Changed in place.
        adapter_name: A name that is free.
        layers: Factors and scale, by the layer's name.
    """
    for name, (factors, scale) in layers.items():
        layer = model.get_submodule(name)
        while not isinstance(layer, FactoredLinear) and hasattr(layer, "base_layer"):
            name = f"{name}.base_layer"
            layer = model.get_submodule(name)
        if not isinstance(layer, FactoredLinear):
            layer = FactoredLinear(layer).train(layer.training)
            model.set_submodule(name, layer)
        layer.add(adapter_name, factors, scale)
    for part in model.modules():
        if isinstance(part, BaseTunerLayer):
            part.set_adapter(adapter_name, inference_mode=True)
