"""The plan: which precision, what lies where and when, how many passes; the best one of all that fit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any

from ..sizes import LARGEST_SIDE
from .activations import Call, Stage
from .components import AUTOENCODER, CONDITIONAL, TEXT_ENCODER, UNCONDITIONAL, Model, Sizes
from .memory import HOST_ALLOCATOR_KEEPS, parse_memory, reserve, show, with_reserve
from .precisions import NF4, ONE_BYTE, has_bitsandbytes
from .speed import Rates, decode_flops, encode_flops, pass_flops

PHASES = ("encode", "denoise", "decode")

# Where a component lies.
STAYS = "stays"  # on the device all the time
TURNS = "takes turns"  # whole on the device while its phase lasts, in host memory otherwise
SWAPPED = "swapped"  # whole on the device for its pass of each step
STREAMED = "streamed"  # block by block, the next one copied while one computes
FREED = "let go"  # gone after the first captions
WAYS_OF_BRANCHES = (
    (STAYS, STAYS),
    (TURNS, TURNS),
    (STAYS, STREAMED),
    (TURNS, STREAMED),
    (STREAMED, STREAMED),
    (SWAPPED, SWAPPED),
)

# The order of preference: a plan of an earlier entry is taken before any of a later one. Within an entry the faster
# plan, by the estimate, comes first.
LOSSES = (None, "bfloat16", "int8", "fp8", NF4)
TILED = "tiled"
TILES = (1024, 512, 256)  # pixels of a side
PRECISION_LOSS = {
    "bfloat16": "float32 rounded to bfloat16",
    "int8": "the blocks' linear layers in int8",
    "fp8": "the blocks' linear layers in fp8",
    NF4: "the blocks' linear layers in nf4",
}
TILED_LOSS = "the autoencoder decodes tiles, which do not see each other: tones may differ from tile to tile"


class DoesNotFit(ValueError):
    """No plan fits. `nearest` is the one that needs the least memory, `needed` how much that is, reserve included."""

    def __init__(self, message: str, nearest: Plan, needed: int) -> None:
        super().__init__(message)
        self.nearest, self.needed = nearest, needed


@dataclass(frozen=True)
class Peak:
    """The most that a phase holds at once.

    Attributes:
        stage: What is being computed then.
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
        call: What is drawn.
        device: Type of the device: "cuda", "cpu" ...
        memory: Bytes that may be taken; a plan that is not asked to fit has 0.
        places: Where each component lies, by name.
        precision: Of the transformers' weights; None for as they are.
        cast: Type that every component is cast to; None for as it is.
        clears: Whether the transformers leave the device while pictures are decoded.
        per_pass: Pictures that go through the transformers in one pass.
        per_decode: Pictures that are decoded as one batch.
        tile: Side in pixels of the tiles that are decoded one by one; None for whole pictures.
        rates: What the machine is assumed to do.
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
                stage = call.step(self.per_pass, name == UNCONDITIONAL)
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
        precision = max(LOSSES.index(self.cast), LOSSES.index(self.precision))
        return precision, 0 if self.tile is None else 1 + TILES.index(self.tile)

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

    def __str__(self) -> str:
        from .text import describe

        return describe(self)


