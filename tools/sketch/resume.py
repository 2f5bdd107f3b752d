"""What the stages of training share: a step, and their resumable state in one safetensors file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ideoflow.files import write_tensors
from ideoflow.training.ema import Ema

SAVE_EVERY = 500  # steps

Optimizers = Sequence[torch.optim.Optimizer]


def descend(loss: Tensor, module: nn.Module, optimizer: torch.optim.Optimizer, average: Ema) -> None:
    """Take one step down the gradient of `loss`, clipped to a norm of 1, and have the average follow."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    average.update()


def save_state(path: Path, step: int, module: nn.Module, optimizers: Optimizers, average: Ema) -> None:
    """Write weights, averaged weights, optimizer states and the step to `path`."""
    tensors: dict[str, Tensor] = {f"model/{k}": v for k, v in module.state_dict().items()}
    tensors |= {f"average/{k}": v for k, v in average.values.items()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer{number}/{index}/{k}": v for k, v in state.items()}
    write_tensors(path, tensors, {"step": str(step)})


def load_state(path: Path, module: nn.Module, optimizers: Optimizers, average: Ema) -> int:
    """Restore what `save_state` wrote; returns the step, or 0 with nothing changed when there is no file."""
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        step = int(file.metadata()["step"])
    module.load_state_dict({k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")})
    average.values = {k: tensors[f"average/{k}"].to(v.device) for k, v in average.values.items()}
    average.updates = step
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith(f"optimizer{number}/"):
                _, index, key = name.split("/")
                state.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return step
