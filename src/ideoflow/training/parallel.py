"""One process or several: who computes which batch, and how weights and gradients are shared."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..devices import best_device


@dataclass(frozen=True)
class Group:
    """The processes of a run, as torchrun or `accelerate launch` started them.

    Attributes:
        rank: number of this process; 0 alone writes.
        size: number of processes.
        device: the device on which this process computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes; the values themselves in a single one."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def processes(device: str = "") -> Iterator[Group]:
    """Join the processes that the environment names (`RANK`, `WORLD_SIZE`), or be alone.

    Args:
        device: `cpu`, `cuda`, ...; the best there is when empty.
    """
    kind = device or best_device()
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Group(0, 1, torch.device(kind))
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    place = torch.device(f"{kind}:{local}") if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield Group(dist.get_rank(), size, place)
    finally:
        dist.destroy_process_group()


def share(module: nn.Module, group: Group, how: str) -> nn.Module:
    """Wrap `module` so that its gradients are those of all processes together: DDP, or FSDP2 with blocks as units.

    Gradients come out averaged over the processes.
    """
    if group.size == 1:
        return module
    if how == "fsdp":
        units = {name for part in module.modules() for name in getattr(part, "_no_split_modules", None) or ()}
        for part in [part for part in module.modules() if type(part).__name__ in units]:
            fully_shard(part)
        fully_shard(module)
        return module
    return nn.parallel.DistributedDataParallel(
        module, device_ids=[group.device] if group.device.type == "cuda" else None
    )


@contextmanager
def syncing(module: nn.Module, wanted: bool) -> Iterator[None]:
    """Exchange gradients in the next backward pass, or leave that to a later one of the same step."""
    if isinstance(module, nn.parallel.DistributedDataParallel) and not wanted:
        with module.no_sync():
            yield
        return
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(wanted)
    yield


def reshard(module: nn.Module) -> None:
    """Let go of weights that a forward pass gathered and that no backward pass will let go of."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def whole(value: Any) -> Any:
    """A tensor with all its shards gathered; anything else as it is. Every process must call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def like(value: Tensor, other: Tensor) -> Tensor:
    """`value`, whole in every process, laid out as `other`."""
    if isinstance(other, DTensor):
        return distribute_tensor(value.to(other.device), other.device_mesh, other.placements)
    return value.to(other.device)
