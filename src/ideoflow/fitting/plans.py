"""A plan: which precision, what lies where and when, how many passes; what it takes and how long, and it in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from .activations import Call, Stage
from .components import AUTOENCODER, CONDITIONAL, TEXT_ENCODER, UNCONDITIONAL, Sizes
from .memory import HOST_ALLOCATOR_KEEPS, reserve, show, with_reserve
from .precisions import NF4, ONE_BYTE
from .speed import Rates, decode_flops, encode_flops, pass_flops

PHASES = ("encode", "denoise", "decode")

# Where a component lies.
STAYS = "stays"  # on the device all the time
TURNS = "takes turns"  # whole on the device while its phase lasts, in host memory otherwise
SWAPPED = "swapped"  # whole on the device for its pass of each step
STREAMED = "streamed"  # block by block, the next one copied while one computes
FREED = "let go"  # gone after the first captions

# The order of preference: a plan of an earlier entry is taken before any of a later one. Within an entry the faster
# plan, by the estimate, comes first.
LOSSES = (None, "bfloat16", "int8", "fp8", NF4)
TILES = (1024, 512, 256)  # pixels of a side
PRECISION_LOSS = {
    "bfloat16": "float32 rounded to bfloat16",
    "int8": "the blocks' linear layers in int8",
    "fp8": "the blocks' linear layers in fp8",
    NF4: "the blocks' linear layers in nf4",
}
TILED_LOSS = "the autoencoder decodes tiles, which do not see each other: tones may differ from tile to tile"


@dataclass(frozen=True)
class Peak:
    """The most that a phase holds at once.

    Attributes:
        stage: The computation then, in words.
        weights: Bytes of weights, by component.
        others: Bytes beyond the weights, by what they are.
    """

    stage: str
    weights: Mapping[str, int]
    others: Mapping[str, int]

    @cached_property
    def bytes(self) -> int:
        """All together."""
        return sum(self.weights.values()) + sum(self.others.values())


@dataclass(frozen=True)
class Plan:
    """How a call fits into a device's memory.

    Attributes:
        call: The pictures that are drawn, and with what.
        device: Type of the device: "cuda", "cpu" ...
        memory: Bytes that may be taken.
        places: Where each component lies, by name.
        precision: Precision of the transformers' weights; None for as they are.
        cast: Type that every component is cast to; None for as it is.
        clears: Whether the transformers leave the device while pictures are decoded.
        per_pass: Pictures that go through the transformers in one pass.
        per_decode: Pictures that are decoded as one batch.
        tile: Side in pixels of the tiles that are decoded one by one; None for whole pictures.
        rates: The machine's assumed speeds.
    """

    call: Call
    device: str
    memory: int
    places: Mapping[str, str]
    precision: str | None = None
    cast: str | None = None
    clears: bool = False
    per_pass: int = 1
    per_decode: int = 1
    tile: int | None = None
    rates: Rates = field(default_factory=Rates)

    # What lies where

    def precision_of(self, name: str) -> str | None:
        """Precision of a component's weights; None for as it is."""
        if name in (CONDITIONAL, UNCONDITIONAL) and self.precision in (*ONE_BYTE, NF4):
            return self.precision
        return self.cast

    @cached_property
    def weights(self) -> dict[str, int]:
        """Bytes of each component in its precision."""
        return {name: self._sizes(name).all for name in self.call.model.components}

    def _sizes(self, name: str) -> Sizes:
        return self.call.model.components[name].sizes(self.precision_of(name), self.cast)

    @property
    def max_tokens(self) -> int | None:
        """Tokens of one pass, where the pictures are split over several."""
        return None if self.per_pass >= self.call.pictures else self.per_pass * self.call.tokens

    @property
    def passes(self) -> int:
        """Passes of a step."""
        return math.ceil(self.call.pictures / self.per_pass)

    def on_device(self, phase: str, computing: str) -> dict[str, int]:
        """Bytes of weights on the device while a component computes in a phase, by component."""
        found = {name: self._on_device(name, phase, computing) for name in self.places}
        return {name: size for name, size in found.items() if size}

    def _on_device(self, name: str, phase: str, computing: str) -> int:
        place, sizes = self.places[name], self._sizes(name)
        if name == computing:
            if place != STREAMED:
                return sizes.all
            if name == TEXT_ENCODER:
                return sizes.layer
            return sizes.outside + (2 * sizes.block if phase == "denoise" else 0)
        if place == STAYS:
            return sizes.all
        if name == TEXT_ENCODER or phase == "encode":
            return 0
        if place == TURNS:  # both branches come with their first use, and stay until another turn begins
            return 0 if phase == "decode" and self.clears else sizes.all
        if place == SWAPPED:  # the last one is still there
            return sizes.all if phase == "decode" and not self.clears and name == self._last else 0
        return 0

    @property
    def _last(self) -> str:
        return UNCONDITIONAL if UNCONDITIONAL in self.places else CONDITIONAL

    def where(self, name: str, phase: str) -> str:
        """In words, where a component lies in a phase."""
        place, encoder = self.places[name], name == TEXT_ENCODER
        if place in (STAYS, FREED):
            return "gone" if place == FREED and phase != "encode" else "memory" if self.device == "cpu" else "device"
        own = "encode" if encoder else "denoise"
        if phase == own:
            return {TURNS: "device", SWAPPED: "one at a time", STREAMED: "layer by layer"}[place]
        last = place == TURNS or (place == SWAPPED and name == self._last)
        return "device" if phase == "decode" and not encoder and last and not self.clears else "host"

    # Peaks

    def stages(self, phase: str) -> Iterator[Peak]:
        """The moments of a phase at which most may be alive."""
        call = self.call
        if phase == "encode":
            yield self._peak(phase, TEXT_ENCODER, call.encoding())
            yield self._peak(phase, CONDITIONAL, call.projecting())
        elif phase == "denoise":
            held = call.held(self._scheduled)
            velocities = {"velocities": self.per_pass * call.image * call.model.transformer["in_channels"] * 8}
            branches = (CONDITIONAL, UNCONDITIONAL) if call.guided else (CONDITIONAL,)
            for name in branches:
                stage = call.step(self.per_pass, name == UNCONDITIONAL, hooked=not self._scheduled)
                yield self._peak(phase, name, Stage(stage.name, {**stage.terms, **velocities, **held}))
        else:
            held = call.held(False)
            stage = call.decoding(self.per_decode, self.tile)
            yield self._peak(phase, AUTOENCODER, Stage(stage.name, {**stage.terms, **held}))

    def _peak(self, phase: str, computing: str, stage: Stage) -> Peak:
        others = {name: size for name, size in stage.terms.items() if size}
        if self.device == "cpu":
            others["kept by the allocator"] = min(HOST_ALLOCATOR_KEEPS, 3 * stage.bytes // 2)
        return Peak(stage.name, self.on_device(phase, computing), others)

    @property
    def _scheduled(self) -> bool:
        """Whether the modulations of a whole schedule are kept: not where a transformer's layers come and go."""
        return all(self.places.get(name, STAYS) == STAYS for name in (CONDITIONAL, UNCONDITIONAL))

    @cached_property
    def peaks(self) -> dict[str, Peak]:
        """The peak of each phase."""
        return {phase: max(self.stages(phase), key=lambda peak: peak.bytes) for phase in PHASES}

    @property
    def peak(self) -> int:
        """The most bytes of all phases, without the reserve."""
        return max(peak.bytes for peak in self.peaks.values())

    @property
    def capacity(self) -> int:
        """Bytes that may be taken once the reserve is left alone."""
        return self.memory - reserve(self.memory, self.device)

    @property
    def needed(self) -> int:
        """The least memory that this plan fits into, reserve included."""
        return with_reserve(self.peak, self.device)

    @property
    def host(self) -> int:
        """Bytes of weights in host memory beside an accelerator."""
        away = (TURNS, SWAPPED, STREAMED)
        return 0 if self.device == "cpu" else sum(self.weights[n] for n, place in self.places.items() if place in away)

    # Loss

    @cached_property
    def losses(self) -> tuple[str, ...]:
        """What makes pictures differ from those of the pipeline as it is; none for a plan without loss."""
        found = [PRECISION_LOSS[kind] for kind in (self.cast, self.precision) if kind in PRECISION_LOSS]
        return tuple(dict.fromkeys(found + ([TILED_LOSS] if self.tile else [])))

    @property
    def rank(self) -> tuple[int, int]:
        """Place in the order of preference: of the precision, then of tiles; 0 for no loss."""
        return rank(self.cast, self.precision, self.tile)

    # Speed

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Estimated seconds of each phase of a call: see `Rates`."""
        call, rates = self.call, self.rates
        there_and_back = {
            name: 2 * self.weights[name] / rates.pageable if self.places[name] in (TURNS, SWAPPED) else 0.0
            for name in self.places
        }
        encode = encode_flops(call) / rates.flops + there_and_back[TEXT_ENCODER]
        if self.places[TEXT_ENCODER] == STREAMED:
            encode += 2 * self.weights[TEXT_ENCODER] / rates.pageable
        denoise = 0.0
        for name in (CONDITIONAL, UNCONDITIONAL):
            if name not in self.places:
                continue
            work = pass_flops(call, name == UNCONDITIONAL, call.pictures) / rates.flops
            if self.places[name] == STREAMED:
                outside = self._sizes(name).outside
                blocks = self.passes * (self.weights[name] - outside) / rates.pinned
                denoise += call.steps * (max(work, blocks) + self.passes * 2 * outside / rates.pageable)
            elif self.places[name] == SWAPPED:
                denoise += call.steps * (work + self.passes * there_and_back[name])
            else:
                denoise += call.steps * work + there_and_back[name]
        decode = decode_flops(call, self.tile) / rates.flops
        return {"encode": encode, "denoise": denoise, "decode": decode}

    @property
    def total_seconds(self) -> float:
        """Estimated seconds of a call."""
        return sum(self.seconds.values())

    @cached_property
    def relative_speed(self) -> float:
        """Estimated speed of a call as a share of that with everything on the device and nothing split or tiled."""
        everything = dict.fromkeys(self.places, STAYS)
        return (
            replace(self, places=everything, per_pass=self.call.pictures, tile=None).total_seconds / self.total_seconds
        )

    def in_few_words(self) -> str:
        """Where what lies, and what is lost."""
        places: dict[str, list[str]] = {}
        for name, place in self.places.items():
            places.setdefault(place, []).append(name)
        words = [f"{', '.join(names)} {place}" for place, names in places.items()]
        return "; ".join([*words, *(f"lossy: {loss}" for loss in self.losses)])

    def __str__(self) -> str:
        return describe(self)


def rank(cast: str | None, precision: str | None, tile: int | None) -> tuple[int, int]:
    """Place in the order of preference: of the precision, then of tiles; 0 for no loss."""
    return max(LOSSES.index(cast), LOSSES.index(precision)), 0 if tile is None else 1 + TILES.index(tile)


def describe(plan: Plan) -> str:
    """A plan in full: components, phases with their arithmetic, reserve, losses and estimated speed."""
    call = plan.call
    noun = "picture" if call.pictures == 1 else "pictures"
    lines = [
        f"Plan for {call.model.name} in {show(plan.memory)} on {plan.device}: {call.pictures} {noun} of {call.width} x"
        f" {call.height} pixels, a caption of {call.caption} tokens, {call.steps} steps.",
        "",
        *_aligned(
            [
                ["component", "precision", "bytes", *PHASES],
                *(
                    [name, precision(plan, name), show(plan.weights[name])]
                    + [plan.where(name, phase) for phase in PHASES]
                    for name in plan.places
                ),
            ]
        ),
        "",
    ]
    for phase, peak in plan.peaks.items():
        lines += [f"{phase}: at most {show(peak.bytes)}, in {peak.stage}", f"  = {_sum(peak.weights, peak.others)}"]
    kept, left = reserve(plan.memory, plan.device), plan.capacity - plan.peak
    lines += [
        f"reserve: {show(kept)} for {'the interpreter' if plan.device == 'cpu' else 'context'} and fragmentation;"
        f" {show(abs(left))} are {'left' if left >= 0 else 'missing'}.",
        "",
        f"transformers: {_passes(plan)}; decoding: {decoding(plan)}.",
    ]
    if plan.host:
        lines.append(f"host memory: {show(plan.host)} of weights wait there.")
    lines += ["lossy: " + loss for loss in plan.losses] or ["no loss: pictures as without a plan, but for rounding."]
    if plan.device != "cpu":
        seconds = ", ".join(f"{phase} {value:.1f}" for phase, value in plan.seconds.items())
        lines.append(
            f"speed: {plan.relative_speed:.2f} of that with everything on the device; {plan.total_seconds:.0f} s a call"
            f" ({seconds}). Estimated from {plan.rates}; not measured."
        )
    return "\n".join(lines)


def precision(plan: Plan, name: str) -> str:
    """The precision of a component's weights in words."""
    component = plan.call.model.components[name]
    kept = plan.precision_of(name)
    if kept is not None:
        return kept
    return f"{component.dtype}, quantized" if component.is_quantized else component.dtype


def _sum(weights: Mapping[str, int], others: Mapping[str, int]) -> str:
    return " + ".join(f"{show(size)} {name}" for name, size in {**weights, **others}.items())


def _passes(plan: Plan) -> str:
    branches = "branches one after the other" if plan.call.guided else "one branch"
    if plan.passes == 1:
        return f"all pictures in one pass, {branches}"
    return f"{plan.passes} passes of at most {plan.max_tokens} tokens a step, {branches}"


def decoding(plan: Plan) -> str:
    if plan.tile is not None:
        return f"tiles of {plan.tile} pixels"
    if plan.call.pictures > 1 and plan.per_decode == 1:
        return "whole, one by one"
    return "whole"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
