"""What a run leaves to be read: a line for each step, and curves for TensorBoard."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import write_text
from .watch import Run, Step, Watcher

if TYPE_CHECKING:
    from PIL import Image

    from .survey import Survey


class Log(Watcher):
    """`OUT/report.txt`, what was found in the data, and `OUT/log.jsonl`, a line for each step and validation loss.

    When a run goes on from a checkpoint, the lines of the steps that were lost go.
    """

    def __init__(self, out: Path) -> None:
        self.folder, self.path = out, out / "log.jsonl"

    def on_survey(self, survey: Survey) -> None:
        """Write the report."""
        write_text(self.folder / "report.txt", survey.report() + "\n")

    def on_begin(self, run: Run) -> None:
        """Keep the lines of the steps that count."""
        kept = [line for line in read(self.path) if line["step"] <= run.step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def on_step(self, run: Run, step: Step) -> None:
        """Append a line."""
        self._append(asdict(step))

    def on_validation(self, run: Run, loss: float) -> None:
        """Append a line."""
        self._append({"step": run.step, "validation": loss})

    def _append(self, line: dict[str, Any]) -> None:
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None  # a full disk names no file


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; none when there is no file."""
    lines = []
    for text in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            line = json.loads(text)
            lines.append({"step": int(line["step"]), **line})
        except (ValueError, TypeError, KeyError):
            break  # the last one of a process that was killed
    return lines


class TensorBoard(Watcher):
    """Curves in `OUT/tensorboard`; a warning and nothing more where the package is missing."""

    def __init__(self, out: Path) -> None:
        self.folder = out / "tensorboard"
        self.writer: Any = None

    def on_begin(self, run: Run) -> None:
        """Open the curves, without what comes after the step where the run goes on."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            warnings.warn("TensorBoard is not installed, no curves are written: pip install tensorboard", stacklevel=2)
            return
        self.writer = SummaryWriter(str(self.folder), purge_step=run.step + 1)

    def on_step(self, run: Run, step: Step) -> None:
        """Add a point to each curve."""
        if self.writer is None:
            return
        for name in ("loss", "norm", "rate", "filled", "epoch"):
            self.writer.add_scalar(name, getattr(step, name), step.step)
        for name in ("samples", "tokens"):
            self.writer.add_scalar(f"{name}/s", getattr(step, name) / step.seconds, step.step)

    def on_validation(self, run: Run, loss: float) -> None:
        """Add a point to its curve."""
        if self.writer is not None:
            self.writer.add_scalar("validation", loss, run.step)

    def on_previews(self, run: Run, pictures: Sequence[Image.Image]) -> None:
        """Add the pictures."""
        if self.writer is not None:
            for number, picture in enumerate(pictures):
                self.writer.add_image(f"previews/{number}", np.asarray(picture), run.step, dataformats="HWC")

    def on_save(self, path: Path) -> None:
        """Write down what is held back, so that it is not lost with the process."""
        if self.writer is not None:
            self.writer.flush()

    def on_end(self, run: Run, written: list[Path]) -> None:
        """Flush the curves."""
        if self.writer is not None:
            self.writer.close()
