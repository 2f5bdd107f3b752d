"""What the values of the options of `ideoflow generate` mean, each read from its text or refused by name."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from ..bundled import SKETCH
from ..cache_words import read_words
from ..devices import available, built_for
from ..dtypes import COMPUTED
from ..fitting.memory import parse_memory
from ..presets import find_preset
from ..provenance import QUANTIZED
from ..sizes import parse_size
from .jobs import SUFFIXES, Lora

AUTO = "auto"
DEVICE = re.compile(r"(cpu|cuda|mps|xpu)(:\d{1,2})?")
FILES = (".safetensors", ".gguf", ".json", ".bin", ".pt", ".pth", ".ckpt")  # what files of weights are called


def parse_preset(value: str) -> str:
    """The preset's full name from any spelling."""
    try:
        return find_preset(value).name
    except ValueError as error:
        raise ValueError(str(error).replace("`preset`", "--preset").replace(", or pass a Preset", "")) from None


def parse_dtype(value: str) -> str:
    """The name of a type that weights are loaded in."""
    if value not in COMPUTED:
        raise ValueError(f"--dtype {value!r} is unknown: choose one of {', '.join(COMPUTED)}.")
    return value


def parse_quantize(value: str) -> str:
    """The name of a precision of one byte a weight."""
    if value not in QUANTIZED:
        raise ValueError(f"--quantize {value!r} is unknown: choose one of {', '.join(QUANTIZED)}.")
    return value


def parse_cache(value: str) -> str:
    """Words that say which steps are computed."""
    read_words(value, "--cache")
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
    from ..checkpoints import CheckpointError
    from ..checkpoints.source import open_source

    _check_file("--lora", lora.path)
    place = expanded("--lora", lora.path)
    if place.is_file():
        try:
            open_source(place)
        except CheckpointError as error:
            raise ValueError(f"--lora {value!r}: {error}") from None
    return lora


def parse_model(option: str, value: str) -> str:
    """A model's folder, file or hub id; what is here is looked at, as far as headers tell."""
    if value == SKETCH:
        return value
    _check_file(option, value, also=(SKETCH,))
    place = expanded(option, value)
    if place.is_file() and option == "--model":
        from ..checkpoints import open_checkpoint
        from ..checkpoints.errors import ConfigNeededError

        with suppress(ConfigNeededError):  # --base may have the configuration
            open_checkpoint(place)
    return value


def _check_file(option: str, value: str, also: Sequence[str] = ()) -> None:
    """Raise unless this is there, or may be on the hub, whose ids are `owner/name`."""
    place = expanded(option, value)
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+|https?://.+", value) and not value.startswith((".", "~"))
    if place.exists() or (on_hub and place.suffix not in FILES):
        return
    folder = place.parent if place.parent.is_dir() else Path()
    beside = [str(folder / name) if folder != Path() else name for name in sorted(one.name for one in folder.iterdir())]
    near = get_close_matches(value, [*also, *beside], 1, 0.75)
    meant = f" Did you mean {near[0]}?" if near else ""
    raise ValueError(f"{option} {value!r}: there is no such folder or file, and a hub id is OWNER/NAME.{meant}")


def expanded(option: str, value: str) -> Path:
    """A path with `~` filled in."""
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise ValueError(f"{option} {value!r}: there is no such user's home folder.") from None


def parse_amount(value: str) -> int | None:
    """Bytes of an amount of memory; None for "auto"."""
    try:
        return None if value == AUTO else parse_memory(value)
    except ValueError as error:
        raise ValueError(
            f"{str(error).replace('`memory` is', '--memory')} Or give {AUTO!r} for what is free."
        ) from None


def parse_sizes(values: Sequence[str], prompts: int) -> list[tuple[int, int] | None]:
    """One size for each prompt, None where the default is wanted."""
    sizes = [parse_size(value) for value in values]
    if len(sizes) not in (0, 1, prompts):
        noun = "prompt" if prompts == 1 else "prompts"
        raise ValueError(f"--size is given {len(sizes)} times for {prompts} {noun}: give it once, or once for each.")
    if not sizes:
        return [None] * prompts
    return [*sizes] if len(sizes) > 1 else [sizes[0]] * prompts


def check_device(value: str) -> None:
    """Raise unless this is the name of a device, here or elsewhere."""
    if not DEVICE.fullmatch(value):
        near = {"gpu": "cuda", "nvidia": "cuda", "metal": "mps"}.get(value.partition(":")[0].lower())
        meant = f" Did you mean {near!r}?" if near else ""
        raise ValueError(f"--device {value!r} is no device: give cpu, cuda, cuda:1, mps or xpu.{meant}")


def parse_device(value: str) -> str:
    """A device that is here."""
    check_device(value)
    kind = value.partition(":")[0]
    if kind not in built_for():
        have = " or ".join(sorted(built_for()))
        raise ValueError(f"--device {value!r}: the installed torch is not built for it, give --device {have}.")
    if not available(value):
        raise ValueError(f"--device {value!r} is not on this machine: leave the option out, or try cpu, cuda or mps.")
    return value
