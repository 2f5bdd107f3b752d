"""One training run as a process: `python run_training.py OPTIONS_JSON LOSSES_FILE`, or as many under torchrun."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from ideoflow.training.run import train
from ideoflow.training.settings import Settings
from ideoflow.training.watch import Watcher


class Losses(Watcher):
    """One line for each step: its number, loss and norm."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_step(self, trainer, step) -> None:
        with self.path.open("a") as file:
            file.write(f"{step.step} {step.loss!r} {step.norm!r} {step.samples}\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    options = json.loads(sys.argv[1])
    train(Settings.read(**options), resume=bool(os.environ.get("RESUME")), watchers=[Losses(Path(sys.argv[2]))])
