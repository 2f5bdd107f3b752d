"""What a call asks to be drawn, and what its arguments mean: steps and guidance, captions and sizes, each checked."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from typing import Any, TypeVar

from torch import Tensor

from ..captions import Caption, CaptionError, prompt_line
from ..checks import all_finite, finite, whole
from ..model.attention import Ideogram4AttnProcessor
from ..presets import MAX_STEPS, PRESETS, Preset, find_preset
from ..schedule import guidance_per_step, limit_guidance
from ..sizes import check_size, sizes_of
from .caching import check_cache
from .noise import Generators


class _OpenInt(int):
    """A default that is told from the same number as an argument."""


class _OpenFloat(float):
    """A default that is told from the same number as an argument."""


# What diffusers has where nothing is given; `is` tells whether it was, which decides who goes first beside a preset.
_DEFAULT = PRESETS["V4_QUALITY_48"]
STEPS, MU, STD = _OpenInt(_DEFAULT.steps), _OpenFloat(_DEFAULT.mu), _OpenFloat(_DEFAULT.std)
SCHEDULE = tuple([*_DEFAULT.guidance])
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, eq=False)
class Drawing:
    """What is to be drawn: the arguments that `__call__` and `make_requests` share, as they were given.

    `Ideogram4Pipeline.__call__` says what each means.
    """

    prompt: Any
    height: int = 2048
    width: int = 2048
    num_inference_steps: int = STEPS
    guidance_scale: float | None = None
    guidance_schedule: Sequence[float] | Tensor | None = SCHEDULE
    mu: float = MU
    std: float = STD
    max_sequence_length: int = 2048
    num_images_per_prompt: int = 1
    generator: Generators = None
    latents: Tensor | Sequence[Tensor] | None = None
    attention_kwargs: dict[str, Any] | None = None
    _: KW_ONLY
    size: tuple[int, int] | Sequence[tuple[int, int]] | None = None
    preset: str | Preset | None = None
    strict: bool = False
    guidance_interval: tuple[float, float] | None = None
    cache: Any = None
    guidance_every: int = 1

    @classmethod
    def among(cls, arguments: Mapping[str, Any]) -> Drawing:
        """Those of a call's arguments that say what is to be drawn."""
        return cls(**{field.name: arguments[field.name] for field in fields(cls)})

    @property
    def plan(self) -> Preset:
        """Steps, guidance, mu and std: the arguments alone, or a preset under those that were given.

        Raises:
            TypeError: naming the argument that is of another type.
            ValueError: naming the argument that does not fit.
        """
        steps = whole("num_inference_steps", self.num_inference_steps, 1, most=MAX_STEPS)
        mu, std = finite("mu", self.mu), finite("std", self.std)
        check_cache(self.cache)
        whole("guidance_every", self.guidance_every, 1)
        scale = None if self.guidance_scale is None else finite("guidance_scale", self.guidance_scale)
        schedule = self.guidance_schedule
        values = None if schedule is None else all_finite("guidance_schedule", schedule)
        if self.preset is None:
            plan = Preset("", steps, guidance_per_step(steps, scale, values), mu, std)
        else:
            base = find_preset(self.preset)
            whole("preset", base.steps, 1, " as its steps", most=MAX_STEPS)
            if self.num_inference_steps is not STEPS:
                base = base.with_steps(steps)
            given = None if self.guidance_schedule is SCHEDULE else values
            guidance = base.guidance if scale is None and given is None else guidance_per_step(base.steps, scale, given)
            plan = Preset(
                base.name,
                base.steps,
                guidance,
                base.mu if self.mu is MU else mu,
                base.std if self.std is STD else std,
                base.cache,
            )
        if self.guidance_interval is None:
            return plan
        return replace(plan, guidance=limit_guidance(plan.guidance, self.guidance_interval))

    @property
    def lines(self) -> list[str]:
        """The line that the text encoder reads, for each prompt."""
        return lines_of(self.prompt, self.strict)

    def sizes(self, unit: int, limits: Sequence[int] | None) -> list[tuple[int, int]]:
        """`(width, height)` in pixels for each prompt; `unit` and `limits` as in `ideoflow.sizes.sizes_of`."""
        prompts = len(prompts_of(self.prompt))
        return sizes_of(self.size, self.height, self.width, prompts, unit, limits)


