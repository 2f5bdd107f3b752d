"""A discrete-event simulator of the engine's scheduler, for traffic and machines that are not at hand.

Simulated devices run the very `Scheduler` of the engine, and a cost model says how long a step takes; `fit_cost` finds
it from measured steps, and `measure` measures them. Times are seconds.
"""

from typing import TYPE_CHECKING

from .._imports import lazily
from .cost import Cost, fit_cost
from .fleet import Failures, Report, simulate, simulate_batches
from .parallel_plan import H100_BF16, IDEOGRAM_4, MACHINES, Machine, Network, Plan, PlannedCost
from .sizing import Sized, fewest_replicas
from .traffic import Job, poisson, rate_of_load

if TYPE_CHECKING:
    from .timing import measure

__all__ = [
    "H100_BF16",
    "IDEOGRAM_4",
    "MACHINES",
    "Cost",
    "Failures",
    "Job",
    "Machine",
    "Network",
    "Plan",
    "PlannedCost",
    "Report",
    "Sized",
    "fewest_replicas",
    "fit_cost",
    "measure",
    "poisson",
    "rate_of_load",
    "simulate",
    "simulate_batches",
]

__getattr__ = lazily(__name__, {".timing": ("measure",)}, renamed={"fit": "fit_cost"})
