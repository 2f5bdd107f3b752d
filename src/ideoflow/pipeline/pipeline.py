"""The pipeline: captions in, pictures out, with the call arguments and the folder layout of diffusers' Ideogram 4.

What each method does is in the file beside this one that is named for it; here is what they are called and take.
"""

# No `from __future__ import annotations`: diffusers reads the types of the constructor's arguments.
import inspect
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderKLFlux2, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import Ideogram4LoraLoaderMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .. import latents as latent_tokens
from .._imports import warn_renamed
from ..captions import CaptionWarning
from ..captions.writing import Writer
from ..captions.writing.grammar import caption_grammar
from ..captions.writing.instructions import writing_instructions
from ..checkpoints.lora_model import LoraSource
from ..checkpoints.save import save_pipeline
from ..checks import finite, whole
from ..engine import Denoiser, Engine, Policy, Request
from ..engine.graphs import Choice, check_choice
from ..fitting import Plan, fit_memory
from ..model import Ideogram4Transformer2DModel
from ..ops import quantize_
from ..ops.adapter_weights import check_components, check_count, check_names
from ..ops.adapters import adapter_layers
from ..ops.exclusive import exclusive
from ..ops.hooks import is_offloaded
from ..presets import Preset
from ..provenance import doubt
from ..sizes import check_pair
from ..text_encoder import TAPS, encode_captions
from . import loading
from .arguments import (
    MU,
    SCHEDULE,
    STD,
    STEPS,
    Drawing,
    check_arguments,
    check_attention_kwargs,
    lines_of,
    prompts_of,
    takes_drawing,
)
from .cache_calibration import CacheCalibration, calibrated, calibrations_in
from .callbacks import call_back
from .calls import Calls, between_calls
from .decoding import check_output_type, decode, explained, pictures_of, stack
from .noise import prepare_latents
from .origin import Origin
from .padded import padded_rows
from .preview_map import PreviewMap, linear_previews
from .prompt_enhancer import seed_of, write_captions
from .requests import RequestMaker
from .sharing import arguments_from
from .text_cache import TextCache
from .text_embedder import TextEmbedder
from .unknown_arguments import explains_unknown

TEXT_CACHE_BYTES = 128 * 2**20  # of embedded captions; about 28 of 500 tokens for the published weights in bfloat16


@dataclass
class Ideogram4PipelineOutput(BaseOutput):
    """Pictures of one call, `num_images_per_prompt` for each prompt, in the order of the prompts.

    Attributes:
        images: By `output_type`: "pil" a list; "np" an array `(pictures, height, width, 3)` in [0, 1]; "pt" a tensor
            `(pictures, 3, height, width)` in [0, 1]; "latent" a tensor `(pictures, tokens, channels)`. Where the shapes
            of the pictures differ, the last three are lists with one entry a picture.
    """

    images: list[PIL.Image.Image] | np.ndarray | Tensor | list[np.ndarray] | list[Tensor]


