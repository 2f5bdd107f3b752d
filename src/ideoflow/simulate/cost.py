"""What a step costs: three numbers, and what measured steps say the three are off by, on average and in turn."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from ..checks import finite, whole
from .pace import Variation, variation

GROUPS = 24  # sizes of step, at the most, at which a fit is corrected, each by the mean
GROUP = 20  # steps of each, at the least


class StepCost(Protocol):
    """What `simulate` asks of a cost: that of one device, or of several by a plan."""

    @property
    def start(self) -> float:
        """Seconds of a request before its first step."""

    @property
    def finish(self) -> float:
        """Seconds of an image token after the last step."""

    @property
    def variation(self) -> Variation:
        """What the machine's slow and fast moments are drawn from."""

    def of(self, requests: Sequence[Sequence[int]]) -> float:
        """Seconds of a step of requests, each with the lengths of its one or two segments."""


@dataclass(frozen=True)
class Cost:
    """Seconds of a step: `a + b * tokens + c * sum(tokens_i ** 2)` over the segments i of all its branches.

    Attributes:
        a: Seconds of any step.
        b: Seconds of a token.
        c: Seconds of a pair of tokens that attend to each other.
        start: Seconds of a request before its first step (its caption).
        finish: Seconds of an image token after the last step (the picture).
        factors: `(tokens, factor)` pairs in rising order: by what to multiply a step of so many tokens. Between them
            the factor changes linearly, beyond them not at all. Products do not grow smoothly with their rows, so a
            processor may be a fifth off the three numbers at some sizes.
        variation: `(modelled, measured)` seconds of steps in the order measured, of equal sums: what `simulate` draws
            the machine's slow and fast moments from. `step` has the mean alone.
    """

    a: float
    b: float
    c: float = 0.0
    start: float = 0.0
    finish: float = 0.0
    factors: tuple[tuple[float, float], ...] = ()
    variation: Variation = field(default=(), repr=False)

    def __post_init__(self) -> None:
        """Check that every step takes some finite time.

        Raises:
            TypeError: naming the number that is none.
            ValueError: naming the number that is negative or not finite; if all three are 0; if the sizes of `factors`
                do not rise, or `variation` takes no time.
        """
        for name in ("a", "b", "c", "start", "finish"):
            finite(name, getattr(self, name), least=0)
        if not (self.a or self.b or self.c):
            raise ValueError("`a`, `b` and `c` are all 0: a step takes some time.")
        for tokens, factor in self.factors:
            finite("factors", tokens, least=0)
            finite("factors", factor, above=0)
        if any(after <= before for (before, _), (after, _) in itertools.pairwise(self.factors)):
            raise ValueError(f"`factors` is {self.factors}: give them in rising order of their tokens.")
        for seconds in itertools.chain.from_iterable(self.variation):
            finite("variation", seconds, least=0)
        if self.variation and not all(map(sum, zip(*self.variation, strict=True))):
            raise ValueError("`variation` takes no time: give steps that do.")

    def step(self, segments: Sequence[int]) -> float:
        """Seconds of a step whose segments have these lengths."""
        tokens = sum(segments)
        return self._factor(tokens) * (self.a + self.b * tokens + self.c * sum(length**2 for length in segments))

    def of(self, requests: Sequence[Sequence[int]]) -> float:
        """Seconds of a step of requests, each with the lengths of its one or two segments."""
        return self.step([length for request in requests for length in request])

    def _factor(self, tokens: int) -> float:
        if not self.factors:
            return 1.0
        sizes, factors = zip(*self.factors, strict=True)
        return float(np.interp(tokens, sizes, factors))


def fit_cost(steps: Sequence[tuple[Sequence[int], float]]) -> Cost:
    """The cost model nearest to measured steps: least squares of the error relative to the model's own prediction.

    Relative to what was measured, slow steps would count for little, and the model would be too fast on average. Where
    there are many steps, those of like sizes correct the three numbers by their mean (`Cost.factors`). What the steps
    are off by then is the variation of the machine's speed (`Cost.variation`).

    Args:
        steps: `(lengths of all segments, seconds)` of each measured step, in their order; at least three of different
            kinds.

    Raises:
        TypeError: a length that is no whole number, or seconds that are no number.
        ValueError: if there are too few, or a step has no segment, an empty one, or took no time.
    """
    kinds = set()
    for i, (lengths, seconds) in enumerate(steps):
        finite(f"steps[{i}]", seconds, above=0)
        if len(lengths) == 0:
            raise ValueError(f"`steps[{i}]` has no segment: give the lengths of those that were stepped.")
        whole_lengths = [whole(f"steps[{i}]", length, 1, " as the length of each segment") for length in lengths]
        kinds.add((sum(whole_lengths), sum(length**2 for length in whole_lengths)))
    if len(kinds) < 3:
        raise ValueError(
            f"`steps` holds {len(steps)}, of {len(kinds)} different sizes: measure at least three, of different numbers"
            " of tokens."
        )
    return nearest(steps)


def nearest(steps: Sequence[tuple[Sequence[int], float]]) -> Cost:
    """`fit_cost` of steps of any kinds: those of one or two say nothing of other sizes."""
    seconds = np.array([value for _, value in steps], dtype=np.float64)
    terms = np.array([[1.0, sum(lengths), sum(n**2 for n in lengths)] for lengths, _ in steps], dtype=np.float64)
    predicted = np.full(len(steps), max(seconds.mean(), 1e-12))
    for _ in range(4):
        numbers = _least_squares(terms / predicted[:, None], seconds / predicted)
        predicted = (terms @ numbers).clip(1e-12)
    cost = Cost(*numbers.tolist())
    cost = replace(cost, factors=_factors(steps, cost))
    return replace(cost, variation=variation([cost.step(lengths) for lengths, _ in steps], seconds.tolist()))


def _factors(steps: Sequence[tuple[Sequence[int], float]], cost: Cost) -> tuple[tuple[float, float], ...]:
    """By what the model is off at groups of steps of like sizes; none if there are too few for two groups."""
    ordered = sorted(((sum(lengths), seconds, cost.step(lengths)) for lengths, seconds in steps), key=lambda s: s[0])
    size = max(GROUP, math.ceil(len(ordered) / GROUPS))
    groups: list[list[tuple[int, float, float]]] = []
    for _, equal in itertools.groupby(ordered, key=lambda step: step[0]):
        if not groups or len(groups[-1]) >= size:
            groups.append([])
        groups[-1] += equal
    if groups and len(groups[-1]) < GROUP:
        last = groups.pop()
        groups[-1:] = [groups[-1] + last] if groups else []
    if len(groups) < 2:
        return ()
    factors = []
    for group in groups:
        tokens, seconds, own = (sum(column) for column in zip(*group, strict=True))
        factors.append((tokens / len(group), seconds / own))
    return tuple(factors)


def _least_squares(terms: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The nearest combination of the terms (n, 3) to the values (n,) of which no number is below zero."""
    best, error = np.zeros(3), math.inf
    for size in (3, 2, 1):
        for chosen in itertools.combinations(range(3), size):
            columns = terms[:, list(chosen)]
            found = np.linalg.lstsq(columns, values)[0]
            off = float(np.square(columns @ found - values).sum())
            if (found >= 0).all() and off < error:
                best, error = np.zeros(3), off
                best[list(chosen)] = found
    return best
