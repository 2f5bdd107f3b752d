"""A request: one picture in the making."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..model import Context


@dataclass(eq=False)
class Request:
    """One picture in the making: what it is conditioned on, where it goes, and how far it has come.

    Attributes:
        conditional: Context of its text and image tokens; may be shared with other requests.
        unconditional: Context of its image tokens alone; None if no step is guided.
        latents: `(image_tokens, channels)`, kept in float32.
        sigmas: `(steps + 1,)` noise levels, decreasing to 0; step i goes from entry i to entry i + 1.
        guidance: Guidance of each step; a step of guidance 1 does not need the unconditional branch.
        grid: `(rows, cols)` of the image tokens.
        id: Name, for messages.
        step: Steps taken.
        times: `(steps,)` model time of each step; `1 - sigma` if not given. A caller that follows a scheduler's own
            rounding passes it: the time embedding magnifies the last bit by 10^4.
    """

    conditional: Context
    unconditional: Context | None
    latents: Tensor
    sigmas: Tensor
    guidance: tuple[float, ...]
    grid: tuple[int, int]
    id: str = ""
    step: int = 0
    times: Tensor | None = None

    def __post_init__(self) -> None:
        """Check that the parts fit.

        Raises:
            ValueError: naming the part that does not.
        """
        tokens = self.grid[0] * self.grid[1]
        contexts = [self.conditional] + ([] if self.unconditional is None else [self.unconditional])
        if any(context.layout.image_lengths != (tokens,) for context in contexts):
            raise ValueError(f"{self}: a grid of {self.grid} needs contexts of one segment with {tokens} image tokens.")
        if self.latents.ndim != 2 or self.latents.shape[0] != tokens:
            raise ValueError(
                f"{self}: `latents` has shape {tuple(self.latents.shape)}, but the grid {self.grid} needs"
                f" ({tokens}, channels)."
            )
        if len(self.sigmas) != len(self.guidance) + 1:
            raise ValueError(
                f"{self}: {len(self.guidance)} steps of `guidance` need {len(self.guidance) + 1} `sigmas`, got"
                f" {len(self.sigmas)}."
            )
        if self.unconditional is None and any(guidance != 1 for guidance in self.guidance):
            raise ValueError(f"{self}: guidance other than 1 needs the `unconditional` context.")
        self.latents = self.latents.to(torch.float32)
        self.sigmas = self.sigmas.to("cpu", torch.float32)
        times = 1 - self.sigmas[:-1] if self.times is None else self.times
        # On the device beforehand, so that no step has to wait for a copy.
        self._times = times.to(self.latents.device, torch.float32)

    def __repr__(self) -> str:
        return f"Request {self.id or hex(id(self))}"

    @property
    def steps(self) -> int:
        """Number of steps from noise to picture."""
        return len(self.guidance)

    @property
    def status(self) -> Literal["waiting", "running", "done"]:
        """Whether it has not begun, has steps before it, or has none left."""
        if self.step == self.steps:
            return "done"
        return "running" if self.step else "waiting"

    @property
    def guided(self) -> bool:
        """Whether its next step needs the unconditional branch."""
        return self.guidance[self.step] != 1

    @property
    def time(self) -> Tensor:
        """Model time of the next step, a float32 scalar on the latents' device.

        The reference pipeline rounds it to the transformer's dtype; in bfloat16 that moves the time by up to 0.002.
        """
        return self._times[self.step]

    def advance(self, velocity: Tensor) -> None:
        """Take one Euler step along the guided velocity `(image_tokens, channels)`, in float32."""
        change = float(self.sigmas[self.step + 1] - self.sigmas[self.step])
        self.latents = self.latents + change * -velocity  # the velocity points to data, where sigma falls
        self.step += 1

    def check(self) -> None:
        """Wait for the latents and see that they are finite.

        Raises:
            FloatingPointError: if not; a velocity that was not finite shows here, whatever step it came from.
        """
        if not torch.isfinite(self.latents).all():
            raise FloatingPointError(
                f"{self}: its latents are not finite after step {self.step} of {self.steps}. Check the weights, or use"
                " bfloat16 or float32 where float16 overflows."
            )