class Ideogram4Pipeline(DiffusionPipeline, Ideogram4LoraLoaderMixin):
    """Ideogram 4: from captions to pictures, any number, sizes and captions in one packed stream of tokens.

    Opens and writes the folder layout of diffusers' pipeline of this name: each opens what the other wrote.

    Args:
        scheduler: Flow-matching Euler scheduler. Its configuration (shift and the like) applies to the logit-normal
            noise levels; the steps themselves are the engine's.
        vae: Autoencoder.
        text_encoder: A `Qwen3VLModel`; its language model alone is used.
        tokenizer: Its tokenizer, with a chat template.
        transformer: The conditional branch.
        unconditional_transformer: The unconditional branch; None will do where guidance is always 1.
        prompt_enhancer_head: Head over the text encoder's vocabulary, with which it writes captions of plain words;
            None to do without.
        text_encoder_taps: Decoder layers whose outputs are the text features; None for those of the published weights.
        side_limits: Smallest and largest side in pixels that the weights were trained on; None for the published ones'
            (256, 2048). Other sizes are warned about, not refused.
    """

    model_cpu_offload_seq = "prompt_enhancer_head->text_encoder->transformer->unconditional_transformer->vae"
    _optional_components = ["unconditional_transformer", "prompt_enhancer_head"]  # noqa: RUF012 (diffusers' form)
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012

    def __init__(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: AutoencoderKLFlux2,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        transformer: Ideogram4Transformer2DModel,
        unconditional_transformer: Ideogram4Transformer2DModel | None = None,
        prompt_enhancer_head: ModelMixin | None = None,
        text_encoder_taps: Sequence[int] | None = None,
        side_limits: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        for name, model in (("transformer", transformer), ("unconditional_transformer", unconditional_transformer)):
            if isinstance(model, torch.nn.Module) and not hasattr(model, "velocity"):
                raise TypeError(
                    f"`{name}` is a {type(model).__module__}.{type(model).__name__}: load the folder with"
                    " ideoflow's Ideogram4Pipeline.from_pretrained, or the model with"
                    " ideoflow.Ideogram4Transformer2DModel.from_pretrained; both read the same files."
                )
        self.register_modules(
            scheduler=scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            transformer=transformer,
            unconditional_transformer=unconditional_transformer,
            prompt_enhancer_head=prompt_enhancer_head,
        )
        # Written to the index only where they differ from the published model's, which other readers assume.
        if text_encoder_taps is not None:
            self.register_to_config(text_encoder_taps=list(text_encoder_taps))
        if side_limits is not None:
            self.register_to_config(side_limits=list(side_limits))
        self.patch_size = latent_tokens.PATCH
        self.vae_scale_factor = latent_tokens.scale_factor(vae) if vae is not None else 8
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor * self.patch_size)
        self.text_cache = TextCache(TEXT_CACHE_BYTES)
        self.plan: Plan | None = None
        # Writes captions of plain words in the place of the text encoder with its head; the bundled model's grammar.
        self.caption_writer: Writer | None = None

        self.new_denoiser: Callable[..., Denoiser] = Denoiser  # another where other processes take part in the steps
        self._cuda_graphs: Choice = "auto"
        self._calls = Calls()
        self._origin = Origin()
        self._calibrations: dict[tuple[int, float, float], CacheCalibration] | None = None  # None until asked for

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse subclasses whose own code would never be called."""
        super().__init_subclass__(**kwargs)
        for name, instead in (("encode_prompt", "prompt_features"), ("prepare_latents", "latents")):
            if name in vars(cls):
                raise TypeError(
                    f"{cls.__name__} has its own `{name}`, that no call uses: pass `{instead}` to `make_requests`."
                )

    def __getstate__(self) -> dict[str, Any]:
        """A copy, which shares the models, has calls of its own."""
        return {**self.__dict__, "_calls": Calls()}

    # From captions to pictures

    @explains_unknown
    @torch.no_grad()
    def __call__(
        self,
        prompt: Any = None,
        height: int = 2048,
        width: int = 2048,
        num_inference_steps: int = STEPS,
        guidance_scale: float | None = None,
        guidance_schedule: Sequence[float] | Tensor | None = SCHEDULE,
        mu: float = MU,
        std: float = STD,
        prompt_upsampling: bool | Mapping[str, Any] = False,
        prompt_upsampling_temperature: float = 1.0,
        max_sequence_length: int = 2048,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | Sequence[Tensor] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = ("latents",),
        *,
        size: tuple[int, int] | Sequence[tuple[int, int]] | None = None,
        preset: str | Preset | None = None,
        strict: bool = False,
        guidance_interval: tuple[float, float] | None = None,
        cache: Any = None,
        guidance_every: int = 1,
        max_tokens: int | None = None,
    ) -> Ideogram4PipelineOutput | tuple[Any]:
        """Draw pictures of one or more captions, all of them in one packed stream.

        Args:
            prompt: A caption: plain text, a line of JSON, a dict or a `Caption`; or a list of these.
            height: Pixels, a multiple of 16. Of all pictures; see `size` for others.
            width: Pixels, a multiple of 16.
            num_inference_steps: Number of steps.
            guidance_scale: One guidance for all steps; needs `guidance_schedule=None`, or a `preset`.
            guidance_schedule: Guidance of each step, first step first, `num_inference_steps` values.
            mu: Mean of the logit-normal schedule at 512 x 512 pixels; it grows with the logarithm of the size.
            std: Standard deviation of the schedule.
            prompt_upsampling: Have captions written of prompts in plain words first; True, or a mapping with keyword
                arguments of `upsample_prompt`. Prompts that are mappings or `Caption` objects stay as they are.
            prompt_upsampling_temperature: Of the tokens that are sampled for it.
            max_sequence_length: The most tokens a caption may have. Nothing is padded to it.
            num_images_per_prompt: Pictures of each prompt.
            generator: Source of the noise: one for all, drawn in order; or a list with one for each picture, which then
                do not depend on each other.
            latents: Noise to start from: `(pictures, tokens, channels)`, or a list of `(tokens, channels)`.
            output_type: "pil", "np" or "pt" for pictures, "latent" for tokens (see `Ideogram4PipelineOutput`).
            return_dict: Whether to return an `Ideogram4PipelineOutput` or a tuple of one.
            attention_kwargs: `{"scale": s}` scales LoRA adapters; the rest goes to the attention processors.
            callback_on_step_end: Called after each step as `callback(pipeline, i, t, {"latents": ...})`; may change the
                latents in place or return a dict with others, and may set `pipeline._interrupt = True` to stop there.
                `t` is the scheduler's timestep of the step. Where sizes differ, latents are a list and `t` is
                `(pictures,)`.
            callback_on_step_end_tensor_inputs: What the callback is given: "latents" or nothing.
            size: `(width, height)` in place of `height` and `width`, or one such pair for each prompt.
            preset: Name of one of `PRESETS`, or a `Preset`: supplies steps, guidance, mu and std. An argument that
                is given wins over it.
            strict: Refuse a caption that breaks the schema, in place of warning.
            guidance_interval: `(start, stop)`, shares of the steps: guidance is 1 before and after, where a step costs
                about half. It changes the picture; None guides every step.
            cache: Steps that are not computed, which changes the picture: "fast", "faster", words such as
                "interval=2", a `StepCache`, or one of diffusers' cache configurations (docs/faster.md); "off" for none,
                None for that of the preset or of `transformer.enable_cache`.
            guidance_every: Computed steps from one that computes the unconditional branch to the next; what guidance
                adds is taken from the last ones in between. It changes the picture; 1 computes it in every step.
            max_tokens: Tokens that go through the transformers in one pass, both branches together; more are split over
                several passes, which changes nothing but memory. None for what `fit_memory` chose, else for one pass.
                If memory runs out, the call goes on with half as many.

        Returns:
            The pictures, `num_images_per_prompt` for each prompt, in the order of the prompts.

        Raises:
            TypeError: naming the argument that is of another type.
            ValueError: naming the argument that does not fit.
            FloatingPointError: naming the picture whose latents are not finite.
            NotEnoughMemory: a torch.OutOfMemoryError that says what to do.
        """
        drawing = Drawing.among(locals())
        tensor_inputs = callback_on_step_end_tensor_inputs or ()
        self.check_inputs(prompt, height, width, drawing.plan.steps, None, drawing.plan.guidance, tensor_inputs)

        def make() -> list[Request]:
            if not prompt_upsampling:
                if prompt_upsampling_temperature != 1.0:
                    told = "`prompt_upsampling_temperature` has no effect without `prompt_upsampling`."
                    warnings.warn(told, stacklevel=4)
                return self.make_requests(**vars(drawing))
            options = {"temperature": prompt_upsampling_temperature, "generator": generator}
            if prompt_upsampling is not True:
                if not isinstance(prompt_upsampling, Mapping):
                    raise TypeError(
                        f"`prompt_upsampling` is {prompt_upsampling!r}: give True, or a mapping with arguments of"
                        " `upsample_prompt`."
                    )
                options |= prompt_upsampling
            return self.make_requests(**{**vars(drawing), "prompt": self._upsampled(drawing, options)})

        images = self._draw(make, output_type, attention_kwargs, max_tokens, callback_on_step_end, tensor_inputs)
        return Ideogram4PipelineOutput(images=images) if return_dict else (images,)

    def _draw(
        self,
        make: Callable[[], list[Request]],
        output_type: str,
        attention_kwargs: dict[str, Any] | None,
        max_tokens: int | None,
        callback: Callable[..., Any] | None,
        tensor_inputs: Sequence[str],
    ) -> Any:
        """Pictures of the requests that `make` makes, all stepped together; arguments as those of a call."""
        check_output_type(output_type)
        if callback is not None and not callable(callback):
            raise TypeError(f"`callback_on_step_end` is {callback!r}: give a function, or None.")
        engine = self.engine(attention_kwargs, max_tokens=max_tokens)
        with self._calls.begin(attention_kwargs) as call, self._in_turn():
            self._warn_of_scale(attention_kwargs)
            requests = make()
            if callback is not None and tensor_inputs:
                for request in requests:
                    doubt(request.settings, "a callback was given its latents")
            call.num_timesteps = max(request.steps for request in requests)
            with self.progress_bar(total=call.num_timesteps) as progress:
                for i in range(call.num_timesteps):
                    under_way = [request for request in requests if not request.finished]
                    for request, error in engine.advance(under_way).items():
                        raise explained(error, request)
                    call.guidance_scale = under_way[0].guidance[i]
                    if callback is not None:
                        call_back(callback, self, i, under_way, tensor_inputs)
                    progress.update()
                    if call.interrupted:
                        break
            engine.denoiser.free_graphs()  # decoding may need their memory
            for request in requests:
                request.check()
            images = self.decode_requests(requests, output_type)
            self.maybe_free_model_hooks()
        return images

    @explains_unknown
    @takes_drawing
    @torch.no_grad()
    def make_requests(
        self,
        prompt: Any,
        *arguments: Any,
        prompt_features: Sequence[Tensor] | None = None,
        defer: bool = False,
        priority: int = 0,
        adapters: Mapping[str, float] | None = None,
        deadline: float | None = None,
        preview_every: int | None = None,
        **more: Any,
    ) -> list[Request]:
        """Make the requests of a call without running them: what an engine steps, alone or among others.

        A caption is encoded once, and its context is computed once for each of its sizes; pictures share them.

        Args:
            prompt_features: What the method of this name gave for the prompts, to spare encoding them again.
            defer: Leave the captions to the engine, which encodes each when its request takes its first step: requests
                that wait hold little memory, and on a GPU the next is encoded while others are stepped. Pictures of one
                caption then share its embedding, and each has tables of its own.
            priority: Higher goes first, in an engine of that policy.
            adapters: Names and weights of the loaded adapters that these pictures are drawn with, whatever is active
                otherwise: requests of several sets can be in one engine, which takes them in turn. Empty for none of
                them, None for those that are active at each step.
            deadline: Time of `time.monotonic()` at which a request fails that is not done.
            preview_every: Steps from one preview to the next, in an engine that makes pictures; 0 for none, None for
                the engine's own interval.

        Returns:
            `num_images_per_prompt` requests for each prompt, in the order of the prompts. Arguments and errors as in
            `__call__`.
        """
        drawing = Drawing(prompt, *arguments, **more)
        denoiser = self._denoiser(drawing.attention_kwargs)
        maker = RequestMaker(
            denoiser=denoiser,
            embedder=self._embedder(denoiser.project_text),
            scheduler=self.scheduler,
            settings=partial(self._origin.settings, self),
            guides=self.unconditional_transformer is not None,
            device=self._execution_device,
            channels=self.transformer.config.in_channels,
            unit=self._unit,
            limits=self.config.get("side_limits"),
            enabled=self._enabled_cache(),
            calibrations=self._calibration,
        )
        requests = maker.make(drawing, prompt_features, defer, priority, adapters, deadline, preview_every)
        self._origin.warn_of_unplaced(dict.fromkeys(one.settings["caption"] for one in requests if one.settings))
        return requests

    def engine(
        self,
        attention_kwargs: dict[str, Any] | None = None,
        *,
        max_tokens: int | None = None,
        max_requests: int | None = None,
        policy: Policy = "fair",
        max_request_tokens: int | None = None,
        output_type: str = "latent",
        preview_every: int = 0,
        previews: Literal["decoded", "linear"] | PreviewMap = "decoded",
        cuda_graphs: Choice | None = None,
    ) -> Engine:
        """A new engine over this pipeline's transformers.

        Args:
            attention_kwargs: As in `__call__`.
            max_tokens: Tokens of one pass over all its requests and both branches; None for what `fit_memory`
                chose, else for no limit.
            max_requests: Requests of one pass; no limit if None.
            policy: Who goes first where not all fit: "fair", "fifo" or "priority".
            max_request_tokens: Refuse requests of which one step has more tokens.
            output_type: What "finished" events carry: "pil", "np" or "pt" for a picture, "latent" for nothing beside
                the request, whose `latents` are there anyway.
            preview_every: Give every so many steps a preview of that type; 0 for none. Requests may have intervals of
                their own.
            previews: How these are made: "decoded" by the autoencoder, which takes as long as the picture; "linear" by
                a `PreviewMap`, in milliseconds, with one pixel for 8 x 8 of the picture's. The map is fitted here, in
                a second for the bundled model; give one of `preview_map_of(pipe.vae, folder)` to keep it in a file.
            cuda_graphs: "auto", True or False in place of the pipeline's `cuda_graphs`.

        Raises:
            TypeError: naming the argument that is of another type.
            ValueError: naming the argument that does not fit.
        """
        check_output_type(output_type)
        if max_tokens is None and self.plan is not None:
            max_tokens = self.plan.max_tokens
        decodes = output_type != "latent"
        for name, given in (("preview_every", preview_every != 0), ("previews", previews != "decoded")):
            if given and not decodes:
                raise ValueError(f'`{name}` needs an `output_type` of pictures: "pil", "np" or "pt".')
        choice = self.cuda_graphs if cuda_graphs is None else _checked_graphs(cuda_graphs)
        if choice == "auto" and self.plan is not None:
            choice = False  # a plan's memory has no room for them
        return Engine(
            self._denoiser(attention_kwargs, cuda_graphs=choice),
            max_tokens=max_tokens,
            max_requests=max_requests,
            policy=policy,
            max_request_tokens=max_request_tokens,
            decode=self._decode_one if decodes else None,
            to_image=lambda picture: self.image_processor.postprocess(picture[None], output_type=output_type)[0],
            preview_every=preview_every,
            preview=linear_previews(self.vae, previews),
        )

    def decode_requests(self, requests: Sequence[Request], output_type: str = "pil") -> Any:
        """Pictures of requests, done or not, as `Ideogram4PipelineOutput.images` has them.

        Raises:
            NotEnoughMemory: a torch.OutOfMemoryError that keeps the `requests`.
        """
        if output_type == "latent":
            return stack([request.latents for request in requests])
        with self._exclusive():
            return pictures_of(self.vae, self.image_processor, requests, output_type)

    @property
    def taps(self) -> tuple[int, ...]:
        """Decoder layers of the text encoder whose outputs are the text features."""
        return tuple(self.config.get("text_encoder_taps") or TAPS)

    def prompt_features(self, prompt: Any, max_sequence_length: int = 2048, strict: bool = False) -> list[Tensor]:
        """Text features of each prompt: `(tokens, features)` float32, unpadded. Arguments as in `__call__`."""
        lines = lines_of(prompt, strict)
        with self._exclusive():
            return encode_captions(self.text_encoder, self.tokenizer, lines, self.taps, max_sequence_length)

    @torch.no_grad()
    def upsample_prompt(
        self,
        prompt: str | Sequence[str],
        height: int = 2048,
        width: int = 2048,
        temperature: float = 1.0,
        max_new_tokens: int = 1024,
        generator: torch.Generator | list[torch.Generator] | None = None,
        device: torch.device | str | None = None,
        *,
        layout: bool = True,
        instructions: tuple[str, str] | None = None,
        grammar: str | None = None,
    ) -> list[str]:
        """Write a caption of each prompt, by the text encoder with its `prompt_enhancer_head`.

        Every token is one that the caption schema allows, so that what comes back keeps it. Where `caption_writer` is
        set, as in the bundled model's pipeline, it writes in their place.

        Args:
            prompt: Plain words, or a list of them.
            height: Pixels of the picture.
            width: Pixels of the picture.
            temperature: Of the tokens that are sampled; 0 takes the likeliest.
            max_new_tokens: The most tokens of a caption, which is brought to its end before them.
            generator: Gives the seed, by one number that is drawn from it, as diffusers does; None for a fresh seed.
            device: Where the text encoder computes; None for where it is.
            layout: With a style, boxes and palettes. False for the smaller schema of diffusers' prompt enhancer.
            instructions: What the model is told, and the form of what it is asked, with `{aspect_ratio}` and
                `{original_prompt}` in it; None for those of `ideoflow.captions.writing`.
            grammar: Of llguidance, in the place of the one that `layout` says; captions are then not brought to their
                end before `max_new_tokens`.

        Returns:
            The line of each caption.

        Raises:
            ValueError: if the pipeline has no head and no writer, or an argument does not fit.
            WritingError: a ValueError: if the words cannot be made a caption of.
            ImportError: naming the extra, if llguidance is not installed.
        """
        words = [prompt] if isinstance(prompt, str) else list(prompt) if isinstance(prompt, (list, tuple)) else None
        if words is None or not all(isinstance(one, str) for one in words):
            kinds = type(prompt).__name__ if words is None else "list with something else than words in it"
            raise TypeError(
                f"`prompt` is a {kinds}: give plain words, or a list of them; captions are written already."
            )
        for name, side in (("height", height), ("width", width)):
            whole(name, side, 1)
        finite("temperature", temperature)
        whole("max_new_tokens", max_new_tokens, 1)
        if not words:
            return []
        if self.caption_writer is not None:
            options = {
                "temperature": temperature != 1.0,
                "max_new_tokens": max_new_tokens != 1024,
                "layout": not layout,
                "instructions": instructions is not None,
                "grammar": grammar is not None,
            }
            if vain := [f"`{name}`" for name, given in options.items() if given]:
                told = f"{' and '.join(vain)} {'has' if len(vain) == 1 else 'have'} no effect where `caption_writer`"
                warnings.warn(f"{told} writes, as in the bundled model's pipeline.", CaptionWarning, stacklevel=3)
            written = [self.caption_writer(text, (width, height)) for text in words]
            for note in dict.fromkeys(note for one in written for note in one.notes):
                warnings.warn(note, CaptionWarning, stacklevel=3)
            return [one.caption.line() for one in written]
        if self.prompt_enhancer_head is None:
            raise ValueError(
                "writing captions needs the component `prompt_enhancer_head`, which this pipeline has not: give one to"
                " `from_pretrained` (`prompt_enhancer_head=...`), set `pipe.caption_writer`, or write captions with"
                " ideoflow.captions.writing."
            )
        place = torch.device(device) if device is not None else self._execution_device
        with self._exclusive():
            return write_captions(
                self.text_encoder,
                self.prompt_enhancer_head,
                self.tokenizer,
                words,
                (width, height),
                temperature=temperature,
                max_new_tokens=max_new_tokens,
                seed=seed_of(generator),
                device=place,
                grammar=grammar or caption_grammar(layout),
                instructions=instructions or (writing_instructions(layout), None),
                closes=grammar is None,
            )

    def _upsampled(self, drawing: Drawing, options: Mapping[str, Any]) -> list[Any]:
        """The prompts of a call, captions in the place of those that are words; of one size at a time."""
        prompts = prompts_of(drawing.prompt)
        sizes = drawing.sizes(self._unit, self.config.get("side_limits"))
        for size in dict.fromkeys(sizes):
            words = [n for n, one in enumerate(prompts) if isinstance(one, str) and sizes[n] == size]
            width, height = size
            lines = self.upsample_prompt([prompts[n] for n in words], height, width, **options)
            for number, line in zip(words, lines, strict=True):
                prompts[number] = line
        return prompts

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
            device: Where what is returned lies.

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
        return prepare_latents(shape, dtype, device, generator, latents)

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
        drawing = Drawing(prompt, height, width, num_inference_steps, guidance_scale, guidance_schedule)
        check_arguments(drawing, self._unit, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)

    # The call that is under way

    @property
    def guidance_scale(self) -> float | None:
        """Guidance of the step just taken, for callbacks, of the call that is under way in this thread."""
        return self._calls.latest.guidance_scale

    @property
    def attention_kwargs(self) -> dict[str, Any] | None:
        """The `attention_kwargs` of the call that is under way in this thread."""
        return self._calls.latest.attention_kwargs

    @property
    def num_timesteps(self) -> int:
        """Number of steps of the call that is under way in this thread."""
        return self._calls.latest.num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the call that is under way in this thread stops after this step."""
        return self._calls.latest.interrupted

    @property
    def _interrupt(self) -> bool:
        return self.interrupt

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        """Stop the call whose callback sets this, and no other; set outside of callbacks, all calls under way."""
        self._calls.interrupt(value)

    # Files

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *,
        dequantize: bool = False,
        config: str | os.PathLike | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a pipeline from a folder in diffusers' layout, or a hub id. Its components may be of any form.

        Every component that the index names must be there, every tensor of its files is used, and what is damaged or
        missing is one error, for the tokenizer and the scheduler before any weight is loaded. The folder may lack the
        index and the scheduler, if the folders of the other components have their usual names.

        Nothing that no caption needs is brought into memory: the text encoder's vision tower and the unconditional
        transformer's text projection stay in their files until the pipeline is saved.

        Args:
            pretrained_model_name_or_path: Folder or hub id.
            dequantize: Expand weights that are stored in few bits (fp8, nf4, GGUF) to the type asked for; False keeps
                those of the transformers' and the text encoder's linear layers so.
            config: For a folder that holds a transformer alone, the folder or hub id that everything else comes from,
                as in `from_single_file`.
            kwargs: As diffusers' method: `dtype` or `torch_dtype`, `variant`, `device_map`, components in place of the
                folder's, those of the hub. A text encoder or an autoencoder may be given by its file, too.

        Raises:
            CheckpointError: a ValueError that names the file, and the tensor, that cannot be used.
        """
        path = pretrained_model_name_or_path
        loading.refuse_foreign_code(kwargs)
        loading.refuse_unknown(cls, kwargs)
        loading.check_dtype(kwargs)
        given = {**kwargs, "dequantize": dequantize or None}
        if config is not None:
            pipe = cls.from_single_file(loading.check_alone(path), config=config, dequantize=dequantize, **kwargs)
        else:
            pipe = loading.load_folder(super().from_pretrained, cls.download, path, dequantize, kwargs)
        pipe._origin.loaded(pipe, path, config, given)
        return pipe

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path: str | os.PathLike,
        *,
        config: str | os.PathLike = loading.HUB_ID,
        unconditional_transformer: Ideogram4Transformer2DModel | str | os.PathLike | None = None,
        transformer_config: str | os.PathLike | dict[str, Any] | None = None,
        dequantize: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a pipeline whose transformer is in a file of its own, as ComfyUI and GGUF users have it.

        Args:
            pretrained_model_link_or_path: The transformer's file, of any form; a file that holds both transformers; or
                a folder that holds transformers and nothing else.
            config: Folder or hub id in diffusers' layout that everything else comes from.
            unconditional_transformer: The other transformer, or its file; None for the same file's or folder's where it
                holds both, for none where the folder's index says [null, null], otherwise for that of `config`.
            transformer_config: The transformers' configuration, where none is beside the file or in it: a dict, a JSON
                file, or a folder with a `config.json`. None for that of `config`, if it is a folder.
            dequantize: Expand weights that are stored in few bits.
            kwargs: As `from_pretrained`, files of a text encoder or an autoencoder among them.
        """
        path, other = pretrained_model_link_or_path, unconditional_transformer
        loading.refuse_foreign_code(kwargs)
        loading.refuse_unknown(cls, kwargs)
        given = {
            **kwargs,
            "unconditional_transformer": other,
            "transformer_config": transformer_config,
            "dequantize": dequantize or None,
        }
        transformers = loading.load_transformers(path, config, other, transformer_config, dequantize, kwargs)
        components = {**kwargs, **transformers}
        pipe = loading.load_folder(super().from_pretrained, cls.download, config, dequantize, components)
        pipe._origin.loaded(pipe, path, config, given)
        return pipe

    @classmethod
    def from_pipe(cls, pipeline: Any, *, dtype: torch.dtype | None = None, **kwargs: Any) -> Any:
        """A pipeline over the components of another, diffusers' of this name included; nothing is copied.

        Args:
            pipeline: The one whose components to take. What moves, casts or trains them does so in both pipelines.
            dtype: To cast them to; None leaves them as they are.
            kwargs: Components in place of the other's, and `text_encoder_taps` and `side_limits`.

        Raises:
            TypeError: an argument that there is none of.
            ValueError: transformers that cannot be shared, with adapters or hooks for instance; missing components.
        """
        dtype = kwargs.pop("torch_dtype", dtype)
        made = cls(**arguments_from(pipeline, inspect.signature(cls.__init__).parameters, kwargs))
        made._origin = getattr(pipeline, "_origin", made._origin)  # it tells of what is not the files' any more
        made._calibrations = getattr(pipeline, "_calibrations", None)
        if (made.transformer, made.unconditional_transformer) == (
            getattr(pipeline, "transformer", None),
            getattr(pipeline, "unconditional_transformer", None),
        ):
            made.new_denoiser = getattr(pipeline, "new_denoiser", Denoiser)
        return made if dtype is None else made.to(dtype)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        use_flashpack: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write all components into a folder in diffusers' layout, whole or not at all.

        What could not be opened again is refused before anything is written. Weights in fp8 of `pipe.quantize` are for
        ideoflow alone: diffusers refuses them.

        Args:
            save_directory: A new folder, or one whose earlier pipeline is replaced; other files in it stay.
            safe_serialization: True; pickles are not written, since none are opened.
            variant: Part of the weights' names, such as "fp16".
            max_shard_size: The largest file of weights, in bytes or as "5GB"; None for each component's own.
            push_to_hub: Whether to upload what was written.
            use_flashpack: Refused: its files are not opened here.
            kwargs: Arguments of the upload.

        Raises:
            CheckpointError: a ValueError: a component that could not be opened again (adapters on its layers, GGUF's
                blocks, int8 of `pipe.quantize`, offloaded weights), or a folder that cannot be written.
        """
        options = {"variant": variant, "max_shard_size": max_shard_size, "push_to_hub": push_to_hub, **kwargs}
        save_pipeline(
            self.components, super().save_pretrained, save_directory, safe_serialization, use_flashpack, **options
        )

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """Read a folder's index, with our classes where it names those of diffusers and transformers."""
        return loading.read_index(super().load_config, *args, **kwargs)

    def register_to_config(self, **kwargs: Any) -> None:
        """Register components, ours under the names by which any reader of the folder knows them."""
        super().register_to_config(**loading.usual_names(kwargs))

    # Adapters

    @classmethod
    def lora_state_dict(
        cls, pretrained_model_name_or_path_or_dict: LoraSource, *, ignore_unknown: bool = False, **kwargs: Any
    ) -> Any:
        """The adapters of a file of any form under diffusers' names; shapes are compared with no model.

        Returns:
            The tensors; with `return_lora_metadata=True`, also peft's configuration, which holds the strengths.
        """
        return loading.adapter_tensors(pretrained_model_name_or_path_or_dict, ignore_unknown, kwargs)

    @between_calls
    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: LoraSource,
        adapter_name: str | None = None,
        hotswap: bool = False,
        *,
        ignore_unknown: bool = False,
        **kwargs: Any,
    ) -> None:
        """Load adapters of any form, LoRA, DoRA, LoKr or LoHa, into the conditional transformer; see docs/lora.md.

        Args:
            pretrained_model_name_or_path_or_dict: A safetensors file, a folder or a hub id that holds one, or tensors
                by their names in one.
            adapter_name: To weigh, swap and delete it by; None for the next free default.
            hotswap: Put the weights in the place of the loaded adapter of that name.
            ignore_unknown: Leave out, with a warning, what is no LoRA adapter of this model; False to refuse the file.
            kwargs: `weight_name` and `subfolder` of the file in the folder, those of the hub, `low_cpu_mem_usage`.

        Raises:
            CheckpointError: a ValueError that names the file and the tensor that cannot be used.
            ValueError: an adapter name that is taken.
        """
        before = set(getattr(self.transformer, "peft_config", {}))
        self.transformer.load_lora_adapter(
            pretrained_model_name_or_path_or_dict,
            hotswap=hotswap,
            adapter_name=adapter_name,
            ignore_unknown=ignore_unknown,
            _pipeline=self,
            **{"low_cpu_mem_usage": True, **kwargs},
        )
        configs = getattr(self.transformer, "peft_config", {})
        names = {adapter_name} if adapter_name is not None else set(configs) - before
        self._origin.loaded_adapter(names, configs, pretrained_model_name_or_path_or_dict, kwargs)

    @between_calls
    def unfuse_lora(self, components: list[str] = ["transformer"], **kwargs: Any) -> None:  # noqa: B006 (diffusers')
        """Undo `fuse_lora`.

        Args:
            components: "transformer", which alone has adapters.
            kwargs: diffusers' old ones, which it warns of.

        Raises:
            ValueError: weights that were brought into few bits since; nothing is changed.
        """
        self.transformer.check_mergeable("unfuse_lora")
        super().unfuse_lora(components=components, **kwargs)

    @between_calls
    def set_adapters(
        self,
        adapter_names: str | list[str],
        adapter_weights: float | dict[str, Any] | list[float] | list[dict[str, Any]] | None = None,
    ) -> None:
        """Have these adapters act, by these weights, and no others.

        Args:
            adapter_names: The name of a loaded adapter, or several.
            adapter_weights: A finite number for all of them, or a list with one for each; None is 1. In a number's
                place may stand `{"transformer": weight}`, whose weight may be one of `transformer.set_adapters`.

        Raises:
            TypeError: weights that are no numbers, or names that are no text.
            ValueError: adapters that are not loaded, weights that are not finite, not one for each, or of another
                component.
        """
        names = check_names(self.transformer, adapter_names)
        check_count(names, adapter_weights)
        check_components(adapter_weights, self._lora_loadable_modules)
        super().set_adapters(names, adapter_weights)  # the transformer's own, which looks at each weight

    fuse_lora = between_calls(Ideogram4LoraLoaderMixin.fuse_lora)
    unload_lora_weights = between_calls(Ideogram4LoraLoaderMixin.unload_lora_weights)
    delete_adapters = between_calls(Ideogram4LoraLoaderMixin.delete_adapters)
    enable_lora = between_calls(Ideogram4LoraLoaderMixin.enable_lora)
    disable_lora = between_calls(Ideogram4LoraLoaderMixin.disable_lora)

    # Memory and speed

    def fit_memory(self, memory: str | int | float = "auto", **options: Any) -> Plan:
        """Fit the pipeline into a device's memory: precision, offloading, tiled decoding and passes, by a plan.

        Call it once, on a pipeline as it was loaded, before `compile`; it moves the components itself.

        Args:
            memory: "12GB", "12GiB", "11500MB", a number of bytes, or "auto" for what is free on the device.
            options: Those of `ideoflow.fitting.fit_memory` and `ideoflow.fitting.plan`: `device`, `size`, `pictures`,
                `caption_tokens`, `allow`, `quantize` and others.

        Returns:
            The plan, which `print` shows and `pipe.plan` keeps.

        Raises:
            DoesNotFit: a ValueError that names the nearest plan and the memory it needs.
            RuntimeError: if the pipeline is fitted, compiled or offloaded already.
        """
        return fit_memory(self, memory, **options)

    def fit(self, memory: str | int | float = "auto", **options: Any) -> Plan:
        """`fit_memory` by its old name, for one version."""
        warn_renamed("pipe.fit", "pipe.fit_memory")
        return self.fit_memory(memory, **options)

    @torch.no_grad()
    def calibrate_cache(self, prompt: Any, **drawing: Any) -> CacheCalibration:
        """Draw pictures in full, and measure how their velocities change over the steps, for caches by name.

        Some dozen captions like those to come will do. What was measured holds for this model and the steps, `mu` and
        `std` of the call, in this pipeline; `ideoflow.pipeline.keep_calibrations(folder, pipe.cache_calibrations)`
        keeps it in the model's folder.

        Args:
            prompt: Captions.
            drawing: Arguments of `make_requests`; those of the pictures to come.

        Returns:
            What was measured, for diffusers' MagCacheConfig with its `mag_ratios`.
        """
        plan = Drawing(prompt, **drawing).plan
        estimates: dict[Request, list[Tensor]] = {}
        with self._in_turn():
            requests = self.make_requests(prompt, **{**drawing, "cache": "off", "guidance_every": 1})
            for request in requests:
                estimates[request] = []
                request.on_step = lambda own: estimates[own].append(own.estimate)
            self.engine(drawing.get("attention_kwargs")).complete(requests)
            self.maybe_free_model_hooks()
        found = calibrated(requests, [estimates[request] for request in requests], plan.mu, plan.std)
        self._calibrations = {**self.cache_calibrations, (plan.steps, plan.mu, plan.std): found}
        return found

    def compile(self, **options: Any) -> None:
        """Compile the blocks of the transformers, their projections fused, once for all sizes, captions and pictures.

        The first steps take minutes on a CPU; a compiler must be there (g++ on a CPU). Fusing element-wise work rounds
        it less often: pictures move within rounding.

        Args:
            options: Those of `torch.compile` but for `dynamic` and `fullgraph`; `mode="max-autotune-no-cudagraphs"` for
                instance.
        """
        for transformer in self._transformers():
            transformer.fuse_projections()
            transformer.compile_blocks(**options)

    @property
    def cuda_graphs(self) -> Choice:
        """Whether steps are recorded as CUDA graphs and replayed, for calls and engines made from now on.

        A step's kernels are recorded when its layout (sizes, lengths of captions, pictures of a pass) comes a second
        time, and launched at once whenever it comes again: small pictures, whose kernels are shorter than launching
        them takes, are drawn faster. No picture changes.

        "auto", the default: streams of up to 3,072 tokens a branch (768 pixels with a caption of 700 tokens), while
        graphs take no more than a quarter of the memory that is free; not with a plan of `fit_memory`. True: all
        streams, whatever they take, with a warning where none can be recorded. False: none.

        What cannot be recorded is computed as without: on other devices than CUDA, offloaded, with adapters that are
        not fused, with hooks or autocast, and where a layer waits for the device.

        Raises:
            ValueError: set to anything else, or to True where torch sees no CUDA device.
        """
        return self._cuda_graphs

    @cuda_graphs.setter
    def cuda_graphs(self, choice: Choice) -> None:
        self._cuda_graphs = _checked_graphs(choice)

    def enable_cuda_graphs(self) -> None:
        """Set `cuda_graphs` to True: record steps of all sizes.

        Raises:
            ValueError: if torch sees no CUDA device.
        """
        self.cuda_graphs = True

    def disable_cuda_graphs(self) -> None:
        """Set `cuda_graphs` to False; setting it to "auto" leaves it to the sizes of pictures again."""
        self.cuda_graphs = False

    def tune_attention(
        self, size: tuple[int, int] = (1024, 1024), caption_tokens: int = 500, pictures: int = 1
    ) -> dict[str, dict[str, float]]:
        """Time the attention backends that this machine has, and use the fastest in each transformer.

        Args:
            size: `(width, height)` in pixels of the pictures to come.
            caption_tokens: Tokens of their captions.
            pictures: How many share a pass.

        Returns:
            Of each transformer, seconds of each exact backend that runs here, the fastest first.

        Raises:
            ValueError: a size that is no pair of pixels, multiples of a token's side, or numbers that are too small.
            TypeError: numbers that are not whole.
        """
        width, height = check_pair(size, self._unit)
        caption_tokens = whole("caption_tokens", caption_tokens, 0)
        pictures = whole("pictures", pictures, 1)
        image = (width // self._unit) * (height // self._unit)
        branches = {"transformer": caption_tokens + image, "unconditional_transformer": image}
        return {
            name: getattr(self, name).tune_attention([tokens] * pictures)
            for name, tokens in branches.items()
            if getattr(self, name) is not None
        }

    def fuse_projections(self) -> None:
        """Compute q, k and v as one product in the transformers' blocks, and w1 and w3: fewer and larger products.

        Nothing else changes: no name, no file, no adapter, and the memory stays what it was. Pictures move within
        rounding. Call it once the pipeline is where it computes, and before offloading is set up.
        """
        for transformer in self._transformers():
            transformer.fuse_projections()

    def unfuse_projections(self) -> None:
        """Undo `fuse_projections`."""
        for transformer in self._transformers():
            transformer.unfuse_projections()

    def quantize(self, kind: str, skip: str | Sequence[str] = ()) -> None:
        """Keep the linear layers of the transformers' blocks in one byte a weight, in place.

        They multiply in that type where the chip has fast products for it (fp8 on CUDA from Ada and Hopper on, int8 on
        CUDA from Ampere on and on CPUs with VNNI), and expand their weights to the input's type elsewhere. Pictures
        change; how much is in docs/performance.md. Call it after the pipeline is on its device and before `compile` and
        offloading. Adapters may come before or after.

        Args:
            kind: "fp8" (float8_e4m3fn, a scale for each output row) or "int8".
            skip: Layers to leave alone: patterns that whole names match, such as `layers\\.0\\..*`.

        Raises:
            TypeError: if layers are quantized already.
            ValueError: an unknown kind, a pattern that matches nothing, or hooks on the layers.
        """
        for transformer in self._transformers():
            quantize_(transformer, kind, skip)
        self._origin.quantize(kind, skip)

    # Parts of a call

    @property
    def _unit(self) -> int:
        """Pixels of a token's side."""
        return self.vae_scale_factor * self.patch_size

    def _transformers(self) -> list[Ideogram4Transformer2DModel]:
        return [one for one in (self.transformer, self.unconditional_transformer) if one is not None]

    def _models(self) -> list[nn.Module]:
        return [part for part in self.components.values() if isinstance(part, nn.Module)]

    def _exclusive(self) -> AbstractContextManager[None]:
        """While the block runs, no other thread moves the components, if hooks move them, or weighs their adapters."""
        return exclusive(*self._models())

    def _in_turn(self) -> AbstractContextManager[None]:
        """Where hooks move the models, calls take turns: one call's end puts all of them back."""
        return exclusive(*filter(is_offloaded, self._models()))

    def _warn_of_scale(self, attention_kwargs: Mapping[str, Any] | None) -> None:
        """Warn of a strength of adapters where there are none, which changes nothing."""
        if attention_kwargs and "scale" in attention_kwargs and not any(map(adapter_layers, self._transformers())):
            warnings.warn(
                f"`attention_kwargs` has the scale {attention_kwargs['scale']!r}, which is the strength of adapters,"
                " and none is loaded: it changes nothing.",
                stacklevel=5,
            )

    def _denoiser(self, attention_kwargs: dict[str, Any] | None, cuda_graphs: Choice = False) -> Denoiser:
        processors = (own for one in self._transformers() for own in one.attn_processors.values())
        check_attention_kwargs(attention_kwargs, processors)
        parts = self.transformer, self.unconditional_transformer
        return self.new_denoiser(*parts, attention_kwargs, cuda_graphs=cuda_graphs)

    def _enabled_cache(self) -> Any:
        """What `transformer.enable_cache` was given; None where no cache is enabled.

        Raises:
            ValueError: if the unconditional transformer was given another.
        """
        enabled = [getattr(one, "_cache_config", None) for one in self._transformers()]
        if any(other is not None and other != enabled[0] for other in enabled[1:]):
            raise ValueError(
                "`unconditional_transformer` has another cache enabled than `transformer`: a step is computed or left"
                " out in both, so enable it on `pipe.transformer`, and in how many steps both branches are with"
                " `guidance_every`."
            )
        return enabled[0]

    @property
    def cache_calibrations(self) -> dict[tuple[int, float, float], CacheCalibration]:
        """What `calibrate_cache` measured, or found in the model's folder, by steps, mu and std of the pictures."""
        if self._calibrations is None:
            folder = self._origin.folder
            self._calibrations = {} if folder is None else calibrations_in(folder)
        return self._calibrations

    def _calibration(self, plan: Preset) -> CacheCalibration:
        """The calibration for pictures of these steps."""
        found = self.cache_calibrations.get((plan.steps, plan.mu, plan.std))
        if found is None:
            known = ", ".join(f"{steps} steps (mu {mu:g}, std {std:g})" for steps, mu, std in self.cache_calibrations)
            raise ValueError(
                f"`cache` needs a calibration of this model for {plan.steps} steps (mu {plan.mu:g}, std {plan.std:g});"
                f" there {f'are those for {known}' if known else 'is none'}. `pipe.calibrate_cache` makes one, or say"
                ' which steps to compute, such as "interval=2".'
            )
        return found

    def _embedder(self, project: Callable[[Tensor], Tensor]) -> TextEmbedder:
        return TextEmbedder(
            self.text_encoder, self.tokenizer, self.taps, self.transformer, project, self.text_cache, self._models()
        )

    def _decode_one(self, request: Request, latents: Tensor) -> Tensor:
        """`(3, height, width)` picture of latents of a request."""
        with self._exclusive():
            return decode(self.vae, [request], [latents])[0]


def _checked_graphs(choice: Choice) -> Choice:
    """The choice, if it is one that can be had here."""
    if check_choice(choice) is True and not torch.cuda.is_available():
        raise ValueError("CUDA graphs need a CUDA device, and torch sees none here: draw without them.")
    return choice
