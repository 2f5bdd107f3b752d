"""Linear layers of one input as one product: their weights lie one after another, each layer's a view of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from .guards import are_bare, is_transformed, needs_gradient
from .hooks import is_hooked
from .rows import Rows


class FusedProjections:
    """What a module inherits beside `nn.Module`, some of whose linear layers take the same input.

    Fusing takes no memory and changes no name: the layers, their parameters and the state dict stay. A product is taken
    as one only while nothing else is asked of a layer: no adapter, no hook, no gradient of its weight, and the weight
    still where fusing put it. Else each layer computes its own.
    """

    fused_projections = False
    _projections: ClassVar[tuple[str, ...]]  # names of the layers
    _fused: nn.Linear | None = None  # computes all of them; no submodule, since its weight is theirs

    def fuse_projections(self) -> None:
        """Let the layers' weights lie together, where that can be; does nothing for layers quantized by others."""
        layers = self._layers()
        if not _can_be_fused(layers):
            return
        self.__dict__["_fused"] = _fuse(layers)
        self.fused_projections = True

    def unfuse_projections(self) -> None:
        """Let each layer compute its own product again; the weights stay where they are."""
        self.__dict__.pop("_fused", None)
        self.fused_projections = False

    @property
    def to_qkv(self) -> nn.Linear:
        """Queries, keys and values as one layer while they are fused, by the name that diffusers has for it."""
        self.unfuse_stale()
        if self._fused is None or self._projections[0] != "to_q":
            raise AttributeError(f"{type(self).__name__} has no `to_qkv`: its projections are not fused")
        return self._fused

    def unfuse_stale(self) -> None:
        """Unfuse if a weight was put elsewhere: the fused one counts no more. In a graph that cannot be asked."""
        if self._fused is not None and not is_transformed() and not _lie_in(self._fused, self._layers()):
            self.unfuse_projections()

    def row_type(self, tokens: Tensor) -> torch.dtype | None:
        """The type of `Rows` that all the layers take in place of such tokens (tokens, channels); None for none."""
        layers = self._layers()
        if not all(hasattr(layer, "row_type") for layer in layers) or not _only_products(layers):
            return None
        # A hook sees the input, and a subclass may have a `forward` of its own.
        if is_hooked(self) or is_transformed() or "_projections" not in vars(type(self)):  # type: ignore[arg-type]
            return None
        types = {layer.row_type(tokens) for layer in layers}  # type: ignore[operator]
        return types.pop() if len(types) == 1 else None

    def project(self, x: Tensor | Rows) -> tuple[Tensor, ...]:
        """(tokens, channels) to what each layer makes of it."""
        self.unfuse_stale()
        layers, fused = self._layers(), self._fused
        if fused is None or is_transformed() or not _only_products(layers) or not fused.pays_together(x):  # type: ignore[operator]
            return tuple(layer(x) for layer in layers)
        return fused(x).split([layer.out_features for layer in layers], dim=-1)

    def _layers(self) -> list[nn.Linear]:
        own = self._modules  # type: ignore[attr-defined]
        return [own[name] for name in self._projections]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast the module; that gives each weight a place of its own, so they are brought together again."""
        self.unfuse_stale()
        super()._apply(fn, recurse)  # type: ignore[misc]
        if self.fused_projections:
            self.unfuse_projections()
            self.fuse_projections()
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Copies are not fused: copying gives each weight a place of its own."""
        state = super().__getstate__()
        assert isinstance(state, dict)
        return {name: value for name, value in state.items() if name not in ("_fused", "fused_projections")}


def _can_be_fused(layers: Sequence[nn.Linear]) -> bool:
    first = layers[0]
    return all(
        type(layer) is type(first)
        and "row_tensors" in vars(type(layer))  # a subclass may have a `forward` of its own
        and layer.bias is None
        and not is_hooked(layer)
        and are_bare(layer.weight)
        and layer.in_features == first.in_features
        and (layer.weight.dtype, layer.weight.device) == (first.weight.dtype, first.weight.device)
        for layer in layers
    )


@torch.inference_mode(False)  # or the weights would never have gradients again
@torch.no_grad()
def _fuse(layers: Sequence[nn.Linear]) -> nn.Linear:
    """One layer of all rows, of which those of `layers` become views."""
    first, rows = layers[0], sum(layer.out_features for layer in layers)
    dtype = getattr(first, "compute_dtype", first.weight.dtype)
    fused = type(first)(first.in_features, rows, bias=False, device="meta", dtype=dtype).train(first.training)
    for name in first.row_tensors:  # type: ignore[union-attr]
        together = _together([getattr(layer, name).detach() for layer in layers])
        for layer, part in zip(layers, together.split([layer.out_features for layer in layers]), strict=True):
            getattr(layer, name).data = part
        is_parameter = name in fused._parameters
        setattr(fused, name, nn.Parameter(together, requires_grad=False) if is_parameter else together)
    return fused


def _together(parts: Sequence[Tensor]) -> Tensor:
    """All rows of the parts in one tensor: a view, if they lie one after another already."""
    first, place = parts[0], parts[0].data_ptr()
    for part in parts:
        same = part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (same and part.data_ptr() == place and part.is_contiguous()) or part.is_meta:
            return torch.cat(list(parts))
        place += part.nbytes
    return first.as_strided((sum(map(len, parts)), *first.shape[1:]), first.stride(), first.storage_offset())


def _only_products(layers: Sequence[nn.Linear]) -> bool:
    """Whether nothing but its product is asked of any of the layers: no adapter, no hook, no gradient of its weight."""
    for layer in layers:
        if "base_layer" in layer._modules or is_hooked(layer) or needs_gradient(layer.weight):
            return False
    return True


def _lie_in(fused: nn.Linear, layers: Sequence[nn.Linear]) -> bool:
    """Whether the layers' weights, or those of the layers under adapters, are the rows of `fused`."""
    if torch.compiler.is_compiling():
        return True  # where a weight lies cannot be asked in a graph
    own = [layer._modules.get("base_layer", layer) for layer in layers]
    for layer in own:
        if type(layer) is not type(fused):
            return False
    for name in fused.row_tensors:  # type: ignore[union-attr]
        together = getattr(fused, name)
        place = together.data_ptr()
        for layer in own:
            rows = getattr(layer, name)
            if rows.data_ptr() != place or rows.dtype != together.dtype:
                return False
            place += rows.nbytes
    return True
