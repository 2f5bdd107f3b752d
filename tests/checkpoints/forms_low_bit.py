"""Writers of checkpoints in few bits: bitsandbytes' nf4 and fp4, and GGUF."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import bitsandbytes
import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from .forms import Weights, is_linear


def blocks_only(name: str) -> bool:
    return name.startswith("layers.")


def four_bits(
    weights: Mapping[str, Tensor],
    *,
    kind: str = "nf4",
    nested: bool = False,
    blocksize: int = 64,
    dtype: torch.dtype = torch.bfloat16,
    only: Callable[[str], bool] = blocks_only,
) -> Weights:
    """What bitsandbytes' layers save: linear weights in 4 bits with their notes, beside tensors in `dtype`."""
    found: Weights = {}
    for name, tensor in weights.items():
        if not is_linear(name, tensor) or not only(name):
            found[name] = tensor.to(dtype)
            continue
        packed, state = bitsandbytes.functional.quantize_4bit(
            tensor.to(dtype), blocksize=blocksize, compress_statistics=nested, quant_type=kind
        )
        found[name] = packed
        found |= {f"{name}.{part}": one.contiguous() for part, one in state.as_dict(packed=True).items()}
    return found


def dequantized(stored: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> Weights:
    """What such a file stands for, by bitsandbytes itself.

    As one long row: of rows that are no whole blocks its CPU kernel (0.50.2) takes the wrong scales.
    """
    found: Weights = {}
    for name, tensor in stored.items():
        if not name.endswith((".weight", ".bias")):
            continue
        parts = {key.removeprefix(name + "."): one for key, one in stored.items() if key.startswith(name + ".")}
        if parts:
            state = bitsandbytes.functional.QuantState.from_dict(parts, device=torch.device("cpu"))
            state.dtype, shape, state.shape = dtype, state.shape, torch.Size([1, state.shape.numel()])
            found[name] = bitsandbytes.functional.dequantize_4bit(tensor, state).view(shape)
        else:
            found[name] = tensor.to(dtype)
    return found


def q4_k(values: np.ndarray) -> np.ndarray:
    """Values (rows, multiple of 256) in valid Q4_K blocks; the gguf package can only expand them.

    Eight runs of 32 in a block, each from its least (or 0) to its largest value in 15 steps; steps and least values are
    themselves rounded to 6 bits. llama.cpp searches for better ones.
    """
    runs = values.astype(np.float32).reshape(-1, 8, 32)
    low = np.minimum(runs.min(-1), 0)
    step = (runs.max(-1) - low) / 15
    d, dmin = ((one.max(-1) / 63).astype(np.float16) for one in (step, -low))
    outer, outer_min = (np.where(one == 0, 1, one).astype(np.float32)[:, None] for one in (d, dmin))
    steps = np.clip(np.rint(step / outer), 0, 63).astype(np.uint8)
    lows = np.clip(np.rint(-low / outer_min), 0, 63).astype(np.uint8)
    size = d.astype(np.float32)[:, None] * steps
    least = dmin.astype(np.float32)[:, None] * lows
    codes = np.rint((runs + least[..., None]) / np.where(size == 0, 1, size)[..., None])
    codes = np.clip(codes, 0, 15).astype(np.uint8).reshape(-1, 4, 2, 32)
    scales = np.concatenate(
        [
            steps[:, :4] | (steps[:, 4:] >> 4) << 6,
            lows[:, :4] | (lows[:, 4:] >> 4) << 6,
            (steps[:, 4:] & 15) | (lows[:, 4:] & 15) << 4,
        ],
        axis=1,
    )
    packed = (codes[:, :, 0] | codes[:, :, 1] << 4).reshape(-1, 128)
    parts = [d.view(np.uint8).reshape(-1, 2), dmin.view(np.uint8).reshape(-1, 2), scales, packed]
    return np.concatenate(parts, axis=1).reshape(*values.shape[:-1], -1)


def random_blocks(kind: str, rows: int, width: int, seed: int = 0) -> np.ndarray:
    """Blocks of any bytes whose scales in float16 are ordinary numbers."""
    values, size = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (rows * width // values, size), dtype=np.uint8)
    scales = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2)}
    scales |= {"Q5_K": (0, 2), "TQ1_0": (52,), "TQ2_0": (64,), "IQ1_M": (), "MXFP4": (), "NVFP4": ()}
    for offset in scales.get(kind, (0,)):
        ordinary = generator.uniform(0.001, 0.1, len(blocks)).astype(np.float16)
        blocks[:, offset : offset + 2] = ordinary.view(np.uint8).reshape(-1, 2)
    if kind == "IQ1_M":  # whose scale is spread over the highest four bits of four numbers
        blocks[:, 55] = 0x20 | blocks[:, 55] & 15
    if kind == "MXFP4":
        blocks[:, 0] = generator.integers(118, 126, len(blocks))
    if kind == "NVFP4":
        blocks[:, :4] &= 0x3F
    return blocks.reshape(rows, -1)


