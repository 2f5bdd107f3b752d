"""ComfyUI's int8: whole numbers, a scale for the weight or each row, and a note that says whether it is rotated."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .comfy_notes import LONGEST, NOTE, read_note
from .errors import CheckpointError
from .storage_kinds import Infos, Parts, Storage

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

FORMAT = "int8_tensorwise"  # whatever the scales are of
GROUP = 256  # entries that are rotated together, where a note does not say


class ComfyInt8(Storage):
    """Whole numbers from -128 to 127 times a scale; rotated back in groups of the input where the note says so.

    Without a note nothing is known of rotations, and such a file is refused.
    """

    name = "int8"

    def claims(self, infos: Infos) -> bool:
        known = {"weight", "weight_scale", NOTE, "input_scale"}
        return infos["weight"].dtype == "I8" and {"weight_scale", NOTE} <= set(infos) <= known

    def shape(self, infos: Infos, note: Callable[[str], bytes]) -> tuple[int, ...]:
        weight, scale, told = infos["weight"], infos["weight_scale"], infos[NOTE]
        if math.prod(told.shape) > LONGEST:
            raise CheckpointError(f"{told.name!r} is longer than {LONGEST} bytes.")
        found = read_note(note(NOTE), told.name)
        if found["format"] != FORMAT:
            raise CheckpointError(f"{told.name!r} says {found['format']!r}; of int8 weights {FORMAT!r} is known.")
        out = weight.shape[0] if weight.shape else 0
        if len(weight.shape) != 2 or scale.shape not in ((), (1,), (1, 1), (out,), (out, 1)) or scale.dtype != "F32":
            raise CheckpointError(
                f"the scale {scale.name!r} is {scale.dtype} of shape {list(scale.shape)} for a weight of"
                f" {list(weight.shape)}: it must be F32 of shape [{out}], or of a single value."
            )
        group = _group(found)
        if group is not None and not (_is_power_of_four(group) and weight.shape[1] % group == 0):
            raise CheckpointError(
                f"{told.name!r} says rotated in groups of {group!r}, for a weight of {list(weight.shape)}: they must be"
                " a power of four that divides its width."
            )
        return weight.shape

    def rows(self, parts: Parts, start: int, stop: int) -> dict[str, Tensor]:
        scales = _scales(parts)[start:stop]
        return {"weight": parts["weight"][start:stop], "weight_scale": scales, NOTE: parts[NOTE].clone()}

    def expand(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        import torch

        from ..ops.rotated_linear import rotate
        from ..ops.rows import expand

        group = _group_of(parts)
        if group is None:
            return expand(parts["weight"], _scales(parts), dtype)
        return rotate(expand(parts["weight"], _scales(parts), torch.float32), group).to(dtype)

    def layer(self, parts: Parts, dtype: torch.dtype) -> nn.Linear | None:
        from torch import nn

        from ..ops.quantized_linear import Int8Linear
        from ..ops.rotated_linear import RotatedInt8Linear

        group = _group_of(parts)
        out, width = parts["weight"].shape
        kind = Int8Linear if group is None else RotatedInt8Linear
        layer = kind(width, out, bias=False, device="meta", dtype=dtype)
        layer.weight = nn.Parameter(parts["weight"], requires_grad=False)
        layer.weight_scale = _scales(parts)
        if isinstance(layer, RotatedInt8Linear):
            assert group is not None
            layer.group = group
        return layer


def _group(note: dict[str, Any]) -> Any:
    """How many entries are rotated together; None for none."""
    return note.get("convrot_groupsize", GROUP) if note.get("convrot") else None


def _group_of(parts: Parts) -> int | None:
    group: int | None = _group(read_note(bytes(parts[NOTE].flatten().tolist()), NOTE))
    return group


def _is_power_of_four(number: Any) -> bool:
    return type(number) is int and number > 0 and number & (number - 1) == 0 and number.bit_length() % 2 == 1


def _scales(parts: Parts) -> Tensor:
    """(out,) float32."""
    return parts["weight_scale"].reshape(-1).expand(len(parts["weight"])).contiguous()
