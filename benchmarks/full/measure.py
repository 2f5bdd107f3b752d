"""One case: the sides of a phase compared, then timed in turn, a step and whole pictures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks._gpu import free, matrix_rate, timed, why
from benchmarks.full.cases import Case
from benchmarks.full.models import Branches, Models
from benchmarks.full.sides import Inputs, OurRun, PeerRun, Side
from benchmarks.roofline import IMPLEMENTATIONS, Config, Sample, count, work_of
from ideoflow.schedule import logit_normal_sigmas

# How far the velocities may be from those of a phase's first side, root mean square over root mean square. Guidance
# magnifies roundings about tenfold; two unrelated velocities are 1.4 apart.
FARTHEST = {"bf16": 0.1, "fp8": 1.0, "int8": 1.0}
FEWEST, PICTURES = 3, 3  # counted rounds of steps at least, and of pictures
IMPLEMENTATION = {implementation.name: implementation for implementation in IMPLEMENTATIONS}


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        rounds: counted calls of each side.
        case_seconds: take fewer, three at least, where they would take longer than this.
        picture_seconds: draw whole pictures where a round of all sides takes less than this.
        steps: of a picture.
        matrix: side of the square matrices that the matrix rate is measured with.
    """

    rounds: int
    case_seconds: float
    picture_seconds: float
    steps: int
    matrix: int


def make_inputs(case: Case, sizes: Config, device: str, steps: int) -> Inputs:
    """Random text features and noise, the same for every side and every run."""
    generator = torch.Generator(device).manual_seed(case.pixels * 10007 + case.caption_tokens * 11 + case.batch)
    side = case.pixels // 16
    features = torch.randn(case.caption_tokens, sizes.llm_features_dim, generator=generator, device=device)
    shape = (case.batch, side * side, sizes.in_channels)
    return Inputs(
        features=features.to(torch.bfloat16),
        latents=torch.randn(shape, generator=generator, device=device),
        grid=(side, side),
        sigmas=logit_normal_sigmas(steps, case.pixels, case.pixels),
    )


def load(side: Side, models: Models) -> Branches | str:
    """The transformers of a side, or what making them failed from."""
    try:
        return side.load(models)
    except Exception as error:
        return why(error)


@torch.no_grad()
def measure(
    sides: Sequence[Side],
    loaded: Mapping[str, Branches | str],
    case: Case,
    sizes: Config,
    device: str,
    effort: Effort,
) -> dict[str, Any]:
    """Figures of each side: its median seconds, peak bytes, FLOP/s, and distance; or what it failed from."""
    inputs = make_inputs(case, sizes, device, effort.steps)
    figures: dict[str, dict[str, Any]] = {side.name: {} for side in sides}
    runs = _compare(sides, loaded, inputs, figures)
    # After a first call of each, so that the device has its working temperature and clocks.
    rates = {p: matrix_rate(p, device, effort.matrix) for p in dict.fromkeys(side.precision for side in sides)}

    begun = sum(_round(runs, "step", figures, device).values())
    rounds = max(min(FEWEST, effort.rounds), min(effort.rounds, int(effort.case_seconds / max(begun, 1e-9))))
    taken = [_round(runs, "step", figures, device) for _ in range(rounds)]
    _medians(taken, runs, "seconds", figures)
    one_step = sum(figures[name]["seconds"] for name in runs)
    if effort.steps * one_step < effort.picture_seconds:
        taken = [_round(runs, "picture", figures, device) for _ in range(min(PICTURES, effort.rounds))]
        _medians(taken, runs, "picture_seconds", figures)

    samples = [Sample(case.caption_tokens, *inputs.grid)] * case.batch
    for side in sides:
        if side.name in runs:
            work = work_of(count(sizes, samples, IMPLEMENTATION[side.counts_as], "bfloat16", device))
            rate = work.matrix_flops / figures[side.name]["seconds"]
            figures[side.name] |= {
                "matrix_flops": work.matrix_flops,
                "flops_per_second": rate,
                "share_of_matrix_rate": rate / rates[side.precision],
            }
    first = figures[sides[0].name].get("seconds")
    for name in runs:
        figures[name]["times_first"] = figures[name]["seconds"] / first if first else None
    return {"rounds": rounds, "matrix_flops_per_second": rates, "sides": figures}


def _compare(
    sides: Sequence[Side],
    loaded: Mapping[str, Branches | str],
    inputs: Inputs,
    figures: dict[str, dict[str, Any]],
) -> dict[str, OurRun | PeerRun]:
    """The sides that run and agree with the first that does; the others have what they failed from in `figures`."""
    runs: dict[str, OurRun | PeerRun] = {}
    reference: Tensor | None = None
    for side in sides:
        branches = loaded[side.name]
        if isinstance(branches, str):
            figures[side.name] = {"failed": branches}
            continue
        try:
            run = side.run(branches, inputs)
            velocity = run.step()
        except Exception as error:
            figures[side.name] = {"failed": why(error)}
        else:
            reference = velocity if reference is None else reference
            apart = float((velocity - reference).square().mean().sqrt() / reference.square().mean().sqrt())
            figures[side.name]["difference"] = apart
            if apart <= FARTHEST[side.precision]:
                runs[side.name] = run
            else:
                figures[side.name]["failed"] = f"its velocities are {apart:.3g} away from those of {next(iter(runs))}"
        run = velocity = None  # type: ignore[assignment]
        free()
    return runs


def _round(
    runs: dict[str, OurRun | PeerRun], what: str, figures: dict[str, dict[str, Any]], device: str
) -> dict[str, float]:
    """Seconds of one call of each side in turn; a side that fails is told and left out from then on."""
    seconds = {}
    for name, run in list(runs.items()):
        try:
            seconds[name], peak = timed(getattr(run, what), device)
        except Exception as error:
            figures[name]["failed"] = f"{what}: {why(error)}"
            del runs[name], run
            free()
            continue
        key = "peak_bytes" if what == "step" else f"{what}_peak_bytes"
        figures[name][key] = max(peak, figures[name].get(key, 0))
    return seconds


def _medians(
    taken: Sequence[dict[str, float]], runs: Mapping[str, object], key: str, figures: dict[str, dict[str, Any]]
) -> None:
    for name in runs:
        figures[name][key] = statistics.median(seconds[name] for seconds in taken)
