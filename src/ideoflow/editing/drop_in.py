"""Image to image and inpainting with the names of arguments that diffusers' pipelines of these kinds have."""

# No `from __future__ import annotations`: diffusers reads the types of the constructor's arguments.
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..pipeline import Ideogram4PipelineOutput
from ..pipeline.arguments import MU, SCHEDULE, STD, STEPS, prompts_of
from ..presets import Preset
from ..sizes import UNIT, check_size
from .editing_pipeline import EditingPipeline
from .image_to_image import ImageToImage
from .inpainting import Inpaint
from .masking import is_boxes
from .unknown_options import explains_options


class Ideogram4Img2ImgPipeline(EditingPipeline):
    """Image to image: pictures drawn anew as captions say, starting from what they are."""

    @explains_options
    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        prompt: Any = None,
        image: Any = None,
        height: int | None = None,
        width: int | None = None,
        strength: float = 0.6,
        num_inference_steps: int = STEPS,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | Sequence[Tensor] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = ("latents",),
        max_sequence_length: int = 2048,
        *,
        fit: str = "pad",
        guidance_schedule: Sequence[float] | Tensor | None = SCHEDULE,
        mu: float = MU,
        std: float = STD,
        preset: str | Preset | None = None,
        strict: bool = False,
        guidance_interval: tuple[float, float] | None = None,
        cache: Any = None,
        guidance_every: int = 1,
        max_tokens: int | None = None,
    ) -> Ideogram4PipelineOutput | tuple[Any]:
        """Draw pictures anew.

        Args:
            prompt: As of `Ideogram4Pipeline.__call__`, and so is all that is not named here.
            image: The picture: a Pillow picture, a file, bytes, an array or a tensor; or a list with one for each
                prompt. One alone serves all prompts.
            height: Pixels, a multiple of 16; None for the picture's own.
            width: Pixels, a multiple of 16; None for the picture's own.
            strength: How far the picture may change, from 0 to 1: the share of the steps that are taken.
            num_inference_steps: Steps of the whole schedule.
            guidance_scale: One guidance for all steps; needs `guidance_schedule=None`, or a `preset`.
            num_images_per_prompt: Pictures of each prompt.
            generator: Source of the noise.
            latents: Noise to mix the picture with.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: Whether to return an `Ideogram4PipelineOutput` or a tuple of one.
            attention_kwargs: `{"scale": s}` scales LoRA adapters.
            callback_on_step_end: Called after each step.
            callback_on_step_end_tensor_inputs: What the callback is given.
            max_sequence_length: The most tokens that a caption may have.
            fit: How a picture comes to whole tokens, or to `width` and `height`: "pad" continues its edges, and cuts
                them off again where no size is given; "crop" cuts from its sides; "stretch" changes its proportions.
            guidance_schedule: Guidance of each step of the whole schedule.
            mu: Mean of the schedule.
            std: Standard deviation of the schedule.
            preset: Steps, guidance, mu and std by name.
            strict: Refuse a caption that breaks the schema.
            guidance_interval: Shares of the steps that are guided.
            cache: Steps that are not computed, as in `Ideogram4Pipeline.__call__`.
            guidance_every: Computed steps from one that computes the unconditional branch to the next.
            max_tokens: Tokens of one pass.

        Returns:
            The pictures.

        Raises:
            TypeError: naming the argument that is of another type.
            ValueError: naming the argument that does not fit.
        """
        given = dict(locals())
        changes = [ImageToImage(one, strength, fit, _size(width, height)) for one in _each("image", image, prompt)]
        return self.edit(changes, prompt, **_rest(given))


