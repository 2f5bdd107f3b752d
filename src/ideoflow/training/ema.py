"""Moving average of trained weights: what is shown in previews and saved at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Ema:
    """Exponential moving average, warmed up so that the first steps do not linger.

    After update n (from 1), `average = d * average + (1 - d) * weights` with `d = min(decay, (1 + n) / (10 + n))`.

    Args:
        parameters: The weights by name; they are read at each update.
        decay: Largest share of the old average that an update keeps, 0 to below 1.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"`decay` is {decay}; it is at least 0 and below 1.")
        self.decay = decay
        self.updates = 0
        self._parameters = dict(parameters)
        self.values = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        current = [self._parameters[name].detach() for name in self.values]
        torch._foreach_lerp_(list(self.values.values()), current, 1 - decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Put the average in place of the weights for a while; the weights come back bit for bit."""
        kept = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._put(self.values)
        try:
            yield
        finally:
            self._put(kept)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])
