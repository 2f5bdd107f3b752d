"""Mixed traffic on the bundled model: large requests of 48 steps among small ones of 12, fair against fifo.

Run as `python -m benchmarks.traffic`. Arrivals are random (Poisson) at a load of 80%; the engine serves them in real
time. The same traffic then goes through the simulator, with a cost model fitted from the steps of each run.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from benchmarks.step import machine
from ideoflow import Ideogram4Pipeline, sketch
from ideoflow.engine import Request
from ideoflow.simulate import Cost, Job, Report, fit, poisson, rate_of_load, simulate, simulate_batches
from ideoflow.sketch.score import held_out
from ideoflow.sketch.text import line

KINDS = {"small": ((96, 96), 12, 5.0), "large": ((192, 192), 48, 1.0)}  # size, steps, weight
POLICIES = ("fifo", "fair")


def make(pipe: Ideogram4Pipeline, kind: str, index: int) -> Request:
    """A request of a kind, with one of forty captions."""
    size, steps, _ = KINDS[kind]
    caption = line(held_out(40)[index % 40].caption)
    return pipe.make_requests(
        caption, size=size, num_inference_steps=steps, guidance_scale=sketch.GUIDANCE, guidance_schedule=None, mu=0.0,
        std=1.75, generator=torch.Generator().manual_seed(index),
    )[0]  # fmt: skip


def job_of(request: Request, kind: str) -> Job:
    """The simulator's counterpart."""
    return Job(request.text_tokens, request.image_tokens, request.guidance, kind=kind)


@dataclass
class Measured:
    """What steps and pictures took, of all runs together.

    Attributes:
        steps: `(lengths of all segments, seconds)` of each step.
        decoding: Seconds of each picture by image token.
    """

    steps: list[tuple[Sequence[int], float]] = field(default_factory=list)
    decoding: list[float] = field(default_factory=list)

    @property
    def cost(self) -> Cost:
        return replace(fit(self.steps), finish=statistics.fmean(self.decoding))


def serve(
    pipe: Ideogram4Pipeline, traffic: Sequence[Job], requests: list[Request], policy: str, budget: int, seen: Measured
) -> Report:
    """Let the engine serve requests that come when the traffic says, in real time."""
    engine = pipe.engine(policy=policy, max_tokens=budget)  # type: ignore[arg-type]
    jobs = dict(zip(requests, traffic, strict=True))
    waiting = list(zip(traffic, requests, strict=True))[::-1]
    begun, busy = time.perf_counter(), 0.0
    while waiting or not engine.idle:
        now = time.perf_counter() - begun
        while waiting and waiting[-1][0].arrival <= now:
            engine.add(waiting.pop()[1])
        if engine.idle:
            time.sleep(max(0.0, waiting[-1][0].arrival - now))
            continue
        events = engine.step()
        stepped = [event.request for event in events if event.kind == "step"]
        lengths = [length for request in stepped for length in job_of(request, "").segments]
        seen.steps.append((lengths, time.perf_counter() - begun - now))
        for request in (event.request for event in events if event.kind == "finished"):
            decoded = time.perf_counter()
            pipe.decode_requests([request])
            seen.decoding.append((time.perf_counter() - decoded) / request.image_tokens)
            jobs[request].finished = time.perf_counter() - begun
        busy += time.perf_counter() - begun - now
    seconds = time.perf_counter() - begun - traffic[0].arrival
    return Report(list(traffic), seconds, busy / seconds, waste=0.0)


def warm_up(pipe: Ideogram4Pipeline, count: int, budget: int) -> Measured:
    """Steps of `count` requests of all kinds that come at once, to set the rate of arrivals by."""
    draw = random.Random(0)
    kinds = [*KINDS, *draw.choices(list(KINDS), [weight for _, _, weight in KINDS.values()], k=count)]
    requests = [make(pipe, kind, i) for i, kind in enumerate(kinds)]
    serve(pipe, traffic := [job_of(r, k) for r, k in zip(requests, kinds, strict=True)], requests, "fair", budget,
          seen := Measured())  # fmt: skip
    assert all(job.finished for job in traffic)
    return replace(seen, steps=seen.steps[5:])


