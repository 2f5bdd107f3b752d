"""The settings of pictures to draw: options as typed, else what a picture's own file says, else defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import sketch
from ..bundled import SKETCH
from ..checks import printable
from ..devices import available, best_device
from ..presets import SHORT_NAMES
from .console import err, warn
from .jobs import Lora, Settings
from .trust import describe, settle
from .values import parse_cache, parse_device, parse_dtype, parse_loras, parse_model, parse_preset, parse_quantize


@dataclass(frozen=True)
class Options:
    """The options as typed, None where absent: a picture's own settings stand unless an option replaces them."""

    preset: str | None
    steps: int | None
    guidance: float | None
    model: str | None
    loras: tuple[Lora, ...] | None
    dtype: str | None
    device: str | None
    quantize: str | None
    base: str | None
    cache: str | None = None

    @classmethod
    def of(
        cls,
        preset: str | None,
        steps: int | None,
        guidance: float | None,
        model: str | None,
        lora: Sequence[str] | None,
        dtype: str | None,
        device: str | None,
        quantize: str | None,
        base: str | None,
        cache: str | None = None,
    ) -> Options:
        """The options from their texts.

        Raises:
            ValueError: naming the option whose value is none.
        """
        if guidance is not None and not math.isfinite(guidance):
            raise ValueError(f"--guidance {guidance}: give a finite number.")
        return cls(
            preset=parse_preset(preset) if preset else None,
            steps=steps,
            guidance=guidance,
            model=parse_model("--model", model) if model else None,
            loras=parse_loras(lora) if lora else None,
            dtype=parse_dtype(dtype) if dtype else None,
            device=parse_device(device) if device else None,
            quantize=parse_quantize(quantize) if quantize else None,
            cache=parse_cache(cache) if cache else None,
            base=parse_model("--base", base) if base and model and Path(model).is_file() else base,
        )

    def settings(self, given: str, recipe: Mapping[str, Any], named: Mapping[str, Any], trusted: bool) -> Settings:
        """The settings of a picture.

        Args:
            given: What to call its prompt, or its file.
            recipe: The settings in its file; empty where there are none.
            named: `size` and `seed`, where options give them.
            trusted: Whether the user trusts the file (--trust-settings).

        Raises:
            ValueError: if the file asks for what it may not, or for what is missing or has changed.
        """
        chosen = {key: value for key, value in vars(self).items() if value is not None}
        found: dict[str, Any] = {}
        if recipe:
            found = settle(given, recipe, chosen | dict(named), trusted)
            err.print(f"note: what {printable(given)} was drawn with: {describe(recipe)}", markup=False)
        if "preset" in chosen:  # another preset brings its own steps and guidance
            found.pop("steps", None)
            found.pop("guidance", None)
        if {"preset", "steps"} & set(chosen):  # the file's words count its own steps
            found.pop("cache", None)
        if "device" in found and "device" not in chosen and not available(found["device"]):
            name = Path(given).stem
            warn(f"{name} was made on {found['device']!r}, which is not here: its pixels may differ a little.")
            del found["device"]
        values: dict[str, Any] = {"model": SKETCH, "loras": (), "preset": SHORT_NAMES["default"], **found, **chosen}
        of_sketch = SKETCH in (values["model"], values.get("base"))
        if of_sketch and ("preset" not in found or "preset" in chosen):
            values.setdefault("guidance", sketch.GUIDANCE)
        values.setdefault("device", best_device())
        small = of_sketch or values["device"] == "cpu"
        values.setdefault("dtype", "float32" if small else "bfloat16")
        if values.get("guidance") is not None and not math.isfinite(values["guidance"]):
            raise ValueError(f"--guidance {values['guidance']}: give a finite number.")
        return Settings(**values)
