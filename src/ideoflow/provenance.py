"""What a picture was drawn with, as its file keeps it: JSON that anyone may have written, so all of it is checked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from ._version import __version__
from .checks import printable
from .dtypes import COMPUTED

KEY = "ideoflow"  # of the text in a PNG, and of this package's version in the settings
QUANTIZED = ("fp8", "int8")

# What settings hold, and whether they must.
_KINDS: dict[str, tuple[Any, bool]] = {
    "caption": (str, True),
    "seed": (int, False),
    "width": (int, True),
    "height": (int, True),
    "model": (str, False),
    "model_digest": (str, False),
    "base": (str, False),
    "base_digest": (str, False),
    "loras": (list, True),
    "dtype": (str, False),
    "device": (str, False),
    "preset": (str, False),
    "steps": (int, False),
    "guidance": ((int, float), False),
    "cache": (str, False),
    "quantize": (str, False),
    "together": (int, False),
    "edit": (dict, False),
    "unrepeatable": (str, False),
    "ideoflow": (str, False),
    "torch": (str, False),
}
_OF_LORA: dict[str, tuple[Any, bool]] = {"path": (str, True), "scale": ((int, float), True), "digest": (str, False)}


def doubt(settings: dict[str, Any] | None, why: str) -> None:
    """Note in settings why they do not make the picture again, unless a reason is there."""
    if settings is not None:
        settings["unrepeatable"] = settings["unrepeatable"] or why


def to_text(settings: Mapping[str, Any]) -> str:
    """Settings as a picture's file keeps them, with the versions that they were drawn by."""
    import torch

    return json.dumps({**settings, KEY: __version__, "torch": torch.__version__}, ensure_ascii=False)


def from_text(text: str) -> dict[str, Any]:
    """The settings in a picture's file; every key of `_KINDS` is there, None where the text lacks it.

    Raises:
        ValueError: if they are not of the kinds that settings have.
    """
    try:
        found = json.loads(text)
        if not isinstance(found, dict):
            raise TypeError("they are no JSON object")
        settings = _checked(found, _KINDS)
        settings["loras"] = [_checked(lora, _OF_LORA) for lora in settings["loras"]]
        if settings["dtype"] not in (None, *COMPUTED):
            raise ValueError(f"dtype is {settings['dtype']!r}")
        if settings["quantize"] not in (None, *QUANTIZED):
            raise ValueError(f"quantize is {settings['quantize']!r}")
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is missing") from None
    except (TypeError, ValueError) as error:
        raise ValueError(printable(error)) from None
    except RecursionError:
        raise ValueError("they are nested too deeply") from None
    return settings


def _checked(found: Mapping[str, Any], kinds: Mapping[str, tuple[Any, bool]]) -> dict[str, Any]:
    if not isinstance(found, Mapping):
        raise TypeError(f"{_short(found)} is no JSON object")
    values = {}
    for key, (kind, needed) in kinds.items():
        value = found[key] if needed else found.get(key)
        if value is not None or needed:
            if not isinstance(value, kind) or isinstance(value, bool):
                raise TypeError(f"{key} is {_short(value)}")
            if isinstance(value, int | float) and not math.isfinite(value):
                raise ValueError(f"{key} is {value}")
        values[key] = value
    return values


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
