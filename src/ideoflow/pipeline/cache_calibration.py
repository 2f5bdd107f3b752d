"""What is measured once of a model so that caches know which steps to compute: how its estimates of the picture move.

A velocity points to a clean picture. The products of these of every two steps, averaged over some pictures drawn in
full, say how far each is from any mixture of earlier ones: what leaving a step out would change. So a schedule is
chosen beforehand, and no step has to wait for the device to be asked.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..engine import Request, StepCache
from ..files import write_text

FILE = "step_cache.json"  # in a model's folder
Kind = tuple[int, float, float]


@dataclass(frozen=True)
class CacheCalibration:
    """How a model's estimates of the clean picture move over the steps of one schedule.

    Attributes:
        steps: Number of steps.
        mu: Mean of the schedule.
        std: Its standard deviation.
        sigmas: Noise level at which each step begins, and 0 at last.
        products: Mean products of the estimates of every two steps, `steps` rows and columns.
        pictures: How many they were averaged over.
    """

    steps: int
    mu: float
    std: float
    sigmas: tuple[float, ...]
    products: tuple[tuple[float, ...], ...]
    pictures: int

    def __post_init__(self) -> None:
        """See that there is a row and a column for each step.

        Raises:
            ValueError: if not.
        """
        sizes = {self.steps + 1, len(self.sigmas), len(self.products) + 1, *(len(row) + 1 for row in self.products)}
        if len(sizes) > 1:
            raise ValueError(f"a calibration of {self.steps} steps has not as many rows, columns and noise levels")
        object.__setattr__(self, "sigmas", tuple(self.sigmas))
        object.__setattr__(self, "products", tuple(map(tuple, self.products)))

    @property
    def kind(self) -> Kind:
        """Steps, mean and standard deviation: pictures of these it is for."""
        return self.steps, self.mu, self.std

    @property
    def mag_ratios(self) -> list[float]:
        """How much larger the estimate of each step is than that of the one before, as MagCacheConfig takes them."""
        sizes = [self.products[step][step] ** 0.5 for step in range(self.steps)]
        return [1.0] + [own / before for before, own in itertools.pairwise(sizes)]

    def computing(self, count: int, order: int = 1) -> StepCache:
        """The cache that computes so many steps with the least change, as far as the calibration tells.

        The change of a picture is taken to be the sum over the steps that are left out of how far their estimates are
        from the extrapolated ones, each by the share of the way to it that the step goes.

        Args:
            count: Steps that are computed, the first among them.
            order: 0 or 1, the degree of the polynomial.
        """
        return StepCache.of_steps(self.steps, self._path(count, order), order=order)

    def within(self, threshold: float) -> StepCache:
        """The cache that repeats a velocity as long as the estimate is within a relative distance of the one kept."""
        computed = [0]
        for step in range(1, self.steps):
            if self._distance({step: 1.0, computed[-1]: -1.0}) > threshold * self.products[step][step] ** 0.5:
                computed.append(step)
        return StepCache.of_steps(self.steps, computed, order=0)

    def _distance(self, weights: dict[int, float]) -> float:
        """Size of a weighted sum of estimates."""
        square = sum(
            one * other * self.products[row][column]
            for row, one in weights.items()
            for column, other in weights.items()
        )
        return float(max(0.0, square) ** 0.5)

    def _change(self, before: int | None, last: int, step: int) -> float:
        """What leaving out a step changes, where `last` was computed last, and `before` before that."""
        weights = {step: -1.0, last: 1.0}
        if before is not None:
            along = (self.sigmas[step] - self.sigmas[before]) / (self.sigmas[last] - self.sigmas[before])
            weights = {step: -1.0, last: along, before: 1 - along}
        return (1 - self.sigmas[step + 1] / self.sigmas[step]) * self._distance(weights)

    def _path(self, count: int, order: int) -> tuple[int, ...]:
        """The steps to compute: the shortest way over pairs of steps that are computed one after the other."""
        found: dict[tuple[int | None, int], tuple[float, tuple[int, ...]]] = {(None, 0): (0.0, (0,))}
        ends: tuple[float, tuple[int, ...]] = (0.0, (0,))
        for number in range(1, count + 1):
            following: dict[tuple[int | None, int], tuple[float, tuple[int, ...]]] = {}
            done = []
            for (before, last), (change, path) in found.items():
                for step in range(last + 1, self.steps + 1):
                    if step == self.steps:
                        done.append((change, path))
                        break
                    state = (last if order else None, step)
                    if state not in following or change < following[state][0]:
                        following[state] = change, (*path, step)
                    change += self._change(before, last, step)
            found = following
            if number == count and done:
                ends = min(done)
        return ends[1]


def calibrated(
    requests: Sequence[Request], estimates: Sequence[Sequence[Tensor]], mu: float, std: float
) -> CacheCalibration:
    """The calibration of pictures that were drawn in full, from the clean latents that each step estimated."""
    total = torch.zeros(len(estimates[0]), len(estimates[0]), dtype=torch.float64)
    for own in estimates:
        flat = torch.stack([one.flatten().double().cpu() for one in own])
        total += flat @ flat.T / flat.shape[1]
    products = (total / len(estimates)).tolist()
    levels = torch.stack([request.sigmas.double() for request in requests]).mean(0).tolist()
    return CacheCalibration(
        steps=requests[0].steps,
        mu=mu,
        std=std,
        sigmas=tuple(float(f"{level:.7g}") for level in levels),
        products=tuple(tuple(float(f"{one:.9g}") for one in row) for row in products),
        pictures=len(requests),
    )


def calibrations_in(folder: Path) -> dict[Kind, CacheCalibration]:
    """The calibrations in a model's folder by their kinds; none where there is no file of them.

    Raises:
        ValueError: naming the file, if it holds something else.
    """
    file = folder / FILE
    if not file.is_file():
        return {}
    try:
        listed = [CacheCalibration(**one) for one in json.loads(file.read_text(encoding="utf-8"))]
        return {(int(one.steps), float(one.mu), float(one.std)): one for one in listed}
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(
            f"{file} holds no calibrations: {error}. Calibrate anew with `pipe.calibrate_cache`."
        ) from None


def keep_calibrations(folder: Path, calibrations: Mapping[Kind, CacheCalibration]) -> None:
    """Keep calibrations in a model's folder, where pipelines that are loaded from it find them."""
    write_text(folder / FILE, json.dumps([asdict(one) for one in calibrations.values()]) + "\n")