def plan(
    subject: Any = None,
    memory: str | int | float = "24GB",
    size: tuple[int, int] = (1024, 1024),
    caption_tokens: int = 500,
    pictures: int = 1,
    device: str = "cuda",
    allow: Sequence[str] | None = None,
    quantize: str | None = None,
    host_memory: str | int | float | None = None,
    free_text_encoder: bool = False,
    steps: int = 20,
    rates: Rates | None = None,
) -> Plan:
    """Choose how a call fits into a device's memory.

    The order of preference: plans without loss before those with it; of those with it, tiles, then float32 rounded to
    bfloat16, then int8, fp8 and nf4, each with whole pictures decoded before tiles. Of equal ones the faster by the
    estimate.

    Args:
        subject: A pipeline, a `Model` of configurations, or None for the published model's configuration.
        memory: What the device has for this process: "12GB", "12GiB", "11500MB" or bytes. A reserve is left alone.
        size: Width and height of the pictures.
        caption_tokens: Of the caption, template included.
        pictures: Drawn in one call, all of this size and caption length.
        device: "cuda" or another accelerator, or "cpu", where `memory` is resident memory of the whole process.
        allow: Which losses may be taken where no plan without them fits: "bfloat16" (for weights in float32), "int8",
            "fp8", "nf4" (needs bitsandbytes) and "tiled". None for "bfloat16", "int8", "tiled", and "nf4" where
            bitsandbytes is installed and the device is an accelerator; () for none.
        quantize: "int8", "fp8" or "nf4" asked for, whether needed or not.
        host_memory: For weights that wait beside an accelerator; None for no limit.
        free_text_encoder: On a CPU, let the text encoder go once the first call's captions are encoded; captions that
            were not among them are refused afterwards.
        steps: Of the schedule.
        rates: What the machine is assumed to do, for the estimates of speed.

    Raises:
        DoesNotFit: (a ValueError) if nothing fits; it names the nearest plan and the memory that needs.
        ValueError: naming the argument that does not fit.
    """
    model = _model(subject)
    amount = parse_memory(memory)
    host = None if host_memory is None else parse_memory(host_memory)
    kind = str(device).partition(":")[0]
    _check(model, size, caption_tokens, pictures, steps, allow, quantize, free_text_encoder, kind)
    call = Call(model, *size, caption_tokens, pictures, steps, dtype=model.components[CONDITIONAL].dtype)
    allowed = _allowed(kind) if allow is None else tuple(allow)
    best: Plan | None = None
    least: Plan | None = None
    for one in _candidates(call, kind, amount, allowed, quantize, free_text_encoder, rates or Rates()):
        if host is not None and one.host > host:
            continue
        if least is None or one.peak < least.peak:
            least = one
        if one.peak <= one.capacity and (best is None or _key(one) < _key(best)):
            best = one
    if best is not None:
        return best
    raise _refusal(least, amount, host, kind)


def _key(one: Plan) -> tuple[Any, ...]:
    return one.rank, round(one.total_seconds, 6)


def _model(subject: Any) -> Model:
    if subject is None:
        return Model.full()
    return subject if isinstance(subject, Model) else Model.of_pipeline(subject)


def _allowed(device: str) -> tuple[str, ...]:
    nf4 = (NF4,) if device != "cpu" and has_bitsandbytes() else ()
    return ("bfloat16", "int8", *nf4, TILED)


