"""bitsandbytes' 4 bits: two codes in a byte, a table of 16 values, and a scale for each block of values.

A weight is read row by row as one line of codes, cut into blocks: `table[code] * absmax[block]`. The scales may be
stored in 8 bits themselves ("nested", or double quantization): `nested_table[code] * nested_absmax[block] + offset`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError
from .storage_kinds import AT_ONCE, Infos, Parts, Storage

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

STATE = "weight.quant_state.bitsandbytes__"  # and the kind of the table: nf4 or fp4
ABSMAX, TABLE = "weight.absmax", "weight.quant_map"
NESTED_ABSMAX, NESTED_TABLE = "weight.nested_absmax", "weight.nested_quant_map"
LONGEST_STATE = 4096  # bytes; bitsandbytes writes about 200
LARGEST_BLOCK = 4096
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # that bitsandbytes computes with
NESTED_BLOCK = 256  # the one that its products take


@dataclass(frozen=True)
class State:
    """What bitsandbytes notes of a weight, as JSON in a tensor of bytes."""

    quant_type: str
    blocksize: int
    dtype: str
    shape: tuple[int, ...]
    nested_blocksize: int | None = None
    nested_dtype: str | None = None
    nested_offset: float | None = None

    @classmethod
    def read(cls, note: bytes, name: str) -> State:
        """Read and check a note; a CheckpointError names it."""
        try:
            found = json.loads(note)
            state = cls(**{**found, "shape": tuple(found["shape"])})
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise CheckpointError(f"{name!r} is no note of bitsandbytes on a weight ({error}).") from error
        nested = state.nested_blocksize is not None
        if (
            not state.shape
            or not all(_is_count(size, 2**40) for size in state.shape)
            or not _is_power_of_two(state.blocksize)
            or state.dtype not in ("float32", "float16", "bfloat16")
            or (nested and not _is_power_of_two(state.nested_blocksize))
            or (nested and not (isinstance(state.nested_offset, float) and math.isfinite(state.nested_offset)))
            or (nested and state.nested_dtype != "float32")
        ):
            raise CheckpointError(
                f"{name!r} says {found}: a weight's shape must be positive numbers, block sizes powers of two up to"
                f" {LARGEST_BLOCK}, types float32, float16 or bfloat16, and the offset of nested scales finite."
            )
        return state

    def note(self) -> Tensor:
        """As a tensor of bytes."""
        import torch

        found = {key: value for key, value in asdict(self).items() if value is not None}
        return torch.tensor(list(json.dumps(found).encode()), dtype=torch.uint8)


def _is_count(value: Any, most: int) -> bool:
    return type(value) is int and 0 < value <= most


def _is_power_of_two(value: Any) -> bool:
    return _is_count(value, LARGEST_BLOCK) and value & (value - 1) == 0


class NF4(Storage):
    """Weights that bitsandbytes quantized to 4 bits, with either of its tables: nf4 or fp4."""

    name = "nf4"

    def claims(self, infos: Infos) -> bool:
        others = set(infos) - {"weight", STATE + "nf4", STATE + "fp4"}
        nested = {NESTED_ABSMAX, NESTED_TABLE} if NESTED_ABSMAX in infos else set()
        return (
            infos["weight"].dtype == "U8"
            and (STATE + "nf4" in infos) != (STATE + "fp4" in infos)
            and others == {ABSMAX, TABLE} | nested
        )

    def shape(self, infos: Infos, note: Callable[[str], bytes]) -> tuple[int, ...]:
        key = _state_key(infos)
        told = infos[key]
        if told.dtype != "U8" or math.prod(told.shape) > LONGEST_STATE:
            raise CheckpointError(
                f"{told.file}: {told.name!r} should be a note of up to {LONGEST_STATE} bytes, and is {told.dtype} of"
                f" shape {list(told.shape)}."
            )
        state = State.read(note(key), f"{told.file}: {told.name}")
        size = math.prod(state.shape)
        scales = -(-size // state.blocksize)
        wanted = {"weight": ("U8", -(-size // 2)), TABLE: ("F32", 16)}
        if NESTED_ABSMAX not in infos:
            wanted[ABSMAX] = ("F32", scales)
        elif state.nested_blocksize is None:
            raise CheckpointError(f"{told.file}: {told.name!r} says nothing of the nested scales beside it.")
        else:
            nested = -(-scales // state.nested_blocksize)
            wanted |= {ABSMAX: ("U8", scales), NESTED_ABSMAX: ("F32", nested), NESTED_TABLE: ("F32", 256)}
        for part, (dtype, count) in wanted.items():
            info = infos[part]
            if (info.dtype, math.prod(info.shape)) != (dtype, count):
                raise CheckpointError(
                    f"{info.file}: {info.name!r} is {info.dtype} of shape {list(info.shape)}; for a weight of"
                    f" {list(state.shape)} in blocks of {state.blocksize} it must be {dtype} with {count} values."
                )
        return state.shape

    def rows(self, parts: Parts, start: int, stop: int) -> dict[str, Tensor]:
        """Exact: where a border lies inside a block, smaller blocks with the same scales are made."""
        state, key = _state(parts), _state_key(parts)
        width = math.prod(state.shape[1:])
        first, last = start * width, stop * width
        if first % 2:
            raise CheckpointError(f"rows {start} to {stop} of a weight of {list(state.shape)} begin inside a byte.")
        shape = (stop - start, *state.shape[1:])
        found = {"weight": parts["weight"].flatten()[first // 2 : -(-last // 2)].view(-1, 1)}
        found[TABLE] = parts[TABLE].clone()  # safetensors would not save one table of three weights
        block, nested = state.blocksize, state.nested_blocksize
        if nested is not None and first % (block * nested) == 0:
            scales = slice(first // block, -(-last // block))
            outer = slice(scales.start // nested, -(-scales.stop // nested))
            found |= {ABSMAX: parts[ABSMAX][scales], NESTED_ABSMAX: parts[NESTED_ABSMAX][outer]}
            found[NESTED_TABLE] = parts[NESTED_TABLE]
            state = replace(state, shape=shape)
        else:
            finer = math.gcd(first, block)
            absmax = scales_of(parts).repeat_interleave(block // finer)
            found[ABSMAX] = absmax[first // finer : -(-last // finer)]
            state = State(state.quant_type, finer, state.dtype, shape)
        found[key] = state.note().to(parts["weight"].device)
        return found

    def expand(self, parts: Parts, dtype: torch.dtype) -> Tensor:
        """Bit for bit what bitsandbytes makes of it, which is not needed here."""
        import torch

        state, absmax = _state(parts), scales_of(parts)
        size, block = math.prod(state.shape), state.blocksize
        packed, table = parts["weight"].flatten(), parts[TABLE]
        pairs = torch.stack([table.repeat_interleave(16), table.repeat(16)], dim=1)  # of each byte: high, then low
        expanded = torch.empty(size, dtype=dtype, device=packed.device)
        for begin in range(0, size, AT_ONCE):  # a multiple of every block's size
            end = min(begin + AT_ONCE, size)
            values = pairs[packed[begin // 2 : -(-end // 2)].int()].flatten()[: end - begin]
            scales = absmax[begin // block : -(-end // block)].repeat_interleave(block)[: end - begin]
            expanded[begin:end] = values * scales
        return expanded.view(state.shape)

    def layer(self, parts: Parts, dtype: torch.dtype) -> nn.Linear | None:
        """bitsandbytes' own layer, where it is installed."""
        from diffusers.utils import is_bitsandbytes_available, logging

        state = _state(parts)
        if not is_bitsandbytes_available():
            logging.get_logger(__name__).warning_once(
                "bitsandbytes is not installed, so that weights in 4 bits are expanded. To keep them in 4 bits:"
                " pip install 'ideoflow[quant]'"
            )
            return None
        # For rows that are no whole blocks, bitsandbytes (0.50.2) computes rubbish on CPUs.
        whole = state.shape[-1] % state.blocksize == 0
        if state.blocksize not in BLOCKS or state.nested_blocksize not in (None, NESTED_BLOCK) or not whole:
            return None
        from bitsandbytes.nn import Linear4bit, Params4bit

        out, width = state.shape
        layer = Linear4bit(width, out, bias=False, compute_dtype=dtype, quant_type=state.quant_type, device="meta")
        weight = parts["weight"].view(-1, 1)
        stats = {part: tensor for part, tensor in parts.items() if part != "weight"}
        layer.weight = Params4bit.from_prequantized(weight, stats, device=weight.device, module=layer)
        # On processors with products of bfloat16 it would round weights, scales and inputs to that, whatever `dtype`.
        layer.support_avx512bf16_for_cpu = False
        return layer

    def finish(self, model: Any, dtype: torch.dtype) -> None:
        """Tell diffusers and peft whose layers these are: adapters, saving and moving of such models differ."""
        from bitsandbytes.nn import Linear4bit
        from diffusers.quantizers.bitsandbytes import BnB4BitDiffusersQuantizer
        from diffusers.quantizers.quantization_config import BitsAndBytesConfig
        from torch import nn

        from .left_in_file import LeftInFile

        plain = [
            name
            for name, layer in model.named_modules()
            if isinstance(layer, (nn.Linear, LeftInFile)) and not isinstance(layer, Linear4bit)
        ]
        config = BitsAndBytesConfig(**bitsandbytes_settings(model, dtype), llm_int8_skip_modules=plain)
        for mark in ("is_quantized", "is_loaded_in_4bit", "is_4bit_serializable"):
            setattr(model, mark, True)
        model.quantization_method = config.quant_method
        model.hf_quantizer = BnB4BitDiffusersQuantizer(config, pre_quantized=True)
        model.register_to_config(quantization_config=config)


