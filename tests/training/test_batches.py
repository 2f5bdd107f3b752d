"""Packing: every sample once an epoch, full batches, the same whoever asks and wherever a run was stopped."""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ideoflow.training.batches import PackedStream, StreamState, first_fit_decreasing

sizes = st.lists(st.integers(1, 100), min_size=1, max_size=80)


@given(sizes, st.integers(100, 400))
def test_bins_hold_every_size_once_within_the_budget(sizes, budget):
    bins = first_fit_decreasing(sizes, budget)
    assert sorted(i for bin_ in bins for i in bin_) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in bin_) <= budget for bin_ in bins)


@given(sizes, st.integers(100, 400))
def test_no_two_bins_would_fit_into_one(sizes, budget):
    loads = sorted(sum(sizes[i] for i in bin_) for bin_ in first_fit_decreasing(sizes, budget))
    assert len(loads) == 1 or loads[0] + loads[1] > budget


@settings(deadline=None)
@given(sizes, st.integers(100, 300), st.integers(1, 90), st.integers(0, 3))
def test_every_epoch_visits_every_sample_once(sizes, budget, window, seed):
    stream = PackedStream(sizes, budget, window=window, seed=seed)
    seen: Counter = Counter()
    for batch in islice(stream, 4 * len(sizes) + 4):
        assert 0 < stream.tokens_of(batch) <= budget
        seen.update(batch)
        if all(seen[(epoch, i)] for epoch in range(2) for i in range(len(sizes))):
            break
    assert max(seen.values()) == 1
    assert sum(seen[(epoch, i)] for epoch in range(2) for i in range(len(sizes))) == 2 * len(sizes)


def test_batches_are_full():
    draw = random.Random(5)
    tokens = [draw.randint(250, 1200) for _ in range(64)]
    stream = PackedStream(tokens, 4096, seed=1)
    filled = [stream.tokens_of(batch) / 4096 for batch in islice(stream, 200)]
    assert sum(filled) / len(filled) >= 0.95


@settings(deadline=None)
@given(sizes, st.integers(1, 90), st.integers(0, 60))
def test_a_stream_goes_on_from_its_state(sizes, window, stopped):
    whole, first = (PackedStream(sizes, 150, window=window, seed=3) for _ in range(2))
    list(islice(first, stopped))
    resumed = PackedStream(sizes, 150, window=window, seed=3)
    resumed.restore(StreamState.model_validate_json(first.state().model_dump_json()))
    assert list(islice(resumed, 40)) == list(islice(whole, stopped, stopped + 40))


def test_seeds_and_epochs_each_give_another_order():
    def epochs(seed: int) -> list[list[int]]:
        stream = PackedStream([1] * 50, 1, seed=seed)
        visits = [draw.sample for batch in islice(stream, 99) for draw in batch]
        return [visits[:49], visits[50:99]]

    first, second = epochs(0), epochs(1)
    assert len({tuple(order) for order in (*first, *second)}) == 4
    assert epochs(0) == first


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [([], {}, "no sample"), ([5, 11], {}, "largest sample has 11"), ([5], {"window": 0}, "`window` is 0")],
)
def test_what_cannot_be_packed_is_named(tokens, options, message):
    with pytest.raises(ValueError, match=message):
        PackedStream(tokens, 10, **options)
