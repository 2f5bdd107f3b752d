"""Arguments that a call does not have but that users of other pipelines know: what there is instead."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any, TypeVar, cast

C = TypeVar("C", bound=Callable[..., Any])

_NO_NEGATIVE = (
    "the model has no negative prompt, since its unconditional branch reads no text. Say in the caption what is to be"
    " there, and set with `guidance_scale` or `guidance_schedule` how closely it is followed"
)
_NO_FEATURES = "give the features that `pipe.prompt_features` makes to `pipe.make_requests(prompt_features=...)`"
_NO_IMAGE = (
    "this pipeline draws from captions alone; ideoflow.Ideogram4Img2ImgPipeline.from_pipe(pipe) starts from a picture,"
    " and Ideogram4InpaintPipeline changes parts of one"
)
_NO_SIZES = "say the size of the picture with `size=(width, height)`"
_NO_CFG = "there is one guidance: `guidance_scale` for all steps, or `guidance_schedule` for each"
_NO_SCHEDULE = "the noise levels follow from `num_inference_steps`, `mu` and `std`, or from a `preset`"
_CALLBACK = "give a function to `callback_on_step_end`, which is called as callback(pipe, step, timestep, tensors)"
_ATTENTION = 'give `attention_kwargs`, such as {"scale": 0.5} for adapters at half their strength'
_ONE_ENCODER = "there is one text encoder: put everything into `prompt`"

INSTEAD = {
    "negative_prompt": _NO_NEGATIVE,
    "prompt_2": _ONE_ENCODER,
    "prompt_3": _ONE_ENCODER,
    "prompt_embeds": _NO_FEATURES,
    "prompt_embeds_mask": _NO_FEATURES,
    "prompt_attention_mask": _NO_FEATURES,
    "pooled_prompt_embeds": _NO_FEATURES,
    "image": _NO_IMAGE,
    "mask_image": _NO_IMAGE,
    "masked_image_latents": _NO_IMAGE,
    "control_image": _NO_IMAGE,
    "ip_adapter_image": _NO_IMAGE,
    "ip_adapter_image_embeds": _NO_IMAGE,
    "strength": _NO_IMAGE,
    "padding_mask_crop": _NO_IMAGE,
    "clip_skip": "the text features are outputs of the layers that the weights were trained on (`text_encoder_taps`)",
    "true_cfg_scale": _NO_CFG,
    "cfg_scale": _NO_CFG,
    "guidance": _NO_CFG,
    "guidance_rescale": _NO_CFG,
    "guidance_scale_2": _NO_CFG,
    "pag_scale": _NO_CFG,
    "skip_guidance_layers": _NO_CFG,
    "skip_layer_guidance_scale": _NO_CFG,
    "skip_layer_guidance_start": _NO_CFG,
    "skip_layer_guidance_stop": _NO_CFG,
    "aesthetic_score": "say in the caption's `style_description` what the picture is to look like",
    "eta": "the steps are plain Euler steps, to which no noise is added",
    "cross_attention_kwargs": _ATTENTION,
    "joint_attention_kwargs": _ATTENTION,
    "lora_scale": _ATTENTION,
    "callback": _CALLBACK,
    "callback_steps": _CALLBACK,
    "callback_on_step_start": _CALLBACK,
    "timesteps": _NO_SCHEDULE,
    "sigmas": _NO_SCHEDULE,
    "denoising_start": _NO_SCHEDULE,
    "denoising_end": _NO_SCHEDULE,
    "scheduler": "set `pipe.scheduler` to a FlowMatchEulerDiscreteScheduler",
    "sampler": "set `pipe.scheduler` to a FlowMatchEulerDiscreteScheduler",
    "seed": "give `generator=torch.Generator().manual_seed(seed)`",
    "steps": "it is called `num_inference_steps`",
    "num_steps": "it is called `num_inference_steps`",
    "num_images": "it is called `num_images_per_prompt`",
    "batch_size": "it is called `num_images_per_prompt`; for several captions give a list of them",
    "original_size": _NO_SIZES,
    "target_size": _NO_SIZES,
    "crops_coords_top_left": _NO_SIZES,
    "resolution": _NO_SIZES,
    "aspect_ratio": _NO_SIZES,
}


def explain(name: str, known: Iterable[str]) -> str:
    """What to do instead of passing an argument that there is none of."""
    instead = INSTEAD.get(name, _NO_NEGATIVE if name.startswith("negative_") else None)
    if instead is not None:
        return f"There is no argument `{name}`: {instead}."
    close = get_close_matches(name, list(known), n=1)
    if close:
        return f"There is no argument `{name}`: did you mean `{close[0]}`?"
    return f"There is no argument `{name}`: the arguments are {', '.join(f'`{one}`' for one in known)}."


def explains_unknown(function: C) -> C:
    """Have a method answer arguments that it does not have with a TypeError that says what there is instead."""
    known = [name for name in inspect.signature(function).parameters if name != "self"]

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        unknown = [name for name in kwargs if name not in known]
        if unknown:
            raise TypeError(" ".join(explain(name, known) for name in unknown))
        return function(*args, **kwargs)

    return cast(C, wrapper)
