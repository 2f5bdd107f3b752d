"""The pipeline: captions in, pictures out, with the call arguments and the folder layout of diffusers' Ideogram 4."""

# No `from __future__ import annotations`: diffusers reads the types of the constructor's arguments.
import functools
import inspect
import logging
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .. import latents as latent_tokens
from .._imports import warn_renamed
from ..checkpoints.lora_files import PipelineAdapters
from ..engine import Denoiser, Engine, Policy, Request
from ..engine.out_of_memory import NotEnoughMemory, out_of_memory
from ..fitting import Plan, fit_memory
from ..model import Ideogram4Transformer2DModel
from ..ops.exclusive import adapter_layers, exclusive
from ..ops.offload import is_offloaded
from ..provenance import KEY, doubt, to_text
from ..schedule import Preset
from .acceleration import PipelineSpeed
from .arguments import DEFAULT, plan_of
from .calls import between_calls, call_of, interrupt, latest_call
from .loading import PipelineFiles
from .origin import PipelineOrigin
from .requests import PipelineRequests
from .sharing import as_own
from .text_cache import TextCache
from .unknown_arguments import explain, explains_unknown

TEXT_CACHE_BYTES = 128 * 2**20  # of embedded captions; about 28 of 500 tokens for the published weights in bfloat16
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
OPTIONS = ("text_encoder_taps", "side_limits")  # arguments of the constructor that are no components
logger = logging.getLogger(__name__)


@dataclass
class Ideogram4PipelineOutput(BaseOutput):
    """Pictures of one call, `num_images_per_prompt` for each prompt, in the order of the prompts.

    Attributes:
        images: By `output_type`: "pil" a list; "np" an array `(pictures, height, width, 3)` in [0, 1]; "pt" a tensor
            `(pictures, 3, height, width)` in [0, 1]; "latent" a tensor `(pictures, tokens, channels)`. Where the shapes
            of the pictures differ, the last three are lists with one entry a picture.
    """

    images: list[PIL.Image.Image] | np.ndarray | Tensor | list[np.ndarray] | list[Tensor]


def _between_calls(name: str) -> Callable[..., Any]:
    """A method of adapters that is refused while another thread draws, whose picture would be half of each."""
    inherited = getattr(PipelineAdapters, name)

    @functools.wraps(inherited)
    def method(self: "Ideogram4Pipeline", *args: Any, **kwargs: Any) -> Any:
        with between_calls(self) as free:
            if not free:
                raise RuntimeError(
                    f"`{name}` would change pictures that another thread is drawing with this pipeline: call it between"
                    " calls. For a strength of each call's own pass `attention_kwargs={'scale': ...}` to the call."
                )
            with exclusive(self.transformer, self.unconditional_transformer):
                return getattr(super(Ideogram4Pipeline, self), name)(*args, **kwargs)

    return method


