"""How requests are made of what is to be drawn: captions embedded, noise drawn, a context for each caption and size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..checks import finite, whole
from ..engine import Denoiser, Request, StepCache
from ..model import Context
from ..ops.exclusive import exclusive
from ..presets import Preset
from .arguments import Drawing, warn_of_guidance
from .cache_calibration import CacheCalibration
from .caching import in_words, step_cache
from .noise import noise_of, scheduler_of
from .text_embedder import TextEmbedder

Pair = tuple[int, int]
Adapters = tuple[tuple[str, float], ...] | None


@dataclass(frozen=True)
class RequestMaker:
    """Makes requests by the parts of a pipeline.

    Attributes:
        denoiser: What prepares contexts.
        embedder: What embeds captions.
        scheduler: The scheduler that noise levels come from.
        settings: The pipeline's `Origin.settings`.
        guides: Whether there is an unconditional transformer.
        device: The device of latents.
        channels: Channels of an image token.
        unit: Pixels of a token's side.
        limits: Smallest and largest side that the weights were trained on; None for the published ones'.
        enabled: The cache that the transformer's `enable_cache` was given; None for none.
        calibrations: Gives what was calibrated of the model for a plan.
    """

    denoiser: Denoiser
    embedder: TextEmbedder
    scheduler: Any
    settings: Callable[[Sequence[str], Sequence[Pair], Preset, Any, str | None], list[dict[str, Any]]]
    guides: bool
    device: torch.device
    channels: int
    unit: int
    limits: Sequence[int] | None
    enabled: Any
    calibrations: Callable[[Preset], CacheCalibration]

    def make(
        self,
        drawing: Drawing,
        features: Sequence[Tensor] | None = None,
        defer: bool = False,
        priority: int = 0,
        adapters: Mapping[str, float] | None = None,
        deadline: float | None = None,
        preview_every: int | None = None,
    ) -> list[Request]:
        """Requests of each prompt, in order; arguments as in `Ideogram4Pipeline.make_requests`."""
        if preview_every is not None:
            whole("preview_every", preview_every, 0, ", or None for the engine's")
        chosen = (
            None
            if adapters is None
            else tuple((name, finite(f"adapters[{name!r}]", weight)) for name, weight in sorted(adapters.items()))
        )
        make = partial(
            self._make, drawing, features, defer,
            adapters=chosen, priority=priority, deadline=deadline, preview_every=preview_every,
        )  # fmt: skip
        if defer and features is None:  # nothing is computed yet: whoever asks does not wait for the step under way
            if chosen is not None:
                self.denoiser.check_adapters(chosen)
            return make()
        with self._adapted(chosen):
            return make()

    def _make(
        self, drawing: Drawing, features: Sequence[Tensor] | None, defer: bool, adapters: Adapters, **attributes: Any
    ) -> list[Request]:
        plan = drawing.plan
        guided = self._check_guidance(plan)
        lines = drawing.lines
        sizes = drawing.sizes(self.unit, self.limits)
        pictures = whole("num_images_per_prompt", drawing.num_images_per_prompt, 1)
        limit = whole("max_sequence_length", drawing.max_sequence_length, 1)
        of_each = [prompt for prompt in range(len(lines)) for _ in range(pictures)]
        lines, sizes = [lines[prompt] for prompt in of_each], [sizes[prompt] for prompt in of_each]
        grids = [(height // self.unit, width // self.unit) for width, height in sizes]
        cache = self._cache(drawing, plan)
        settings = self.settings(lines, sizes, plan, drawing.generator, _given(drawing, features))
        if cache is not None:
            settings = [{**own, "cache": in_words(cache)} for own in settings]
        noise = noise_of(grids, self.channels, self.device, drawing.generator, drawing.latents)
        schedulers = {size: scheduler_of(self.scheduler, plan, *size) for size in set(sizes)}
        if features is not None:
            texts = [self.denoiser.project_text(own) for own in _checked(features, of_each[-1] + 1)]
            parts = self._prepared([texts[prompt] for prompt in of_each], of_each, grids, guided)
        elif defer:
            parts = self._deferred(lines, grids, guided, limit, adapters)
        else:
            parts = self._prepared(self.embedder.embed(lines, limit), lines, grids, guided)
        return [
            Request(
                **parts[i],
                latents=noise[i],
                sigmas=schedulers[size].sigmas,
                guidance=plan.guidance,
                cache=cache,
                grid=grids[i],
                id=f"{i} ({lines[i][:40]!r})",
                times=1 - schedulers[size].timesteps / schedulers[size].config.num_train_timesteps,
                settings=settings[i],
                adapters=adapters,
                **attributes,
            )
            for i, size in enumerate(sizes)
        ]

    def _cache(self, drawing: Drawing, plan: Preset) -> StepCache | None:
        """The cache of a call: its own, else that of its preset, else the one that the transformer was given."""
        asked = next((one for one in (drawing.cache, plan.cache, self.enabled) if one is not None), None)
        return step_cache(asked, plan.steps, partial(self.calibrations, plan), drawing.guidance_every)

    @contextmanager
    def _adapted(self, adapters: Adapters) -> Iterator[None]:
        """Compute with these adapters in the block; None for those that are active."""
        if adapters is None:
            yield
            return
        # All models at once: with the transformer alone, another thread might wait for it that has the text encoder.
        with exclusive(*self.embedder.models), self.denoiser.adapted(adapters):
            yield

    def _check_guidance(self, plan: Preset) -> bool:
        """Whether any step is guided, for which there must be a transformer."""
        warn_of_guidance(plan.guidance)
        guided = any(guidance != 1 for guidance in plan.guidance)
        if guided and not self.guides:
            raise ValueError(
                "The pipeline has no `unconditional_transformer`, which guidance needs: load one, or pass"
                " `guidance_scale=1` and `guidance_schedule=None`."
            )
        return guided

    def _prepared(
        self, texts: Sequence[Tensor], keys: Sequence[Any], grids: Sequence[Pair], guided: bool
    ) -> list[dict[str, Any]]:
        """Both contexts of each picture; pictures of equal keys, which have one text, and grids share theirs."""
        conditional: dict[Any, Context] = {}
        for text, key, grid in zip(texts, keys, grids, strict=True):
            if (key, grid) not in conditional:
                conditional[key, grid] = self.denoiser.prepare_projected(text, grid)
        unconditional = {grid: self.denoiser.prepare_unconditional(grid) if guided else None for grid in set(grids)}
        return [
            {"conditional": conditional[key, grid], "unconditional": unconditional[grid]}
            for key, grid in zip(keys, grids, strict=True)
        ]

    def _deferred(
        self, lines: Sequence[str], grids: Sequence[Pair], guided: bool, limit: int, adapters: Adapters
    ) -> list[dict[str, Any]]:
        """The number of text tokens of each picture, and what makes its contexts at its first step."""

        def prepare(line: str, grid: Pair) -> tuple[Context, Context | None]:
            with self._adapted(adapters):
                (both,) = self._prepared(self.embedder.embed([line], limit), [line], [grid], guided)
            return both["conditional"], both["unconditional"]

        return [
            {"conditional": None, "unconditional": None, "text_tokens": length, "prepare": partial(prepare, line, grid)}
            for line, grid, length in zip(lines, grids, self.embedder.lengths(lines, limit), strict=True)
        ]


def _given(drawing: Drawing, features: Sequence[Tensor] | None) -> str | None:
    """What a picture depends on that its settings do not hold, in words."""
    if drawing.latents is not None:
        return "its noise was given"
    if drawing.attention_kwargs:
        return "`attention_kwargs` were given"
    return "`prompt_features` were given" if features else None


def _checked(features: Sequence[Tensor], prompts: int) -> Sequence[Tensor]:
    """Text features that were given, one tensor for each prompt."""
    if not all(isinstance(own, Tensor) for own in features):
        raise TypeError("`prompt_features` holds something else than tensors: give what the method of this name gave.")
    if len(features) != prompts:
        raise ValueError(f"`prompt_features` holds {len(features)} tensors for {prompts} prompts.")
    return features
