"""Steps that are not computed: which velocities of a picture are computed, and how the others follow from those.

A velocity that is not computed is extrapolated from the last ones that were, as a polynomial over the noise level. What
is extrapolated is the clean picture that a velocity points to, `latents + sigma * velocity`, and the velocity is what
points there from where the latents are by then: so noise that was added anew in between, as some edits do, is seen.
From Liu et al., "From Reusing to Forecasting: Accelerating Diffusion Models with TaylorSeers" (2025), on the output of
the whole transformer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..cache_configs import MAX_ORDER
from ..checks import whole


@dataclass(frozen=True)
class StepCache:
    """Which steps of a picture compute its velocities. The first step does in any case.

    Attributes:
        conditional: Whether each step computes the velocity of the conditional branch.
        unconditional: Whether each step computes that of the unconditional branch, where it is guided; a step that
            does not takes what guidance adds from the last ones that did. Only steps that compute the other do.
        order: Degree of the polynomial over the noise level: 0 repeats the last, 1 goes on in a line.
    """

    conditional: tuple[bool, ...]
    unconditional: tuple[bool, ...]
    order: int = 1

    def __post_init__(self) -> None:
        """Check that the parts fit.

        Raises:
            TypeError: an order that is no whole number.
            ValueError: naming the part that does not fit.
        """
        whole("order", self.order, 0, most=MAX_ORDER)
        conditional, unconditional = (tuple(map(bool, own)) for own in (self.conditional, self.unconditional))
        if not conditional or len(conditional) != len(unconditional):
            raise ValueError(
                f"a cache of {len(conditional)} steps of one branch and {len(unconditional)} of the other: give as many"
                " of both, one at least."
            )
        conditional = (True, *conditional[1:])
        object.__setattr__(self, "conditional", conditional)
        object.__setattr__(
            self, "unconditional", tuple(two and one for one, two in zip(conditional, unconditional, strict=True))
        )

    @classmethod
    def of_steps(
        cls, steps: int, computed: Iterable[int], guidance: Iterable[int] | None = None, order: int = 1
    ) -> StepCache:
        """The cache of a picture of so many steps, of which these compute both branches, or `guidance` the second."""
        first = set(computed)
        second = first if guidance is None else set(guidance)
        for step in first | second:
            whole("step of a cache", step, 0, most=steps - 1)
        every = range(steps)
        return cls(tuple(step in first for step in every), tuple(step in second for step in every), order)

    @property
    def steps(self) -> int:
        """Number of steps of the picture."""
        return len(self.conditional)

    @property
    def computes_all(self) -> bool:
        """Whether no step is left out."""
        return all(self.conditional) and all(self.unconditional)

    def at(self, steps: Sequence[int]) -> StepCache:
        """The cache of a picture that takes some of the steps, in this order.

        Of one that begins at a later step, the first two are computed: there is nothing yet to go on from.
        """
        begins = [True, steps[0] > 0][: len(steps)]
        conditional, unconditional = (
            tuple(own[step] or (place < len(begins) and begins[place]) for place, step in enumerate(steps))
            for own in (self.conditional, self.unconditional)
        )
        return StepCache(conditional, unconditional, self.order)

    def guided_every(self, every: int) -> StepCache:
        """The same with the unconditional branch in every so many of its steps, counted from the first."""
        every = whole("guidance_every", every, 1)
        numbered = {step: number for number, step in enumerate(s for s, own in enumerate(self.unconditional) if own)}
        kept = tuple(step in numbered and numbered[step] % every == 0 for step in range(self.steps))
        return StepCache(self.conditional, kept, self.order)


@dataclass(frozen=True)
class Velocities:
    """The velocities of a request's last computed steps, as clean latents, each with the noise level of its step.

    Attributes:
        clean: What the conditional branch's velocities point to, the latest last.
        guidance: What those of both branches differ by, times the noise level.
    """

    clean: tuple[tuple[float, Tensor], ...] = ()
    guidance: tuple[tuple[float, Tensor], ...] = ()

    def step(
        self,
        order: int,
        level: float,
        latents: Tensor,
        guidance: float,
        conditional: Tensor | None,
        unconditional: Tensor | None,
    ) -> tuple[Tensor, Velocities]:
        """The guided velocity of a step, and what is kept after it.

        Args:
            order: Degree of the polynomial.
            level: Noise level at which the step begins.
            latents: Those that it begins with.
            guidance: Guidance of the step.
            conditional: Velocity of the conditional branch; None where it was not computed.
            unconditional: That of the other.
        """
        clean, of_guidance = self.clean, self.guidance
        if conditional is None:
            conditional = (extrapolated(clean, level, order) - latents) / level
        else:
            clean = _with(clean, order, level, latents + level * conditional)
        if guidance == 1:
            velocity = conditional
        elif unconditional is None:
            velocity = conditional + (guidance - 1) / level * extrapolated(of_guidance, level, order)
        else:
            velocity = guidance * conditional + (1.0 - guidance) * unconditional
            of_guidance = _with(of_guidance, order, level, level * (conditional - unconditional))
        return velocity, Velocities(clean, of_guidance)


def extrapolated(points: Sequence[tuple[float, Tensor]], level: float, order: int) -> Tensor:
    """The polynomial through the last `order + 1` points, or through all where there are fewer, at a noise level.

    In Lagrange's form: weights of numbers that the host knows, so nothing waits for the device.
    """
    last = points[-(order + 1) :]
    weights = []
    for one, _ in last:
        weight = 1.0
        for other, _ in last:
            if other != one:
                weight *= (level - other) / (one - other)
        weights.append(weight)
    total = weights[-1] * last[-1][1]
    for weight, (_, value) in zip(weights[:-1], last[:-1], strict=True):
        total = total + weight * value
    return total


def _with(
    points: tuple[tuple[float, Tensor], ...], order: int, level: float, value: Tensor
) -> tuple[tuple[float, Tensor], ...]:
    """The points that a polynomial needs, with a new one, which takes the place of one at its own level."""
    others = tuple(point for point in points if point[0] != level)
    return (*others, (level, value))[-(order + 1) :]
