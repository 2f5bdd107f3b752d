"""What the tests of the roofline share: sides, small configurations, sets of pictures, and the peer's inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.roofline import BASE, IMPLEMENTATIONS, Config, Implementation, Sample
from ideoflow.packing import IMAGE_POSITION_OFFSET, LLM_TOKEN_INDICATOR, OUTPUT_IMAGE_INDICATOR
from tests.small import NARROW

BY_NAME = {implementation.name: implementation for implementation in IMPLEMENTATIONS}
OURS, PEER, TRIMMED = BY_NAME[BASE], BY_NAME["diffusers"], BY_NAME["~ trimmed"]
WHOLE = Implementation("whole last block")
FULL = [Sample(400, 64, 64)]

WIDE = NARROW | dict(num_layers=3, num_attention_heads=3, intermediate_size=56, llm_features_dim=300, in_channels=16)
SHALLOW = NARROW | dict(num_layers=1, attention_head_dim=32, num_attention_heads=1, adaln_dim=5)

ONE = [Sample(5, 2, 3)]
SEVERAL = [Sample(5, 2, 3), Sample(11, 4, 2), Sample(1, 2, 3)]
SOME_UNGUIDED = [Sample(7, 3, 3, guided=False), Sample(4, 3, 3), Sample(0, 2, 5)]
NONE_GUIDED = [Sample(7, 3, 3, guided=False)]


def peer_inputs(samples: list[Sample], config: Config, text: int) -> dict[str, Tensor]:
    """Rows of the peer's conditional call for pictures of one size, text padded on the left to `text` tokens."""
    rows, length = len(samples), text + samples[0].image
    roles = torch.zeros(rows, length, dtype=torch.long)
    for row, sample in enumerate(samples):
        roles[row, text - sample.text : text] = LLM_TOKEN_INDICATOR
    roles[:, text:] = OUTPUT_IMAGE_INDICATOR
    return dict(
        hidden_states=torch.randn(rows, length, config.in_channels),
        timestep=torch.full((rows,), 0.5),
        encoder_hidden_states=torch.randn(rows, length, config.llm_features_dim),
        position_ids=torch.zeros(rows, length, 3, dtype=torch.long) + IMAGE_POSITION_OFFSET,
        segment_ids=torch.where(roles > 0, 1, -1),
        indicator=roles,
    )
