"""How a pipeline makes requests: captions embedded and kept, noise drawn, and a context for each caption and size."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from ..captions import Caption
from ..checks import whole
from ..engine import Denoiser, Request
from ..model import Context
from ..ops.exclusive import exclusive
from ..ops.offload import execution_device
from ..ops.weights import contents_key
from ..schedule import Preset
from ..sizes import check_size, sizes_of
from ..text_encoder import TAPS, encode_captions, encode_tokens, tokenise
from .arguments import DEFAULT, lines_of, noise_of, plan_of, prompts_of, scheduler_of, warn_of_guidance
from .padded import padded_rows
from .text_cache import TextCache
from .unknown_arguments import explains_unknown


class PipelineRequests:
    """The making of requests, for `Ideogram4Pipeline`, whose components these are."""

    scheduler: Any
    text_encoder: Any
    tokenizer: Any
    transformer: Any
    unconditional_transformer: Any
    components: Mapping[str, Any]
    config: Mapping[str, Any]
    text_cache: TextCache
    vae_scale_factor: int
    patch_size: int
    _callback_tensor_inputs: list[str]
    _execution_device: torch.device
    settings_of_call: Any

    def _exclusive(self) -> AbstractContextManager[None]:
        """While the block runs, no other thread moves the components, if hooks move them, or weighs their adapters."""
        return exclusive(*(part for part in self.components.values() if isinstance(part, nn.Module)))

    @property
    def taps(self) -> tuple[int, ...]:
        """Decoder layers of the text encoder whose outputs are the text features."""
        return tuple(self.config.get("text_encoder_taps") or TAPS)

    def prompt_features(self, prompt: Any, max_sequence_length: int = 2048, strict: bool = False) -> list[Tensor]:
        """Text features of each prompt: `(tokens, features)` float32, unpadded. Arguments as in `__call__`."""
        lines = lines_of(prompt, strict)
        with self._exclusive():
            return encode_captions(self.text_encoder, self.tokenizer, lines, self.taps, max_sequence_length)

    def encode_prompt(
        self, prompt: Any, grid_h: int, grid_w: int, max_sequence_length: int, device: torch.device | str | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What diffusers' method of this name gives: padded rows, as the transformer's `forward` takes them.

        Calls here do not use it; they take `prompt_features`, without padding.

        Args:
            prompt: As in `__call__`.
            grid_h: Rows of image tokens.
            grid_w: Columns of image tokens.
            max_sequence_length: Tokens that padding and text take together in each row.
            device: Of what is returned.

        Returns:
            `prompt_embeds` `(prompts, length, features)`, `position_ids` `(prompts, length, 3)`, `segment_ids` and
            `indicator` `(prompts, length)`.
        """
        grid = (whole("grid_h", grid_h, 1), whole("grid_w", grid_w, 1))
        max_sequence_length = whole("max_sequence_length", max_sequence_length, 1)
        return padded_rows(self.prompt_features(prompt, max_sequence_length), grid, max_sequence_length, device)

    def prepare_latents(
        self,
        batch_size: int,
        num_image_tokens: int,
        latent_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: Tensor | None = None,
    ) -> Tensor:
        """Noise `(batch_size, num_image_tokens, latent_dim)`, as diffusers' method of this name draws it.

        Calls here do not use it; they take noise as `latents`.

        Raises:
            ValueError: if `latents` are given in another shape.
        """
        shape = (batch_size, num_image_tokens, latent_dim)
        if latents is None:
            return randn_tensor(shape, generator, device, dtype)
        if tuple(latents.shape) != shape:
            raise ValueError(f"`latents` has shape {tuple(latents.shape)}: the pictures need {shape}.")
        return latents.to(device, dtype)

    def check_inputs(
        self,
        prompt: Any,
        height: int,
        width: int,
        num_inference_steps: int,
        guidance_scale: float | None,
        guidance_schedule: Sequence[float] | Tensor | None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
    ) -> None:
        """Check arguments of a call. Each call begins with it, so a subclass may add checks of its own.

        Raises:
            TypeError: naming the argument that is of another type.
            ValueError: naming the argument that does not fit.
        """
        for one in prompts_of(prompt):
            if not isinstance(one, (str, Mapping, Caption)):
                raise TypeError(f"`prompt` is a {type(one).__name__}: give a string, a mapping or a Caption.")
        check_size(width, height, self.vae_scale_factor * self.patch_size)
        plan_of(None, num_inference_steps, guidance_scale, guidance_schedule, DEFAULT.mu, DEFAULT.std, None)
        names = self._callback_tensor_inputs
        unknown = [name for name in callback_on_step_end_tensor_inputs or () if name not in names]
        if unknown:
            raise ValueError(f"`callback_on_step_end_tensor_inputs` names {unknown}: it may name {names}.")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse subclasses whose own code would never be called."""
        super().__init_subclass__(**kwargs)
        for name, instead in (("encode_prompt", "prompt_features"), ("prepare_latents", "latents")):
            if name in vars(cls):
                raise TypeError(
                    f"{cls.__name__} has its own `{name}`, that no call uses: pass `{instead}` to `make_requests`."
                )

    @explains_unknown
    @torch.no_grad()
    def make_requests(
        self,
        prompt: Any,
        height: int = 2048,
        width: int = 2048,
        num_inference_steps: int = DEFAULT.steps,
        guidance_scale: float | None = None,
        guidance_schedule: Sequence[float] | Tensor | None = DEFAULT.guidance,
        mu: float = DEFAULT.mu,
        std: float = DEFAULT.std,
        max_sequence_length: int = 2048,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | Sequence[Tensor] | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        *,
        size: tuple[int, int] | Sequence[tuple[int, int]] | None = None,
        preset: str | Preset | None = None,
        strict: bool = False,
        guidance_interval: tuple[float, float] | None = None,
        prompt_features: Sequence[Tensor] | None = None,
        defer: bool = False,
        priority: int = 0,
    ) -> list[Request]:
        """Make the requests of a call without running them: what an engine steps, alone or among others.

        A caption is encoded once, and its context is computed once for each of its sizes; pictures share them.

        Args:
            prompt_features: What the method of this name gave for the prompts, to spare encoding them again.
            defer: Leave the captions to the engine, which encodes each when its request takes its first step: requests
                that wait hold little memory, and on a GPU the next is encoded while others are stepped. Pictures of one
                caption then share its embedding, and each has tables of its own.
            priority: Higher goes first, in an engine of that policy.

        Returns:
            `num_images_per_prompt` requests for each prompt, in the order of the prompts. Arguments and errors as in
            `__call__`.
        """
        plan = plan_of(preset, num_inference_steps, guidance_scale, guidance_schedule, mu, std, guidance_interval)
        warn_of_guidance(plan.guidance)
        guided = any(guidance != 1 for guidance in plan.guidance)
        if guided and self.unconditional_transformer is None:
            raise ValueError(
                "The pipeline has no `unconditional_transformer`, which guidance needs: load one, or pass"
                " `guidance_scale=1` and `guidance_schedule=None`."
            )
        lines = lines_of(prompt, strict)
        unit = self.vae_scale_factor * self.patch_size
        sizes = sizes_of(size, height, width, len(lines), unit, self.config.get("side_limits"))
        num_images_per_prompt = whole("num_images_per_prompt", num_images_per_prompt, 1)
        max_sequence_length = whole("max_sequence_length", max_sequence_length, 1)
        grids = [(h // unit, w // unit) for w, h in sizes for _ in range(num_images_per_prompt)]
        given = "its noise was given" if latents is not None else None
        for name, value in (("attention_kwargs", attention_kwargs), ("prompt_features", prompt_features)):
            given = given or (f"`{name}` were given" if value else None)
        drawn = [(line, pair) for line, pair in zip(lines, sizes, strict=True) for _ in range(num_images_per_prompt)]
        settings = self.settings_of_call(*zip(*drawn, strict=True), plan, generator, given)
        noise = noise_of(grids, self.transformer.config.in_channels, self._execution_device, generator, latents)
        schedulers = {pair: scheduler_of(self.scheduler, plan, *pair) for pair in set(sizes)}
        if prompt_features is not None:
            if not all(isinstance(features, Tensor) for features in prompt_features):
                raise TypeError(
                    "`prompt_features` holds something else than tensors: give what the method of this name gave."
                )
            if len(prompt_features) != len(lines):
                raise ValueError(f"`prompt_features` holds {len(prompt_features)} tensors for {len(lines)} prompts.")

        denoiser = Denoiser(self.transformer, self.unconditional_transformer, attention_kwargs)
        if prompt_features is not None:
            texts = [denoiser.project_text(features) for features in prompt_features]
            lengths = [len(text) for text in texts]
        elif defer:
            texts = []
            lengths = [len(ids) for ids in tokenise(self.tokenizer, lines, max_sequence_length)]
        else:
            texts = self._texts(lines, denoiser, max_sequence_length)
            lengths = [len(text) for text in texts]

        @cache
        def unconditional(grid: tuple[int, int]) -> Context | None:
            return denoiser.prepare_unconditional(grid) if guided else None

        @cache
        def conditional(number: int, grid: tuple[int, int]) -> Context:
            return denoiser.prepare_projected(texts[number], grid)

        def prepare(line: str, grid: tuple[int, int]) -> tuple[Context, Context | None]:
            text = self._texts([line], denoiser, max_sequence_length)[0]
            return denoiser.prepare_projected(text, grid), denoiser.prepare_unconditional(grid) if guided else None

        requests = []
        for index, grid in enumerate(grids):
            number = index // num_images_per_prompt
            scheduler, line = schedulers[sizes[number]], lines[number]
            late = defer and not texts
            # Equal captions share a context, but for features that the caller has given for each.
            text = number if prompt_features is not None else lines.index(line)
            requests.append(
                Request(
                    conditional=None if late else conditional(text, grid),
                    unconditional=None if late else unconditional(grid),
                    latents=noise[index],
                    sigmas=scheduler.sigmas,
                    guidance=plan.guidance,
                    grid=grid,
                    id=f"{index} ({line[:40]!r})",
                    times=1 - scheduler.timesteps / scheduler.config.num_train_timesteps,
                    text_tokens=lengths[number],
                    prepare=partial(prepare, line, grid) if late else None,
                    priority=priority,
                    settings=settings[index],
                )
            )
        return requests

    def _texts(self, lines: Sequence[str], denoiser: Denoiser, max_sequence_length: int) -> list[Tensor]:
        """What contexts keep of each caption, `(tokens, hidden_size)`: from the cache, or encoded and put there."""
        # By its tokens, in which tokenizer and chat template show.
        ids = [tuple(tokens) for tokens in tokenise(self.tokenizer, lines, max_sequence_length)]
        with self._exclusive():
            model = self._text_key()
            device = execution_device(self.transformer)
            found = {tokens: None if model is None else self.text_cache.get((tokens, model)) for tokens in ids}
            missing = [tokens for tokens, text in found.items() if text is None]
            if missing:
                made = encode_tokens(self.text_encoder, missing, self.taps)
                found.update(zip(missing, map(denoiser.project_text, made), strict=True))
        for tokens, text in found.items():
            if model is not None and text is not None:
                self.text_cache.put((tokens, model), text)
        return [found[tokens].to(device) for tokens in ids]  # type: ignore[union-attr]

    def _text_key(self) -> Hashable | None:
        """What embedded captions depend on beside their tokens; None where that cannot be told."""
        language_model = getattr(self.text_encoder, "language_model", None)
        if language_model is None or not self.text_cache.max_bytes:
            return None
        modules = (language_model, self.transformer.llm_cond_norm, self.transformer.llm_cond_proj)
        keys = tuple(map(contents_key, modules))
        return None if None in keys else (keys, self.taps, self.transformer.dtype)
