"""Mixed traffic: large requests of 48 steps among small ones of 12, served by the engine and simulated.

Run as `python -m benchmarks.traffic`. Arrivals are random (Poisson) at a load of 80%; the engine serves them in real
time, fair and first in first out. So that thousands fit into minutes, the transformers are the first layer of the
bundled model's seven (`--layers`); text encoder, engine and autoencoder are whole.

Every served step is recorded: who ran, how long it took. The same arrivals then go through the simulator, in three
ways, which part the causes of a difference:

  replayed   each step takes what it took: what differs is the scheduler, the arrivals, or time outside the steps
  simulated  each step takes what the cost model says that is fitted from the run's own steps, in slow and fast moments
             drawn from them: what differs is the form of the model, and the moments at which the machine was slow
  foretold   the same with the cost model of the other policy's run: what drift between runs adds

Near full load a few percent of speed are a quarter of the waiting time, so a run is short and has a cost model of its
own; the latencies of all runs of a policy are pooled. A percentile of some hundred requests depends on when the slow
moments come: the simulator's figures are means over twenty draws of them, and `spread` is one standard deviation of
the draws, which is also how far chance alone takes what is served from the mean. One thread (`--threads 1`) is best for
steps as short as these: two wait for each other whenever something else runs.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch

from benchmarks._measure import machine, make_parser, target, write
from benchmarks._served import KINDS, Run, Step, job_of, make, serve
from ideoflow import Ideogram4Pipeline, sketch
from ideoflow.simulate import Cost, Report, poisson, rate_of_load, simulate, simulate_batches

POLICIES = ("fifo", "fair")
WAYS = ("served", "replayed", "simulated", "foretold")
SHARES = (0.5, 0.95, 0.99)
DRAWS = 20  # of the machine's slow moments


@dataclass(frozen=True)
class Replay(Cost):
    """A cost model that gives each step what it took when it was served."""

    served: Iterator[tuple[Step, float]] = field(default_factory=lambda: iter(()))
    same: list[bool] = field(default_factory=list)  # whether the step's segments are those that were served

    def step(self, segments: Sequence[int]) -> float:
        """Seconds of the next served step; once the sets differ, of a step like it no longer."""
        recorded, span = next(self.served)
        self.same.append(recorded.segments == list(segments))
        return span


def replay(run: Run, policy: str, budget: int) -> tuple[Report, float]:
    """The run through the simulator at its own times, and the share of steps that took the same requests.

    Raises:
        RuntimeError: if the sets differ so much that more steps are taken than were served.
    """
    cost = Replay(1.0, 0.0, served=zip(run.steps, run.spans, strict=True), same=[])
    jobs = [replace(job, arrival=when) for job, when in zip(run.report.jobs, run.added, strict=True)]
    try:
        report = simulate(jobs, cost, policy=policy, max_tokens=budget)  # type: ignore[arg-type]
    except StopIteration:
        raise RuntimeError(f"only {sum(cost.same)} of {len(run.steps)} steps are replayed alike") from None
    came = [job.arrival for job in run.report.jobs]
    jobs = [replace(job, arrival=when) for job, when in zip(report.jobs, came, strict=True)]
    return replace(report, jobs=jobs), sum(cost.same) / len(run.steps)


def ways(run: Run, other: Run, policy: str, budget: int) -> tuple[dict[str, list[Report]], float]:
    """A run as served and as simulated, each draw; and the share of steps that took the same requests when replayed."""
    replayed, same = replay(run, policy, budget)
    simulated, foretold = (
        [
            simulate(run.report.jobs, cost, policy=policy, max_tokens=budget, seed=seed)  # type: ignore[arg-type]
            for seed in range(DRAWS)
        ]
        for cost in (run.cost, other.cost)
    )
    return dict(zip(WAYS, ([run.report], [replayed], simulated, foretold), strict=True)), same


def pool(reports: Sequence[Report]) -> Report:
    """All jobs of several runs as one."""
    seconds = sum(report.seconds for report in reports)
    busy = sum(report.busy * report.seconds for report in reports) / seconds
    return Report([job for report in reports for job in report.jobs], seconds, busy, waste=0.0)


def warm_up(pipe: Ideogram4Pipeline, count: int, budget: int) -> Cost:
    """The cost of steps of `count` requests of all kinds that come at once, to set the rate of arrivals by."""
    draw = random.Random(0)
    kinds = [*KINDS, *draw.choices(list(KINDS), [weight for _, _, weight in KINDS.values()], k=count)]
    requests = [make(pipe, kind, i) for i, kind in enumerate(kinds)]
    run = serve(pipe, [job_of(r, k) for r, k in zip(requests, kinds, strict=True)], requests, "fair", budget)
    return replace(run, steps=run.steps[5:]).cost


def figures(report: Report) -> dict[str, float]:
    """What is compared, of one draw."""
    waits = {
        f"{kind}_p{round(share * 100)}": report.percentile(share, kind)
        for kind in KINDS
        if any(job.kind == kind for job in report.jobs)
        for share in SHARES
    }
    return {"pictures_per_second": report.throughput, **waits, "busy": report.busy}


def errors(figures: dict[str, float], served: dict[str, float]) -> dict[str, float]:
    """How far simulated figures are above the served ones, as a share of these."""
    return {name: figures[name] / value - 1 for name, value in served.items()}


def means(runs: Sequence[Sequence[Report]]) -> tuple[dict[str, float], dict[str, float]]:
    """Each figure of the pooled runs over its draws: the mean, and the standard deviation as a share of it."""
    drawn = [figures(pool(draw)) for draw in zip(*runs, strict=True)]
    columns = {name: [one[name] for one in drawn] for name in drawn[0]}
    mean = {name: statistics.fmean(values) for name, values in columns.items()}
    return mean, {name: statistics.pstdev(values) / mean[name] for name, values in columns.items()}


def show(name: str, report: dict[str, dict[str, float]], spread: dict[str, float]) -> None:
    """One policy's figures: a line for each, the served one first."""
    print(f"\n{name:20}", *(f"{how:>18}" for how in WAYS), "  spread")
    for figure, value in report["served"].items():
        cells = [f"{report[how][figure]:10.3f} {report[how][figure] / value - 1:+7.1%}" for how in WAYS[1:]]
        print(f"{figure:20} {value:18.3f}", *cells, f"{spread[figure]:8.1%}", flush=True)


