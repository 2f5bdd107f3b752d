"""What ranks send each other, by torch's collectives, and a count of the bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor


class ExchangeFailed(RuntimeError):
    """A collective has failed, most likely because another rank is gone."""


@contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo's own, and torch.distributed.DistError
        raise ExchangeFailed(str(error).splitlines()[0]) from error


class Exchanges:
    """The collectives of one group of ranks.

    Args:
        group: The group; None for a group of this rank alone.
        sent: Bytes that this rank has sent, by kind, which the methods add to.

    Attributes:
        rank: This rank's number in the group.
        size: Ranks of the group.
        sent: As given.
    """

    def __init__(self, group: Any, sent: Counter[str]) -> None:
        self.group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.size = 1 if group is None else dist.get_world_size(group)
        self.sent = sent

    def all_to_all(self, kind: str, parts: Tensor, counts: Sequence[int], received: Sequence[int]) -> Tensor:
        """Hand each rank its part of a flat tensor.

        Args:
            kind: What the bytes are counted as.
            parts: (entries,) the part of each rank, one after another.
            counts: Entries for each rank.
            received: Entries that come from each rank.

        Returns:
            (entries,) what came from each rank, one after another.
        """
        if self.size == 1:
            return parts
        out = parts.new_empty(sum(received))
        self.sent[kind] += (sum(counts) - counts[self.rank]) * parts.element_size()
        with _failing():
            dist.all_to_all_single(out, parts, list(received), list(counts), group=self.group)
        return out

    def all_gather(self, kind: str, own: Tensor, lengths: Sequence[int]) -> Tensor:
        """The rows of all ranks, one rank's after another's: (rows, channels) of which each rank has `lengths`."""
        width = own.shape[1:].numel()
        flat = own.reshape(-1)
        received = [length * width for length in lengths]
        gathered = self.all_to_all(kind, flat.repeat(self.size), [len(flat)] * self.size, received)
        return gathered.view(-1, *own.shape[1:])

    def sum(self, kind: str, partial: Tensor) -> Tensor:
        """The sum over the ranks, written over `partial`. Counted as a ring sends it: each rank 2 (n - 1) / n of it."""
        if self.size == 1:
            return partial
        self.sent[kind] += 2 * (self.size - 1) * partial.numel() * partial.element_size() // self.size
        with _failing():
            dist.all_reduce(partial, group=self.group)
        return partial

    def broadcast(self, kind: str, tensor: Tensor) -> Tensor:
        """Rank 0's tensor, written over the others'. Counted as rank 0 sending it to each."""
        if self.size == 1:  # and to torch no group is the group of all
            return tensor
        if self.rank == 0:
            self.sent[kind] += (self.size - 1) * tensor.numel() * tensor.element_size()
        with _failing():
            dist.broadcast(tensor, group_src=0, group=self.group)
        return tensor

    def send(self, kind: str, tensor: Tensor, to: int) -> None:
        """Send a tensor to a rank that calls `receive`."""
        self.sent[kind] += tensor.numel() * tensor.element_size()
        with _failing():
            dist.send(tensor.contiguous(), group_dst=to, group=self.group)

    def receive(self, tensor: Tensor, source: int) -> Tensor:
        """What `source` sends, written over `tensor`."""
        with _failing():
            dist.recv(tensor, group_src=source, group=self.group)
        return tensor
