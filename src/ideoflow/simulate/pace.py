"""How the speed of a machine varies: what measured steps took over their model, and stretches of that drawn at random.

A machine has slow moments, and they last: a step is slow because the one before was. So whole stretches are drawn (a
block bootstrap, Künsch 1989), and a stretch is a clock rather than a list of factors: the time that passes while the
machine does so many modelled seconds of work. A pause of 50 ms stays 50 ms, in whatever step it falls.
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Sequence

Variation = tuple[tuple[float, float], ...]  # (modelled, measured) seconds of steps in their order

BLOCK = 2.0  # modelled seconds of a drawn stretch, at least
BLOCK_STEPS = 100  # and so many steps: those of a large model take seconds each


def variation(modelled: Sequence[float], measured: Sequence[float]) -> Variation:
    """What steps took beside their model's seconds, scaled to the same sum.

    Args:
        modelled: Seconds of each step by the model, in the order measured.
        measured: Seconds that it took.
    """
    scale = sum(modelled) / sum(measured)
    return tuple((model, seconds * scale) for model, seconds in zip(modelled, measured, strict=True))


class Pace:
    """A machine's clock: the seconds that pass while it does modelled seconds of work, stretch after drawn stretch.

    Each moment of what was measured is as likely as any other, so on average as much passes as is modelled. The end is
    joined to the beginning.
    """

    def __init__(self, measured: Variation, seed: int | str = 0) -> None:
        """
        Args:
            measured: What the stretches are drawn from; with none of it, modelled seconds pass as they are.
            seed: Seed of the stretches.
        """
        self._work = [0.0, *itertools.accumulate(model for model, _ in measured)]
        self._time = [0.0, *itertools.accumulate(seconds for _, seconds in measured)]
        self._block = max(BLOCK, BLOCK_STEPS * self._work[-1] / max(1, len(measured)))
        self._draw = random.Random(seed)
        self._at = self._left = 0.0  # modelled seconds: where the stretch is, and what is left of it

    def take(self, seconds: float) -> float:
        """The seconds that so many modelled ones take, from where the last call ended."""
        if len(self._work) == 1:
            return seconds
        passed = 0.0
        while seconds > 0:
            if self._left <= 0:
                self._at, self._left = self._draw.uniform(0, self._work[-1]), self._block
            part = min(seconds, self._left)
            passed += self._until(self._at + part) - self._until(self._at)
            self._at += part
            self._left -= part
            seconds -= part
        return passed

    def _until(self, work: float) -> float:
        """Seconds from the beginning until so many modelled ones are done."""
        rounds, rest = divmod(work, self._work[-1])
        after = min(bisect.bisect(self._work, rest), len(self._work) - 1)
        (low, high), (first, last) = self._work[after - 1 : after + 1], self._time[after - 1 : after + 1]
        return rounds * self._time[-1] + first + (last - first) * (rest - low) / (high - low)
