"""What a picture's file may choose when it is made again: nothing but the bundled model, unless the user says so.

Anyone can write settings into a picture. A model, an adapter or a hub id in them is opened only if the user names it,
or trusts the file as a whole; and what was drawn with other weights than are there now is not passed off as the same.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import sketch
from ..bundled import SKETCH
from ..checks import printable
from ..digests import digest_as
from .console import warn
from .jobs import Lora
from .values import DEVICE

MOST_STEPS = 100  # that a picture's file may ask for: twice those of the longest preset
MOST_SIDE = 2048  # pixels, what the published weights were trained on


def settle(name: str, recipe: Mapping[str, Any], chosen: Mapping[str, Any], trusted: bool) -> dict[str, Any]:
    """The settings of a picture's file that are followed where no option replaces them.

    Args:
        name: Name of the file.
        recipe: What it says, as `read_settings` gives it.
        chosen: The options that the user gave, by their names in `Settings`, and `seed` and `size`.
        trusted: Whether the user trusts it (--trust-settings).

    Returns:
        Model, base, adapters and the rest, by their names in `Settings`.

    Raises:
        ValueError: if it asks for what it may not, for what is missing or has changed, or cannot be made again.
    """
    name = printable(name)
    _check_repeatable(name, recipe, chosen)
    _check_bounds(name, recipe, chosen)
    found = {key: recipe[key] for key in ("preset", "steps", "guidance", "cache", "dtype", "device", "quantize")}
    found |= {"model": recipe["model"], "base": recipe["base"]}
    found["loras"] = tuple(Lora(lora["path"], lora["scale"]) for lora in recipe["loras"]) or None
    if "model" in chosen and "base" not in chosen and not Path(chosen["model"]).expanduser().is_file():
        found["base"] = None  # a folder has everything
    asked = []
    for key, option in (("model", "--model"), ("base", "--base"), ("loras", "--lora")):
        wants = [lora["path"] for lora in recipe["loras"]] if key == "loras" else [found[key]]
        if key in chosen or wants in ([], [None], [SKETCH]):
            continue
        values = [f"{lora.path}:{lora.scale:g}" for lora in found["loras"] or ()] if key == "loras" else wants
        asked += [f"{option} {shlex.quote(value)}" for value in values]
    if asked and not trusted:
        raise ValueError(
            f"{name} says it was drawn with {printable(' '.join(asked))}. A picture's file may not choose what is"
            " opened or fetched: if you know these, add them to the command, or --trust-settings to follow the file in"
            " all."
        )
    _check_same(name, recipe, found, chosen)
    return {key: value for key, value in found.items() if value is not None}


def describe(recipe: Mapping[str, Any]) -> str:
    """The settings of a picture's file in one line."""
    parts = [
        "the bundled model" if recipe["model"] == SKETCH else f"model {recipe['model']}" if recipe["model"] else "",
        f"base {recipe['base']}" if recipe["base"] else "",
        *(f"LoRA {lora['path']} at {lora['scale']:g}" for lora in recipe["loras"]),
        recipe["preset"] or "",
        f"{recipe['steps']} steps" if recipe["steps"] is not None else "",
        f"guidance {recipe['guidance']:g}" if recipe["guidance"] is not None else "",
        f"cache {recipe['cache']}" if recipe["cache"] else "",
        f"{recipe['width']} x {recipe['height']}",
        f"seed {recipe['seed']}" if recipe["seed"] is not None else "",
        recipe["quantize"] or "",
        recipe["dtype"] or "",
        f"on {recipe['device']}" if recipe["device"] else "",
    ]
    return printable(", ".join(part for part in parts if part))


def _check_repeatable(name: str, recipe: Mapping[str, Any], chosen: Mapping[str, Any]) -> None:
    why = recipe["unrepeatable"] or ("its file does not say its seed" if recipe["seed"] is None else None)
    if why and "seed" not in chosen:
        raise ValueError(
            f"{name} cannot be made again: {printable(why)}. To draw another picture from its caption and settings, as"
            " far as they are known, give --seed."
        )
    if why:
        warn(f"{name} cannot be made again, this is another picture: {printable(why)}.")
    if recipe["model"] is None and "model" not in chosen:
        raise ValueError(f"{name} does not say which model it was drawn with: give --model.")


def _check_bounds(name: str, recipe: Mapping[str, Any], chosen: Mapping[str, Any]) -> None:
    steps, width, height = recipe["steps"], recipe["width"], recipe["height"]
    if steps is not None and not 1 <= steps <= MOST_STEPS and not {"steps", "preset"} & set(chosen):
        raise ValueError(f"{name} asks for {steps} steps, and a file may ask for 1 to {MOST_STEPS}: give --steps.")
    if not 1 <= min(width, height) <= max(width, height) <= MOST_SIDE and "size" not in chosen:
        raise ValueError(
            f"{name} asks for {width} x {height} pixels, and a file may ask for {MOST_SIDE} a side: give --size."
        )
    if recipe["device"] is not None and not DEVICE.fullmatch(recipe["device"]) and "device" not in chosen:
        raise ValueError(f"{name} asks for the device {printable(repr(recipe['device']))}: give --device.")


def _check_same(name: str, recipe: Mapping[str, Any], found: Mapping[str, Any], chosen: Mapping[str, Any]) -> None:
    """Refuse what is missing or has changed; warn where the user named something else."""
    for key, option in (("model", "--model"), ("base", "--base")):
        recorded = recipe[f"{key}_digest"]
        if key in chosen:
            if recorded is not None and _digest(chosen[key], recorded) not in (None, recorded):
                warn(f"{printable(chosen[key])} is not what {name} was drawn with: this is another picture.")
        elif found[key] is not None:
            _check_present(name, found[key], recorded, option)
    if "loras" in chosen:
        recorded = sorted(lora["digest"] or "" for lora in recipe["loras"])
        given = sorted(_digest(lora.path, "sha256:") or "" for lora in chosen["loras"])
        if all(recorded) and all(given) and recorded != given:
            warn(
                f"the --lora files are not those that {name} was drawn with, or have changed: this is another picture."
            )
    else:
        for lora in recipe["loras"]:
            _check_present(name, lora["path"], lora["digest"], "--lora")


def _check_present(name: str, path: str, recorded: str | None, option: str) -> None:
    what = "the bundled model" if path == SKETCH else printable(path)
    place = sketch.path() if path == SKETCH else Path(path)
    on_hub = recorded is not None and not place.is_absolute()  # what is local is kept as an absolute path
    if not place.exists() and not on_hub:
        raise ValueError(f"{name} was drawn with {what}, which is missing here: name it with {option}.")
    now = _digest(path, recorded) if recorded is not None else None
    if now == recorded or (now is None and on_hub):
        return
    if path == SKETCH:
        raise ValueError(
            f"{name} was drawn with the bundled model of another version of ideoflow: give --model sketch yourself to"
            " draw another picture with this one's."
        )
    raise ValueError(
        f"{name} was drawn with {what}, which has changed since: give {option} {shlex.quote(what)} yourself to draw"
        " another picture with it as it is now."
    )


def _digest(path: str, recorded: str) -> str | None:
    """The digest of what is there now, of the kind that was recorded; None where there is no telling."""
    place: str | Path = path
    if path == SKETCH and not Path(path).exists():
        place = sketch.path()
    elif Path(path).expanduser().exists():
        place = Path(path).expanduser()
    if recorded.startswith("sha256:") and Path(place).is_dir():
        from ..checkpoints.hub import find_lora

        place = find_lora(place)
    return digest_as(recorded, place)