class Ideogram4Pipeline(PipelineOrigin, PipelineSpeed, PipelineFiles, PipelineAdapters, PipelineRequests):
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
        prompt_enhancer_head: Kept for folders that have one; not used.
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

    @property
    def guidance_scale(self) -> float | None:
        """Guidance of the step just taken, for callbacks, of the call that is under way in this thread."""
        return latest_call(self).guidance_scale

    @property
    def attention_kwargs(self) -> dict[str, Any] | None:
        """The `attention_kwargs` of the call that is under way in this thread."""
        return latest_call(self).attention_kwargs

    @property
    def num_timesteps(self) -> int:
        """Number of steps of the call that is under way in this thread."""
        return latest_call(self).num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the call that is under way in this thread stops after this step."""
        return latest_call(self).interrupted

    @property
    def _interrupt(self) -> bool:
        return self.interrupt

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        """Stop the call whose callback sets this, and no other; set outside of callbacks, all calls under way."""
        interrupt(self, value)

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
            preview_every: Give every so many steps a preview of that type; 0 for none.

        Raises:
            TypeError: naming the argument that is of another type.
            ValueError: naming the argument that does not fit.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` is {output_type!r}: choose one of {', '.join(OUTPUT_TYPES)}.")
        if max_tokens is None and self.plan is not None:
            max_tokens = self.plan.max_tokens
        decodes = output_type != "latent"
        if preview_every and not decodes:
            raise ValueError('`preview_every` needs an `output_type` of pictures: "pil", "np" or "pt".')
        return Engine(
            Denoiser(self.transformer, self.unconditional_transformer, attention_kwargs, cuda_graphs=self._cuda_graphs),
            max_tokens=max_tokens,
            max_requests=max_requests,
            policy=policy,
            max_request_tokens=max_request_tokens,
            decode=self._decode_one if decodes else None,
            to_image=lambda picture: self.image_processor.postprocess(picture[None], output_type=output_type)[0],
            preview_every=preview_every,
        )

    @classmethod
    def from_pipe(cls, pipeline: Any, *, dtype: torch.dtype | None = None, **kwargs: Any) -> Any:
        """A pipeline over the components of another, diffusers' of this name included; nothing is copied.

        Args:
            pipeline: Whose components to take. What moves, casts or trains them does so in both pipelines.
            dtype: To cast them to; None leaves them as they are.
            kwargs: Components in place of the other's, and `text_encoder_taps` and `side_limits`.

        Raises:
            TypeError: an argument that there is none of.
            ValueError: transformers that cannot be shared, with adapters or hooks for instance; missing components.
        """
        dtype = kwargs.pop("torch_dtype", dtype)
        parameters = inspect.signature(cls.__init__).parameters
        known = [name for name in parameters if name != "self"]
        if unknown := [name for name in kwargs if name not in known]:
            raise TypeError(" ".join(explain(name, known) for name in unknown))
        theirs = {**{name: pipeline.config.get(name) for name in OPTIONS}, **pipeline.components, **kwargs}
        given = {name: as_own(name, theirs[name]) for name in known if theirs.get(name) is not None}
        required = [name for name in known if parameters[name].default is inspect.Parameter.empty]
        if missing := [name for name in required if name not in given]:
            raise ValueError(f"`pipeline` is a {type(pipeline).__name__} without {', '.join(missing)}: pass them too.")
        made = cls(**given)
        return made if dtype is None else made.to(dtype)

    def fit_memory(self, memory: str | int | float = "auto", **options: Any) -> Plan:
        """Fit the pipeline into a device's memory: precision, offloading, tiled decoding and passes, by a plan.

        Call it once, on a pipeline as it was loaded, before `compile`; it moves the components itself.

        Args:
            memory: "12GB", "12GiB", "11500MB", a number of bytes, or "auto" for what is free on the device.
            options: Of `ideoflow.fitting.fit_memory` and `ideoflow.fitting.plan`: `device`, `size`, `pictures`,
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

    def _in_turn(self) -> AbstractContextManager[None]:
        """Where hooks move the models, calls take turns: one call's end puts all of them back."""
        models = [model for model in self.components.values() if isinstance(model, nn.Module)]
        return exclusive(*(model for model in models if is_offloaded(model)))

    def _warn_of_scale(self, attention_kwargs: Mapping[str, Any] | None) -> None:
        """Warn of a strength of adapters where there are none, which changes nothing."""
        models = [model for model in (self.transformer, self.unconditional_transformer) if model is not None]
        if attention_kwargs and "scale" in attention_kwargs and not any(map(adapter_layers, models)):
            warnings.warn(
                f"`attention_kwargs` has the scale {attention_kwargs['scale']!r}, which is the strength of adapters,"
                " and none is loaded: it changes nothing.",
                stacklevel=4,
            )

    load_lora_weights = _between_calls("load_lora_weights")
    unload_lora_weights = _between_calls("unload_lora_weights")
    set_adapters = _between_calls("set_adapters")
    delete_adapters = _between_calls("delete_adapters")
    enable_lora = _between_calls("enable_lora")
    disable_lora = _between_calls("disable_lora")
    fuse_lora = _between_calls("fuse_lora")
    unfuse_lora = _between_calls("unfuse_lora")

    def _decode_one(self, request: Request, latents: Tensor) -> Tensor:
        """`(3, height, width)` picture of latents of a request."""
        return self._decode([request], [latents])[0]

    @torch.no_grad()
    def _decode(self, requests: Sequence[Request], latents: list[Tensor]) -> list[Tensor]:
        """Pictures of latents of requests, one by one where memory does not do for all of them together."""
        try:
            with self._exclusive():
                return latent_tokens.decode(self.vae, latents, [request.grid for request in requests])
        except Exception as error:
            if not out_of_memory(error):
                raise
            failure = error
        traceback.clear_frames(failure.__traceback__)  # they hold what was computed so far
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(requests) > 1:
            logger.warning("Out of memory while %d pictures were decoded: they are decoded one by one.", len(requests))
            return [self._decode([one], [own])[0] for one, own in zip(requests, latents, strict=True)]
        height, width = (self.vae_scale_factor * self.patch_size * side for side in requests[0].grid)
        raise NotEnoughMemory(
            f"Memory ran out while a picture of {width} x {height} pixels was decoded. The error's `requests`"
            " keep its latents: free memory, or call `pipe.vae.enable_tiling()`, which may leave faint seams, and then"
            " `pipe.decode_requests(error.requests)`. `pipe.fit_memory` plans for the memory that there is.",
            requests,
        ) from failure

    def decode_requests(self, requests: Sequence[Request], output_type: str = "pil") -> Any:
        """Pictures of requests, done or not, as `Ideogram4PipelineOutput.images` has them.

        Raises:
            NotEnoughMemory: a torch.OutOfMemoryError that keeps the `requests`.
        """
        if output_type == "latent":
            return _stack([request.latents for request in requests])
        try:
            pictures = self._decode(requests, [request.latents for request in requests])
        except NotEnoughMemory as error:
            error.requests = list(requests)
            raise
        stacked = _stack(pictures)
        process = self.image_processor.postprocess
        if isinstance(stacked, Tensor):
            images = process(stacked, output_type=output_type)
        else:
            images = [process(picture[None], output_type=output_type)[0] for picture in pictures]
        for image, request in zip(images, requests, strict=True) if output_type == "pil" else ():
            if request.settings is None:
                continue
            settings = dict(request.settings)
            if request.step < request.steps:
                doubt(settings, "it was stopped before its last step")
            image.info[KEY] = to_text(settings)
        return images

    @explains_unknown
    @torch.no_grad()
    def __call__(
        self,
        prompt: Any = None,
        height: int = 2048,
        width: int = 2048,
        num_inference_steps: int = DEFAULT.steps,
        guidance_scale: float | None = None,
        guidance_schedule: Sequence[float] | Tensor | None = DEFAULT.guidance,
        mu: float = DEFAULT.mu,
        std: float = DEFAULT.std,
        prompt_upsampling: bool = False,
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
            prompt_upsampling: Not available here: True is refused with what to do instead.
            prompt_upsampling_temperature: Not used.
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
                differs from its default wins over it.
            strict: Refuse a caption that breaks the schema, in place of warning.
            guidance_interval: `(start, stop)`, shares of the steps: guidance is 1 before and after, where a step costs
                about half. It changes the picture; None guides every step.
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
        if prompt_upsampling:
            raise ValueError(
                "`prompt_upsampling=True` is not available: write the caption with ideoflow.Caption, or rewrite it with"
                " diffusers' Ideogram4Pipeline.upsample_prompt and pass the result as `prompt`."
            )
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` is {output_type!r}: choose one of {', '.join(OUTPUT_TYPES)}.")
        plan = plan_of(preset, num_inference_steps, guidance_scale, guidance_schedule, mu, std, guidance_interval)
        tensor_inputs = callback_on_step_end_tensor_inputs or ()
        self.check_inputs(prompt, height, width, plan.steps, None, plan.guidance, tensor_inputs)
        if callback_on_step_end is not None and not callable(callback_on_step_end):
            raise TypeError(f"`callback_on_step_end` is {callback_on_step_end!r}: give a function, or None.")
        engine = self.engine(attention_kwargs, max_tokens=max_tokens)
        with call_of(self, attention_kwargs) as call, self._in_turn():
            self._warn_of_scale(attention_kwargs)
            requests = self.make_requests(
                prompt,
                height,
                width,
                num_inference_steps,
                guidance_scale,
                guidance_schedule,
                mu,
                std,
                max_sequence_length,
                num_images_per_prompt,
                generator,
                latents,
                attention_kwargs,
                size=size,
                preset=preset,
                strict=strict,
                guidance_interval=guidance_interval,
            )
            if callback_on_step_end is not None and tensor_inputs:
                for request in requests:
                    doubt(request.settings, "a callback was given its latents")
            call.num_timesteps = requests[0].steps
            with self.progress_bar(total=call.num_timesteps) as progress:
                for i in range(call.num_timesteps):
                    for request, error in engine.advance(requests).items():
                        raise _explained(error, request)
                    call.guidance_scale = requests[0].guidance[i]
                    if callback_on_step_end is not None:
                        self._call_back(callback_on_step_end, i, requests, tensor_inputs)
                    progress.update()
                    if call.interrupted:
                        break
            engine.denoiser.free_graphs()  # decoding may need their memory
            for request in requests:
                request.check()
            images = self.decode_requests(requests, output_type)
            self.maybe_free_model_hooks()
        return Ideogram4PipelineOutput(images=images) if return_dict else (images,)

    def _call_back(
        self, callback: Callable[..., dict[str, Any] | None], i: int, requests: list[Request], names: Sequence[str]
    ) -> None:
        latents = _stack([request.latents for request in requests])
        timesteps = torch.stack([request.sigmas[i] for request in requests]) * self.scheduler.config.num_train_timesteps
        timestep = timesteps[0] if isinstance(latents, Tensor) else timesteps
        tensors: dict[str, Any] = {"latents": latents} if "latents" in names else {}
        returned = callback(self, i, timestep, tensors)
        if returned is not None and not isinstance(returned, Mapping):
            raise TypeError(f"`callback_on_step_end` returned a {type(returned).__name__}: return a dict, or None.")
        changed = (returned or {}).get("latents")
        if changed is None:  # those that were handed out may have been changed in place
            if "latents" not in names:
                return
            changed = latents
        if not isinstance(changed, (Tensor, list, tuple)) or not all(isinstance(own, Tensor) for own in changed):
            raise TypeError(
                f"`callback_on_step_end` returned latents that are a {type(changed).__name__}: return a tensor, or a"
                " list of tensors."
            )
        if len(changed) != len(requests):
            raise ValueError(
                f"`callback_on_step_end` returned latents of {len(changed)} pictures: this call has {len(requests)}."
            )
        for request, own in zip(requests, changed, strict=True):
            if own.shape != request.latents.shape:
                raise ValueError(
                    f"`callback_on_step_end` returned latents of shape {tuple(own.shape)} for {request}: it must keep"
                    f" {tuple(request.latents.shape)}."
                )
            request.latents = own.detach().to(request.latents)


def _explained(error: Exception, request: Request) -> Exception:
    """The error of a request that could not be stepped by itself, with what to do where memory ran out."""
    if not out_of_memory(error):
        return error
    explained = NotEnoughMemory(
        f"Memory ran out in a step of one picture of {request.grid[0]} x {request.grid[1]} tokens by itself: draw a"
        " smaller one, let `pipe.fit_memory` plan for the memory that there is, or offload or quantize the"
        " transformers."
    )
    explained.__cause__ = error
    return explained


def _stack(tensors: list[Tensor]) -> Tensor | list[Tensor]:
    """One tensor where the shapes are equal, else the list as it is."""
    return torch.stack(tensors) if len({tensor.shape for tensor in tensors}) == 1 else tensors
