"""Resumable state of a training run in one safetensors file, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

SAVE_EVERY = 500  # steps

Optimizers = Sequence[torch.optim.Optimizer]


class Average:
    """Exponential moving average of a module's parameters, warmed up: decay `min(decay, (1 + n) / (10 + n))`."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        parameters = dict(module.named_parameters())
        torch._foreach_lerp_(list(self.values.values()), [parameters[n] for n in self.values], 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        for name, parameter in module.named_parameters():
            parameter.copy_(self.values[name])


def save_state(path: Path, step: int, module: nn.Module, optimizers: Optimizers, average: Average) -> None:
    """Write weights, averaged weights, optimizer states and the step to `path`, then rename into place."""
    tensors: dict[str, Tensor] = {f"model/{k}": v.contiguous() for k, v in module.state_dict().items()}
    tensors |= {f"average/{k}": v for k, v in average.values.items()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer{number}/{index}/{k}": v for k, v in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"step": str(step)})
    os.replace(temporary, path)


def load_state(path: Path, module: nn.Module, optimizers: Optimizers, average: Average) -> int:
    """Restore what `save_state` wrote; returns the step, or 0 with nothing changed when there is no file."""
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        step = int(file.metadata()["step"])
    module.load_state_dict({k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")})
    average.values = {k: tensors[f"average/{k}"].to(v.device) for k, v in average.values.items()}
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith(f"optimizer{number}/"):
                _, index, key = name.split("/")
                state.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return step