def encoded(tensor: Tensor, kind: str) -> np.ndarray:
    """The bytes of a weight (out, in)."""
    values = tensor.float().numpy()
    return q4_k(values) if kind == "Q4_K" else gguf.quants.quantize(values, GGMLQuantizationType[kind])


def write_gguf(
    path: Path,
    weights: Mapping[str, Tensor],
    kind: str = "Q8_0",
    *,
    prefix: str = "",
    only: Callable[[str], bool] = blocks_only,
    metadata: Mapping[str, str] | None = None,
    original_shapes: Mapping[str, tuple[int, ...]] | None = None,
    reshape: bool = False,
    plain: str = "F32",
) -> Path:
    """A GGUF file by the gguf package's writer: linear weights in `kind` where a row is whole blocks of it.

    With `reshape`, also those whose rows are not, if all rows together are: in another shape, as ComfyUI's tools do it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "ideogram")
    for key, text in (metadata or {}).items():
        writer.add_string(key, text)
    values = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0]
    shapes, weights = dict(original_shapes or {}), dict(weights)
    for name, tensor in weights.items():
        if reshape and is_linear(name, tensor) and only(name) and tensor.shape[1] % values:
            shapes[name], weights[name] = tuple(tensor.shape), tensor.reshape(-1, values)
    for name, shape in shapes.items():
        writer.add_array(f"comfy.gguf.orig_shape.{prefix}{name}", list(shape))
    for name, tensor in weights.items():
        stored = prefix + name
        if is_linear(name, tensor) and only(name) and tensor.shape[1] % values == 0:
            writer.add_tensor(stored, encoded(tensor, kind), raw_dtype=GGMLQuantizationType[kind])
        elif plain == "BF16":
            data = tensor.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
            writer.add_tensor(stored, data, raw_dtype=GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(stored, tensor.float().numpy().astype({"F32": np.float32, "F16": np.float16}[plain]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def expanded_gguf(weights: Mapping[str, Tensor], kind: str, only: Callable[[str], bool] = blocks_only) -> Weights:
    """What a file by `write_gguf` stands for, by the gguf package in float32."""
    number = GGMLQuantizationType[kind]
    values = gguf.GGML_QUANT_SIZES[number][0]
    return {
        name: torch.from_numpy(gguf.quants.dequantize(encoded(tensor, kind), number))
        if is_linear(name, tensor) and only(name) and tensor.shape[1] % values == 0
        else tensor.float()
        for name, tensor in weights.items()
    }


E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def tiled_places(rows: int, groups: int) -> tuple[int, Tensor]:
    """How many scales cuBLAS' tiles of 128 x 4 hold, and where each (rows, groups) lies in them, by its formula."""
    across = -(-groups // 4)
    row, group = torch.arange(rows)[:, None], torch.arange(groups)[None]
    tile = row // 128 * across + group // 4
    return -(-rows // 128) * across * 512, tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + group % 4


def nvfp4(tensor: Tensor, *, comfy: bool) -> Weights:
    """A weight (out, multiple of 16) in NVFP4, by its parts: ComfyUI's order, or NVIDIA Model Optimizer's."""
    out, width = tensor.shape
    groups = tensor.double().view(out, width // 16, 16)
    scale = groups.abs().amax() / (6 * 448)
    scales = (groups.abs().amax(-1) / 6 / scale).clamp(2**-9, 448).to(torch.float8_e4m3fn)
    steps = groups / (scales.double() * scale)[..., None]
    codes = (steps.abs()[..., None] - E2M1.double()).abs().argmin(-1) + 8 * (steps < 0)
    even, odd = codes.view(out, -1).to(torch.uint8)[:, ::2], codes.view(out, -1).to(torch.uint8)[:, 1::2]
    stored = scales.view(torch.uint8)
    if comfy:
        size, places = tiled_places(*stored.shape)
        tiled = torch.zeros(size, dtype=torch.uint8)
        tiled[places] = stored
        stored = tiled.view(-(-out // 128) * 128, -1)
    return {
        "weight": even << 4 | odd if comfy else odd << 4 | even,
        "weight_scale": stored.view(torch.float8_e4m3fn),
        "weight_scale_2": scale.float(),
    }


def nvfp4_values(parts: Mapping[str, Tensor], *, comfy: bool) -> Tensor:
    """What they stand for, in float64, value by value."""
    codes, out = parts["weight"].int(), len(parts["weight"])
    pair = (codes >> 4, codes & 15) if comfy else (codes & 15, codes >> 4)
    codes = torch.stack(pair, -1).view(out, -1)
    width = codes.shape[1]
    scales = parts["weight_scale"].double().flatten()
    if comfy:
        scales = scales[tiled_places(out, width // 16)[1]]
    values = E2M1.double()[codes & 7] * (1 - 2 * (codes >> 3)).double()
    return (values.view(out, -1, 16) * scales.view(out, -1, 1) * parts["weight_scale_2"].double()).view(out, width)


def hadamard(size: int) -> Tensor:
    """The regular Hadamard matrix of a power of four, in float64, entry by entry: a sign for each pair of digits."""
    signs = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], dtype=torch.float64)
    row, column = torch.arange(size)[:, None], torch.arange(size)[None]
    matrix = torch.ones(size, size, dtype=torch.float64)
    while size > 1:
        size //= 4
        matrix *= signs[row // size % 4, column // size % 4]
    return matrix / len(matrix) ** 0.5


def rotated(tensor: Tensor, group: int | None) -> Tensor:
    """A weight in float64, in groups of its width times the Hadamard matrix."""
    if group is None:
        return tensor.double()
    return (tensor.double().unflatten(1, (-1, group)) @ hadamard(group)).flatten(1)


def comfy_int8(tensor: Tensor, *, group: int | None, each_row: bool) -> Weights:
    """A weight in ComfyUI's int8, by its parts; rotated in groups of so many, or not."""
    turned = rotated(tensor, group)
    scale = turned.abs().amax(1, keepdim=True) / 127 if each_row else turned.abs().amax() / 127
    note: dict[str, object] = {"format": "int8_tensorwise"}
    if group is not None:
        note |= {"convrot": True, "convrot_groupsize": group}
    return {
        "weight": (turned / scale).round().to(torch.int8),
        "weight_scale": scale.float(),
        "comfy_quant": note_tensor(note),
    }


def comfy_int8_values(parts: Mapping[str, Tensor], group: int | None) -> Tensor:
    """What they stand for, in float64."""
    return rotated(parts["weight"].double() * parts["weight_scale"].double(), group)


def note_tensor(note: Mapping[str, object]) -> Tensor:
    return torch.tensor(list(json.dumps(note).encode()), dtype=torch.uint8)
