"""The sides that are compared: ways to run the same weights, a line of `SIDES` for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks._gpu import multiplies
from benchmarks.full.models import Branches, Models
from benchmarks.roofline import PEER_TEXT
from ideoflow.engine import Denoiser, Engine, Request
from ideoflow.model import Context
from ideoflow.packing import (
    IMAGE_POSITION_OFFSET,
    LLM_TOKEN_INDICATOR,
    OUTPUT_IMAGE_INDICATOR,
    SEQUENCE_PADDING_INDICATOR,
)

GUIDANCE = 7.0


@dataclass(frozen=True)
class Inputs:
    """What a case is computed from; all pictures of a batch have the same caption and noise of their own.

    Attributes:
        features: (text_tokens, llm_features_dim) of the caption.
        latents: (batch, image_tokens, channels) float32 noise.
        grid: rows and columns of image tokens.
        sigmas: (steps + 1,) float32 on the CPU, from 1 to 0.
    """

    features: Tensor
    latents: Tensor
    grid: tuple[int, int]
    sigmas: Tensor

    @property
    def batch(self) -> int:
        return len(self.latents)

    @property
    def times(self) -> Tensor:
        """(steps,) model times, rounded as the peer's pipeline rounds them."""
        return (1 - self.sigmas[:-1]).to(self.features.dtype).float()


class OurRun:
    """Pictures of ours: one stream for each transformer, contexts made once for a picture."""

    def __init__(self, branches: Branches, inputs: Inputs, options: Mapping[str, Any]) -> None:
        self.inputs = inputs
        self.denoiser = Denoiser(*branches, **options)  # type: ignore[arg-type]
        self.contexts = [self._prepare() for _ in range(inputs.batch)]

    def step(self) -> Tensor:
        """Guided velocities (batch, image_tokens, channels) of the first step."""
        pairs = zip(self.inputs.latents, self.contexts, strict=True)
        requests = [self._request(latents, *contexts) for latents, contexts in pairs]
        self.denoiser.step(requests)
        return torch.stack([request.velocity for request in requests])  # type: ignore[misc]

    def picture(self) -> Tensor:
        """Latents (batch, image_tokens, channels) after all steps, contexts made anew."""
        requests = [self._request(latents, prepare=self._prepare) for latents in self.inputs.latents]
        Engine(self.denoiser).complete(requests)
        return torch.stack([request.latents for request in requests])

    def _prepare(self) -> tuple[Context, Context | None]:
        conditional = self.denoiser.prepare_conditional(self.inputs.features, self.inputs.grid)
        return conditional, self.denoiser.prepare_unconditional(self.inputs.grid)

    def _request(
        self,
        latents: Tensor,
        conditional: Context | None = None,
        unconditional: Context | None = None,
        prepare: Callable[[], tuple[Context, Context | None]] | None = None,
    ) -> Request:
        return Request(
            conditional=conditional,
            unconditional=unconditional,
            latents=latents,
            sigmas=self.inputs.sigmas,
            guidance=(GUIDANCE,) * len(self.inputs.times),
            grid=self.inputs.grid,
            id="benchmark",
            times=self.inputs.times,
            text_tokens=len(self.inputs.features),
            prepare=prepare,
        )


class PeerRun:
    """The same as the peer's pipeline computes it: captions padded on the left to `max_text` tokens.

    What its pipeline makes before its loop is made here, once for all pictures, and is no part of their time.
    """

    def __init__(self, branches: Branches, inputs: Inputs, max_text: int | None) -> None:
        self.inputs = inputs
        self.conditional, self.unconditional = branches
        text, (rows, cols), batch = len(inputs.features), inputs.grid, inputs.batch
        self.max_text = max_text or text
        begin, total = self.max_text - text, self.max_text + rows * cols
        device = inputs.features.device
        features = inputs.features.new_zeros(1, total, inputs.features.shape[1])
        features[0, begin : self.max_text] = inputs.features
        positions = torch.zeros(1, total, 3, dtype=torch.long, device=device)
        positions[0, begin : self.max_text] = torch.arange(text, device=device)[:, None]
        cells = torch.arange(rows * cols, device=device)
        positions[0, self.max_text :] = IMAGE_POSITION_OFFSET
        positions[0, self.max_text :, 1] += cells // cols
        positions[0, self.max_text :, 2] += cells % cols
        segments = torch.full((1, total), SEQUENCE_PADDING_INDICATOR, device=device)
        segments[0, begin:] = 1
        roles = torch.zeros(1, total, dtype=torch.long, device=device)
        roles[0, begin : self.max_text] = LLM_TOKEN_INDICATOR
        roles[0, self.max_text :] = OUTPUT_IMAGE_INDICATOR
        self.features = features.expand(batch, -1, -1)
        self.no_features = torch.zeros_like(features[:, self.max_text :]).expand(batch, -1, -1)
        self.layout = tuple(x.expand(batch, *x.shape[1:]) for x in (positions, segments, roles))
        self.no_text = inputs.latents.new_zeros(batch, self.max_text, inputs.latents.shape[2])

    def step(self) -> Tensor:
        """Guided velocities (batch, image_tokens, channels) of the first step."""
        return self._velocity(self.inputs.latents, float(self.inputs.times[0]))

    @torch.no_grad()
    def picture(self) -> Tensor:
        """Latents (batch, image_tokens, channels) after all steps."""
        latents, sigmas = self.inputs.latents, self.inputs.sigmas.tolist()
        for number, time in enumerate(self.inputs.times.tolist()):
            latents = latents + (sigmas[number] - sigmas[number + 1]) * self._velocity(latents, time)
        return latents

    @torch.no_grad()
    def _velocity(self, latents: Tensor, time: float) -> Tensor:
        dtype, image = self.features.dtype, tuple(x[:, self.max_text :] for x in self.layout)
        times = torch.full((len(latents),), time, dtype=dtype, device=latents.device)
        padded = torch.cat([self.no_text, latents], dim=1).to(dtype)
        conditional = self.conditional(padded, times, self.features, *self.layout, return_dict=False)[0]
        unconditional = self.unconditional(latents.to(dtype), times, self.no_features, *image, return_dict=False)[0]
        return GUIDANCE * conditional[:, self.max_text :].float() + (1 - GUIDANCE) * unconditional.float()


