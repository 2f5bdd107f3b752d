"""Layouts: which tokens a stream holds, in which order, and where they come from."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ideoflow.packing import (
    IMAGE_POSITION_OFFSET,
    LLM_TOKEN_INDICATOR,
    OUTPUT_IMAGE_INDICATOR,
    Layout,
    Run,
    rows_to_layout,
)

TEXT, IMAGE, EMPTY = LLM_TOKEN_INDICATOR, OUTPUT_IMAGE_INDICATOR, 0


def same(a: Layout, b: Layout) -> bool:
    pairs = [(getattr(a, field.name), getattr(b, field.name)) for field in fields(Layout)]
    return all(torch.equal(x, y) and x.dtype == y.dtype if isinstance(x, Tensor) else x == y for x, y in pairs)


def test_a_sample_is_its_text_then_its_image_row_by_row():
    layout = Layout.of_samples([(2, 2, 3)])
    assert layout.tokens == 8
    assert layout.lengths == (8,) and layout.image_lengths == (6,)
    assert layout.text.tolist() == [0, 1] and layout.other.tolist() == [0, 1]
    assert layout.image.tolist() == [2, 3, 4, 5, 6, 7]
    grid = [[0, row, col] for row in range(2) for col in range(3)]
    expected = [[0, 0, 0], [1, 1, 1]] + [[axis + IMAGE_POSITION_OFFSET for axis in cell] for cell in grid]
    assert layout.position_ids.tolist() == expected


def test_samples_lie_one_after_another():
    layout = Layout.of_samples([(1, 1, 2), (0, 2, 1), (3, 0, 0)])
    assert layout.lengths == (3, 2, 3) and layout.image_lengths == (2, 2, 0)
    assert layout.segment.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert layout.text.tolist() == [0, 5, 6, 7]
    assert layout.image.tolist() == [1, 2, 3, 4]
    assert layout.cu_seqlens.tolist() == [0, 3, 5, 8] and layout.cu_seqlens.dtype == torch.int32


def test_cat_is_what_of_samples_makes_of_all_of_them():
    samples = [(4, 2, 2), (0, 1, 3), (2, 3, 1)]
    parts = [Layout.of_samples(samples[:2]), Layout.of_samples(samples[2:])]
    assert same(Layout.cat(parts), Layout.of_samples(samples))


def test_adjacent_equal_lengths_form_runs():
    bounds = Layout.of_samples([(1, 1, 2), (0, 1, 3), (0, 1, 2), (2, 1, 1)]).bounds
    assert bounds.runs == (Run(2, 3, 3), Run(1, 2, 2), Run(1, 3, 3))
    assert bounds.segments == 4 and bounds.longest == 3


def test_bounds_of_images_want_their_tokens_alone():
    layout = Layout.of_samples([(2, 1, 2), (2, 1, 2), (1, 1, 3), (0, 1, 4), (3, 0, 0)])
    bounds = layout.image_bounds

    assert bounds.runs == (Run(2, 4, 2), Run(1, 4, 3), Run(1, 4, 4), Run(1, 3, 0))
    assert torch.equal(bounds.wanted, layout.image) and bounds.most_queries == 4
    assert bounds.cu_queries.tolist() == [0, 2, 4, 7, 11, 11] and bounds.cu_queries.dtype == torch.int32


def test_a_stream_of_images_alone_wants_all_its_tokens():
    layout = Layout.of_samples([(0, 1, 2), (0, 2, 2)])

    assert layout.image_bounds is layout.bounds and layout.bounds.wanted is None


def test_order_undoes_the_split_into_image_tokens_and_others():
    layout = Layout.of_samples([(2, 1, 2), (0, 1, 1), (3, 1, 1)])
    split = torch.cat((layout.other, layout.image))
    assert split[layout.order].tolist() == list(range(layout.tokens))


def test_to_moves_every_tensor():
    layout = Layout.of_samples([(2, 1, 2)]).to("meta")
    tensors = [getattr(layout, field.name) for field in fields(Layout)]
    assert all(x.device.type == "meta" for x in tensors if isinstance(x, Tensor))
    assert layout.bounds.cu_seqlens.device.type == "meta"
    assert layout.device.type == "meta" and layout.lengths == (4,)


def test_of_samples_lies_on_the_device_asked_for():
    assert Layout.of_samples([(2, 1, 2), (1, 1, 1)], device="meta").order.device.type == "meta"


@pytest.mark.parametrize("samples", [[], [(0, 0, 0)], [(-1, 2, 2)], [(1, -2, -2)], [(3, 2, 2), (0, 5, 0)]])
def test_samples_without_a_token_or_negative_are_refused(samples):
    with pytest.raises(ValueError, match="samples"):
        Layout.of_samples(samples)


def test_cat_of_nothing_is_refused():
    with pytest.raises(ValueError, match="layouts"):
        Layout.cat([])


def rows(*rows: list[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """(position_ids, segment_ids, indicator) of rows of (id, role); each position is its flat index."""
    ids = torch.tensor([[i for i, _ in row] for row in rows])
    roles = torch.tensor([[role for _, role in row] for row in rows])
    positions = torch.arange(ids.numel()).view(ids.shape)[..., None].expand(-1, -1, 3)
    return positions, ids, roles


def test_padding_is_dropped_whatever_its_id_and_empty_tokens_of_samples_are_kept():
    layout, index = rows_to_layout(
        *rows([(7, TEXT), (7, EMPTY), (7, IMAGE), (-1, EMPTY)], [(0, EMPTY), (-1, IMAGE), (-1, EMPTY), (0, 1)])
    )
    assert layout.lengths == (2, 3)
    assert index.tolist() == [5, 6, 0, 1, 2]
    assert layout.image.tolist() == [0, 4] and layout.text.tolist() == [2] and layout.other.tolist() == [1, 2, 3]
    assert layout.image_lengths == (1, 1)


def test_interleaved_segments_are_gathered_in_order():
    _, index = rows_to_layout(*rows([(5, TEXT), (2, TEXT), (5, IMAGE), (2, IMAGE), (5, IMAGE)]))
    assert index.tolist() == [1, 3, 0, 2, 4]


def test_equal_ids_of_different_rows_are_different_segments():
    layout, _ = rows_to_layout(*rows([(0, IMAGE)] * 3, [(0, IMAGE)] * 3))
    assert layout.lengths == (3, 3)
    assert layout.bounds.runs == (Run(2, 3, 3),)


def test_rows_of_padding_alone_make_an_empty_stream():
    layout, index = rows_to_layout(*rows([(-1, EMPTY)] * 3))
    assert layout.tokens == 0 and len(index) == 0 and layout.lengths == ()
    assert layout.bounds.runs == () and layout.cu_seqlens.tolist() == [0]


tokens = st.tuples(st.sampled_from([-1, 0, 3, 2**62, -(2**62)]), st.sampled_from([TEXT, IMAGE, EMPTY, 5]))
batches = st.integers(1, 12).flatmap(
    lambda n: st.lists(st.lists(tokens, min_size=n, max_size=n), min_size=1, max_size=3)
)


@settings(deadline=None)
@given(batches)
def test_a_layout_of_rows_holds_every_segment_with_a_token_once_and_whole(batch):
    positions, ids, roles = rows(*batch)
    layout, index = rows_to_layout(positions, ids, roles)

    members: dict[tuple[int, int], list[int]] = {}
    for flat in range(ids.numel()):
        members.setdefault((flat // ids.shape[1], ids.flatten()[flat].item()), []).append(flat)
    role = roles.flatten().tolist()
    expected = [flats for flats in members.values() if any(role[flat] in (TEXT, IMAGE) for flat in flats)]

    segments = [part.tolist() for part in index.split(list(layout.lengths))] if layout.lengths else []
    assert sorted(segments) == sorted(expected)
    assert list(layout.lengths) == sorted(layout.lengths)
    assert layout.cu_seqlens.diff().tolist() == list(layout.lengths)
    assert torch.equal(layout.segment, torch.arange(len(layout.lengths)).repeat_interleave(layout.cu_seqlens.diff()))
    assert torch.equal(layout.position_ids[:, 0], index)
    for where, wanted in ((layout.text, TEXT), (layout.image, IMAGE)):
        assert where.tolist() == [i for i, flat in enumerate(index.tolist()) if role[flat] == wanted]
    assert layout.other.tolist() == sorted(set(range(layout.tokens)) - set(layout.image.tolist()))
    assert layout.image_lengths == tuple(sum(role[flat] == IMAGE for flat in flats) for flats in segments)
