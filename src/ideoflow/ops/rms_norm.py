"""The RMS norm of the blocks, of their queries and of their keys."""

from __future__ import annotations

from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """Torch's norm, computed in the type of its weight: what autocast hands it is narrower."""

    @property
    def epsilon(self) -> float:
        """What is added to the mean square."""
        assert self.eps is not None
        return self.eps

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))
