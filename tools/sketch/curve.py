"""What a stage of training logged: one JSON line every few steps, kept across interruptions, drawn as a plot."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ideoflow.files import write_text

log = logging.getLogger(__name__)


class Curve:
    """The log of one stage.

    Args:
        path: A file of JSON lines, each with `step`, `seconds` of training so far and the stage's figures.
        step: Where the stage goes on: lines beyond it belong to steps that were lost, and go.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        lines = [line for line in read(path) if line["step"] <= step]
        self.before = lines[-1]["seconds"] if lines else 0.0
        self.begun = time.monotonic()
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Log the figures of a step, to the file and to whoever watches."""
        seconds = self.before + time.monotonic() - self.begun
        line = {"step": step, "seconds": round(seconds, 1)} | {name: round(v, 5) for name, v in values.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        log.info("%s %s", self.path.stem, " ".join(f"{name} {value:g}" for name, value in line.items()))


def read(path: Path) -> list[dict[str, float]]:
    """The lines of a log, in order; none when there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def plot(lines: Sequence[Mapping[str, float]], names: Sequence[str], title: str) -> str:
    """An SVG of the named figures over the steps; the scale is logarithmic."""
    import math

    width, height, left, right, top, bottom = 720, 360, 60, 150, 40, 40
    colours = ("#1e60e5", "#e53935", "#43a047", "#8e24aa", "#fb8c00", "#6d4c41")
    series = {name: [(line["step"], line[name]) for line in lines if line.get(name, 0) > 0] for name in names}
    values = [v for points in series.values() for _, v in points]
    low, high = math.log10(min(values)), math.log10(max(values))
    last = max(step for points in series.values() for step, _ in points)

    def place(step: float, value: float) -> str:
        x = left + (width - left - right) * step / last
        y = top + (height - top - bottom) * (high - math.log10(value)) / max(high - low, 1e-9)
        return f"{x:.1f},{y:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/><text x="{left}" y="22" font-size="15">{title}</text>',
    ]
    for exponent in range(math.floor(low), math.ceil(high) + 1):
        for mark in (1, 2, 5):
            if low <= math.log10(mark * 10**exponent) <= high:
                y = place(0, mark * 10**exponent).split(",")[1]
                parts.append(f'<path d="M{left} {y}H{width - right}" stroke="#ddd"/>')
                parts.append(
                    f'<text x="{left - 6}" y="{float(y) + 4}" text-anchor="end">{mark * 10.0**exponent:g}</text>'
                )
    for number in range(5):
        step = last * number / 4
        x = place(step, 10**low).split(",")[0]
        parts.append(f'<text x="{x}" y="{height - 16}" text-anchor="middle">{step:.0f}</text>')
    for (name, points), colour in zip(series.items(), colours, strict=False):
        if points:
            line = " ".join(place(*point) for point in points)
            x, y = place(*points[-1]).split(",")
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
            parts.append(
                f'<text x="{float(x) + 6}" y="{float(y) + 4}" fill="{colour}">{name} {points[-1][1]:.3g}</text>'
            )
    return "\n".join([*parts, "</svg>"]) + "\n"
