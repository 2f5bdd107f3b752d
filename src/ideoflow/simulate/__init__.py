"""A discrete-event simulator of the engine's scheduler, for traffic and machines that are not at hand.

Simulated devices run the very `Scheduler` of the engine, and a cost model says how long a step takes; `fit_cost` finds
it from measured steps, and `measure` measures them. Times are seconds.
"""

from typing import TYPE_CHECKING

from .._imports import lazily
from .cost import Cost, fit_cost
from .fleet import Report, simulate, simulate_batches
from .traffic import Job, poisson, rate_of_load

if TYPE_CHECKING:
    from .timing import measure

__all__ = ["Cost", "Job", "Report", "fit_cost", "measure", "poisson", "rate_of_load", "simulate", "simulate_batches"]

__getattr__ = lazily(__name__, {".timing": ("measure",)}, renamed={"fit": "fit_cost"})
