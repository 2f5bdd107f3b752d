"""The shares of a stream: counts that differ by one at most, nothing lost and nothing twice."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ideoflow.distributed.stream_share import share_of
from ideoflow.model import Context
from ideoflow.packing import Layout

SAMPLES = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6)


def stream(samples):
    layout = Layout.of_samples(samples)
    text, tokens = len(layout.text), layout.tokens
    return Context(layout, torch.arange(text)[:, None], torch.arange(tokens)[:, None], -torch.arange(tokens)[:, None])


@settings(max_examples=200, deadline=None)
@given(SAMPLES, st.integers(1, 9))
def test_tokens_are_shared_out_evenly_and_in_order(samples, ranks):
    whole = stream(samples)
    shares = [share_of(whole, rank, ranks) for rank in range(ranks)]
    counts = [share.layout.tokens for share in shares]
    assert max(counts) - min(counts) <= 1
    for name in ("text", "cos", "sin"):
        assert torch.equal(torch.cat([getattr(share, name) for share in shares]), getattr(whole, name))
    for name in ("position_ids", "segment"):
        assert torch.equal(torch.cat([getattr(share.layout, name) for share in shares]), getattr(whole.layout, name))
    begins = torch.tensor([0, *counts]).cumsum(0)
    for name in ("text", "image", "other"):
        found = torch.cat([getattr(share.layout, name) + begin for share, begin in zip(shares, begins, strict=False)])
        assert torch.equal(found, getattr(whole.layout, name))


@settings(max_examples=200, deadline=None)
@given(SAMPLES, st.integers(1, 9))
def test_each_rank_attends_the_segments_of_its_tokens(samples, ranks):
    whole = stream(samples)
    for rank in range(ranks):
        share = share_of(whole, rank, ranks).layout
        for bounds, own in ((share.bounds, torch.arange(share.tokens)), (share.image_bounds, share.image)):
            begin, end = bounds.keys[rank]
            assert bounds.queries[rank] == len(own) == sum(run.segments * run.queries for run in bounds.own.runs)
            assert end - begin == sum(run.segments * run.length for run in bounds.own.runs)
            if share.tokens:
                touched = torch.isin(whole.layout.segment, share.segment).nonzero().flatten()
                assert (begin, end) == (int(touched[0]), int(touched[-1]) + 1)
            lengths = [run.queries for run in bounds.own.runs for _ in range(run.segments)]
            counted = torch.bincount(share.segment[own] - share.segment[:1], minlength=len(lengths))
            assert counted.tolist() == lengths