def figures(report: Report) -> dict[str, float]:
    """What is compared."""
    return {
        "pictures_per_second": report.throughput,
        "small_p50": report.percentile(0.5, "small"),
        "small_p95": report.percentile(0.95, "small"),
        "large_p50": report.percentile(0.5, "large"),
        "large_p95": report.percentile(0.95, "large"),
        "busy": report.busy,
    }


def main() -> None:
    """Serve the traffic under each policy in turn, simulate it, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=240, help="requests")
    parser.add_argument("--load", type=float, default=0.8, help="share of the time that the traffic would fill alone")
    parser.add_argument(
        "--max-tokens", type=int, default=450, help="budget of a step: one large request, or several small"
    )
    parser.add_argument("--repeats", type=int, default=2, help="runs of each policy, with traffic of its own")
    parser.add_argument("--measured", type=int, default=60, help="requests served first, to set the rate by")
    parser.add_argument("--threads", type=int, help="of torch; all cores by default")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    pipe = sketch.load()
    kinds = [(weight, job_of(make(pipe, kind, 0), kind)) for kind, (_, _, weight) in KINDS.items()]
    rate = rate_of_load(kinds, warm_up(pipe, options.measured, options.max_tokens).cost, options.load)
    print(f"{rate:.2f} requests a second", flush=True)
    runs: dict[str, list[dict[str, dict[str, float]]]] = {policy: [] for policy in POLICIES}
    costs: list[dict[str, float]] = []
    for repeat in range(options.repeats):
        plan = poisson(kinds, rate, options.count, seed=repeat)
        for policy in POLICIES if repeat % 2 == 0 else POLICIES[::-1]:
            requests = [make(pipe, job.kind, index) for index, job in enumerate(plan)]
            traffic = [job_of(request, job.kind) for request, job in zip(requests, plan, strict=True)]
            for job, planned in zip(traffic, plan, strict=True):
                job.arrival = planned.arrival
            served = serve(pipe, traffic, requests, policy, options.max_tokens, seen := Measured())
            # A cost of each run's own: the machine is not equally fast at all times.
            cost = seen.cost
            costs.append(vars(cost))
            simulated = simulate(traffic, cost, policy=policy, max_tokens=options.max_tokens)  # type: ignore[arg-type]
            print(f"-- {policy}: a step took {cost.a * 1e3:.2f} ms + {cost.b * 1e6:.2f} us a token"
                  f" + {cost.c * 1e9:.2f} ns a pair, decoding {cost.finish * 1e6:.1f} us an image token"
                  f"\nserved\n{served}\nsimulated\n{simulated}", flush=True)  # fmt: skip
            runs[policy].append({"served": figures(served), "simulated": figures(simulated)})
    median = {
        policy: {
            how: {name: statistics.median(run[how][name] for run in all_runs) for name in all_runs[0][how]}
            for how in ("served", "simulated")
        }
        for policy, all_runs in runs.items()
    }
    fair, fifo = median["fair"]["served"], median["fifo"]["served"]
    report = {
        "benchmark": "traffic",
        "machine": machine(),
        "settings": {name: getattr(options, name) for name in ("count", "load", "max_tokens", "repeats")},
        "costs": costs,
        "median": median,
        "runs": runs,
        "small_p95_fair_over_fifo": fair["small_p95"] / fifo["small_p95"],
        "throughput_fair_over_fifo": fair["pictures_per_second"] / fifo["pictures_per_second"],
        "served_over_simulated": {
            policy: {name: values["served"][name] / values["simulated"][name] for name in values["served"]}
            for policy, values in median.items()
        },
        "simulated_batches_of_equal_size": figures(simulate_batches(plan, cost, batch=8)),
    }
    print(json.dumps({name: value for name, value in report.items() if name != "runs"}, indent=1))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
