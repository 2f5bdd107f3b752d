"""`ideoflow simulate`: traffic through the engine's scheduler, without a machine: who would wait how long."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..files import check_writable, write_text
from ..presets import MAX_STEPS
from ..sizes import LARGEST_SIDE, UNIT
from .console import err, out, plain_errors, plain_warnings, starting
from .fleets import Fleet, show_fleets

if TYPE_CHECKING:
    from ..engine import Policy
    from ..simulate import Cost, Job, Report

BATCHES = "batches"
MEASURED = "h100"  # of --cost
MOST_GPUS = 10_000
LOAD = 0.8  # where neither --load nor --rate is given
GUIDANCE = 7.0  # any but 1 takes both branches
# Far beyond any request, device and patience, but no slip of the keyboard: a simulation of each ends.
CAPTION = 100_000  # tokens
SECONDS = 1e6  # of each number of --cost
SLOWEST, FASTEST = 1e-9, 1e9  # requests a second, and load
FORM = "WIDTHxHEIGHT:STEPS[:WEIGHT[:CAPTION]], such as 1024x1024:20:0.9 or 1024x1024:turbo:2:400"


def simulate(
    job: Annotated[
        list[str] | None,
        typer.Option(
            "--job",
            "-j",
            metavar="WxH:STEPS[:WEIGHT[:CAPTION]]",
            help="A kind of request: size in pixels, steps (a number, or quality, default or turbo), how often it comes"
            " in proportion to the others (1), tokens of its caption (300). Repeat it for a mix.",
            show_default=False,
        ),
    ] = None,
    cost: Annotated[
        str | None,
        typer.Option(
            metavar="h100|A,B[,C[,START[,FINISH]]]",
            help="Seconds of a step: A + B * tokens + C * (sum of squared segment lengths); START of a caption,"
            " FINISH of a picture's image token. 'h100' for the full model in bfloat16, as measured on one.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help='Fit the cost from measured steps: [{"segments": [lengths], "seconds": s}, ...], or such a list under'
            ' the key "steps".',
            show_default=False,
        ),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure the cost now: the bundled model's, on this machine's CPU.")
    ] = False,
    load: Annotated[
        float | None,
        typer.Option(
            help="Share of the time that the traffic would keep the devices busy if each request ran alone.",
            show_default=f"{LOAD:g}",
        ),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Requests a second, in place of --load.", show_default=False)
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            "-p",
            help="fair, fifo, priority; or batches: the usual server, batches of equal size and steps that run to"
            " their end. Repeat it to compare.",
            show_default="fair",
        ),
    ] = None,
    devices: Annotated[
        int | None, typer.Option(min=1, help="How many, each with an engine of its own.", show_default="1")
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_GPUS,
            help="In place of --devices: GPUs of a fleet, in replicas of as many as --parallel says.",
            show_default=False,
        ),
    ] = None,
    parallel: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PLAN",
            help="How the GPUs of a replica share a step: guidance=2,context=3, tensor=2, one ... Repeat it to"
            " compare. Needs --gpus.",
            show_default="several plans",
        ),
    ] = None,
    p95: Annotated[
        float | None,
        typer.Option(
            "--p95",
            metavar="SECONDS",
            help="Find the fewest of --gpus with which 95 of a hundred requests take no longer. Needs --rate.",
            show_default=False,
        ),
    ] = None,
    link: Annotated[
        str,
        typer.Option(
            metavar="NAME|BANDWIDTH,LATENCY",
            help="What joins the GPUs of a replica: nvlink, pcie, or bytes a second and seconds of a collective.",
        ),
    ] = "nvlink",
    failures: Annotated[
        str | None,
        typer.Option(
            metavar="EVERY:REPAIR",
            help="Seconds from a GPU's failure to its next, and until it is back; its replica fails with it, and the"
            " requests there begin anew elsewhere. Needs --gpus.",
            show_default=False,
        ),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a step, both branches together.", show_default="no limit")
    ] = None,
    max_requests: Annotated[
        int | None, typer.Option(min=1, help="Requests of a step.", show_default="no limit")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="The most requests of a batch under --policy batches.")] = 4,
    count: Annotated[int, typer.Option(min=1, help="Requests to play.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the arrivals, and of what measured steps vary by.")] = 0,
    file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write all figures.", show_default=False)
    ] = None,
) -> None:
    """Play traffic through the engine's scheduler: pictures a second, and how long each kind of request waits.

    Requests arrive at random. Nothing is drawn: a cost model says how long a step takes. Give it as numbers, as
    measured steps, or have it measured. Measured steps also say how the machine's speed varies; numbers do not.

    Examples:

      ideoflow simulate -j 512x512:20:9 -j 1024x1024:48 --cost 0.002,4e-6,3e-10

      ideoflow simulate -j 1024x1024:turbo --cost 0.002,4e-6 -p fair -p batches

      ideoflow simulate -j 96x96:12:5 -j 192x192:48 --measure --max-tokens 450

      ideoflow simulate -j 1024x1024:20 --steps steps.json --rate 3 --devices 4

      ideoflow simulate -j 512x512:12 --cost h100 --gpus 100 --rate 2 --p95 3

      ideoflow simulate -j 512x512:20 --cost h100 --gpus 8 --parallel context=2
    """
    with plain_errors():
        if not job:
            raise ValueError(f"--job is missing: what comes? Give {FORM}.")
        if load is not None and rate is not None:
            raise ValueError("--load and --rate say the same thing: give one of them.")
        for name, value in (("load", load), ("rate", rate)):
            if value is not None and not SLOWEST <= value <= FASTEST:
                raise ValueError(f"--{name} {value:g}: give a number above 0, from {SLOWEST:g} to {FASTEST:g}.")
        if (cost is not None) + (steps is not None) + measure != 1:
            raise ValueError(
                "how long does a step take? Give one of --cost A,B,C (seconds), --steps FILE.json (measured ones) and"
                " --measure (the bundled model on this machine)."
            )
        policies = _policies(policy or ["fair"])
        for name, given in (("parallel", parallel), ("p95", p95), ("failures", failures)):
            if given is not None and gpus is None:
                raise ValueError(f"--{name} is about a fleet: give --gpus as well, such as --gpus 64.")
        if gpus is not None and devices is not None:
            raise ValueError("--gpus and --devices say the same thing: give one of them.")
        if p95 is not None and rate is None:
            raise ValueError("--p95 asks how many GPUs a traffic takes: give it as --rate, requests a second.")
        if gpus is not None and (BATCHES in policies or len(policies) > 1):
            raise ValueError("--gpus takes one --policy, of fair, fifo and priority.")
        fleet = None if gpus is None else Fleet.of(gpus, parallel or [], link, p95, failures)
        numbers = _cost(cost) if cost is not None else None
        from ..simulate import poisson, rate_of_load

        kinds = [_job(text) for text in job]
        if file is not None:
            check_writable(file, "--json")  # not after a run of minutes
        with _bar() as progress:
            if numbers is not None:
                model = numbers
            elif steps is not None:
                model = _fitted(steps)
            else:
                model = _measured(kinds, max_tokens, max_requests, progress("measuring steps"))
            settings = {"jobs": job, "load": load, "rate": rate, "count": count, "seed": seed}
            limits = {"max_tokens": max_tokens, "max_requests": max_requests}
            if fleet is not None:
                costs = fleet.costs(model)
                if rate is None:
                    rate = rate_of_load(kinds, costs[0], load or LOAD, fleet.gpus // costs[0].plan.gpus)
                own = cast("Policy", policies[0])
                plans = fleet.play(costs, kinds, rate, count, own, max_tokens, max_requests, seed, progress)
                about = {**settings, "rate": rate, **limits, "policy": own, **asdict(fleet)}
                figures = {"settings": about, "cost": _numbers(model), "simulated": True, "plans": plans}
            else:
                many = devices or 1
                rate = rate_of_load(kinds, model, load or LOAD, many) if rate is None else rate
                traffic = poisson(kinds, rate, count, seed)
                all_limits = {"devices": many, **limits}
                reports = {
                    name: _play(name, traffic, model, all_limits, batch, seed, progress(name)) for name in policies
                }
                varies = {"varies_as_measured_steps": len(model.variation)}
                about = {**settings, "rate": rate, "batch": batch, **all_limits}
                figures = {"settings": about, "cost": _numbers(model), **varies, "policies": _figures(reports)}
        if fleet is not None:
            show_fleets(plans, rate, fleet, model)
        else:
            _show(reports, model, rate, many)
        if file is not None:
            write_text(file, json.dumps(figures, indent=1) + "\n")


def _policies(names: Sequence[str]) -> list[str]:
    from ..engine import POLICIES

    known = [*POLICIES, BATCHES]
    wanted = list(dict.fromkeys(part.strip() for name in names for part in name.split(",")))
    for name in wanted:
        if name not in known:
            raise ValueError(f"--policy {name!r} is unknown: choose from {', '.join(known)}.")
    return wanted


def _job(text: str) -> tuple[float, Job]:
    """`(weight, job)` of one --job."""
    from ..presets import find_preset
    from ..simulate import Job

    size, *rest = text.lower().replace("×", "x").split(":")  # noqa: RUF001
    try:
        width, height = (int(side) for side in size.split("x"))
        steps, weight, caption = [*rest, *("", "1", "300")[len(rest) :]]
        named = steps[:1].isalpha()
        guidance = find_preset(steps).guidance if named else (GUIDANCE,) * min(int(steps), MAX_STEPS + 1)
        share, tokens = float(weight), int(caption)
    except ValueError:
        raise ValueError(f"--job {text!r} is not {FORM}.") from None
    if min(width, height) < UNIT or width % UNIT or height % UNIT:
        raise ValueError(f"--job {text!r}: width and height are pixels, positive multiples of {UNIT}.")
    if not guidance or tokens < 1 or not 0 < share < math.inf:
        raise ValueError(f"--job {text!r}: steps and caption are at least 1, and the weight is above 0.")
    for what, number, most in (("side", max(width, height), LARGEST_SIDE), ("steps", len(guidance), MAX_STEPS),
                               ("caption", tokens, CAPTION)):  # fmt: skip
        if number > most:
            raise ValueError(f"--job {text!r}: the most is {most} as {what}.")
    name = f"{width}x{height}:{rest[0]}" + (f":{caption}" if len(rest) > 2 else "")
    return share, Job(tokens, width // UNIT * (height // UNIT), guidance, kind=name)


def _cost(text: str) -> Cost:
    from ..simulate import H100_BF16, Cost

    if text.lower() == MEASURED:
        return H100_BF16

    try:
        a, b, *more = (float(part) for part in text.split(","))
        c, start, finish = [*more, *(0.0,) * (3 - len(more))]
    except ValueError:
        raise ValueError(
            f"--cost {text!r} is not A,B[,C[,START[,FINISH]]] in seconds, such as 0.002,4e-6,3e-10."
        ) from None
    numbers = (a, b, c, start, finish)
    if not all(0 <= number <= SECONDS for number in numbers) or not any(numbers[:3]):
        raise ValueError(
            f"--cost {text!r}: the numbers are seconds, none below 0, none above {SECONDS:g}, and not all of A, B and C"
            " are 0."
        )
    return Cost(*numbers)


def _fitted(path: Path) -> Cost:
    """The cost model of measured steps in a file."""
    from ..simulate import fit_cost

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        found = found["steps"] if isinstance(found, dict) else found
        steps = [(list(step["segments"]), step["seconds"]) for step in found]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f'--steps {path} is not a list of {{"segments": [lengths], "seconds": s}}: {type(error).__name__}: {error}'
        ) from None
    try:
        return fit_cost(steps)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"--steps {path}: {error}") from None


def _measured(
    kinds: Sequence[tuple[float, Job]], max_tokens: int | None, max_requests: int | None, progress: Any
) -> Cost:
    # Read when torch loads. Threads that spin while they wait starve the one they wait for where cores are shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with starting("importing torch, transformers and diffusers"):
        from .. import sketch
        from ..simulate import measure

    with plain_warnings():
        pipe = sketch.load()
        return measure(pipe, kinds, max_tokens=max_tokens, max_requests=max_requests, progress=progress)


def _play(
    name: str, traffic: Sequence[Job], cost: Cost, limits: dict[str, Any], batch: int, seed: int, progress: Any
) -> Report:
    from ..simulate import simulate, simulate_batches

    if name == BATCHES:
        return simulate_batches(traffic, cost, batch=batch, devices=limits["devices"], seed=seed)
    return simulate(traffic, cost, policy=name, **limits, seed=seed, progress=progress)  # type: ignore[arg-type]


@contextmanager
def _bar() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """A function that begins a bar of a name, and returns what moves it on."""
    bar = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
    columns = (*bar, TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:

        def begin(name: str) -> Callable[[int, int], None]:
            task = bars.add_task(name, total=None)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield begin


def _numbers(cost: Cost) -> dict[str, Any]:
    """The cost model but for its variation, which is as long as what was measured."""
    return {name: value for name, value in asdict(cost).items() if name != "variation"}


def _figures(reports: dict[str, Report]) -> dict[str, dict[str, Any]]:
    """The figures of each policy, ready to be written as JSON; latencies are seconds."""
    return {
        name: {
            "pictures_per_second": report.throughput,
            "seconds": report.seconds,
            "busy": report.busy,
            "padding": report.waste,
            "jobs": {
                kind: {
                    "count": sum(job.kind == kind for job in report.jobs),
                    **{f"p{share * 100:.0f}": report.percentile(share, kind) for share in (0.5, 0.95, 0.99)},
                }
                for kind in dict.fromkeys(job.kind for job in report.jobs)
            },
        }
        for name, report in reports.items()
    }


def _show(reports: dict[str, Report], cost: Cost, rate: float, devices: int) -> None:
    noun = "device" if devices == 1 else "devices"
    out.print(f"{rate:.4g} requests a second on {devices} {noun}; a step takes {cost.a:.3g} s + {cost.b:.3g} s a token"
              f" + {cost.c:.3g} s a pair of tokens")  # fmt: skip
    if cost.variation:
        out.print(f"the machine's speed varies as in {len(cost.variation)} measured steps")
    figures = _figures(reports)
    whole = _table(figures, with_policies=True)
    wide = Measurement.get(out, out.options.update(max_width=1000), whole).maximum
    if not out.is_terminal:  # a file or a pipe has no width
        Console(file=out.file, width=wide, highlight=False).print(whole)
    elif wide <= out.width:
        out.print(whole, soft_wrap=False)
    else:
        for name, own in figures.items():
            out.print(f"{name}: {_pace(own)} pictures/s, {own['busy']:.0%} busy, {own['padding']:.0%} padding")
            out.print(_table({name: own}, with_policies=False), soft_wrap=False)
    out.print("p50, p95, p99: seconds from arrival to picture that so many of a hundred requests do not exceed")


def _table(figures: dict[str, dict[str, Any]], with_policies: bool) -> Table:
    """A line for each kind of request under each policy; what a whole policy has, on its first line."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    of_policies = ("policy", "pictures/s", "busy", "padding") if with_policies else ()
    for name in (*of_policies, "request", "count", "p50", "p95", "p99"):
        if name == "request":
            table.add_column(name, overflow="fold")
        else:
            table.add_column(name, justify="left" if name == "policy" else "right", no_wrap=True, min_width=len(name))
    for name, own in figures.items():
        first = [name, _pace(own), f"{own['busy']:.0%}", f"{own['padding']:.0%}"] if with_policies else []
        for kind, waits in own["jobs"].items():
            seconds = [f"{waits[share]:5.3g}" for share in ("p50", "p95", "p99")]
            table.add_row(*first, kind, str(waits["count"]), *seconds)
            first = [""] * len(first)
        table.add_section()
    return table


def _pace(figures: dict[str, Any]) -> str:
    return f"{figures['pictures_per_second']:.3g}"
