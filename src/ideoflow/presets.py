"""The presets of sampling, by name: steps, guidance and schedule. Imports no torch, which takes seconds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches

# Each step's modulation is kept (2.5 MB of the published model in bfloat16, both branches), and float32 tells no more
# noise levels apart near the ends; pictures change no longer long before.
MAX_STEPS = 1000


@dataclass(frozen=True)
class Preset:
    """Sampling settings.

    Attributes:
        name: Public name.
        steps: Number of Euler steps.
        guidance: Guidance of each step, first (noisiest) step first; `steps` values.
        mu: Mean of the logit-normal schedule at 512 x 512 pixels.
        std: Its standard deviation.
        cache: Name of what the steps are spared by, "fast" or "faster"; None where all are computed.
    """

    name: str
    steps: int
    guidance: tuple[float, ...]
    mu: float
    std: float
    cache: str | None = None

    def with_steps(self, steps: int) -> Preset:
        """The same preset in another number of steps: the last steps keep their guidance, the first one's fills up."""
        guidance = (self.guidance[0],) * (steps - self.steps) + self.guidance[max(0, self.steps - steps) :]
        return replace(self, steps=steps, guidance=guidance)


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("V4_QUALITY_48", 48, (7.0,) * 45 + (3.0,) * 3, mu=0.0, std=1.5),
        Preset("V4_DEFAULT_20", 20, (7.0,) * 18 + (3.0,) * 2, mu=0.0, std=1.75),
        Preset("V4_TURBO_12", 12, (7.0,) * 11 + (3.0,) * 1, mu=0.5, std=1.75),
        # Not published: the default with steps that are not computed, for models that were calibrated for it.
        Preset("FAST_20", 20, (7.0,) * 18 + (3.0,) * 2, mu=0.0, std=1.75, cache="fast"),
        Preset("FASTER_20", 20, (7.0,) * 18 + (3.0,) * 2, mu=0.0, std=1.75, cache="faster"),
    )
}

SHORT_NAMES = {
    "quality": "V4_QUALITY_48",
    "default": "V4_DEFAULT_20",
    "turbo": "V4_TURBO_12",
    "fast": "FAST_20",
    "faster": "FASTER_20",
}


def find_preset(preset: str | Preset) -> Preset:
    """The preset of that name, full ("V4_TURBO_12") or short ("turbo"), in any case; a `Preset` is returned as it is.

    Raises:
        ValueError: if no preset has that name.
        TypeError: if it is neither a name nor a `Preset`.
    """
    if isinstance(preset, Preset):
        return preset
    if not isinstance(preset, str):
        raise TypeError(f"`preset` is {preset!r}: give a name, such as 'turbo', or a Preset.")
    name = SHORT_NAMES.get(preset.lower(), preset.upper())
    if name not in PRESETS:
        near = get_close_matches(preset.lower(), [*SHORT_NAMES, *map(str.lower, PRESETS)], 1)
        meant = f" Did you mean {SHORT_NAMES.get(near[0], near[0].upper())!r}?" if near else ""
        known = ", ".join(f"{full} ({short})" for short, full in SHORT_NAMES.items())
        raise ValueError(f"`preset` {preset!r} is unknown: choose one of {known}, or pass a Preset.{meant}")
    return PRESETS[name]
