"""Fitting the model into the memory there is: what it takes, a plan, and carrying it out."""

from typing import TYPE_CHECKING

from .._imports import lazily
from .memory import free_memory, parse_memory

if TYPE_CHECKING:
    from .apply import carry_out, fit_memory
    from .choice import DoesNotFit, plan
    from .components import Component, Model
    from .plans import Plan
    from .speed import Rates
    from .tables import table

__all__ = [
    "Component",
    "DoesNotFit",
    "Model",
    "Plan",
    "Rates",
    "carry_out",
    "fit_memory",
    "free_memory",
    "parse_memory",
    "plan",
    "table",
]

__getattr__ = lazily(
    __name__,
    {
        ".apply": ("carry_out", "fit_memory"),
        ".choice": ("DoesNotFit", "plan"),
        ".components": ("Component", "Model"),
        ".plans": ("Plan",),
        ".speed": ("Rates",),
        ".tables": ("table",),
    },
    renamed={"fit": "fit_memory"},
)
