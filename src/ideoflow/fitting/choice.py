"""The choice of a plan: all that could be made, in the order of preference, and the fastest of the first that fit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby, product
from typing import Any

from ..presets import MAX_STEPS
from ..sizes import LARGEST_SIDE
from .activations import Call
from .components import AUTOENCODER, CONDITIONAL, TEXT_ENCODER, UNCONDITIONAL, Model
from .memory import parse_memory, reserve, show
from .plans import FREED, LOSSES, STAYS, STREAMED, SWAPPED, TILES, TURNS, Plan, rank
from .precisions import NF4, ONE_BYTE, has_bitsandbytes
from .speed import Rates

TILED = "tiled"
WAYS_OF_BRANCHES = (
    (STAYS, STAYS),
    (TURNS, TURNS),
    (STAYS, STREAMED),
    (TURNS, STREAMED),
    (STREAMED, STREAMED),
    (SWAPPED, SWAPPED),
)


class DoesNotFit(ValueError):
    """No plan fits.

    Attributes:
        nearest: The plan that needs the least memory.
        needed: Bytes that it needs, reserve included.
    """

    def __init__(self, nearest: Plan, beside: str = "") -> None:
        """
        Args:
            nearest: The plan that needs the least memory.
            beside: What else is limited, in words.
        """
        call, self.nearest, self.needed = nearest.call, nearest, nearest.needed
        kept = show(reserve(nearest.memory, nearest.device))
        super().__init__(
            f"{call.width} x {call.height} pixels with a caption of {call.caption} tokens do not fit into"
            f" {show(nearest.memory)}{beside} ({kept} are kept in reserve). The nearest plan needs {show(self.needed)}:"
            f" {nearest.in_few_words()}. Give that much, or draw smaller or fewer pictures."
        )


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
        caption_tokens: Length of the caption, template included.
        pictures: How many are drawn in one call, all of this size and caption length.
        device: "cuda" or another accelerator, or "cpu", where `memory` is resident memory of the whole process.
        allow: Which losses may be taken where no plan without them fits: "bfloat16" (for weights in float32), "int8",
            "fp8", "nf4" (needs bitsandbytes) and "tiled". None for "bfloat16", "int8", "tiled", and "nf4" where
            bitsandbytes is installed and the device is an accelerator; () for none.
        quantize: "int8", "fp8" or "nf4" asked for, whether needed or not.
        host_memory: Host memory for weights that wait beside an accelerator; None for no limit.
        free_text_encoder: On a CPU, let the text encoder go once the first call's captions are encoded; captions that
            were not among them are refused afterwards.
        steps: Steps of the schedule.
        rates: What the machine is assumed to do, for the estimates of speed.

    Raises:
        DoesNotFit: (a ValueError) if nothing fits; it names the nearest plan and the memory that needs.
        ValueError: naming the argument that does not fit.
    """
    model = _model(subject)
    amount = parse_memory(memory)
    host = math.inf if host_memory is None else parse_memory(host_memory)
    kind = str(device).partition(":")[0]
    _check(model, size, caption_tokens, pictures, steps, allow, quantize, free_text_encoder, kind)
    call = Call(model, *size, caption_tokens, pictures, steps, dtype=model.components[CONDITIONAL].dtype)
    allowed = _allowed(kind) if allow is None else tuple(allow)
    possible: list[Plan] = []
    for equally_good in _candidates(call, kind, amount, allowed, quantize, free_text_encoder, rates or Rates()):
        some = [one for one in equally_good if one.host <= host]
        if fitting := [one for one in some if one.peak <= one.capacity]:
            return min(fitting, key=lambda one: round(one.total_seconds, 6))  # the first of equals, the simplest
        possible += some
    if not possible:
        raise ValueError(
            f"`host_memory` is {show(host)}, and every plan that may be taken keeps more there: give more, or"
            " allow a lossy precision."
        )
    beside = "" if host_memory is None else f" beside {show(host)} of host memory"
    raise DoesNotFit(min(possible, key=lambda one: one.peak), beside)


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
    if steps > MAX_STEPS:
        raise ValueError(f"`steps` is {steps!r:.40}: give a whole number from 1 to {MAX_STEPS}.")
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
) -> Iterator[list[Plan]]:
    """All plans in the order of preference, equally good ones together, the simplest first."""
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
    per_decode = dict.fromkeys((call.pictures, 1))
    losses = sorted(product(casts, kinds, tiles), key=lambda loss: rank(*loss))
    for _, equal in groupby(losses, key=lambda loss: rank(*loss)):
        found = []
        for cast, kind, tile in equal:
            kept = kind or stored
            own = replace(call, dtype=cast or call.dtype, precision=kept, expands=_expands(device, kept))
            for together, decoded in product(per_pass, per_decode):
                for places, clears in _placements(names, device, free, kind):
                    found.append(Plan(own, device, memory, places, kind, cast, clears, together, decoded, tile, rates))
        yield found


def _expands(device: str, kind: str | None) -> bool:
    """Whether a kind's weights are expanded before each product; where that is not known, whether they may be."""
    if device != "cpu":
        return kind in (NF4, "fp8", "other")
    if kind != "int8":
        return kind is not None
    from ..ops.quantized_linear import HAS_VNNI  # imports torch, which plans of other kinds do without

    return not HAS_VNNI


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
