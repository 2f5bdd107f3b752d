"""Checkpoints of a run: complete, written whole or not at all, the last few kept, and refused when damaged."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ..files import in_place
from .batches import StreamState
from .parallel import like

NAME = "step-{:07d}"
PARTS = ("weights", "optimizer", "average")  # files of tensors
SHAPED = ("exp_avg", "exp_avg_sq", "momentum_buffer")  # what torch's optimizers keep in the shape of a weight


class Values(BaseModel):
    """Where a run stands, beside its tensors.

    Attributes:
        stream: position in the data.
        recent: moving average of the loss.
        batches: number of batches in a step, all processes together.
        samples: names of the data, in order.
        settings: the run's options, by section.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    stream: StreamState
    recent: FiniteFloat | None
    batches: Annotated[int, Field(ge=1)]
    samples: list[str]
    settings: dict[str, dict[str, Any]]


@dataclass
class State:
    """All that a run needs to go on as if it had never stopped.

    Attributes:
        step: optimizer steps that are done.
        values: position and settings of the run.
        weights: trained weights by name.
        optimizer: the optimizer's tensors, `parameter/key`.
        average: moving average of the weights by name; empty without one.
    """

    step: int
    values: Values
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    average: dict[str, Tensor] = field(default_factory=dict)


class _Record(BaseModel):
    """A state without its tensors, and the digests of the files that hold those."""

    model_config = ConfigDict(extra="forbid", strict=True)

    step: Annotated[int, Field(ge=0)]
    values: Values
    files: dict[str, str]

    def digest(self) -> str:
        """The sha256 of all of it, the same on every machine."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


class _File(BaseModel):
    """What `state.json` holds."""

    digest: str
    record: _Record


def save(folder: Path, state: State, keep: int) -> Path:
    """Write `folder/step-NNNNNNN`, and then remove all but the last `keep` checkpoints.

    It is written under another name, flushed to the disk and renamed: whenever the process or the machine dies, every
    folder of that name is whole.

    Raises:
        OSError: if it cannot be written; the checkpoints that were there are untouched.
    """
    final = folder / NAME.format(state.step)
    try:
        with in_place(final) as temporary:
            temporary.mkdir()
            files = {}
            for part in PARTS:
                path = temporary / f"{part}.safetensors"
                save_file({name: t.detach().cpu().contiguous() for name, t in getattr(state, part).items()}, path)
                files[path.name] = _digest(path)
            record = _Record(step=state.step, values=state.values, files=files)
            content = _File(digest=record.digest(), record=record)
            (temporary / "state.json").write_text(json.dumps(content.model_dump(mode="json")), encoding="utf-8")
    except SafetensorError as error:  # a full disk, in its own words
        raise OSError(f"{final} cannot be written: {error}") from None
    for old in saved(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    for left in folder.glob(".step-*"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    return final


def saved(folder: Path) -> list[Path]:
    """Whole checkpoints in `folder`, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def load(path: Path) -> State:
    """Read a checkpoint.

    Raises:
        ValueError: if `path` is not a whole checkpoint, byte for byte as it was saved.
    """
    try:
        content = _File.model_validate_json((path / "state.json").read_bytes())
        record = content.record
        if record.digest() != content.digest or NAME.format(record.step) != path.name:
            raise ValueError("state.json is not as it was saved")
        for part in PARTS:
            file = path / f"{part}.safetensors"
            if _digest(file) != record.files.get(file.name):
                raise ValueError(f"{file.name} is not as it was saved")
        tensors = {part: _read(path / f"{part}.safetensors") for part in PARTS}
    except (OSError, ValueError, SafetensorError) as error:
        reason = _first(error) if isinstance(error, ValidationError) else str(error).rstrip(".")
        raise ValueError(f"{path} is not a whole checkpoint: {reason}. Remove it to use the one before.") from None
    return State(record.step, record.values, **tensors)


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"state.json{f', `{where}`' if where else ''}: {first['msg']}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def check_tensors(what: str, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """See that saved tensors can take the place of those that are wanted.

    Raises:
        ValueError: naming the first that is missing, too many, of another shape or type, or not finite.
    """
    for name in wanted.keys() ^ tensors.keys():
        raise ValueError(f"its {what} {'lack' if name in wanted else 'have an unknown'} {name!r}")
    for name, tensor in tensors.items():
        _check_tensor(f"{name!r} of its {what}", tensor, wanted[name].shape, wanted[name].dtype)


def check_optimizer(tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    """See that an optimizer's saved tensors belong to these parameters; what 8-bit optimizers keep has any shape.

    Raises:
        ValueError: naming the first that is of no parameter, of a wrong shape, or not finite.
    """
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition("/")
        if parameter not in parameters:
            raise ValueError(f"its optimizer holds {name!r}, which is of no weight that is trained")
        shape = parameters[parameter].shape if key in SHAPED else torch.Size() if key == "step" else tensor.shape
        _check_tensor(f"{name!r} of its optimizer", tensor, shape, tensor.dtype)


def _check_tensor(what: str, tensor: Tensor, shape: torch.Size, dtype: torch.dtype) -> None:
    if tensor.shape != shape or tensor.dtype != dtype:
        got, expected = (f"{kind} {list(size)}" for kind, size in ((tensor.dtype, tensor.shape), (dtype, shape)))
        raise ValueError(f"{what} is {got}, not {expected}")
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise ValueError(f"{what} holds values that are not finite")


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
