"""What the values of the options of `ideoflow generate` mean, each read from its text or refused by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ..provenance import DTYPES, QUANTIZED
from ..schedule import find_preset
from ..sizes import misfit
from .jobs import SUFFIXES, Lora


def parse_preset(value: str) -> str:
    """The preset's full name from any spelling."""
    try:
        return find_preset(value).name
    except ValueError as error:
        raise ValueError(str(error).replace("`preset`", "--preset").replace(", or pass a Preset", "")) from None


def parse_dtype(value: str) -> str:
    """The name of a type that weights are loaded in."""
    if value not in DTYPES:
        raise ValueError(f"--dtype {value!r} is unknown: choose one of {', '.join(DTYPES)}.")
    return value


def parse_quantize(value: str) -> str:
    """The name of a precision of one byte a weight."""
    if value not in QUANTIZED:
        raise ValueError(f"--quantize {value!r} is unknown: choose one of {', '.join(QUANTIZED)}.")
    return value


def parse_format(value: str) -> str:
    """A file type that pictures are written as, a key of `SUFFIXES`."""
    name = {"jpg": "jpeg"}.get(value.lower(), value.lower())
    if name not in SUFFIXES:
        raise ValueError(f"--format {value!r} is unknown: choose one of {', '.join(SUFFIXES)}.")
    return name


def parse_loras(values: Sequence[str]) -> tuple[Lora, ...]:
    """All adapters; `none` alone for none, in place of those of a picture that is made again."""
    return () if list(values) == ["none"] else tuple(parse_lora(value) for value in values)


def parse_lora(value: str) -> Lora:
    """`PATH` or `PATH:SCALE`; a colon that no number follows belongs to the path."""
    path, colon, scale = value.rpartition(":")
    try:
        lora = Lora(path, float(scale)) if colon else Lora(value)
    except ValueError:
        lora = Lora(value)
    if not math.isfinite(lora.scale):
        raise ValueError(f"--lora {value!r}: give a finite number as the strength.")
    if lora.path.endswith(".safetensors") and not Path(lora.path).exists():
        raise ValueError(f"--lora {value!r}: there is no file {lora.path}.")
    return lora


def parse_sizes(values: Sequence[str], prompts: int) -> list[tuple[int, int] | None]:
    """One size for each prompt, None where the default is wanted."""
    sizes = [parse_size(value) for value in values]
    if len(sizes) not in (0, 1, prompts):
        noun = "prompt" if prompts == 1 else "prompts"
        raise ValueError(f"--size is given {len(sizes)} times for {prompts} {noun}: give it once, or once for each.")
    if not sizes:
        return [None] * prompts
    return [*sizes] if len(sizes) > 1 else [sizes[0]] * prompts


def parse_size(value: str) -> tuple[int, int]:
    """Width and height in pixels."""
    width, cross, height = value.lower().replace("×", "x").partition("x")  # noqa: RUF001
    sides = [side.strip() for side in (width, height)]
    if not (cross and all(side.isdecimal() and len(side) < 10 for side in sides)):
        raise ValueError(f"--size {value!r} is not WIDTHxHEIGHT in pixels, for example 1024x768.")
    size = int(width), int(height)
    if wrong := misfit(*size):
        raise ValueError(f"--size {value!r}: {wrong}")
    return size


def best_device() -> str:
    """The first accelerator, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def parse_device(value: str) -> str:
    """A device that is here."""
    if not available(value):
        raise ValueError(f"--device {value!r} is not on this machine: leave the option out, or try cpu, cuda or mps.")
    return value


def available(device: str) -> bool:
    """Whether tensors can be made on a device."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):  # no such name, or torch is built without it
        return False
    return True