def takes_drawing(method: F) -> F:
    """Have the signature of a method say that `*arguments` and `**more` are those of a `Drawing`."""
    own = inspect.signature(method).parameters
    shared = inspect.signature(Drawing).parameters
    by_place = [one for one in shared.values() if one.kind is one.POSITIONAL_OR_KEYWORD]
    by_name = [one for one in (*shared.values(), *own.values()) if one.kind is one.KEYWORD_ONLY]
    method.__signature__ = inspect.Signature([own["self"], *by_place, *by_name])  # type: ignore[attr-defined]
    return method


def warn_of_guidance(guidance: Sequence[float]) -> None:
    """Warn of guidance that draws something else than the caption: 0, which elsewhere means off, and less."""
    least = min(guidance)
    if least > 0:
        return
    what = "leads away from the caption" if least < 0 else "draws without the caption"
    warnings.warn(
        f"guidance of {least:g} {what}: velocities are g * conditional + (1 - g) * unconditional; 1 is no guidance.",
        stacklevel=3,
    )


def check_attention_kwargs(given: Any, processors: Iterable[Any]) -> None:
    """Refuse entries that no attention processor reads: a misspelt scale would draw at full strength.

    Args:
        given: Value of the argument in a call.
        processors: Attention processors of all layers; others than this package's may read any entry.

    Raises:
        TypeError: if it is no mapping.
        ValueError: naming the entries, or a scale that is no finite number.
    """
    if given is None:
        return
    if not isinstance(given, Mapping):
        raise TypeError(f'`attention_kwargs` is {given!r}: give a mapping, such as {{"scale": 0.5}}.')
    if "scale" in given:
        finite('attention_kwargs["scale"]', given["scale"])
    unread = sorted(str(key) for key in given if key != "scale")
    if unread and all(type(processor) is Ideogram4AttnProcessor for processor in processors):
        raise ValueError(
            f"`attention_kwargs` holds {', '.join(map(repr, unread))}, which nothing here reads: the one key is"
            " 'scale', the strength of adapters."
        )


def lines_of(prompt: Any, strict: bool) -> list[str]:
    """The line that the text encoder reads, for each prompt."""
    prompts = prompts_of(prompt)
    lines = []
    for number, one in enumerate(prompts):
        try:
            lines.append(prompt_line(one, strict=strict))
        except CaptionError as error:
            if len(prompts) == 1:
                raise
            raise CaptionError(f"`prompt[{number}]`: {error}", error.breaches) from None
    return lines


def prompts_of(prompt: Any) -> list[Any]:
    """Each prompt of a call.

    Raises:
        ValueError: if there is none.
    """
    if prompt is None:
        raise ValueError("`prompt` is missing: give a caption, or a list of them.")
    prompts = list(prompt) if isinstance(prompt, (list, tuple)) else [prompt]
    if not prompts:
        raise ValueError("`prompt` is an empty list: give at least one caption.")
    return prompts


def check_arguments(drawing: Drawing, unit: int, tensors: Sequence[str] | None, known: Sequence[str]) -> None:
    """Check what diffusers' `check_inputs` checks.

    Args:
        drawing: What is to be drawn.
        unit: Pixels of a token's side.
        tensors: Names of the tensors that a callback asks for.
        known: Names that it may ask for.

    Raises:
        TypeError: naming the argument that is of another type.
        ValueError: naming the argument that does not fit.
    """
    for one in prompts_of(drawing.prompt):
        if not isinstance(one, (str, Mapping, Caption)):
            raise TypeError(f"`prompt` is a {type(one).__name__}: give a string, a mapping or a Caption.")
    check_size(drawing.width, drawing.height, unit)
    _ = drawing.plan
    unknown = [name for name in tensors or () if name not in known]
    if unknown:
        raise ValueError(f"`callback_on_step_end_tensor_inputs` names {unknown}: it may name {list(known)}.")
