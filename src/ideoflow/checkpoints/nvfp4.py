"""NVIDIA's 4-bit floating point, as ComfyUI and as NVIDIA Model Optimizer write it.

Both hold `weight` (out, in / 2) in bytes of two codes, `weight_scale` in float8_e4m3fn for each 16 values of a row, and
one `weight_scale_2` in float32. They differ in the order of both, which no shape tells:

* Model Optimizer keeps the even column of two in the low four bits, and the scales (out, in / 16) row by row;
* ComfyUI keeps the even column in the high four bits, and the scales in the tiles that cuBLAS takes: of 128 rows and 4
  scales, in which row 32 * a + b lies in line b, and there fourth number a (cuBLAS, "1D block scaling factors layout").
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .comfy_notes import LONGEST, NOTE, read_note
from .errors import CheckpointError, read_json
from .storage_kinds import IGNORED, Infos, Parts, Storage
from .tensors import Source

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

CODES, SCALES, SCALE = "weight", "weight_scale", "weight_scale_2"
GROUP = 16  # values that share a scale
TILE = (128, 4)  # rows and scales of a tile


class NVFP4(Storage):
    """Codes of four bits with two scales; with ComfyUI's note in its order, without in Model Optimizer's."""

    name = "nvfp4"

    def claims(self, infos: Infos) -> bool:
        return infos[CODES].dtype == "U8" and {SCALES, SCALE} <= set(infos) <= {CODES, SCALES, SCALE, *IGNORED}

    def shape(self, infos: Infos, note: Callable[[str], bytes]) -> tuple[int, ...]:
        codes, scales, scale = infos[CODES], infos[SCALES], infos[SCALE]
        if len(codes.shape) != 2 or codes.shape[1] % (GROUP // 2):
            raise CheckpointError(
                f"{codes.name!r} of shape {list(codes.shape)} holds no rows of {GROUP} values in {GROUP // 2} bytes."
            )
        out, groups = codes.shape[0], codes.shape[1] // (GROUP // 2)
        wanted = (out, groups)
        if NOTE in infos:
            if math.prod(infos[NOTE].shape) > LONGEST:
                raise CheckpointError(f"{infos[NOTE].name!r} is longer than {LONGEST} bytes.")
            found = read_note(note(NOTE), infos[NOTE].name)
            if found["format"] != "nvfp4":
                raise CheckpointError(f"{infos[NOTE].name!r} says {found['format']!r} of a weight in 4 bits.")
            wanted = (_up(out, TILE[0]), _up(groups, TILE[1]))
        if scales.dtype != "F8_E4M3" or scales.shape not in (wanted, (math.prod(wanted),)):
            raise CheckpointError(
                f"{scales.name!r} is {scales.dtype} of shape {list(scales.shape)}; for {codes.name!r} of shape"
                f" {list(codes.shape)} it must be F8_E4M3 of shape {list(wanted)}."
            )
        if scale.dtype != "F32" or math.prod(scale.shape) != 1:
            raise CheckpointError(
                f"{scale.name!r} must be one value in F32; it is {scale.dtype} of {list(scale.shape)}."
            )
        return (out, groups * GROUP)

    def rows(self, parts: Parts, start: int, stop: int) -> dict[str, Tensor]:
        codes, scales, scale = _in_order(parts)
        # safetensors would not save one scale of three weights
        return {CODES: codes[start:stop], SCALES: scales[start:stop], SCALE: scale.clone()}

    def expand(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        from ..ops.nvfp4_linear import expand

        return expand(*_in_order(parts), dtype)

    def layer(self, parts: Parts, dtype: torch.dtype) -> nn.Linear | None:
        from ..ops.nvfp4_linear import Nvfp4Linear

        codes, scales, scale = _in_order(parts)
        return Nvfp4Linear(codes.contiguous(), scales.contiguous(), scale, dtype)


def by_model_optimizer(source: Source, config: Mapping[str, Any] | None) -> bool:
    """Whether a configuration, a header or a file beside the weights says that Model Optimizer wrote them."""
    told: list[Any] = [config]
    try:
        told.append(json.loads(source.metadata.get("quantization_config", "null")))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source.path}: `quantization_config` in its header is no JSON: {error}.") from error
    folder = source.path if source.path.is_dir() else source.path.parent
    if (file := folder / "hf_quant_config.json").is_file():
        told.append(read_json(file))
    for one in told:
        producer = one.get("producer") if isinstance(one, Mapping) else None
        by = producer.get("name") if isinstance(producer, Mapping) else None
        if isinstance(one, Mapping) and "modelopt" in (by, one.get("quant_method")):
            return True
    return False


def _in_order(parts: Parts) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (out, in / 2), scales (out, in / 16) and the scale () in Model Optimizer's order."""
    codes, scales = parts[CODES], parts[SCALES]
    out, groups = codes.shape[0], codes.shape[1] // (GROUP // 2)
    if NOTE in parts:
        codes = codes << 4 | codes >> 4
        scales = untiled(scales, out, groups)
    return codes, scales.view(out, groups), parts[SCALE].reshape(())


def untiled(scales: Tensor, rows: int, groups: int) -> Tensor:
    """Scales (rows, groups) of cuBLAS' tiles."""
    down, across = _up(rows, TILE[0]) // TILE[0], _up(groups, TILE[1]) // TILE[1]
    tiles = scales.reshape(down, across, 32, 4, TILE[1])  # row 32 * a + b of a tile: line b, fourth a
    lines = tiles.permute(0, 3, 2, 1, 4).reshape(down * TILE[0], across * TILE[1])
    return lines[:rows, :groups]


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
