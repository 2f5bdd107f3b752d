"""Fixtures of the tests of low precision: a small random transformer, what goes into it, and a choice of products."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ideoflow import Ideogram4Transformer2DModel
from ideoflow.ops import Float8Linear, Int8Linear
from ideoflow.packing import IMAGE_POSITION_OFFSET, LLM_TOKEN_INDICATOR, OUTPUT_IMAGE_INDICATOR
from tests.small import NARROW

CONFIG = NARROW | dict(intermediate_size=48, rope_theta=10_000)
TEXT, IMAGE = 5, 12  # tokens


@pytest.fixture
def model() -> Ideogram4Transformer2DModel:
    torch.manual_seed(0)
    model = Ideogram4Transformer2DModel(**CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    """Keyword arguments of `forward`: one sample, text before image."""
    generator = torch.Generator().manual_seed(1)
    tokens = TEXT + IMAGE
    indicator = torch.tensor([[LLM_TOKEN_INDICATOR] * TEXT + [OUTPUT_IMAGE_INDICATOR] * IMAGE])
    positions = torch.arange(tokens)[None, :, None].expand(1, tokens, 3)
    return dict(
        hidden_states=torch.randn(1, tokens, CONFIG["in_channels"], generator=generator),
        timestep=torch.tensor([0.4]),
        encoder_hidden_states=torch.randn(1, tokens, CONFIG["llm_features_dim"], generator=generator),
        position_ids=positions + IMAGE_POSITION_OFFSET * (indicator == OUTPUT_IMAGE_INDICATOR)[..., None],
        segment_ids=torch.zeros(1, tokens, dtype=torch.long),
        indicator=indicator,
    )


@pytest.fixture
def predict(inputs) -> Callable[..., Tensor]:
    """Velocities of a model's image tokens, in float32."""

    @torch.no_grad()
    def run(model: Ideogram4Transformer2DModel, **kwargs) -> Tensor:
        cast = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
        return model(**cast, **kwargs).sample[0, TEXT:].float()

    return run


@pytest.fixture
def expanding(monkeypatch) -> None:
    """No layer multiplies in its own type, whatever the chip."""
    for kind in (Float8Linear, Int8Linear):
        monkeypatch.setattr(kind, "multiplies", lambda self, tokens: False)
