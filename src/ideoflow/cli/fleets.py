"""`ideoflow simulate --gpus`: plans of how GPUs share a step, fleets of replicas, and the fewest that do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .console import out

if TYPE_CHECKING:
    from ..engine import Policy
    from ..simulate import Cost, Failures, Job, Machine, Plan, PlannedCost, Report

# Tried where no plan is named: replicas of up to eight GPUs, which is what one machine has. Tensor parallel is left to
# who needs it for memory: it sends more than context parallel, and divides less.
PLANS = ("one", "guidance=2", "context=2", "context=3", "context=6", "guidance=2,context=2", "guidance=2,context=3")
LONGEST = 1e6  # seconds of --p95
FORM = "EVERY:REPAIR in seconds, such as 86400:300 for one failure of each GPU a day, and five minutes until it is back"


@dataclass(frozen=True)
class Fleet:
    """What the options say of GPUs.

    Attributes:
        gpus: How many there are.
        plans: How those of a replica may share a step.
        machine: What joins them.
        p95: Seconds that the 95th percentile may have, for which the fewest GPUs are looked for; None to use all.
        failures: Seconds from a GPU's failure to its next, and until it is back; None for none.
    """

    gpus: int
    plans: tuple[Plan, ...]
    machine: Machine
    p95: float | None
    failures: tuple[float, float] | None

    @classmethod
    def of(cls, gpus: int, parallel: Sequence[str], link: str, p95: float | None, failures: str | None) -> Fleet:
        """The fleet of options as typed; without --parallel, the plans that fit.

        Raises:
            ValueError: naming the option that does not fit.
        """
        from ..simulate import Plan

        if p95 is not None and not 0 < p95 <= LONGEST:
            raise ValueError(f"--p95 {p95:g}: give seconds above 0, up to {LONGEST:g}.")
        try:
            plans = [Plan.of(value) for value in parallel or PLANS]
        except ValueError as error:
            raise ValueError(f"--parallel {error}") from None
        for plan in plans if parallel else ():
            if plan.gpus > gpus:
                raise ValueError(f"--parallel {plan} takes {plan.gpus} GPUs, and --gpus is {gpus}.")
        fitting = tuple(plan for plan in dict.fromkeys(plans) if plan.gpus <= gpus)
        return cls(gpus, fitting, _link(link), p95, None if failures is None else _failures(failures))

    def costs(self, cost: Cost) -> list[PlannedCost]:
        """What a step costs by each plan."""
        from ..simulate import PlannedCost

        try:
            return [PlannedCost(cost, plan, machine=self.machine) for plan in self.plans]
        except ValueError as error:
            raise ValueError(f"--parallel {error}") from None

    def play(
        self,
        costs: Sequence[PlannedCost],
        kinds: Sequence[tuple[float, Job]],
        rate: float,
        count: int,
        policy: Policy,
        max_tokens: int | None,
        max_requests: int | None,
        seed: int,
        progress: Callable[[str], Callable[[int, int], None]],
    ) -> list[dict[str, Any]]:
        """What becomes of traffic by each plan, ready to be shown and written.

        Args:
            costs: The plans, as `costs` gives them.
            kinds: As `poisson` takes them.
            rate: Requests a second.
            count: Requests to play with all GPUs.
            policy: As the engine has it.
            max_tokens: As the engine has it.
            max_requests: As the engine has it.
            seed: Seed of all that is random.
            progress: Begins a bar of a name, and gives what moves it on.
        """
        from ..simulate import fewest_replicas, poisson, simulate
        from ..simulate.traffic import seconds_alone

        found = []
        for cost in costs:
            replicas: int | None = self.gpus // cost.plan.gpus
            away = None if self.failures is None else _of_replica(self.failures, cost.plan.gpus)
            bar = progress(str(cost.plan))
            report: Report | None
            if self.p95 is None:
                report = simulate(
                    poisson(kinds, rate, count, seed), cost, devices=self.gpus // cost.plan.gpus, policy=policy,
                    failures=away, seed=seed, progress=bar, max_tokens=max_tokens, max_requests=max_requests,
                )  # fmt: skip
            else:
                sized = fewest_replicas(
                    kinds, rate, cost, seconds=self.p95, most_gpus=self.gpus, policy=policy, failures=away, seed=seed,
                    progress=bar, max_tokens=max_tokens, max_requests=max_requests,
                )  # fmt: skip
                replicas, report = sized.replicas, sized.report
            found.append(
                {
                    "plan": str(cost.plan),
                    "gpus_a_replica": cost.plan.gpus,
                    "replicas": replicas,
                    "gpus": None if replicas is None else replicas * cost.plan.gpus,
                    "alone": {job.kind: seconds_alone(job, cost) for _, job in kinds},
                    **({} if report is None else _figures(report)),
                }
            )
        return found


def _link(value: str) -> Machine:
    from ..simulate import MACHINES, Machine

    if value in MACHINES:
        return MACHINES[value]
    try:
        bandwidth, latency = (float(part) for part in value.split(","))
        return Machine(bandwidth, latency, MACHINES["nvlink"].memory)
    except ValueError:
        raise ValueError(
            f"--link {value!r} is none of {', '.join(MACHINES)}, nor bytes a second and seconds of a collective, such"
            " as 50e9,1e-4."
        ) from None


def _failures(value: str) -> tuple[float, float]:
    try:
        every, repair = (float(part) for part in value.split(":"))
    except ValueError:
        every = repair = -1.0
    if not (1 <= every <= 1e12 and 0 <= repair <= 1e9):
        raise ValueError(f"--failures {value!r} is not {FORM}.")
    return every, repair


def _of_replica(failures: tuple[float, float], gpus: int) -> Failures:
    """Failures of a replica, which fails with any of its GPUs."""
    from ..simulate import Failures

    every, repair = failures
    return Failures(every / gpus, repair)


def _figures(report: Report) -> dict[str, Any]:
    return {
        "pictures_per_second": report.throughput,
        "busy": report.busy,
        "failures": report.failures,
        "restarted": report.restarted,
        **{f"p{share * 100:.0f}": report.percentile(share) for share in (0.5, 0.95, 0.99)},
    }


def show_fleets(found: Sequence[dict[str, Any]], rate: float, fleet: Fleet, cost: Cost) -> None:
    """A line for each plan, and which takes the fewest GPUs."""
    out.print(f"{rate:.4g} requests a second; a step of one GPU takes {cost.a:.3g} s + {cost.b:.3g} s a token"
              f" + {cost.c:.3g} s a pair of tokens. All figures are simulated.")  # fmt: skip
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    names = ("plan", "GPUs", "replicas", "pictures/s", "busy", "alone", "p50", "p95", "p99")
    for name in names:
        table.add_column(name, justify="left" if name == "plan" else "right", no_wrap=True)
    for one in found:
        alone = "-".join(f"{value:.3g}" for value in sorted({min(one["alone"].values()), max(one["alone"].values())}))
        if one["replicas"] is None:
            table.add_row(one["plan"], f"> {fleet.gpus}", "", "", "", alone, "", "", "")
            continue
        shares = [f"{one[share]:.3g}" for share in ("p50", "p95", "p99")]
        pace = f"{one['pictures_per_second']:.3g}"
        table.add_row(one["plan"], str(one["gpus"]), str(one["replicas"]), pace, f"{one['busy']:.0%}", alone, *shares)
    Console(file=out.file, width=max(100, out.width), highlight=False).print(table)
    if any(one.get("failures") for one in found):
        told = ", ".join(
            f"{one['plan']}: {one['failures']} and {one['restarted']}" for one in found if "failures" in one
        )
        out.print(f"failures of replicas, and requests begun anew ({told})")
    if fleet.p95 is not None:
        _answer(found, fleet.gpus, fleet.p95)
    out.print("alone: seconds of a request that has a replica to itself; p50, p95, p99: from arrival to picture")


def _answer(found: Sequence[dict[str, Any]], gpus: int, p95: float) -> None:
    able = [one for one in found if one["replicas"] is not None]
    if not able:
        out.print(f"no plan keeps p95 within {p95:g} s on {gpus} GPUs")
        return
    best = min(able, key=lambda one: (one["gpus"], one["p95"]))
    out.print(f"p95 within {p95:g} s takes {best['gpus']} GPUs: {best['replicas']} replicas of {best['gpus_a_replica']}"
              f" ({best['plan']})")  # fmt: skip
