"""One training run as a process: `python run_training.py OPTIONS_JSON LOSSES_FILE`, or as many under torchrun.

Ends with code 130 when it is interrupted, as the command does.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from ideoflow.interrupts import Interrupted
from ideoflow.training.run import train
from ideoflow.training.settings import Settings
from ideoflow.training.watch import Watcher


class Losses(Watcher):
    """One line for each step: its number, loss and norm; and `validation STEP LOSS` in a file beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_step(self, trainer, step) -> None:
        with self.path.open("a") as file:
            file.write(f"{step.step} {step.loss!r} {step.norm!r} {step.samples}\n")

    def on_validation(self, trainer, loss) -> None:
        with self.path.with_suffix(".validation").open("a") as file:
            file.write(f"{trainer.step} {loss!r}\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    options = json.loads(sys.argv[1])
    try:
        train(Settings.read(**options), resume=bool(os.environ.get("RESUME")), watchers=[Losses(Path(sys.argv[2]))])
    except Interrupted:
        sys.exit(130)
