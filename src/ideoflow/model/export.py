"""The model over padded rows, every position computed under a mask: what `torch.export` can trace.

A program for any ids cannot know which tokens are padding, so none is left out. Everywhere else the model computes a
stream without padding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..packing import LLM_TOKEN_INDICATOR, OUTPUT_IMAGE_INDICATOR, Bounds, Run
from .rope import rotary_tables


def velocity_of_rows(
    model: Any,
    latents: Tensor,
    times: Tensor,
    features: Tensor,
    position_ids: Tensor,
    segment_ids: Tensor,
    indicator: Tensor,
    attention_kwargs: dict[str, Any] | None,
) -> Tensor:
    """What `forward` gives, from its arguments; values of times are not checked.

    Args:
        model: The transformer.
        latents: (batch, length, in_channels).
        times: (batch,) or (batch, length).
        features: (batch, length, llm_features_dim).
        position_ids: (batch, length, 3).
        segment_ids: (batch, length).
        indicator: (batch, length).
        attention_kwargs: Passed to the attention processor.

    Returns:
        (batch, length, in_channels), zero in segments without a text or an image token.
    """
    batch, length = segment_ids.shape
    is_image, is_text = indicator == OUTPUT_IMAGE_INDICATOR, indicator == LLM_TOKEN_INDICATOR
    at_image, at_text = (where.flatten()[:, None] for where in (is_image, is_text))

    # What stands where nothing is read may be anything, NaN too.
    text = model.llm_cond_proj(model.llm_cond_norm(features.flatten(0, 1).where(at_text, 0)))
    image = model.input_proj(latents.flatten(0, 1).where(at_image, 0))
    hidden_states = torch.where(at_image, image, text.where(at_text, 0))
    hidden_states = hidden_states + model.embed_image_indicator(is_image.flatten().long())

    time_of_token = torch.arange(times.numel(), device=times.device)
    if times.ndim == 1:
        time_of_token = time_of_token[:, None].expand(batch, length).flatten()
    conditioning = model._conditioning(times.flatten(), latents.dtype)

    config = model.config
    rotary = rotary_tables(
        position_ids.flatten(0, 1),
        config.attention_head_dim,
        config.rope_theta,
        config.mrope_section,
        hidden_states.dtype,
    )
    begins = length * torch.arange(batch + 1, dtype=torch.int32, device=segment_ids.device)
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    bounds = Bounds((Run(batch, length, length),), begins, None, begins, mask=same[:, None])

    for block in model.layers:
        hidden_states = block(hidden_states, conditioning, time_of_token, rotary, bounds, attention_kwargs)
    velocity = model.final_layer(hidden_states, conditioning, time_of_token).view(latents.shape)
    real = (same & (is_image | is_text)[:, None, :]).any(-1, keepdim=True)
    return velocity.where(real, 0)
