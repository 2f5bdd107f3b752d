"""Several plans as a table."""

from __future__ import annotations

from collections.abc import Sequence

from .choice import DoesNotFit
from .memory import show
from .plans import PHASES, Plan, decoding, precision


def table(rows: Sequence[tuple[int, Plan | DoesNotFit]]) -> str:
    """One line for each amount of memory: its plan, or what the nearest one needs. As a table of Markdown."""
    cells = [
        ["memory", "transformers", "text encoder", "decoding", "encode", "denoise", "decode", "host", "speed", "loss"]
    ]
    for memory, found in rows:
        if isinstance(found, DoesNotFit):
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
                decoding(found),
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
