"""Who is told about a run: progress lines, logs and previews are watchers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

    from .dataset import Survey
    from .trainer import Trainer


@dataclass(frozen=True)
class Step:
    """What one optimizer step did, over all processes.

    Attributes:
        step: number of the step, from 1.
        loss: mean loss of its samples, all branches added.
        norm: of the gradient, before clipping.
        rate: learning rate.
        samples: in the step.
        tokens: text and image tokens in the step.
        filled: share of the batches' budget that was used.
        seconds: that it took.
        epoch: whole visits to the data so far.
    """

    step: int
    loss: float
    norm: float
    rate: float
    samples: int
    tokens: int
    filled: float
    seconds: float
    epoch: int


class Watcher:
    """What is told about a run, in the process that leads; every method may be left as it is."""

    def on_scan(self, done: int, total: int) -> None:
        """A picture was looked at."""

    def on_survey(self, survey: Survey) -> None:
        """All were; this is what is used and what is skipped."""

    def on_encode(self, done: int, total: int, what: str) -> None:
        """A picture or a caption was encoded."""

    def on_begin(self, trainer: Trainer) -> None:
        """The first step is about to be taken, or the first after a resumption."""

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """A step was taken; the weights are the new ones."""

    def on_validation(self, trainer: Trainer, loss: float) -> None:
        """The loss on what is held out was computed."""

    def on_previews(self, trainer: Trainer, pictures: Sequence[Image.Image]) -> None:
        """Previews were drawn, a picture for each caption."""

    def on_signal(self) -> None:
        """SIGINT or SIGTERM came: the run ends after this step. Called in the middle of whatever runs; do little."""

    def on_save(self, path: Path) -> None:
        """A checkpoint is whole."""

    def on_end(self, trainer: Trainer, written: list[Path]) -> None:
        """The run is over and its weights are saved."""