def main() -> None:
    """Serve the traffic under each policy, simulate it, print and write."""
    options = make_parser(__doc__)
    options.add_argument("--seconds", type=float, default=46, help="of arrivals in a run")
    options.add_argument(
        "--repeats", type=int, default=3, help="runs of each policy, pooled, with arrivals of their own"
    )
    options.add_argument("--layers", type=int, default=1, help="of the bundled model's seven")
    options.add_argument("--load", type=float, default=0.8, help="share of the time that the traffic would fill alone")
    options.add_argument(
        "--max-tokens", type=int, default=450, help="budget of a step: one large request, or several small"
    )
    options.add_argument("--seed", type=int, default=0, help="of the arrivals")
    options.add_argument("--measured", type=int, default=60, help="requests served first, to set the rate by")
    options.add_argument("--threads", type=int, default=1, help="of torch")
    options.add_argument("--steps", type=target, help="also write the steps, as `ideoflow simulate --steps` reads them")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    pipe = sketch.load()
    for transformer in (pipe.transformer, pipe.unconditional_transformer):
        transformer.layers = transformer.layers[: given.layers]
    kinds = [(weight, job_of(make(pipe, kind, 0), kind)) for kind, (_, _, weight) in KINDS.items()]
    latest = warm_up(pipe, given.measured, given.max_tokens)
    found: dict[str, dict[str, list[list[Report]]]] = {policy: {how: [] for how in WAYS} for policy in POLICIES}
    told: dict[str, list[dict[str, object]]] = {policy: [] for policy in POLICIES}
    steps: list[Step] = []
    for repeat in range(given.repeats):
        rate = rate_of_load(kinds, latest, given.load)
        plan = poisson(kinds, rate, max(8, round(rate * given.seconds)), seed=given.seed + repeat)
        runs: dict[str, Run] = {}
        for policy in POLICIES if repeat % 2 == 0 else POLICIES[::-1]:
            requests = [make(pipe, job.kind, index) for index, job in enumerate(plan)]
            pairs = zip(requests, plan, strict=True)
            traffic = [replace(job_of(request, job.kind), arrival=job.arrival) for request, job in pairs]
            runs[policy] = serve(pipe, traffic, requests, policy, given.max_tokens)
            steps += runs[policy].steps
        latest = list(runs.values())[-1].cost
        for policy, run in runs.items():
            other = runs[POLICIES[POLICIES.index(policy) - 1]]
            reports, same = ways(run, other, policy, given.max_tokens)
            for how, draws in reports.items():
                found[policy][how].append(draws)
            drift = run.drift(run.cost)
            told[policy].append(
                {
                    "requests_per_second": rate,
                    "steps": len(run.steps),
                    "steps_replayed_alike": same,
                    "busy_outside_steps_and_pictures": run.outside,
                    "seconds_over_model_by_tenths": drift,
                    "cost": {name: value for name, value in asdict(run.cost).items() if name != "variation"},
                }
            )
            print(f"{policy}, run {repeat + 1}, {rate:.2f} requests a second:", end=" ")
            print(f"{len(run.steps)} steps, {same:.2%} alike when replayed")
            print(f"  {run.outside:.2%} of the busy time is neither step nor picture")
            print("  seconds over the model's, by tenths:", *(f"{value:.2f}" for value in drift), flush=True)
    policies = {}
    for policy in POLICIES:
        all_runs = {how: means(runs) for how, runs in found[policy].items()}
        pooled = {how: mean for how, (mean, _) in all_runs.items()}
        spread = all_runs["simulated"][1]
        show(policy, pooled, spread)
        policies[policy] = {
            **pooled,
            "spread": spread,
            "error": {how: errors(pooled[how], pooled["served"]) for how in WAYS[1:]},
            "runs": told[policy],
        }
    fair, fifo = (policies[policy]["served"] for policy in ("fair", "fifo"))
    cost = runs["fifo"].cost
    batches, _ = means([[simulate_batches(plan, cost, batch=8, seed=seed) for seed in range(DRAWS)]])
    jobs = pool([run for (run,) in found["fifo"]["served"]]).jobs
    report = {
        "benchmark": "traffic",
        "machine": machine(),
        "settings": {
            **{name: getattr(given, name) for name in ("seconds", "repeats", "layers", "load", "max_tokens", "seed")},
            **{kind: sum(job.kind == kind for job in jobs) for kind in KINDS},
        },
        "policies": policies,
        "small_p95_fair_over_fifo": fair["small_p95"] / fifo["small_p95"],
        "throughput_fair_over_fifo": fair["pictures_per_second"] / fifo["pictures_per_second"],
        "simulated_batches_of_equal_size": batches,
    }
    print(f"\nsmall requests, 95th percentile: fair over fifo {report['small_p95_fair_over_fifo']:.3f}")
    print(f"in batches of equal size, simulated: {batches['small_p95']:.2f} s")
    write(report, given.out)
    write({"steps": [{"segments": step.segments, "seconds": step.seconds} for step in steps]}, given.steps)


if __name__ == "__main__":
    main()
