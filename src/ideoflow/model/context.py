"""What steps share: of a stream its context, of times their modulation; and both, as hooks see them passed on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..packing import Layout


@dataclass(frozen=True)
class Context:
    """All that the segments of a stream need and that no step changes.

    Attributes:
        layout: the segments.
        text: (tokens - image_tokens, channels) embeddings of the tokens that are not image tokens, in stream order.
        cos: (tokens, head_dim) rotary table.
        sin: (tokens, head_dim) rotary table.
    """

    layout: Layout
    text: Tensor
    cos: Tensor
    sin: Tensor

    @classmethod
    def cat(cls, contexts: Sequence[Context]) -> Context:
        """One stream of several streams' segments, in the order given."""
        if len(contexts) == 1:
            return contexts[0]
        return cls(
            layout=Layout.cat([context.layout for context in contexts]),
            text=torch.cat([context.text for context in contexts]),
            cos=torch.cat([context.cos for context in contexts]),
            sin=torch.cat([context.sin for context in contexts]),
        )

    def to(self, device: torch.device | str | int | None, non_blocking: bool = False) -> Context:
        """The same context with its tensors on `device`; hooks that leave things where they are hand over None."""
        if device is None:
            return self
        return Context(
            layout=self.layout.to(device, non_blocking),
            text=self.text.to(device, non_blocking=non_blocking),
            cos=self.cos.to(device, non_blocking=non_blocking),
            sin=self.sin.to(device, non_blocking=non_blocking),
        )


@dataclass(frozen=True)
class Modulation:
    """What the blocks and the final layer take from times, which are known before the first step.

    Attributes:
        blocks: (layers, times, 4 * channels).
        final: (times, channels).
    """

    blocks: Tensor
    final: Tensor

    def to(self, device: torch.device | str | int | None, non_blocking: bool = False) -> Modulation:
        """The same modulation on `device`; where it is if None."""
        if device is None:
            return self
        return Modulation(*(rows.to(device, non_blocking=non_blocking) for rows in (self.blocks, self.final)))

    @classmethod
    def of_steps(cls, steps: Sequence[tuple[Modulation, int]]) -> Modulation:
        """One row of each of several schedules."""
        return cls(
            blocks=torch.stack([schedule.blocks[:, step] for schedule, step in steps], dim=1),
            final=torch.stack([schedule.final[step] for schedule, step in steps]),
        )


@dataclass(frozen=True)
class Prepared:
    """What `velocity` calls the model with in place of text features, so that hooks see each pass of an engine.

    Attributes:
        context: the stream's.
        modulation: rows for its times, if they are known.
    """

    context: Context
    modulation: Modulation | None

    def to(self, device: torch.device | str | int | None, non_blocking: bool = False) -> Prepared:
        """The same on `device`; where it is if None."""
        modulation = None if self.modulation is None else self.modulation.to(device, non_blocking)
        return Prepared(self.context.to(device, non_blocking), modulation)
