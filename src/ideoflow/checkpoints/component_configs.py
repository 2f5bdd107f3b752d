"""Configurations of the components that other libraries make: checked as far as weights could not tell a wrong one.

A key that is missing is filled with a default by these libraries, and one that is misspelt is passed over; either makes
another model of the same shapes. Numbers that are merely others than they were cannot be told from right ones.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2
from transformers import Qwen3VLConfig

from .errors import CheckpointError, read_object, some

LARGEST = 2**24  # of any size of a model; a damaged one would fill the memory before weights are compared
DEEPEST = 1024  # layers

_TEXT_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)
# What changes the text features and no shape.
_TEXT_NEEDS = (*_TEXT_SIZES, "rms_norm_eps", "hidden_act")
_ROTARY = ("rope_theta", "rope_type", "mrope_section", "mrope_interleaved")
_AUTOENCODER_NEEDS = ("block_out_channels", "latent_channels", "layers_per_block", "norm_num_groups", "act_fn")
# Messages of these libraries that a line of the traceback does not make clearer.
_LINES = 300


@contextmanager
def making(file: Path, what: str) -> Iterator[None]:
    """Turn whatever another library raises over a damaged file into one error that names the file.

    Lack of memory, of a library or of a device is no fault of the file, and goes on as it is.
    """
    try:
        yield
    except (CheckpointError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(
            f"{file}: the {what} cannot be made of it ({said[:_LINES]}). It may be damaged: fetch it again."
        ) from error


def read_text_encoder_config(folder: Path) -> tuple[Qwen3VLConfig, bool]:
    """The configuration of a text encoder's folder, and whether it says that float8 weights have scales.

    Raises:
        CheckpointError: naming the file and what is wrong in it.
    """
    file = _config_file(folder, "text encoder")
    found = read_object(file)
    if found.get("model_type") != "qwen3_vl":
        raise CheckpointError(
            f"{file}: `model_type` is {found.get('model_type')!r}; the text encoder of this model is a qwen3_vl."
        )
    text = found.get("text_config")
    if not isinstance(text, Mapping):
        raise CheckpointError(f"{file}: `text_config` is {type(text).__name__}, and must be an object.")
    _needs(text, _TEXT_NEEDS, file, "text_config.")
    for key in _TEXT_SIZES:
        _size(text[key], f"{file}: `text_config.{key}`", DEEPEST if key == "num_hidden_layers" else LARGEST)
    _check_rotary(text, file)
    with making(file, "text encoder"):
        config = Qwen3VLConfig.from_dict(dict(found))
        not_misspelt(text, {*type(config.text_config)().to_dict(), "rope_theta", "rope_scaling"}, file)
    return config, found.get("ideogram_fp8_weight_only") is True


def read_autoencoder_config(folder: Path) -> dict[str, Any]:
    """The configuration of an autoencoder's folder.

    Raises:
        CheckpointError: naming the file and what is wrong in it.
    """
    file = _config_file(folder, "autoencoder")
    found = read_object(file)
    name = found.get("_class_name", AutoencoderKLFlux2.__name__)
    if name != AutoencoderKLFlux2.__name__:
        raise CheckpointError(
            f"{file}: `_class_name` is {name!r}; the autoencoder of this model is an AutoencoderKLFlux2."
        )
    _needs(found, _AUTOENCODER_NEEDS, file)
    not_misspelt(found, AutoencoderKLFlux2._get_init_keys(AutoencoderKLFlux2), file)
    channels = [*_list(found["block_out_channels"], file), *_list(found.get("decoder_block_out_channels") or [], file)]
    for value in (*channels, found["latent_channels"], found["norm_num_groups"]):
        _size(value, f"{file}: a number of channels or groups", 2**16)
    _size(found["layers_per_block"], f"{file}: `layers_per_block`", DEEPEST)
    patch = _list(found.get("patch_size", [2, 2]), file)
    for value in (*patch, found.get("sample_size", 1)):
        _size(value, f"{file}: `patch_size` or `sample_size`", 2**16)
    for key in ("batch_norm_eps", "batch_norm_momentum"):
        value = found.get(key, 0.1)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
            raise CheckpointError(f"{file}: `{key}` is {value!r}, and must be a number between 0 and 1.")
    return dict(found)


def _check_rotary(text: Mapping[str, Any], file: Path) -> None:
    """Raise unless a configuration says how positions are rotated; older versions of transformers write two keys."""
    rotary = text.get("rope_parameters") or {**(text.get("rope_scaling") or {}), "rope_theta": text.get("rope_theta")}
    if not isinstance(rotary, Mapping):
        raise CheckpointError(f"{file}: `text_config.rope_parameters` is {str(rotary)[:60]}, and must be an object.")
    not_misspelt(rotary, _ROTARY, file)
    _needs(rotary, ("rope_theta", "mrope_section"), file, "text_config.rope_parameters.")
    base, sections = rotary["rope_theta"], _list(rotary["mrope_section"], file)
    if isinstance(base, bool) or not isinstance(base, (int, float)) or not 0 < base < 1e30:
        raise CheckpointError(f"{file}: `rope_theta` is {str(base)[:60]}, and must be a number above 0.")
    half = text["head_dim"] // 2
    if len(sections) != 3 or not all(type(one) is int and one > 0 for one in sections) or sum(sections) != half:
        raise CheckpointError(
            f"{file}: `mrope_section` is {str(sections)[:60]}, and must be three numbers whose sum is {half}, half of"
            " `head_dim`."
        )


def _config_file(folder: Path, what: str) -> Path:
    file = folder if folder.is_file() else folder / "config.json"
    if not file.exists():
        raise CheckpointError(f"{folder} holds no config.json, without which the {what} cannot be made.")
    return file


def _list(found: Any, file: Path) -> list[Any]:
    if not isinstance(found, list) or len(found) > DEEPEST:
        raise CheckpointError(f"{file}: {str(found)[:60]} must be a list of numbers.")
    return found


def _needs(found: Mapping[str, Any], keys: Collection[str], file: Path, where: str = "") -> None:
    missing = [where + key for key in keys if found.get(key) is None]
    if missing:
        raise CheckpointError(f"{file} does not say {some(missing)}, which the weights do not tell.")


def _size(value: Any, what: str, largest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= largest:
        raise CheckpointError(f"{what} is {str(value)[:60]}, and must be a whole number from 1 to {largest}.")


def not_misspelt(found: Mapping[str, Any], known: Collection[str], file: Path) -> None:
    """Raise for an unknown key beside a known one that is missing and nearly the same; newer keys are let pass."""
    absent = [key for key in known if key not in found]
    for key in found:
        if key not in known and (near := difflib.get_close_matches(key, absent, 1, 0.85)):
            raise CheckpointError(f"{file}: {key!r} is no key of this configuration; is {near[0]!r} meant?")
