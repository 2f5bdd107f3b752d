"""Variations: the noise of a picture's seed mixed with another's, so that a picture has neighbours."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..checks import whole
from ..engine import Request
from .change import check_canvas, check_share, told

SEEDS = 2**64  # how many a torch generator takes


def mixed(one: Tensor, other: Tensor, amount: float) -> Tensor:
    """Noise on the way from one to another along the sphere, where it stays as strong as noise is.

    Spherical interpolation after Shoemake, "Animating Rotation with Quaternion Curves" (1985).

    Args:
        one: Noise of any shape.
        other: Noise of the same shape.
        amount: Share of the way: 0 gives the one, 1 the other.
    """
    if amount in (0.0, 1.0):
        return other if amount else one
    cosine = torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0).double().clamp(-1, 1)
    angle = torch.arccos(cosine)
    if torch.sin(angle) < 1e-4:  # nearly the same noise
        return torch.lerp(one, other, amount)
    shares = torch.sin((1 - amount) * angle) / torch.sin(angle), torch.sin(amount * angle) / torch.sin(angle)
    return float(shares[0]) * one + float(shares[1]) * other


@dataclass(eq=False)
class Variation:
    """A fresh picture from noise near its own seed's.

    Attributes:
        seed: The other seed, whose picture it is at amount 1.
        size: `(width, height)` in pixels.
        amount: How far it goes towards that, from 0 to 1.

    Raises:
        TypeError: naming the argument that is of another type.
        ValueError: naming the argument that does not fit.
    """

    seed: int
    size: tuple[int, int]
    amount: float = 0.2

    def __post_init__(self) -> None:
        """Check the arguments."""
        self.seed = whole("variation_seed", self.seed, 0, most=SEEDS - 1)
        self.amount = check_share("variation", self.amount)
        self.size = check_canvas("size", self.size)

    def canvas(self, unit: int, most: int | None) -> None:
        """None: it starts from no picture."""

    def result_size(self, unit: int, most: int | None) -> tuple[int, int]:
        """`(width, height)` of the picture."""
        return self.size

    def request(self, fresh: Request, canvas: None = None, known: None = None) -> Request:
        """The request of the variation, from that of the picture that it is near to."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (1, *fresh.latents.shape)
        other = randn_tensor(shape, generator, fresh.latents.device, torch.float32)[0]
        settings = told(fresh, self.size, kind="variation", seed=self.seed, amount=self.amount)
        return replace(fresh, latents=mixed(fresh.latents, other, self.amount), settings=settings)
