"""Captions as diffusers' pipeline gives them to its transformer: a row each, padded on the left to one length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..packing import LLM_TOKEN_INDICATOR, OUTPUT_IMAGE_INDICATOR, SEQUENCE_PADDING_INDICATOR, Layout


def padded_rows(
    features: Sequence[Tensor], grid: tuple[int, int], text_length: int, device: torch.device | str | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows of padding, text and image tokens, as `Ideogram4Transformer2DModel.forward` takes them.

    Args:
        features: `(tokens, features)` of each caption, of at most `text_length` tokens.
        grid: `(rows, cols)` of the image tokens.
        text_length: Tokens of padding and text together.
        device: Where what is returned lies.

    Returns:
        Features `(captions, length, features)`, zero but at text; positions `(captions, length, 3)`; segments and roles
        `(captions, length)`.
    """
    image_tokens = grid[0] * grid[1]
    shape = (len(features), text_length + image_tokens)
    embeds = torch.zeros(*shape, features[0].shape[-1], device=device)
    positions = torch.zeros(*shape, 3, dtype=torch.long, device=device)
    segments = torch.full(shape, SEQUENCE_PADDING_INDICATOR, device=device)
    roles = torch.zeros(shape, dtype=torch.long, device=device)
    for row, own in enumerate(features):
        start = text_length - len(own)
        embeds[row, start:text_length] = own.to(embeds)
        positions[row, start:] = Layout.of_samples([(len(own), *grid)], device).position_ids
        segments[row, start:] = 1
        roles[row, start:text_length] = LLM_TOKEN_INDICATOR
        roles[row, text_length:] = OUTPUT_IMAGE_INDICATOR
    return embeds, positions, segments, roles
