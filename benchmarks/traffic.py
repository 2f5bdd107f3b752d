"""Mixed traffic: large requests of 48 steps among small ones of 12, served by the engine and simulated.

Run as `python -m benchmarks.traffic`. Arrivals are random (Poisson) at a load of 80%; the engine serves them in real
time, fair and first in first out. So that thousands fit into minutes, the transformers are the first layer of the
bundled model's seven (`--layers`); text encoder, engine and autoencoder are whole.

Every served step is recorded: who ran, how long it took. The same arrivals then go through the simulator, in four
ways, which part the causes of a difference:

  replayed   each step takes what it took: what differs is the scheduler, the arrivals, or time outside the steps
  paced      each step takes what the cost model says that is fitted from the run's own steps, times how much slower the
             machine was in those two seconds: what differs is the form of the cost model
  simulated  the same without the last factor: what drift of the machine's speed within the run adds
  foretold   the same with the cost model of the other policy's run: what drift between runs adds

Near full load a few percent of speed are a quarter of the waiting time, so a run is short and has a cost model of its
own; the latencies of all runs of a policy are pooled. One thread (`--threads 1`) is best for steps as short as these:
two wait for each other whenever something else runs.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from benchmarks._measure import machine, make_parser, write
from ideoflow import Ideogram4Pipeline, sketch
from ideoflow.engine import Request
from ideoflow.simulate import Cost, Job, Report, fit, poisson, rate_of_load, simulate, simulate_batches
from ideoflow.sketch.score import held_out
from ideoflow.sketch.text import line

KINDS = {"small": ((96, 96), 12, 5.0), "large": ((192, 192), 48, 1.0)}  # size, steps, weight
POLICIES = ("fifo", "fair")
WAYS = ("served", "replayed", "paced", "simulated", "foretold")
SHARES = (0.5, 0.95, 0.99)
TICK = 1e-6  # seconds by which what comes between two steps is before the second, whatever rounding does
WINDOW = 2.0  # seconds in which the machine's speed is taken for constant
PARTS = 10  # of a run, to show how that speed changed


def make(pipe: Ideogram4Pipeline, kind: str, index: int) -> Request:
    """A request of a kind, with one of forty captions."""
    size, steps, _ = KINDS[kind]
    caption = line(held_out(40)[index % 40].caption)
    return pipe.make_requests(
        caption, size=size, num_inference_steps=steps, guidance_scale=sketch.GUIDANCE, guidance_schedule=None, mu=0.0,
        std=1.75, generator=torch.Generator().manual_seed(index),
    )[0]  # fmt: skip


def job_of(request: Request, kind: str) -> Job:
    """The simulator's counterpart of a request that has not begun."""
    return Job(request.text_tokens, request.image_tokens, request.guidance, kind=kind)


@dataclass
class Step:
    """A served step.

    Attributes:
        begun: When the engine looked for arrivals before it.
        segments: Lengths of all segments of all that ran.
        seconds: Of the engine's step alone.
        decoding: Seconds of each picture made after it, by image token.
        ended: When all that was done.
        idle: Whether nothing was left to do then.
    """

    begun: float
    segments: list[int]
    seconds: float
    decoding: list[float]
    ended: float = 0.0
    idle: bool = False


