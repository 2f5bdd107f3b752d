from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ideoflow import Ideogram4Transformer2DModel


@pytest.fixture
def inputs_of() -> Callable[[Ideogram4Transformer2DModel, torch.dtype], dict[str, Any]]:
    """What makes arguments of `forward` for a model: two samples of 5 text tokens and 3 x 4 image tokens."""

    def make(model: Ideogram4Transformer2DModel, dtype: torch.dtype) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(7)
        text, height, width, batch = 5, 3, 4, 2
        length = text + height * width
        positions = torch.arange(length)[:, None].repeat(1, 3)
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        image = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).view(-1, 3) + 65536
        positions[text:] = image
        roles = torch.tensor([3] * text + [2] * (height * width))
        return dict(
            hidden_states=torch.randn(batch, length, model.config.in_channels, generator=generator).to(dtype),
            encoder_hidden_states=torch.randn(batch, length, model.config.llm_features_dim, generator=generator).to(
                dtype
            ),
            timestep=torch.tensor([0.3, 0.8], dtype=dtype),
            position_ids=positions[None].repeat(batch, 1, 1),
            segment_ids=torch.ones(batch, length, dtype=torch.long),
            indicator=roles[None].repeat(batch, 1),
        )

    return make
