"""Rotary positions: which axis turns which channels, and exactness at the positions where images lie."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from ideoflow.model.rope import rotary_tables
from ideoflow.ops.kernels.torch_kernels import rotate
from ideoflow.packing import IMAGE_POSITION_OFFSET, Layout

NEIGHBOURS = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 63, 63]]) + IMAGE_POSITION_OFFSET


def test_each_frequency_takes_its_angle_from_its_axis():
    """Head dim 16, sections (4, 2, 2): h at j = 1, 4, w at j = 2, 5, t elsewhere."""
    axes = [0, 1, 2, 0, 1, 2, 0, 0]
    position = [3, 5, 7]
    cos, sin = rotary_tables(torch.tensor([position]), 16, 100.0, (4, 2, 2), torch.float64)
    for j, axis in enumerate(axes):
        angle = position[axis] * 100.0 ** (-2 * j / 16)
        assert cos[0, j].item() == cos[0, j + 8].item() == pytest.approx(math.cos(angle), abs=1e-6)
        assert -sin[0, j].item() == sin[0, j + 8].item() == pytest.approx(math.sin(angle), abs=1e-6)


def test_rotation_turns_the_pairs_of_the_two_halves():
    x = torch.randn(1, 3, 16)
    cos, sin = rotary_tables(torch.tensor([[3, 5, 7]]), 16, 100.0, (4, 2, 2), torch.float32)
    turned = torch.complex(x[..., :8], x[..., 8:]) * torch.complex(cos[:, :8], sin[:, 8:])
    assert torch.allclose(rotate(x, cos, sin), torch.cat((turned.real, turned.imag), -1), atol=1e-6)


def test_attention_scores_depend_on_relative_positions_only():
    q, k = torch.randn(2, 1, 1, 16).unbind()

    def score(a, b):
        tables = [rotary_tables(torch.tensor([p]), 16, 10_000.0, (4, 2, 2), torch.float32) for p in (a, b)]
        return (rotate(q, *tables[0]) * rotate(k, *tables[1])).sum().item()

    assert score([1, 2, 3], [4, 1, 9]) == pytest.approx(score([11, 22, 33], [14, 21, 39]), abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_no_table(dtype):
    expected = rotary_tables(NEIGHBOURS, 256, 5_000_000, (24, 20, 20), torch.float32)
    with torch.autocast("cpu", dtype):
        tables = rotary_tables(NEIGHBOURS, 256, 5_000_000, (24, 20, 20), torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(tables, expected, strict=True))
    assert not torch.equal(expected[0][0], expected[0][1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_computes_its_angles_in_float32(ours, dtype):
    """The peer holds its frequencies in a buffer; casting the module must not round ours."""
    layout = replace(Layout.of_samples([(0, 1, 3)]), position_ids=NEIGHBOURS)
    expected = rotary_tables(NEIGHBOURS, 16, 10_000, (4, 2, 2), dtype)
    context = ours.to(dtype).prepare(None, layout)
    assert torch.equal(context.cos, expected[0]) and torch.equal(context.sin, expected[1])


def test_the_tables_are_the_peers_bit_for_bit(pair):
    positions = torch.randint(0, 4096, (50, 3)) + IMAGE_POSITION_OFFSET
    cos, sin = pair[0].rotary_emb(positions[None])
    ours = rotary_tables(positions, 16, 10_000, (4, 2, 2), torch.float32)
    assert torch.equal(ours[0], cos[0])
    assert torch.equal(ours[1], torch.cat((-sin[0, :, :8], sin[0, :, 8:]), -1))