class Ideogram4InpaintPipeline(EditingPipeline):
    """Inpainting: parts of pictures drawn anew, the rest as it is to the last bit."""

    @explains_options
    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        prompt: Any = None,
        image: Any = None,
        mask_image: Any = None,
        height: int | None = None,
        width: int | None = None,
        padding_mask_crop: int | None = None,
        strength: float = 1.0,
        num_inference_steps: int = STEPS,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | Sequence[Tensor] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = ("latents",),
        max_sequence_length: int = 2048,
        *,
        mask_changes: str = "white",
        feather: int = 8,
        harmonise: int = 0,
        fit: str = "pad",
        guidance_schedule: Sequence[float] | Tensor | None = SCHEDULE,
        mu: float = MU,
        std: float = STD,
        preset: str | Preset | None = None,
        strict: bool = False,
        guidance_interval: tuple[float, float] | None = None,
        cache: Any = None,
        guidance_every: int = 1,
        max_tokens: int | None = None,
    ) -> Ideogram4PipelineOutput | tuple[Any]:
        """Draw parts of pictures anew. What is given back has the picture's size, and its pixels outside of the mask.

        Args:
            prompt: Captions of the whole picture as it is to become; all that is not named here is as of
                `Ideogram4Pipeline.__call__`.
            image: The picture: a Pillow picture, a file, bytes, an array or a tensor; or a list with one for each
                prompt. One alone serves all prompts.
            mask_image: What may change, of the picture's size, in any of these forms, or boxes `(y_min, x_min, y_max,
                x_max)` in thousandths; or a list with one for each prompt. White changes, black stays, and grey says
                how strongly.
            height: Pixels to draw at, a multiple of 16; None for the picture's own.
            width: Pixels to draw at, a multiple of 16; None for the picture's own.
            padding_mask_crop: Draw the mask's surroundings alone, so many pixels on each side, at that size; None for
                the whole picture.
            strength: Share of the steps that are taken within the mask: 1 forgets what was there.
            num_inference_steps: Steps of the whole schedule.
            guidance_scale: One guidance for all steps; needs `guidance_schedule=None`, or a `preset`.
            num_images_per_prompt: Pictures of each prompt.
            generator: Source of the noise.
            latents: Noise to mix the picture with.
            output_type: "pil", "np", "pt", or "latent" for the tokens of what was drawn.
            return_dict: Whether to return an `Ideogram4PipelineOutput` or a tuple of one.
            attention_kwargs: `{"scale": s}` scales LoRA adapters.
            callback_on_step_end: Called after each step.
            callback_on_step_end_tensor_inputs: What the callback is given.
            max_sequence_length: The most tokens that a caption may have.
            mask_changes: What is to be changed: where the mask is "white", "black" or "transparent".
            feather: Pixels over which what was drawn fades in, from the mask's edge to its inside.
            harmonise: Further rounds of each step, against seams.
            fit: How a picture comes to whole tokens: "pad" or "stretch".
            guidance_schedule: Guidance of each step of the whole schedule.
            mu: Mean of the schedule.
            std: Standard deviation of the schedule.
            preset: Steps, guidance, mu and std by name.
            strict: Refuse a caption that breaks the schema.
            guidance_interval: Shares of the steps that are guided.
            cache: Steps that are not computed, as in `Ideogram4Pipeline.__call__`.
            guidance_every: Computed steps from one that computes the unconditional branch to the next.
            max_tokens: Tokens of one pass.

        Returns:
            The pictures.

        Raises:
            TypeError: naming the argument that is of another type.
            ValueError: naming the argument that does not fit.
        """
        given = dict(locals())
        pairs = zip(_each("image", image, prompt), _each("mask_image", mask_image, prompt), strict=True)
        size = _size(width, height)
        changes = [
            Inpaint(one, mask, strength, feather, harmonise, mask_changes, padding_mask_crop, fit, size)
            for one, mask in pairs
        ]
        return self.edit(changes, prompt, **_rest(given))


_OF_CHANGES = ("self", "__class__", "prompt", "image", "mask_image", "height", "width", "padding_mask_crop", "strength",
               "mask_changes", "feather", "harmonise", "fit")  # fmt: skip


def _rest(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call that do not make the change itself."""
    return {name: value for name, value in given.items() if name not in _OF_CHANGES}


def _size(width: Any, height: Any) -> tuple[int, int] | None:
    """`width` and `height` of a call as a size.

    Raises:
        TypeError: what is no whole number.
        ValueError: one without the other; sides that are no multiples of a token's.
    """
    if (width is None) != (height is None):
        raise ValueError(f"`width` is {width} and `height` {height}: give both, or neither for the picture's own.")
    return None if width is None else check_size(width, height, UNIT)


def _each(name: str, given: Any, prompt: Any) -> list[Any]:
    """What was given for each prompt; one alone serves all.

    Raises:
        ValueError: nothing, or another number of them.
    """
    prompts = len(prompts_of(prompt))
    if given is None:
        raise ValueError(f"`{name}` is missing: give one, or one for each prompt.")
    boxes = name == "mask_image" and is_boxes(given)
    if boxes and prompts > 1 and len(given) == prompts and is_boxes(given[0]):
        raise ValueError(
            f"`{name}` is a list of {prompts} boxes for {prompts} prompts: a list of boxes is one mask of all of them."
            " Give a list of boxes for each prompt, such as [[box], [box]]."
        )
    several = isinstance(given, (list, tuple)) and not boxes
    if not several and getattr(given, "ndim", 0) == 4 and len(given) > 1:
        several = True  # a batch of arrays
    if not several:
        return [given] * prompts
    if len(given) != prompts:
        raise ValueError(
            f"`{name}` has {len(given)} pictures for {prompts} prompts: give one for each, or one for all."
        )
    return list(given)
