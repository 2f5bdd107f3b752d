"""Fitting the model into the memory there is: what it takes, a plan, and carrying it out."""

from .apply import carry_out, fit
from .components import Component, Model
from .memory import free_memory, parse_memory
from .plans import DoesNotFit, Plan, plan
from .speed import Rates
from .text import table

__all__ = [
    "Component",
    "DoesNotFit",
    "Model",
    "Plan",
    "Rates",
    "carry_out",
    "fit",
    "free_memory",
    "parse_memory",
    "plan",
    "table",
]