@dataclass(frozen=True)
class Side:
    """One way to run the model.

    Attributes:
        name: how tables call it.
        phases: the sets of sides that it is measured among; those of a phase are in memory together.
        counts_as: the implementation of the roofline whose products it computes; the peer's make it the peer.
        precision: "bf16", "fp8" or "int8", of the blocks' products.
        compiled: whether its blocks are compiled: ours by `compile_blocks`, the peer's by `compile_repeated_blocks`.
        change: done to each of its transformers before it is compiled, for what is neither.
        denoiser: further arguments of our `Denoiser`.
    """

    name: str
    phases: tuple[str, ...]
    counts_as: str = "ideoflow"
    precision: str = "bf16"
    compiled: bool = False
    change: Callable[[Any], object] | None = None
    denoiser: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        return self.counts_as == "ideoflow"

    def load(self, models: Models) -> Branches:
        """Its two transformers, on the shared weights but for what it changes."""
        branches = models.ours(self.precision) if self.is_ours else models.peers()
        for branch in branches:
            if self.change is not None:
                self.change(branch)
            if self.compiled:
                branch.compile_blocks() if self.is_ours else branch.compile_repeated_blocks()  # type: ignore[operator]
        return branches

    def run(self, branches: Branches, inputs: Inputs) -> OurRun | PeerRun:
        """What steps and draws with these transformers."""
        if self.is_ours:
            return OurRun(branches, inputs, self.denoiser)
        return PeerRun(branches, inputs, PEER_TEXT if self.counts_as == "diffusers" else None)


# The first side of a phase is what the others are compared with. A phase for each quantization, so that no more than
# one lies in memory beside the weights in bf16; likewise for a change that makes weights of its own.
EXACT, FP8, INT8 = "exact", "fp8", "int8"
PHASES = (EXACT, FP8, INT8)
SIDES = (
    Side("ideoflow", (EXACT, FP8, INT8)),
    Side("ideoflow, fused", (EXACT,), change=lambda branch: branch.fuse_projections()),
    Side("ideoflow, fused, graphs", (EXACT,), change=lambda b: b.fuse_projections(), denoiser={"cuda_graphs": True}),
    Side("ideoflow, compiled", (EXACT, FP8, INT8), compiled=True),
    Side("ideoflow, fused, compiled", (EXACT,), compiled=True, change=lambda branch: branch.fuse_projections()),
    Side("ideoflow, fp8", (FP8,), precision="fp8"),
    Side("ideoflow, fp8, compiled", (FP8,), precision="fp8", compiled=True),
    Side("ideoflow, int8", (INT8,), precision="int8"),
    Side("ideoflow, int8, compiled", (INT8,), precision="int8", compiled=True),
    Side("diffusers", (EXACT,), "diffusers"),
    Side("diffusers, trimmed", (EXACT,), "~ trimmed"),
    Side("diffusers, trimmed, compiled", (EXACT,), "~ trimmed", compiled=True),
)


def sides_of(phase: str, device: str, compiled: bool) -> list[Side]:
    """The sides of a phase, without those that the device has no products for, and with the compiled ones or not."""
    return [
        side
        for side in SIDES
        if phase in side.phases and multiplies(side.precision, device) and (compiled or not side.compiled)
    ]