@dataclass
class Run:
    """What was served, and every step of it."""

    report: Report
    steps: list[Step]
    decoded: float  # seconds of all pictures
    added: list[float]  # when the engine was given each job

    @property
    def cost(self) -> Cost:
        """The cost model of these steps and pictures."""
        fitted = fit([(step.segments, step.seconds) for step in self.steps])
        return replace(fitted, finish=statistics.fmean(value for step in self.steps for value in step.decoding))

    @property
    def spans(self) -> list[float]:
        """Seconds of each step with all that came before the next one could start."""
        after = [*(step.begun for step in self.steps[1:]), 0.0]
        return [(s.ended if s.idle else then) - s.begun for s, then in zip(self.steps, after, strict=True)]

    @property
    def outside(self) -> float:
        """Share of the busy time that was neither a step nor a picture."""
        return 1 - (sum(step.seconds for step in self.steps) + self.decoded) / sum(self.spans)

    def pace(self, cost: Cost) -> Callable[[float], float]:
        """What steps took over what the model says of them, at any time of the run."""
        took: dict[int, float] = {}
        model: dict[int, float] = {}
        for step in self.steps:
            window = int(step.begun / WINDOW)
            took[window] = took.get(window, 0.0) + step.seconds
            model[window] = model.get(window, 0.0) + cost.step(step.segments)
        factors = {window: seconds / model[window] for window, seconds in took.items()}
        return lambda now: factors.get(int(now / WINDOW), 1.0)

    def drift(self, cost: Cost) -> list[float]:
        """What the steps of each tenth of the run took, over what the model says of them."""
        size = -(-len(self.steps) // PARTS)
        parts = [self.steps[begin : begin + size] for begin in range(0, len(self.steps), size)]
        return [sum(s.seconds for s in part) / sum(cost.step(s.segments) for s in part) for part in parts]


def serve(
    pipe: Ideogram4Pipeline, traffic: Sequence[Job], requests: Sequence[Request], policy: str, budget: int
) -> Run:
    """Let the engine serve requests that come when the traffic says, in real time."""
    engine = pipe.engine(policy=policy, max_tokens=budget)  # type: ignore[arg-type]
    jobs = dict(zip(requests, traffic, strict=True))
    waiting = sorted(jobs.items(), key=lambda pair: -pair[1].arrival)
    steps: list[Step] = []
    added: dict[Job, float] = {}
    decoded = 0.0
    zero = time.perf_counter()
    while waiting or not engine.idle:
        now = time.perf_counter() - zero
        idle = engine.idle
        while waiting and waiting[-1][1].arrival <= now:
            request, job = waiting.pop()
            engine.add(request)
            added[job] = now if idle else now - TICK
        if engine.idle:
            time.sleep(max(0.0, waiting[-1][1].arrival - now))
            continue
        events = engine.step()
        seconds = time.perf_counter() - zero - now
        ran = [event.request for event in events if event.kind == "step"]
        steps.append(Step(now, [n for request in ran for n in jobs[request].segments], seconds, []))
        for request in (event.request for event in events if event.kind == "finished"):
            before = time.perf_counter()
            pipe.decode_requests([request])
            after = time.perf_counter()
            decoded += after - before
            steps[-1].decoding.append((after - before) / request.image_tokens)
            jobs[request].finished = after - zero
        steps[-1].ended, steps[-1].idle = time.perf_counter() - zero, engine.idle
    lasted = steps[-1].ended - traffic[0].arrival
    run = Run(Report(list(traffic), lasted, 0.0, waste=0.0), steps, decoded, [added[job] for job in traffic])
    return replace(run, report=replace(run.report, busy=sum(run.spans) / lasted))


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
    cost = Replay(0.0, 0.0, served=zip(run.steps, run.spans, strict=True), same=[])
    jobs = [replace(job, arrival=when) for job, when in zip(run.report.jobs, run.added, strict=True)]
    try:
        report = simulate(jobs, cost, policy=policy, max_tokens=budget)  # type: ignore[arg-type]
    except StopIteration:
        raise RuntimeError(f"only {sum(cost.same)} of {len(run.steps)} steps are replayed alike") from None
    came = [job.arrival for job in run.report.jobs]
    jobs = [replace(job, arrival=when) for job, when in zip(report.jobs, came, strict=True)]
    return replace(report, jobs=jobs), sum(cost.same) / len(run.steps)


def ways(run: Run, other: Run, policy: str, budget: int) -> tuple[dict[str, Report], float]:
    """A run as it was served and in the simulator, and the share of steps that took the same requests when replayed."""
    replayed, same = replay(run, policy, budget)
    own = run.cost
    paced, simulated, foretold = (
        simulate(run.report.jobs, cost, policy=policy, max_tokens=budget, pace=pace)  # type: ignore[arg-type]
        for cost, pace in ((own, run.pace(own)), (own, None), (other.cost, None))
    )
    return dict(zip(WAYS, (run.report, replayed, paced, simulated, foretold), strict=True)), same


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
    """What is compared."""
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


def show(name: str, report: dict[str, dict[str, float]]) -> None:
    """One policy's figures: a line for each, the served one first."""
    print(f"\n{name:20}", *(f"{how:>18}" for how in WAYS))
    for figure, value in report["served"].items():
        cells = [f"{report[how][figure]:10.3f} {report[how][figure] / value - 1:+7.1%}" for how in WAYS[1:]]
        print(f"{figure:20} {value:18.3f}", *cells, flush=True)


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
    options.add_argument("--steps", type=Path, help="also write the steps, as `ideoflow simulate --steps` reads them")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    pipe = sketch.load()
    for transformer in (pipe.transformer, pipe.unconditional_transformer):
        transformer.layers = transformer.layers[: given.layers]
    kinds = [(weight, job_of(make(pipe, kind, 0), kind)) for kind, (_, _, weight) in KINDS.items()]
    latest = warm_up(pipe, given.measured, given.max_tokens)
    found: dict[str, dict[str, list[Report]]] = {policy: {how: [] for how in WAYS} for policy in POLICIES}
    told: dict[str, list[dict[str, object]]] = {policy: [] for policy in POLICIES}
    steps: list[Step] = []
    for repeat in range(given.repeats):
        rate = rate_of_load(kinds, latest, given.load)
        plan = poisson(kinds, rate, max(20, round(rate * given.seconds)), seed=given.seed + repeat)
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
            for how, one in reports.items():
                found[policy][how].append(one)
            drift = run.drift(run.cost)
            told[policy].append(
                {
                    "requests_per_second": rate,
                    "steps": len(run.steps),
                    "steps_replayed_alike": same,
                    "busy_outside_steps_and_pictures": run.outside,
                    "seconds_over_model_by_tenths": drift,
                    "cost": asdict(run.cost),
                }
            )
            print(f"{policy}, run {repeat + 1}, {rate:.2f} requests a second:", end=" ")
            print(f"{len(run.steps)} steps, {same:.2%} alike when replayed")
            print(f"  {run.outside:.2%} of the busy time is neither step nor picture")
            print("  seconds over the model's, by tenths:", *(f"{value:.2f}" for value in drift), flush=True)
    policies = {}
    for policy in POLICIES:
        pooled = {how: figures(pool(reports)) for how, reports in found[policy].items()}
        show(policy, pooled)
        policies[policy] = {
            **pooled,
            "error": {how: errors(pooled[how], pooled["served"]) for how in WAYS[1:]},
            "runs": told[policy],
        }
    fair, fifo = (policies[policy]["served"] for policy in ("fair", "fifo"))
    batches = figures(simulate_batches(plan, runs["fifo"].cost, batch=8))
    jobs = found["fifo"]["served"]
    report = {
        "benchmark": "traffic",
        "machine": machine(),
        "settings": {
            **{name: getattr(given, name) for name in ("seconds", "repeats", "layers", "load", "max_tokens", "seed")},
            **{kind: sum(job.kind == kind for report in jobs for job in report.jobs) for kind in KINDS},
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
