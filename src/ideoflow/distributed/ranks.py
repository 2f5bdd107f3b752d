"""The ranks of a plan: processes that torchrun has started, their mesh, and their signs of life."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ..devices import best_device
from .exchanges import ExchangeFailed, Exchanges
from .heartbeats import PATIENCE, Heartbeats, RankLost
from .parallel_config import NAMES, ParallelConfig

Branch = Literal["conditional", "unconditional"]
BRANCHES: tuple[Branch, ...] = get_args(Branch)

FOR_EVER = timedelta(weeks=500)
FAILED = "failed: "  # what stands before the failure where something else was waited for
LAST_RESORT = 10.0  # seconds in which a rank leaves the collectives of a failed run
LONGEST = timedelta(hours=1)  # of one collective: ranks that are gone are found by their signs of life, long before


@dataclass
class Ranks:
    """This process among those of a plan.

    Attributes:
        config: The plan.
        rank: Number of this process; 0 schedules.
        device: The device on which it computes.
        mesh: All ranks, by the names of `ParallelConfig`.
        store: Where rank 0 writes what is to be stepped.
        heartbeats: The signs of life.
        sent: Bytes that this rank has sent, by kind.
        world: Exchanges of all ranks.
        context: Exchanges of the ranks that share this one's stream.
        tensor: Exchanges of the ranks that share this one's weights.
        conditional: Exchanges of all ranks of the conditional branch; None where this is none of them.
    """

    config: ParallelConfig
    rank: int
    device: torch.device
    mesh: DeviceMesh
    store: Any
    heartbeats: Heartbeats
    sent: Counter[str]
    world: Exchanges
    context: Exchanges
    tensor: Exchanges
    conditional: Exchanges | None

    def __post_init__(self) -> None:
        self._awaited = ""  # the key that this rank waits for, or waited for last
        self._whole = self.store, self.store.clone()  # a client that waits keeps all others of its process waiting
        self._plans = 0
        self.begin()

    def begin(self) -> None:
        """Have keys of its own for each pipeline that the ranks share, one after another."""
        self._plans += 1
        self.store, self._waker = (dist.PrefixStore(f"plan {self._plans}", own) for own in self._whole)

    @property
    def leads(self) -> bool:
        """Whether this process schedules, speaks and writes files."""
        return self.rank == 0

    @property
    def replica(self) -> int:
        """Number of this rank's part of the pictures of a step."""
        return int(self.mesh.get_local_rank("data"))

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The branches that this rank computes."""
        if self.config.guidance == 1:
            return BRANCHES
        return (BRANCHES[self.mesh.get_local_rank("guidance")],)

    def wait_for(self, key: str) -> str:
        """What another rank writes in the store under a key, as long as that takes.

        Raises:
            RankLost: if the run fails meanwhile.
            ExchangeFailed: if the store is gone.
        """
        self._awaited = key
        if self.heartbeats.failure is not None:
            raise RankLost(self.heartbeats.failure)
        try:
            self.store.wait([key], FOR_EVER)
            text = str(self.store.get(key).decode())
        except RuntimeError as error:
            raise ExchangeFailed(str(error).splitlines()[0]) from error
        if text.startswith(FAILED):
            raise RankLost(text.removeprefix(FAILED))
        return text

    def wake(self, failure: str) -> None:
        """Have ranks that `wait_for` what will not come raise; from another thread."""
        with suppress(RuntimeError):  # the store is gone, and has told them so itself
            self._waker.set(self._awaited, FAILED + failure)

    def lead_of(self, replica: int, branch: Branch) -> int:
        """The rank that hands in the velocities of a branch of a replica."""
        place = BRANCHES.index(branch) if self.config.guidance == 2 else 0
        return int(self.mesh.mesh[replica, place, 0, 0])


@contextmanager
def joined(config: ParallelConfig, device: str = "", patience: float = PATIENCE) -> Iterator[Ranks]:
    """Join the processes that the environment names, as torchrun sets it (`RANK`, `WORLD_SIZE`, `MASTER_ADDR`, ...).

    Args:
        config: The plan.
        device: `cpu` or `cuda`; the best there is when empty. Of CUDA each process takes device `LOCAL_RANK`.
        patience: Seconds without a sign of life after which a rank is lost.

    Raises:
        ValueError: if the number of processes is not the plan's.
    """
    config.check_size(int(os.environ.get("WORLD_SIZE", "1")))
    kind, _, number = (device or best_device()).partition(":")
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"ranks compute on cpu or cuda, and the device is {device or kind!r}.")
    if number:
        raise ValueError(f"the device is {device!r}: each rank takes one of its own, so give {kind!r} alone.")
    if config.size == 1:
        raise ValueError("a plan for one process shares nothing: leave it out.")
    place = torch.device(kind)
    if kind == "cuda":
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    store, rank, size = next(iter(dist.rendezvous("env://", timeout=timedelta(minutes=5))))
    heartbeats = Heartbeats(dist.PrefixStore("signs", store.clone()), rank, size, patience)
    try:
        backend = "nccl" if kind == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=dist.PrefixStore("groups", store), rank=rank, world_size=size, timeout=LONGEST
        )
        try:
            ranks = _arranged(config, rank, place, store.clone(), heartbeats)
            heartbeats.on_failure = partial(_leave_collectives, ranks)
            yield ranks
        finally:
            if heartbeats.failure is None:  # else others may be gone, and this would wait for them
                with suppress(RuntimeError):
                    dist.barrier()  # the store, which rank 0 may keep, stays until all have read in it that this ends
                dist.destroy_process_group()
    finally:
        heartbeats.leave()


def _leave_collectives(ranks: Ranks) -> None:
    """Have this process leave what it waits for in a run that has failed.

    Gloo tells a rank itself that one it waits for is gone, and cannot be told to stop waiting for one that is not: that
    one ends here, unless it is rank 0, whose program may have things to put in order. NCCL waits for ever unless its
    communicators are aborted.
    """
    if ranks.device.type == "cuda":
        for exchanges in (ranks.context, ranks.tensor, ranks.conditional, ranks.world):
            if exchanges is not None and exchanges.group is not None:
                exchanges.group.abort()
    assert ranks.heartbeats.failure is not None
    ranks.wake(ranks.heartbeats.failure)
    if not ranks.leads and not ranks.heartbeats.left.wait(LAST_RESORT):
        os.write(2, f"error: {ranks.heartbeats.failure}\n".encode())
        os._exit(1)


def _arranged(config: ParallelConfig, rank: int, device: torch.device, store: Any, heartbeats: Heartbeats) -> Ranks:
    shape = tuple(getattr(config, name) for name in NAMES)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=NAMES)
    sent: Counter[str] = Counter()
    of_conditional = sorted(int(one) for one in mesh.mesh[:, 0].flatten())
    group = dist.new_group(of_conditional) if len(of_conditional) > 1 else None
    return Ranks(
        config=config,
        rank=rank,
        device=device,
        mesh=mesh,
        store=store,
        heartbeats=heartbeats,
        sent=sent,
        world=Exchanges(dist.group.WORLD, sent),
        context=Exchanges(mesh.get_group("context") if config.context > 1 else None, sent),
        tensor=Exchanges(mesh.get_group("tensor") if config.tensor > 1 else None, sent),
        conditional=Exchanges(group, sent) if rank in of_conditional else None,
    )
