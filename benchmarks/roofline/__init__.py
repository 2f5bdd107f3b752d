"""What a guided step costs before anything is timed: `python -m benchmarks.roofline --help` explains."""

from .counting import count, work_of
from .machines import MACHINES, Machine
from .report import seconds
from .sizes import BASE, IMPLEMENTATIONS, KERNELS, PEER_TEXT, Config, Implementation, Sample
from .work import ELEMENTWISE, PARTS, REQUEST, STEP, TABLES, TEXT, Part, Work

__all__ = [
    "BASE",
    "ELEMENTWISE",
    "IMPLEMENTATIONS",
    "KERNELS",
    "MACHINES",
    "PARTS",
    "PEER_TEXT",
    "REQUEST",
    "STEP",
    "TABLES",
    "TEXT",
    "Config",
    "Implementation",
    "Machine",
    "Part",
    "Sample",
    "Work",
    "count",
    "seconds",
    "work_of",
]
