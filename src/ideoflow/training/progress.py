"""What a run leaves to be read: a line for each step, and curves for TensorBoard."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .watch import Step, Watcher

if TYPE_CHECKING:
    from .dataset import Survey
    from .trainer import Trainer


class Log(Watcher):
    """`OUT/report.txt`, what was found in the data, and `OUT/log.jsonl`, a line for each step.

    When a run goes on from a checkpoint, the lines of the steps that were lost go.
    """

    def __init__(self, out: Path) -> None:
        self.folder, self.path = out, out / "log.jsonl"

    def on_survey(self, survey: Survey) -> None:
        """Write the report."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "report.txt").write_text(survey.report() + "\n", encoding="utf-8")

    def on_begin(self, trainer: Trainer) -> None:
        """Keep the lines of the steps that count."""
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read(self.path) if line["step"] <= trainer.step]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        temporary.replace(self.path)

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """Append a line."""
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(step)) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; none when there is no file."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break  # the last one of a process that was killed
    return lines


class TensorBoard(Watcher):
    """Curves in `OUT/tensorboard`; a warning and nothing more where the package is missing."""

    def __init__(self, out: Path) -> None:
        self.folder = out / "tensorboard"
        self.writer: Any = None

    def on_begin(self, trainer: Trainer) -> None:
        """Open the curves, without what comes after the step where the run goes on."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            warnings.warn("TensorBoard is not installed, no curves are written: pip install tensorboard", stacklevel=2)
            return
        self.writer = SummaryWriter(str(self.folder), purge_step=trainer.step + 1)

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """Add a point to each curve."""
        if self.writer is None:
            return
        for name in ("loss", "norm", "rate", "filled", "epoch"):
            self.writer.add_scalar(name, getattr(step, name), step.step)
        for name in ("samples", "tokens"):
            self.writer.add_scalar(f"{name}/s", getattr(step, name) / step.seconds, step.step)

    def on_end(self, trainer: Trainer, written: list[Path]) -> None:
        """Flush the curves."""
        if self.writer is not None:
            self.writer.close()
