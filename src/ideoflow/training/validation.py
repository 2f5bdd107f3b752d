"""What is held out of training: the same pictures at the same times with the same noise, whenever it is looked at."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .batches import Draw, first_fit_decreasing
from .encoding import Sample
from .objective import Batch, make_batch

VISITS = 4  # of every held-out sample, each at a time of its own
SEED = 0  # not the run's: curves of several runs on the same pictures can be compared


class HeldOut:
    """Batches of held-out samples.

    Args:
        samples: Encoded.
        budget: Most tokens in a batch.
        mu: Mean of the distribution of times, as in training.
        std: Standard deviation of the distribution of times, as in training.

    Raises:
        ValueError: if a sample is larger than the budget.
    """

    def __init__(self, samples: Sequence[Sample], budget: int, mu: float, std: float) -> None:
        self.samples, self.mu, self.std = samples, mu, std
        draws = [Draw(visit, index) for visit in range(VISITS) for index in range(len(samples))]
        sizes = [samples[draw.sample].text_tokens + math.prod(samples[draw.sample].grid) for draw in draws]
        if max(sizes, default=0) > budget:
            name = samples[draws[sizes.index(max(sizes))].sample].name
            raise ValueError(
                f"`tokens` is {budget}, but {name}, which is held out for validation, has {max(sizes)}: raise it, or"
                " lower `pixels`."
            )
        self.batches = [tuple(draws[i] for i in batch) for batch in first_fit_decreasing(sizes, budget)]

    def __len__(self) -> int:
        return len(self.batches)

    def batch(self, index: int) -> Batch:
        """One of the batches, with every caption kept; nothing of it depends on when or how often it is asked for."""
        return make_batch(self.samples, self.batches[index], seed=SEED, mu=self.mu, std=self.std)
