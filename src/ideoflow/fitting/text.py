"""Plans as text: one in full, or several in a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .memory import reserve, show

if TYPE_CHECKING:
    from .plans import DoesNotFit, Plan

PHASES = ("encode", "denoise", "decode")


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
        f"transformers: {_passes(plan)}; decoding: {_decoding(plan)}.",
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


def table(rows: Sequence[tuple[int, Plan | DoesNotFit]]) -> str:
    """One line for each amount of memory: its plan, or what the nearest one needs. As a table of Markdown."""
    cells = [
        ["memory", "transformers", "text encoder", "decoding", "encode", "denoise", "decode", "host", "speed", "loss"]
    ]
    for memory, found in rows:
        if isinstance(found, ValueError):
            cells.append([show(memory), f"does not fit: needs {show(found.needed)}", *[""] * 8])
            continue
        branches = [place for name, place in found.places.items() if name.endswith("transformer")]
        kind = precision(found, "transformer")
        ways = ", ".join(dict.fromkeys(branches)) if len(set(branches)) == 1 else " / ".join(branches)
        cells.append(
            [
                show(memory),
                f"{kind}, {ways}",
                found.places["text_encoder"],
                _decoding(found),
                *(show(found.peaks[phase].bytes) for phase in PHASES),
                show(found.host) if found.host else "",
                f"{found.relative_speed:.2f}" if found.device != "cpu" else "",
                "; ".join(found.losses) or "none",
            ]
        )
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


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


def _decoding(plan: Plan) -> str:
    if plan.tile is not None:
        return f"tiles of {plan.tile} pixels"
    if plan.call.pictures > 1 and plan.per_decode == 1:
        return "whole, one by one"
    return "whole"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
