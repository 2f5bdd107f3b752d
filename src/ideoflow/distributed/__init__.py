"""One picture on many GPUs: plans for branches, tokens and weights, applied to the model from outside.

Rank 0 schedules as ever; the other ranks follow what it says to step. Nothing here is imported before it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._imports import lazily
from .parallel_config import ParallelConfig

if TYPE_CHECKING:
    from .applied_plan import enable_parallelism, parallel_pipeline
    from .heartbeats import RankLost
    from .ranks import Ranks, joined

__all__ = [
    "ParallelConfig",
    "RankLost",
    "Ranks",
    "enable_parallelism",
    "joined",
    "parallel_pipeline",
]

__getattr__ = lazily(
    __name__,
    {
        ".heartbeats": ("RankLost",),
        ".applied_plan": ("enable_parallelism", "parallel_pipeline"),
        ".ranks": ("Ranks", "joined"),
    },
)
