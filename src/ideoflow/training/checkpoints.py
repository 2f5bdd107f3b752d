"""Checkpoints of a run: complete, written whole or not at all, the last few kept."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ..files import sync
from .parallel import like

NAME = "step-{:07d}"


@dataclass
class State:
    """All that a run needs to go on as if it had never stopped.

    Attributes:
        step: optimizer steps that are done.
        weights: trained weights by name.
        optimizer: the optimizer's tensors, `parameter/key`.
        average: moving average of the weights by name; empty without one.
        values: everything else, as JSON can hold it.
    """

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    average: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


PARTS = ("weights", "optimizer", "average")


def save(folder: Path, state: State, keep: int) -> Path:
    """Write `folder/step-NNNNNNN`, and then remove all but the last `keep` checkpoints.

    It is written under another name, flushed to the disk and renamed: whenever the process or the machine dies, every
    folder of that name is whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / NAME.format(state.step)
    temporary = folder / f".{final.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for part in PARTS:
        tensors = {name: t.detach().cpu().contiguous() for name, t in getattr(state, part).items()}
        save_file(tensors, temporary / f"{part}.safetensors")
    (temporary / "state.json").write_text(json.dumps({"step": state.step, "values": state.values}))
    for path in (*temporary.iterdir(), temporary):
        sync(path)
    if final.exists():  # a run that was told to begin again
        shutil.rmtree(final)
    temporary.rename(final)
    sync(folder)
    for old in saved(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    for left in folder.glob(".step-*"):
        shutil.rmtree(left, ignore_errors=True)
    return final


def saved(folder: Path) -> list[Path]:
    """Whole checkpoints in `folder`, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def load(path: Path) -> State:
    """Read a checkpoint.

    Raises:
        ValueError: if `path` is not a whole checkpoint.
    """
    try:
        values = json.loads((path / "state.json").read_text())
        tensors = {part: _read(path / f"{part}.safetensors") for part in PARTS}
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{path} is not a whole checkpoint: {error}. Remove it to use the one before.") from None
    return State(step=values["step"], values=values["values"], **tensors)


def _read(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: dict[int, str]) -> dict[str, Tensor]:
    """The optimizer's state as `parameter/key`; `names` gives a parameter's name by its id."""
    return {
        f"{names[id(parameter)]}/{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


@torch.no_grad()
def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], tensors: dict[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` gave."""
    state: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        parameter, _, key = name.rpartition("/")
        place = parameters[parameter]
        state.setdefault(parameter, {})[key] = like(value, place) if value.shape == place.shape else value
    for name, values in state.items():
        optimizer.state[parameters[name]] = values


def restore_schedule(schedule: LambdaLR, step: int) -> None:
    """Set the learning rates to those after `step` steps."""
    schedule.last_epoch = step
    rates = [base * factor(step) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates


def replace_folder(target: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a folder under another name, and put it in place of `target` when it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = (target.with_name(f".{target.name}.{what}") for what in ("new", "old"))
    for left in (fresh, old):
        shutil.rmtree(left, ignore_errors=True)
    write(fresh)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)
