"""Kinds of storage: how files hold the weight of a linear layer, as it is or in few bytes.

Which kind a weight is of, and its shape, are told without torch, which is imported where tensors are made.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ..dtypes import PLAIN
from ..ops.gguf_blocks import QUANTIZED
from .errors import CheckpointError
from .gguf import NAMES, TYPE
from .tensors import TensorInfo

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Infos = Mapping[str, TensorInfo]  # by what follows the layer's name and a dot: "weight", "weight_scale", ...
Parts = Mapping[str, "Tensor"]  # the same, read
AT_ONCE = 2**22  # values that are worked on at once, so that what this takes stays small
FLOATS = {*PLAIN, "F8_E5M2"}
# Names of float8 scales: that of the published files and of ComfyUI today, and what ComfyUI wrote before.
SCALES = ("weight_scale", "scale_weight")
# Scales for inputs, which are measured anew for each token here, and ComfyUI's note on the layer.
IGNORED = ("input_scale", "scale_input", "comfy_quant")
BLOCKS = "weight" + TYPE  # the part that says what GGUF's blocks are: (number of the type, *shape)


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

    def finish(self, model: Any, dtype: torch.dtype) -> None:
        """Say to a model what others ask of it that has layers of this kind, once all of them are in their places."""
        return None


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


class Integers(Plain):
    """Whole numbers, such as a buffer that counts, in the type that they have."""

    def expand(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        return parts["weight"]


class Float8(Storage):
    """`weight * scale`, the scale of shape (out,), (out, 1), (1,) or ()."""

    name = "fp8"

    def claims(self, infos: Infos) -> bool:
        beside = set(infos) - {"weight"}
        scales = beside - set(IGNORED)
        return (
            infos["weight"].dtype == "F8_E4M3"
            and scales <= set(SCALES)
            and len(scales) == bool(beside)  # a note that says a weight is scaled needs the scale
        )

    def shape(self, infos: Infos, note: Callable[[str], bytes]) -> tuple[int, ...]:
        weight = infos["weight"]
        for key in SCALES:
            if key in infos:
                self._check(infos[key].shape, infos[key].dtype, weight.shape, infos[key].name)
        return weight.shape

    @staticmethod
    def _check(scale: tuple[int, ...], dtype: str, weight: tuple[int, ...], name: str) -> None:
        out = weight[0] if weight else 0
        if len(weight) < 2 or scale not in ((), (1,), (1, 1), (out,), (out, 1)) or dtype not in ("F32", "F16", "BF16"):
            raise CheckpointError(
                f"the scale {name!r} is {dtype} of shape {list(scale)} for a weight of {list(weight)}: it must be F32"
                f" of shape [{out}], or of a single value."
            )

    def rows(self, parts: Parts, start: int, stop: int) -> dict[str, Tensor]:
        return {"weight": parts["weight"][start:stop], "weight_scale": self.scale(parts)[start:stop]}

    def expand(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        weight = parts["weight"]
        if weight.ndim < 2:  # norms and biases of files that were cast as a whole
            return weight.to(dtype)
        from ..ops.rows import expand

        return expand(weight.flatten(1), self.scale(parts), dtype).view(weight.shape)

    def layer(self, parts: Parts, dtype: torch.dtype) -> nn.Linear | None:
        from torch import nn

        from ..ops.quantized_linear import Float8Linear

        weight = parts["weight"]
        out, width = weight.shape
        layer = Float8Linear(width, out, bias=False, device="meta", dtype=dtype)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.weight_scale = self.scale(parts)
        return layer

    @staticmethod
    def scale(parts: Parts) -> Tensor:
        """(out,) float32."""
        import torch

        out = len(parts["weight"])
        scale = next((parts[key] for key in SCALES if key in parts), None)
        if scale is None:
            return torch.ones(out, dtype=torch.float32, device=parts["weight"].device)
        return scale.to(torch.float32).reshape(-1).expand(out).contiguous()


class Gguf(Storage):
    """Quantized tensors of GGUF files; what the file holds as plain numbers is of the plain kind."""

    name = "gguf"

    def claims(self, infos: Infos) -> bool:
        return set(infos) == {"weight", BLOCKS} and infos["weight"].dtype in QUANTIZED

    def shape(self, infos: Infos, note: Callable[[str], bytes]) -> tuple[int, ...]:
        return infos["weight"].shape

    def check(self, parts: Parts, what: str) -> None:
        import torch

        sizes = QUANTIZED[_kind(parts)]
        for offset in sizes.scales:
            for blocks in parts["weight"].view(-1, sizes.size).split(AT_ONCE // sizes.values):
                if not torch.isfinite(blocks[:, offset : offset + 2].contiguous().view(torch.float16)).all():
                    raise CheckpointError(f"{what} holds scales that are not finite: the file is damaged.")

    def rows(self, parts: Parts, start: int, stop: int) -> dict[str, Tensor]:
        """Exact: of the blocks, or, where a border lies inside a block, of their values."""
        import torch

        kind, shape = _kind(parts), _shape(parts)
        blocks, width = QUANTIZED[kind], math.prod(shape[1:])
        if start * width % blocks.values or stop * width % blocks.values:
            return {"weight": self.expand(parts, torch.float32)[start:stop]}
        first, last = (row * width // blocks.values * blocks.size for row in (start, stop))
        note = parts[BLOCKS].clone()
        note[1] = stop - start
        return {"weight": parts["weight"].flatten()[first:last], BLOCKS: note}

    def expand(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        if BLOCKS not in parts:
            return parts["weight"].to(dtype)
        from ..ops.gguf_linear import expand

        _check_installed()
        return expand(parts["weight"], _kind(parts), _shape(parts), dtype)

    def layer(self, parts: Parts, dtype: torch.dtype) -> nn.Linear | None:
        if BLOCKS not in parts:
            return None
        from ..ops.gguf_linear import GgufLinear

        _check_installed()
        out, width = _shape(parts)
        return GgufLinear(parts["weight"], _kind(parts), width, out, dtype)

    def finish(self, model: Any, dtype: torch.dtype) -> None:
        """Have diffusers refuse to save the model, and expand it when asked to."""
        from diffusers.quantizers.quantization_config import GGUFQuantizationConfig

        from ..ops.gguf_linear import Quantizer

        model.hf_quantizer = Quantizer(GGUFQuantizationConfig(compute_dtype=dtype))


def _check_installed() -> None:
    from diffusers.utils import is_gguf_available

    if not is_gguf_available():
        raise CheckpointError(
            "Quantized GGUF files need the package gguf, which is not installed: pip install 'ideoflow[quant]'"
        )


def _kind(parts: Parts) -> str:
    return NAMES[int(parts[BLOCKS][0])]


def _shape(parts: Parts) -> tuple[int, ...]:
    return tuple(parts[BLOCKS][1:].tolist())
