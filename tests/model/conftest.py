"""Fixtures of the transformer's tests: our class and the peer's on equal random weights, and rows of packed samples."""

from __future__ import annotations

from collections.abc import Callable

import diffusers
import pytest
import torch
from torch import Tensor, nn

from ideoflow import Ideogram4Transformer2DModel
from ideoflow.packing import IMAGE_POSITION_OFFSET, LLM_TOKEN_INDICATOR, OUTPUT_IMAGE_INDICATOR, rows_to_layout
from tests.small import NARROW

TEXT, IMAGE, EMPTY = LLM_TOKEN_INDICATOR, OUTPUT_IMAGE_INDICATOR, 0
CONFIG = NARROW | dict(rope_theta=10_000)


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Draw every parameter anew, none 0 or 1, as wide as torch's own initialisation, so that rounding stays small."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 2:
                parameter.copy_(draw if "embed" in name else draw / (3 * parameter.shape[1]) ** 0.5)
            else:
                parameter.copy_(0.1 * draw + ("norm" in name))
    return model


@pytest.fixture(scope="session")
def config() -> dict:
    return dict(CONFIG)


@pytest.fixture(scope="session")
def make_pair() -> Callable[..., tuple[nn.Module, nn.Module]]:
    """(peer, ours) on the same random weights; arguments override `CONFIG`."""

    def make(seed: int = 0, **overrides) -> tuple[nn.Module, nn.Module]:
        peer = randomise(diffusers.Ideogram4Transformer2DModel(**CONFIG | overrides), seed)
        ours = Ideogram4Transformer2DModel(**CONFIG | overrides)
        ours.load_state_dict(peer.state_dict(), strict=True)
        return peer.eval(), ours.eval()

    return make


@pytest.fixture
def pair(make_pair) -> tuple[nn.Module, nn.Module]:
    return make_pair()


@pytest.fixture
def ours(pair) -> Ideogram4Transformer2DModel:
    return pair[1]


@pytest.fixture(scope="session")
def make_rows() -> Callable[..., dict[str, Tensor]]:
    """Keyword arguments of `forward` for rows given as lists of (segment id, role), one entry for each token."""

    def make(
        rows: list[list[tuple[int, int]]],
        seed: int = 0,
        per_token_times: bool = False,
        in_channels: int = CONFIG["in_channels"],
        llm_features_dim: int = CONFIG["llm_features_dim"],
    ) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        batch, length = len(rows), len(rows[0])
        segment_ids = torch.tensor([[segment for segment, _ in row] for row in rows])
        indicator = torch.tensor([[role for _, role in row] for row in rows])
        positions = torch.randint(0, 64, (batch, length, 3), generator=generator)
        times = torch.rand((batch, length) if per_token_times else (batch,), generator=generator)
        return dict(
            hidden_states=torch.randn(batch, length, in_channels, generator=generator),
            timestep=times,
            encoder_hidden_states=torch.randn(batch, length, llm_features_dim, generator=generator),
            position_ids=positions + IMAGE_POSITION_OFFSET * (indicator == IMAGE)[..., None],
            segment_ids=segment_ids,
            indicator=indicator,
        )

    return make


@pytest.fixture
def inputs(make_rows) -> dict[str, Tensor]:
    """Two rows: one sample and padding; two samples, the second without text, and padding."""
    padding = (-1, EMPTY)
    return make_rows(
        [
            [(0, TEXT)] * 5 + [(0, IMAGE)] * 6 + [padding] * 3,
            [(3, TEXT)] * 2 + [(3, IMAGE)] * 4 + [(1, IMAGE)] * 6 + [padding] * 2,
        ]
    )


@pytest.fixture(scope="session")
def real() -> Callable[[dict[str, Tensor]], Tensor]:
    """(batch, length) whether a position belongs to a segment with a text or image token."""

    def find(inputs: dict[str, Tensor]) -> Tensor:
        ids, roles = inputs["segment_ids"], inputs["indicator"]
        same = ids[:, :, None] == ids[:, None, :]
        has_role = (roles == TEXT) | (roles == IMAGE)
        return (same & has_role[:, None, :]).any(-1)

    return find


@pytest.fixture(scope="session")
def stream_inputs() -> Callable[..., tuple]:
    """(features, layout, latents, times) for `prepare` and `velocity` with what padded rows hold, in stream order."""

    def make(inputs: dict[str, Tensor]) -> tuple:
        layout, index = rows_to_layout(inputs["position_ids"], inputs["segment_ids"], inputs["indicator"])
        features = inputs["encoder_hidden_states"].flatten(0, 1)[index[layout.text]]
        latents = inputs["hidden_states"].flatten(0, 1)[index[layout.image]]
        first = layout.cu_seqlens[:-1].long()
        times = inputs["timestep"][index[first] // inputs["segment_ids"].shape[1]]
        return features, layout, latents, times

    return make
