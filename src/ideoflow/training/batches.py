"""Packed batches: samples of any size fill streams of a token budget, in the same order on every machine."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0)]


class Draw(NamedTuple):
    """One visit to a sample: its times, noise and dropout are a function of the seed and of this."""

    epoch: Count
    sample: Count


class StreamState(BaseModel):
    """Where a stream stands.

    Attributes:
        epoch: the epoch whose window comes next.
        begin: place in the epoch where that window begins.
        left: draws that are packed again with the next window.
        ready: packed batches that come before the next window.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    epoch: Count
    begin: Count
    left: list[Draw]
    ready: list[tuple[Draw, ...]]


def first_fit_decreasing(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Pack `sizes` into bins of at most `budget`: the largest first, each into the first bin where it fits.

    Never more than 11/9 of the fewest possible bins plus one (Johnson, 1973), and with many small sizes hardly more
    than the fewest.

    Returns:
        Indices into `sizes` of each bin.

    Raises:
        ValueError: a size that no bin can hold.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        size = sizes[index]
        if size > budget:
            raise ValueError(f"`sizes` holds {size}, which is more than the `budget` of {budget}.")
        place = next((b for b, free in enumerate(room) if size <= free), len(bins))
        if place == len(bins):
            bins.append([])
            room.append(budget)
        bins[place].append(index)
        room[place] -= size
    return bins


class PackedStream(Iterator[tuple[Draw, ...]]):
    """Endless batches over a set of samples, shuffled in each epoch and packed a window at a time.

    The emptiest batch of a window is opened again in the next, across epochs too, so that no batch is left half full.
    Every sample comes once in each epoch, at most a window late.

    Args:
        tokens: text and image tokens of each sample.
        budget: most tokens in a batch.
        window: samples that are packed together; more of them fill batches better and need no more memory.
        seed: seed of the order. Nothing else changes the order: not the number of workers, nor where a run was stopped.

    Raises:
        ValueError: no sample, a window below 1, or a sample that is larger than the budget.
    """

    def __init__(self, tokens: Sequence[int], budget: int, *, window: int = 1024, seed: int = 0) -> None:
        if not tokens:
            raise ValueError("`tokens` is empty: there is no sample to train on.")
        if window < 1:
            raise ValueError(f"`window` is {window}; it is at least 1.")
        if max(tokens) > budget:
            raise ValueError(
                f"`budget` is {budget} tokens, but the largest sample has {max(tokens)}: raise the budget, or lower the"
                " pixels that a picture may have (one token is 16 x 16 of them)."
            )
        self.tokens, self.budget, self.window, self.seed = list(tokens), budget, window, seed
        self._epoch, self._begin = 0, 0  # where the next window begins
        self._left: list[Draw] = []  # opened again in the next window
        self._ready: deque[tuple[Draw, ...]] = deque()

    def __next__(self) -> tuple[Draw, ...]:
        while not self._ready:
            self._pack_window()
        return self._ready.popleft()

    def _pack_window(self) -> None:
        order = list(range(len(self.tokens)))
        random.Random(f"{self.seed}/{self._epoch}").shuffle(order)
        fresh = [Draw(self._epoch, index) for index in order[self._begin : self._begin + self.window]]
        draws = [*self._left, *fresh]
        bins = first_fit_decreasing([self.tokens[draw.sample] for draw in draws], self.budget)
        batches = [tuple(draws[i] for i in bin_) for bin_ in bins]
        random.Random(f"{self.seed}/{self._epoch}/{self._begin}").shuffle(batches)
        # What waited once already does not wait again.
        waited, self._left = set(self._left), []
        fresh_batches = [batch for batch in batches if not waited.intersection(batch)]
        if len(batches) > 1 and fresh_batches:
            emptiest = min(fresh_batches, key=self.tokens_of)
            batches.remove(emptiest)
            self._left = list(emptiest)
        self._ready.extend(batches)
        self._begin += self.window
        if self._begin >= len(order):
            self._epoch, self._begin = self._epoch + 1, 0

    def tokens_of(self, batch: Sequence[Draw]) -> int:
        """Tokens of a batch."""
        return sum(self.tokens[draw.sample] for draw in batch)

    def state(self) -> StreamState:
        """Where the stream stands."""
        return StreamState(epoch=self._epoch, begin=self._begin, left=list(self._left), ready=list(self._ready))

    def restore(self, state: StreamState) -> None:
        """Go on where `state` was taken; the samples, the budget, the window and the seed must be the same.

        Raises:
            ValueError: if it is of other samples or another budget.
        """
        for batch in (*state.ready, *((draw,) for draw in state.left)):
            known = batch and all(draw.sample < len(self.tokens) for draw in batch)
            if not known or self.tokens_of(batch) > self.budget:
                raise ValueError("its batches are not of these samples and this budget")
        if state.begin >= len(self.tokens):
            raise ValueError(f"its next window begins at {state.begin} of {len(self.tokens)} samples")
        self._epoch, self._begin = state.epoch, state.begin
        self._left, self._ready = list(state.left), deque(state.ready)
