"""Optimizers and learning rate schedules by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

BETAS = (0.9, 0.99)


def make_optimizer(name: str, module: nn.Module, lr: float, weight_decay: float = 0.01) -> Optimizer:
    """An optimizer over the parameters of `module` that require gradients; vectors and biases do not decay.

    Args:
        name: One of `OPTIMIZERS`.
        module: What is trained.
        lr: Learning rate, above 0.
        weight_decay: Decoupled, of matrices.

    Raises:
        ValueError: an unknown name, or nothing to train.
        ImportError: the package of an 8-bit optimizer is not installed; the message names it.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"`optimizer` is {name!r}; it is one of {', '.join(OPTIMIZERS)}.")
    trained = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    if not trained:
        raise ValueError("no parameter requires a gradient: nothing would be trained.")
    return OPTIMIZERS[name](trained, lr, weight_decay)


def _groups(trained: list[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    matrices = [p for _, p in trained if p.ndim > 1]
    others = [p for _, p in trained if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _adamw(trained: list[tuple[str, nn.Parameter]], lr: float, weight_decay: float) -> Optimizer:
    return torch.optim.AdamW(_groups(trained, weight_decay), lr=lr, betas=BETAS)


def _from(package: str, path: str, install: str) -> Callable[..., Optimizer]:
    """An AdamW of another package, imported when it is asked for."""

    def make(trained: list[tuple[str, nn.Parameter]], lr: float, weight_decay: float) -> Optimizer:
        where, _, kind = path.rpartition(".")
        try:
            optimizer = getattr(importlib.import_module(where), kind)
        except ImportError as error:
            raise ImportError(
                f"this optimizer needs {package} ({error}): `pip install {install}`, or train with `optimizer = adamw`."
            ) from None
        return optimizer(_groups(trained, weight_decay), lr=lr, betas=BETAS)

    return make


class Muon(Optimizer):
    """Muon for the matrices inside the blocks, AdamW for everything else, as one optimizer.

    Muon (Jordan et al., 2024) takes orthogonalised momentum for an update; its rate is scaled so that updates are as
    large as AdamW's ("Muon is scalable for LLM training", 2025), hence one learning rate serves both.
    """

    def __init__(self, trained: list[tuple[str, nn.Parameter]], lr: float, weight_decay: float) -> None:
        inside = [p for n, p in trained if ".layers." in f".{n}" and p.ndim == 2 and "adaln" not in n]
        chosen = {id(p) for p in inside}
        outside = [(n, p) for n, p in trained if id(p) not in chosen]
        self.parts: list[Optimizer] = []
        if outside:
            self.parts.append(_adamw(outside, lr, weight_decay))
        if inside:
            muon = torch.optim.Muon(inside, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            self.parts.append(muon)
        super().__init__([p for _, p in trained], {"lr": lr})
        # The parts' own groups, so that a schedule that sets a rate sets it where it is read.
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step with each part."""
        loss = None if closure is None else closure()
        for part in self.parts:
            # The state lies here, where checkpoints read and write it.
            part.state = self.state
            part.step()
        return loss


OPTIMIZERS: dict[str, Callable[[list[tuple[str, nn.Parameter]], float, float], Optimizer]] = {
    "adamw": _adamw,
    "adamw_8bit": _from("bitsandbytes", "bitsandbytes.optim.AdamW8bit", "bitsandbytes"),
    "paged_adamw_8bit": _from("bitsandbytes", "bitsandbytes.optim.PagedAdamW8bit", "bitsandbytes"),
    "adamw_8bit_torchao": _from("torchao", "torchao.optim.AdamW8bit", "torchao"),
    "muon": Muon,
}


def make_schedule(optimizer: Optimizer, name: str, warmup: int, steps: int) -> LambdaLR:
    """A schedule of transformers, by its name: the learning rate over `steps` steps, `warmup` of them rising.

    Raises:
        ValueError: an unknown name, or one that needs more than these numbers.
    """
    from transformers import get_scheduler
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

    names = [kind.value for kind in TYPE_TO_SCHEDULER_FUNCTION]
    if name not in names:
        raise ValueError(f"`schedule` is {name!r}; it is one of {', '.join(names)}.")
    try:
        schedule = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    except TypeError as error:
        raise ValueError(f"`schedule` {name!r} needs more than warm-up and steps ({error}): choose another.") from None
    if not isinstance(schedule, LambdaLR):
        raise ValueError(
            f"`schedule` {name!r} does not depend on the step alone and cannot be resumed: choose another."
        )
    return schedule
