"""Who is told about a run: progress lines, logs and previews are watchers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from PIL import Image

    from ..pipeline import Ideogram4Pipeline
    from .encoding import Sample
    from .objective import FlowMatching
    from .parallel import Group
    from .settings import Settings
    from .survey import Survey


class Run(Protocol):
    """What watchers may look at: the trainer.

    Attributes:
        step: number of optimizer steps that are done.
        stopping: whether the run ends after this step.
        folder: the run's folder.
        settings: the run's options.
        samples: what is trained on, encoded.
        pipeline: the pipeline whose transformers are trained.
        group: the processes that share the work.
        loss: the module of the loss, which holds what is trained.
        watchers: all who are told.
    """

    step: int
    stopping: bool
    folder: Path
    settings: Settings
    samples: Sequence[Sample]
    pipeline: Ideogram4Pipeline
    group: Group
    loss: FlowMatching
    watchers: Sequence[Watcher]

    def averaged(self) -> AbstractContextManager[None]:
        """A context in which the trained weights are their moving average, if there is one."""

    def autocast(self) -> AbstractContextManager[None]:
        """A context of the settings' precision."""


@dataclass(frozen=True)
class Step:
    """What one optimizer step did, over all processes.

    Attributes:
        step: number of the step, from 1.
        loss: mean loss of its samples, all branches added.
        norm: norm of the gradient before clipping.
        rate: learning rate.
        samples: number of samples in the step.
        tokens: number of text and image tokens in the step.
        filled: share of the batches' budget that was used.
        seconds: duration of the step.
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

    def on_begin(self, run: Run) -> None:
        """The first step is about to be taken, or the first after a resumption."""

    def on_step(self, run: Run, step: Step) -> None:
        """A step was taken; the weights are the new ones."""

    def on_validation(self, run: Run, loss: float) -> None:
        """The loss on what is held out was computed."""

    def on_previews(self, run: Run, pictures: Sequence[Image.Image]) -> None:
        """Previews were drawn, a picture for each caption."""

    def on_signal(self) -> None:
        """SIGINT or SIGTERM came: the run ends after this step. Called in the middle of whatever runs; do little."""

    def on_save(self, path: Path) -> None:
        """A checkpoint is whole."""

    def on_end(self, run: Run, written: list[Path]) -> None:
        """The run is over and its weights are saved."""
