"""Types of numbers: their names in torch and in the headers of safetensors files, and their bytes. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# By torch's name: that of safetensors' headers, and bytes a number.
_KINDS = {
    "float64": ("F64", 8),
    "float32": ("F32", 4),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e5m2": ("F8_E5M2", 1),
    "int64": ("I64", 8),
    "int32": ("I32", 4),
    "int16": ("I16", 2),
    "int8": ("I8", 1),
    "uint64": ("U64", 8),
    "uint32": ("U32", 4),
    "uint16": ("U16", 2),
    "uint8": ("U8", 1),
    "bool": ("BOOL", 1),
}
STORED_NAMES = {name: stored for name, (stored, _) in _KINDS.items()}
TORCH_NAMES = {stored: name for name, stored in STORED_NAMES.items()}
STORED_BYTES = dict(_KINDS.values())
BYTES = {name: size for name, (_, size) in _KINDS.items()}

COMPUTED = ("float32", "bfloat16", "float16")  # types that a model may compute in
PLAIN = ("F64", "F32", "F16", "BF16")  # types of weights that are stored as they are


def name_of(dtype: torch.dtype) -> str:
    """The type's name without its module: `float32`."""
    return str(dtype).removeprefix("torch.")


def of_name(name: str) -> torch.dtype:
    """The type of a name such as `float32`."""
    import torch

    return getattr(torch, name)