def bitsandbytes_settings(model: Any, dtype: torch.dtype) -> dict[str, Any]:
    """What a configuration of bitsandbytes says of the layers in 4 bits that a model has."""
    from bitsandbytes.nn import Linear4bit

    kept = [layer for layer in model.modules() if isinstance(layer, Linear4bit)]
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": kept[0].weight.quant_type,
        "bnb_4bit_compute_dtype": dtype,
        "bnb_4bit_use_double_quant": any(layer.weight.quant_state.nested for layer in kept),
    }


def scales_of(parts: Parts) -> Tensor:
    """The scale of each block, in float32."""
    if NESTED_ABSMAX not in parts:
        return parts[ABSMAX].flatten()
    state = _state(parts)
    assert state.nested_blocksize is not None and state.nested_offset is not None
    codes = parts[ABSMAX].flatten()
    outer = parts[NESTED_ABSMAX].flatten().repeat_interleave(state.nested_blocksize)[: len(codes)]
    return parts[NESTED_TABLE][codes.int()] * outer + state.nested_offset


def _state_key(parts: Mapping[str, Any]) -> str:
    return next(part for part in parts if part.startswith(STATE))


def _state(parts: Parts) -> State:
    key = _state_key(parts)
    return State.read(bytes(parts[key].flatten().tolist()), key)
