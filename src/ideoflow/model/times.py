"""Times of denoising, from 0 (pure noise) to 1 (clean data): which a stream has, and their embedding."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.host import HOST
from ..ops.linear import Linear

TIME_SCALE = 1e4  # model times in [0, 1] are stretched to [0, 1e4] before the sinusoid
LONGEST_PERIOD = 1e4


def frequencies_of(dim: int, device: torch.device) -> Tensor:
    """The frequencies of the sinusoid, (dim / 2,) in float32.

    Made on the host for every device, as those of the rotary tables are: devices differ in the last bit of an
    exponential, and angles are up to `TIME_SCALE` times as large.
    """
    half = dim // 2
    step = math.log(LONGEST_PERIOD) / (half - 1)
    return torch.exp(torch.arange(half, dtype=torch.float32, device=HOST) * -step).to(device)


def sinusoid(t: Tensor, frequencies: Tensor) -> Tensor:
    """Sines, then cosines, of times (times,) at these frequencies: (times, 2 * frequencies) in float32."""
    angles = (TIME_SCALE * t.to(torch.float32))[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


class TimeEmbedding(nn.Module):
    """Sinusoid of the time, then a two-layer perceptron."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.mlp_in = Linear(dim, dim)
        self.mlp_out = Linear(dim, dim)
        self._frequencies: Tensor | None = None  # no buffer, which `.to(dtype)` would round

    def forward(self, times: Tensor, dtype: torch.dtype) -> Tensor:
        """Times (times,) in [0, 1] to (times, dim); `dtype` is the type to compute the perceptron in."""
        embedded = sinusoid(times, self._frequencies_on(times))
        return self.mlp_out(F.silu(self.mlp_in(embedded.to(dtype))))

    def _frequencies_on(self, times: Tensor) -> Tensor:
        """The frequencies where the times are: copied there once, since a step must not wait for the device."""
        if torch.compiler.is_compiling() or type(times) is not Tensor:
            return frequencies_of(self.dim, times.device)
        if self._frequencies is None or self._frequencies.device != times.device:
            with torch.inference_mode(False):  # or they could not be used in training later
                self._frequencies = frequencies_of(self.dim, times.device)
        return self._frequencies


def distinct_times(timestep: Tensor, index: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The times of the tokens of rows, each once where no gradient is asked for.

    Args:
        timestep: (batch,) or (batch, length).
        index: (tokens,) where each token stands in the flattened rows.
        length: tokens of a row.

    Returns:
        Times (times,), and the row of each token in them (tokens,).
    """
    times = timestep[index // length] if timestep.ndim == 1 else timestep.flatten()[index]
    check_times("timestep", times)
    if times.requires_grad:
        return times, torch.arange(len(times), device=times.device)
    return torch.unique(times.float(), return_inverse=True)


def check_times(name: str, times: Tensor) -> None:
    """Raise unless all times lie in [0, 1]. Waits for the device."""
    wrong = ~((times >= 0) & (times <= 1))
    if wrong.any():
        raise ValueError(
            f"`{name}` must lie in [0, 1] (0 is pure noise, 1 is clean data), got {times[wrong].flatten()[0].item()}."
        )
