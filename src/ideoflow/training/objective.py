"""The flow-matching loss of one packed stream: every sample at its own time, none aware of the others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from ..model import Ideogram4Transformer2DModel
from ..packing import Layout
from ..schedule import sample_times
from ..sizes import UNIT
from .batches import Draw

Per = Literal["sample", "token"]


class Encoded(Protocol):
    """A sample whose picture and caption are encoded."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens."""

    def load(self) -> tuple[Tensor, Tensor]:
        """Clean latents `(rows * columns, in_channels)` and text `(text_tokens, width)`, projected or not."""


@dataclass(frozen=True)
class Batch:
    """Samples of one stream with everything that was drawn for them.

    Attributes:
        names: names of the samples.
        grids: rows and columns of image tokens of each.
        text_lengths: text tokens of each; zero where the caption was dropped.
        text: `(text_tokens, width)` of all, in stream order.
        latents: `(image_tokens, in_channels)` clean, float32.
        noise: `(image_tokens, in_channels)` float32.
        times: `(samples,)` float32: 0 is noise, 1 is data.
    """

    names: tuple[str, ...]
    grids: tuple[tuple[int, int], ...]
    text_lengths: tuple[int, ...]
    text: Tensor
    latents: Tensor
    noise: Tensor
    times: Tensor

    def __len__(self) -> int:
        return len(self.names)

    @property
    def image_lengths(self) -> list[int]:
        """Image tokens of each sample."""
        return [rows * columns for rows, columns in self.grids]

    @property
    def tokens(self) -> int:
        """Text and image tokens."""
        return sum(self.text_lengths) + len(self.latents)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`."""
        tensors = (t.to(device, non_blocking=True) for t in (self.text, self.latents, self.noise, self.times))
        return Batch(self.names, self.grids, self.text_lengths, *tensors)


def make_batch(
    samples: Sequence[Encoded],
    draws: Sequence[Draw],
    *,
    seed: int = 0,
    mu: float = 0.0,
    std: float = 1.5,
    caption_dropout: float = 0.0,
) -> Batch:
    """Load the samples of a batch and draw times, noise and dropped captions for them.

    What is drawn for a sample depends on `seed` and its `Draw` alone, not on the batch that it came into.

    Args:
        samples: All samples; `draws` index them.
        draws: The batch, from `PackedStream`.
        seed: Seed of the run.
        mu: Mean of the logit-normal distribution of times at 512 x 512 pixels; larger pictures get more noise.
        std: Standard deviation of that distribution, above 0.
        caption_dropout: Share of samples that are shown without their caption, 0 to 1.
    """
    lengths, texts, latents, noises, times = [], [], [], [], []
    for draw in draws:
        clean, text = samples[draw.sample].load()
        generator = torch.Generator().manual_seed(_seed(seed, draw))
        times.append(sample_times(1, UNIT**2 * len(clean), mu, std, generator))
        dropped = bool(torch.rand((), generator=generator) < caption_dropout)
        noises.append(torch.randn(clean.shape, generator=generator))
        latents.append(clean.float())
        texts.append(text[:0] if dropped else text)
        lengths.append(len(texts[-1]))
    return Batch(
        names=tuple(samples[draw.sample].name for draw in draws),
        grids=tuple(samples[draw.sample].grid for draw in draws),
        text_lengths=tuple(lengths),
        text=torch.cat(texts),
        latents=torch.cat(latents),
        noise=torch.cat(noises),
        times=torch.cat(times),
    )


def _seed(seed: int, draw: Draw) -> int:
    digest = hashlib.blake2b(f"{seed}/{draw.epoch}/{draw.sample}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def snr_weights(times: Tensor, gamma: float) -> Tensor:
    """Weights of velocity errors that cap how much easy, nearly clean samples count.

    With signal-to-noise ratio `snr = (t / (1 - t)) ** 2`, the error of the clean sample is `1 - t` times that of the
    velocity; "Efficient Diffusion Training via Min-SNR Weighting" (Hang et al., 2023) weighs the former's square with
    `min(snr, gamma)`, so the latter's with `min(t ** 2, gamma * (1 - t) ** 2)`.
    """
    return torch.minimum(times.square(), gamma * (1 - times).square())


class FlowMatching(nn.Module):
    """Loss of the velocities that a transformer predicts: `v` should be data minus noise at `lerp(noise, data, t)`.

    It is a module so that DDP and FSDP can wrap it: `forward` is where they begin and end.

    Args:
        transformer: The branch that sees captions, or None if it is not trained.
        unconditional: The branch that does not, or None.
        per: `"sample"`: every sample counts the same, however many tokens it has; `"token"`: every token does.
        projected: Whether batches carry text that went through `project_text` already.
        min_snr: Gamma of `snr_weights`, or None for equal weights.
    """

    def __init__(
        self,
        transformer: Ideogram4Transformer2DModel | None,
        unconditional: Ideogram4Transformer2DModel | None = None,
        *,
        per: Per = "sample",
        projected: bool = True,
        min_snr: float | None = None,
    ) -> None:
        super().__init__()
        if transformer is None and unconditional is None:
            raise ValueError("`transformer` and `unconditional` are both None: nothing would be trained.")
        if per not in ("sample", "token"):
            raise ValueError(f"`per` is {per!r}; it is 'sample' or 'token'.")
        self.transformer, self.unconditional = transformer, unconditional
        self.per, self.projected, self.min_snr = per, projected, min_snr

    def count(self, batch: Batch) -> int:
        """What the losses of several batches are averaged over: samples or image tokens."""
        return len(batch) if self.per == "sample" else len(batch.latents)

    def forward(self, batch: Batch, total: int | None = None) -> dict[str, Tensor]:
        """Losses of the branches, each the sum over the batch divided by `total`.

        Args:
            batch: A stream; on the device of the weights.
            total: Sum of `count` over all batches of a step, so that the step's gradient is that of their mean; this
                batch's own when absent.

        Returns:
            `"conditional"` and `"unconditional"`, where trained: float32 scalars.
        """
        losses = {}
        if self.transformer is not None:
            losses["conditional"] = self._loss(self.transformer, batch, batch.text_lengths, total)
        if self.unconditional is not None:
            losses["unconditional"] = self._loss(self.unconditional, batch, [0] * len(batch), total)
        return losses

    def _loss(
        self, transformer: Ideogram4Transformer2DModel, batch: Batch, text_lengths: Sequence[int], total: int | None
    ) -> Tensor:
        shapes = [(text, *grid) for text, grid in zip(text_lengths, batch.grids, strict=True)]
        # Segments of equal length lie side by side, where attention takes them as one batch.
        order = sorted(range(len(batch)), key=lambda i: shapes[i][0] + batch.image_lengths[i])
        counts = torch.tensor([batch.image_lengths[i] for i in order], device=batch.times.device)
        latents, noise = (_reorder(t, batch.image_lengths, order) for t in (batch.latents, batch.noise))
        times = batch.times[order]
        layout = Layout.of_samples([shapes[i] for i in order], device=batch.times.device)
        text = _reorder(batch.text, batch.text_lengths, order) if any(text_lengths) else None
        prepare = transformer.prepare_projected if self.projected else transformer.prepare
        context = prepare(text if text is None else text.to(transformer.dtype), layout)

        mixed = torch.lerp(noise, latents, times.repeat_interleave(counts)[:, None])
        velocity = transformer.velocity(mixed.to(transformer.dtype), times, context)
        error = (velocity.float() - (latents - noise)).square().mean(-1)
        weights = torch.ones_like(times) if self.min_snr is None else snr_weights(times, self.min_snr)
        if self.per == "sample":
            weights = weights / counts
        return (error * weights.repeat_interleave(counts)).sum() / (total or self.count(batch))


def _reorder(tokens: Tensor, lengths: Sequence[int], order: Sequence[int]) -> Tensor:
    parts = tokens.split(list(lengths))
    return torch.cat([parts[i] for i in order])
