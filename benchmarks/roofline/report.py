"""The time that a machine's rates bound, figures of all implementations on all machines, and their tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from .counting import count, work_of
from .machines import Machine
from .sizes import BASE, IMPLEMENTATIONS, KERNELS, Config, Sample
from .work import ELEMENTWISE, PARTS, REQUEST, STEP, Part, Work


def seconds(parts: Sequence[Part], machine: Machine, dtype: str, name: str | None = None, when: str = STEP) -> float:
    """The least time that parts take, those of this name or all: each the longer of products and traffic."""
    chosen = [p.work for p in parts if name in (None, p.name) and p.when == when]
    return sum(max(w.matrix_flops / machine.matrix[dtype], w.bytes / machine.bandwidth) for w in chosen)


def predict(parts: Sequence[Part], machine: Machine, dtype: str, steps: int) -> dict[str, Any]:
    """Times on a machine in seconds: of a step by part, of what is done once, and of all `steps`."""
    step, once = (seconds(parts, machine, dtype, when=when) for when in (STEP, REQUEST))
    by_part = {name: seconds(parts, machine, dtype, name) for name in PARTS}
    return {
        "step_seconds": step,
        "once_seconds": once,
        "all_steps_seconds": once + steps * step,
        "parts": {name: {"seconds": value, "share": value / step} for name, value in by_part.items()},
    }


def report(
    config: Config, samples: Sequence[Sample], machines: Sequence[Machine], dtype: str, steps: int
) -> dict[str, Any]:
    """Counts of all implementations and their times on all machines, ready to be written as JSON."""
    counted = {}
    for implementation in IMPLEMENTATIONS:
        parts = {
            device: count(config, samples, implementation, dtype, device)
            for device in dict.fromkeys(machine.device for machine in machines)
        }
        counted[implementation.name] = {
            "options": asdict(implementation),
            "work": {
                device: {
                    when: {name: _figures(work_of(of_device, name, when)) for name in PARTS}
                    | {"total": _figures(work_of(of_device, None, when))}
                    for when in (STEP, REQUEST)
                }
                for device, of_device in parts.items()
            },
            "time": {machine.name: predict(parts[machine.device], machine, dtype, steps) for machine in machines},
        }
    return {
        "benchmark": "roofline",
        "config": asdict(config),
        "samples": [asdict(sample) for sample in samples],
        "dtype": dtype,
        "steps": steps,
        "machines": [asdict(machine) for machine in machines],
        "implementations": counted,
        "elementwise_bytes": {
            kernels.name: work_of(count(config, samples, kernels, dtype), ELEMENTWISE).bytes for kernels in KERNELS
        },
    }


def _figures(work: Work) -> dict[str, Any]:
    figures = {"matrix_flops": work.matrix_flops, "vector_flops": work.vector_flops, "bytes": work.bytes_by_type()}
    return figures | {"total_bytes": work.bytes}


def show(figures: Mapping[str, Any]) -> str:
    """The tables of a report."""
    sides = figures["implementations"]
    lines = [
        "transformer  " + ", ".join(f"{name} {value}" for name, value in figures["config"].items()),
        "pictures     "
        + "; ".join(
            f"{s['text']} text tokens, {s['rows']} x {s['cols']} image tokens" + ("" if s["guided"] else ", unguided")
            for s in figures["samples"]
        ),
    ]
    for device in dict.fromkeys(machine["device"] for machine in figures["machines"]):
        work = {name: side["work"][device] for name, side in sides.items()}
        note = "" if device == "cuda" else " (as PyTorch computes norms on a CPU)"
        lines += ["", f"one step in {figures['dtype']}: TFLOP of products | GB read and written{note}"]
        lines.append(_row("", work))
        for name in (*PARTS, "total"):
            lines.append(_row(name, [_amounts(side[STEP][name]) for side in work.values()]))
        lines.append(_row("once, all requests", [_amounts(side[REQUEST]["total"]) for side in work.values()]))
        for kind in ("weights", "read", "written"):
            moved = [sum(side[STEP]["total"]["bytes"][kind].values()) for side in work.values()]
            lines.append(_row(f"of GB: {kind}", [f"{value / 1e9:.1f}" for value in moved]))
        vector = [side[STEP]["total"]["vector_flops"] for side in work.values()]
        lines.append(_row("vector TFLOP", [f"{value / 1e12:.2f}" for value in vector]))
    lines += ["", f"GB read and written by {ELEMENTWISE} work of a step on a GPU"]
    lines += [f"{name:30}{moved / 1e9:6.1f}" for name, moved in figures["elementwise_bytes"].items()]
    for machine in figures["machines"]:
        times = [side["time"][machine["name"]] for side in sides.values()]
        rate, bandwidth = machine["matrix"][figures["dtype"]] / 1e12, machine["bandwidth"] / 1e12
        lines += ["", f"{machine['name']}: {rate:.4g} TFLOP/s, {bandwidth:.4g} TB/s ({machine['source']})"]
        lines.append(_row("ms of a step | share", sides))
        for name in PARTS:
            cells = [f"{1e3 * t['parts'][name]['seconds']:.2f} {t['parts'][name]['share']:5.1%}" for t in times]
            lines.append(_row(name, cells))
        lines.append(_row("step", [f"{1e3 * t['step_seconds']:.1f}       " for t in times]))
        ours = sides[BASE]["time"][machine["name"]]["step_seconds"]
        lines.append(_row(f"times {BASE}", [f"{t['step_seconds'] / ours:.3f}       " for t in times]))
        lines.append(_row("once, ms", [f"{1e3 * t['once_seconds']:.1f}       " for t in times]))
        lines.append(_row(f"{figures['steps']} steps, s", [f"{t['all_steps_seconds']:.2f}       " for t in times]))
    return "\n".join(lines)


def _amounts(figures: Mapping[str, Any]) -> str:
    return f"{figures['matrix_flops'] / 1e12:.3f} {figures['total_bytes'] / 1e9:8.1f}"


def _row(name: str, cells: Sequence[str] | Mapping[str, Any]) -> str:
    return f"{name:21}" + "".join(f"{cell:>18}" for cell in cells)
