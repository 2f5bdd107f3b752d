"""`--parallel`: one command in several processes: rank 0 runs it, the others load what it says, and follow it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..bundled import SKETCH, SKETCH_FOLDER
from ..distributed import ParallelConfig
from .console import err, out, plain_warnings, starting
from .draw import load, quantize
from .jobs import Lora, Settings

if TYPE_CHECKING:
    from ..distributed import Ranks
    from ..pipeline import Ideogram4Pipeline

ParallelOption = Annotated[
    str | None,
    typer.Option(
        "--parallel",
        metavar="PLAN",
        help="Share the steps among the processes that torchrun has started: guidance=2, context=3, tensor=2 or data=2,"
        " or several of these, joined by commas. See docs/scale.md.",
        show_default=False,
    ),
]


def plan_of(text: str | None, **excluded: object) -> ParallelConfig | None:
    """The plan of `--parallel`, checked against the number of processes; None without one.

    Args:
        text: As typed.
        excluded: Options that a plan excludes, by name; any that is given is refused.

    Raises:
        ValueError: naming the option that does not fit.
    """
    if text is None:
        return None
    try:
        plan = ParallelConfig.parse(text)
        plan.check_size(int(os.environ.get("WORLD_SIZE", "1")))
    except ValueError as error:
        raise ValueError(f"--parallel {error}") from None
    if plan.size == 1:
        raise ValueError(f"--parallel {text}: a plan for one process shares nothing; leave it out.")
    for name, given in excluded.items():
        if given:
            raise ValueError(f"--parallel and --{name.replace('_', '-')} exclude each other: give one of them.")
    return plan


def check_settings(plan: ParallelConfig, several: Sequence[Settings]) -> None:
    """See that models and adapters can be shared so, as far as their configurations tell.

    Raises:
        ValueError: naming what does not fit.
    """
    from ..distributed.applied_plan import check_folder

    for settings in several:
        check_folder(plan, SKETCH_FOLDER if settings.model == SKETCH else Path(settings.base or settings.model))
        if settings.loras and plan.size > plan.guidance:
            raise ValueError(
                "--lora acts under --parallel guidance=2 alone: the other parts of a plan share the branch that it is"
                " on. Leave it out, or fuse it into the weights and save these first (docs/lora.md)."
            )


@contextmanager
def ranks_of(plan: ParallelConfig | None, device: str | None) -> Iterator[Ranks | None]:
    """In rank 0, the ranks of a plan for the block; at its end the others go. None without a plan."""
    if plan is None:
        yield None
        return
    from ..distributed import joined

    with joined(plan, device or "") as ranks:
        try:
            yield ranks
        finally:
            if ranks.heartbeats.failure is None:
                ranks.store.set("settings", "null")


def follow(plan: ParallelConfig, device: str | None, ignore_unknown: bool) -> None:
    """In the other ranks: share the pipelines that rank 0 draws with, one after another, until it is done."""
    out.quiet = err.quiet = True
    try:
        with starting("importing torch, transformers and diffusers"):
            from ..distributed import joined
        with plain_warnings(), joined(plan, device or "") as ranks:
            while (given := json.loads(ranks.wait_for("settings"))) is not None:
                settings = Settings(**{**given, "loras": tuple(Lora(**lora) for lora in given["loras"])})
                with shared(settings, ignore_unknown, ranks):
                    pass
    except Exception:
        err.quiet = False  # rank 0 may be the one that is gone
        raise


@contextmanager
def shared(settings: Settings, ignore_unknown: bool, ranks: Ranks) -> Iterator[Ideogram4Pipeline | None]:
    """The pipeline of these settings under the plan of the ranks: in rank 0 to draw with, in the others None."""
    from ..distributed import enable_parallelism
    from ..distributed.applied_plan import without
    from ..distributed.followers import failing_together

    if ranks.leads:
        ranks.store.set("settings", json.dumps(asdict(settings)))
    with failing_together(ranks):
        absent: Any = without(ranks)
        pipe = load(settings, ignore_unknown, place=False, **absent)
        quantize(pipe, settings)
    with enable_parallelism(pipe, ranks) as own:
        yield own