def _check(
    model: Model,
    size: Any,
    caption: int,
    pictures: int,
    steps: int,
    allow: Sequence[str] | None,
    quantize: str | None,
    free: bool,
    device: str,
) -> None:
    side = model.token_side
    good = isinstance(size, Sequence) and len(size) == 2 and all(isinstance(one, int) for one in size)
    if not good or any(one < side or one % side or one > LARGEST_SIDE for one in size):
        raise ValueError(
            f"`size` is {size!r}: give (width, height) in pixels, multiples of {side} up to {LARGEST_SIDE}."
        )
    for name, value in (("caption_tokens", caption), ("pictures", pictures), ("steps", steps)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{name}` is {value!r}: give a whole number, at least 1.")
    choices = (*(kind for kind in LOSSES if kind), TILED)
    if isinstance(allow, str) or any(one not in choices for one in allow or ()):
        raise ValueError(f"`allow` is {allow!r}: give a list of some of {', '.join(choices)}, or () for no loss.")
    if quantize not in (None, *ONE_BYTE, NF4):
        raise ValueError(f"`quantize` is {quantize!r}: choose one of {', '.join((*ONE_BYTE, NF4))}.")
    if quantize is not None and model.kind is not None:
        raise ValueError(
            f"`quantize` is {quantize!r}, but the transformers' weights are quantized already: leave it out."
        )
    if NF4 in (quantize, *(allow or ())) and device == "cpu":
        raise ValueError("nf4 is for accelerators here: on a CPU use int8.")
    if free and device != "cpu":
        raise ValueError(
            "`free_text_encoder` is for a CPU: beside an accelerator the text encoder waits in host memory."
        )


def _candidates(
    call: Call, device: str, memory: int, allowed: Iterable[str], quantize: str | None, free: bool, rates: Rates
) -> Iterator[Plan]:
    """All plans, the simplest first: of equally good ones the first is taken."""
    names = call.model.components
    stored = call.model.kind
    casts: list[str | None] = [None]
    if "bfloat16" in allowed and stored is None and any(component.dtype == "float32" for component in names.values()):
        casts.append("bfloat16")
    kinds: list[str | None] = [None] if quantize is None else [quantize]
    if quantize is None and stored is None:
        kinds += [kind for kind in (*ONE_BYTE, NF4) if kind in allowed]
    tiles: list[int | None] = [None]
    if TILED in allowed:
        tiles += [tile for tile in TILES if tile < max(call.width, call.height)]
    per_pass = sorted({math.ceil(call.pictures / passes) for passes in range(1, call.pictures + 1)}, reverse=True)
    for cast, kind, tile, together, decoded in product(
        casts, kinds, tiles, per_pass, dict.fromkeys((call.pictures, 1))
    ):
        kept = kind or stored
        own = replace(call, dtype=cast or call.dtype, precision=kept, expands=_expands(device, kept))
        for places, clears in _placements(names, device, free, kind):
            yield Plan(own, device, memory, places, kind, cast, clears, together, decoded, tile, rates)


def _expands(device: str, kind: str | None) -> bool:
    """Whether a kind's weights are expanded before each product; where that is not known, whether they may be."""
    if device == "cpu":
        from ..ops.quantized_linear import HAS_VNNI

        return kind is not None and not (kind == "int8" and HAS_VNNI)
    return kind in (NF4, "fp8", "other")


def _placements(
    names: Iterable[str], device: str, free: bool, kind: str | None
) -> Iterator[tuple[dict[str, str], bool]]:
    """Where the components may lie, and whether the transformers leave for the decoder."""
    if device == "cpu":
        yield {name: FREED if free and name == TEXT_ENCODER else STAYS for name in names}, False
        return
    for encoder, branches in product((STAYS, TURNS, STREAMED), WAYS_OF_BRANCHES):
        if encoder == STAYS and branches[0] in (TURNS, SWAPPED):
            continue  # the text encoder in the way all the time, and the transformers out of it
        if kind == NF4 and STREAMED in branches:
            continue  # bitsandbytes' weights carry tensors that group offloading does not know
        if UNCONDITIONAL not in names and branches[0] != branches[1]:
            continue
        own = {TEXT_ENCODER: encoder, CONDITIONAL: branches[0], UNCONDITIONAL: branches[1], AUTOENCODER: STAYS}
        places = {name: own[name] for name in names}
        yield places, False
        if TURNS in branches or SWAPPED in branches:
            yield places, True


def _refusal(least: Plan | None, memory: int, host: int | None, device: str) -> Exception:
    beside = "" if host is None else f" beside {show(host)} of host memory"
    if least is None:
        assert host is not None
        return ValueError(
            f"`host_memory` is {show(host)}, and every plan that may be taken keeps more there: give more, or"
            " allow a lossy precision."
        )
    call = least.call
    needed = least.needed
    kept = show(reserve(memory, device))
    return DoesNotFit(
        f"{call.width} x {call.height} pixels with a caption of {call.caption} tokens do not fit into {show(memory)}"
        f"{beside} ({kept} are kept in reserve). The nearest plan needs {show(needed)}: {least_words(least)}. Give that"
        " much, or draw smaller or fewer pictures.",
        least,
        needed,
    )


def least_words(one: Plan) -> str:
    """A plan in a few words."""
    places: dict[str, list[str]] = {}
    for name, place in one.places.items():
        places.setdefault(place, []).append(name)
    words = [f"{', '.join(names)} {place}" for place, names in places.items()]
    words += [f"lossy: {loss}" for loss in one.losses]
    return "; ".join(words)
