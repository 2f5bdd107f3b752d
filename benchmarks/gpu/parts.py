"""The parts, in order of worth, and how the minutes are shared out among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """What is measured together.

    Attributes:
        name: How it is asked for.
        what: What it shows.
        share: Of the minutes, beside the shares of the others; what a part leaves is the later ones'.
        place: Module and function, which takes a `Scene`; none for the tests, which are run by pytest.
    """

    name: str
    what: str
    share: int
    place: str = ""


PARTS = (
    Part("tests", "the tests that need a GPU, eight at a time", 130),
    Part(
        "bars",
        "a step at 512 and 1024 pixels: as it comes, the peer compiled, fp8 and int8",
        110,
        "benchmarks.gpu.steps:bars",
    ),
    Part(
        "profile",
        "where a step's time goes: kernels, and the time between them",
        20,
        "benchmarks.gpu.steps:profile_steps",
    ),
    Part(
        "products", "the model's matrix products alone, in bf16, fp8 and int8", 20, "benchmarks.gpu.products:products"
    ),
    Part(
        "training",
        "a step of a LoRA of rank 32 on an fp8 base, one picture and four",
        40,
        "benchmarks.gpu.lora_step:training",
    ),
    Part(
        "plans",
        "plans for 12, 16 and 24 GB carried out: peaks, seconds a step",
        90,
        "benchmarks.gpu.carried_plans:plans",
    ),
    Part("packed", "pictures of mixed sizes in one pass, and one by one", 20, "benchmarks.gpu.steps:packed"),
    Part("graphs", "CUDA graphs as they come against none: pictures, memory", 30, "benchmarks.gpu.steps:graphs"),
)
TESTS = (
    "tests/engine/test_graphs_cuda.py",
    "tests/engine/test_graphs.py",
    "tests/engine/test_cuda_graph.py",
    "tests/model/test_device.py",
    "tests/ops/kernels",
    "tests/ops/quantized",
    "tests/model/test_exactness.py",
    "tests/model/test_features.py",
    "tests/model/test_checkpoints.py",
    "tests/checkpoints/test_nf4.py",
    "tests/checkpoints/test_on_the_fly.py",
    "tests/pipeline/test_preview_map.py",
    "tests/pipeline/test_pipeline.py",
)


def chosen(names: Sequence[str]) -> list[Part]:
    """The parts of these names, in order of worth; all if there are none.

    Raises:
        ValueError: naming what is no part.
    """
    known = {part.name: part for part in PARTS}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{unknown[0]!r} is no part: choose among {', '.join(known)}.")
    return [part for part in PARTS if not names or part.name in names]


def limit(left: Sequence[Part], seconds: float) -> float:
    """Seconds for the first of these parts, of all that are left for them."""
    return seconds * left[0].share / sum(part.share for part in left)
