"""Which plan: how many ranks share the branches, the tokens, the weights and the pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..checks import whole

NAMES = ("data", "guidance", "context", "tensor")  # the mesh's dimensions, the last one's ranks side by side


@dataclass(frozen=True)
class ParallelConfig:
    """How many ranks share what; their product is the number of processes.

    Attributes:
        guidance: 2 to compute the conditional and the unconditional branch on ranks of their own, each of which loads
            its branch alone; 1 for both branches on every rank.
        context: Ranks that share the tokens of a branch's stream.
        tensor: Ranks that share the heads and the feed-forward channels of a branch's weights.
        data: Ranks that share the pictures of a step.

    Raises:
        TypeError: a number that is not whole.
        ValueError: a number below 1, or a `guidance` that is neither 1 nor 2.
    """

    guidance: int = 1
    context: int = 1
    tensor: int = 1
    data: int = 1

    def __post_init__(self) -> None:
        for name in NAMES:
            whole(name, getattr(self, name), 1)
        if self.guidance > 2:
            raise ValueError(f"`guidance` is {self.guidance}: there are two branches, so give 1 or 2.")

    @classmethod
    def parse(cls, text: str) -> ParallelConfig:
        """A plan written as `guidance=2,context=2`.

        Raises:
            ValueError: naming the part that is none.
        """
        given: dict[str, int] = {}
        for part in text.split(","):
            name, _, number = part.strip().partition("=")
            if name not in NAMES or not number.isdecimal() or name in given:
                allowed = ", ".join(sorted(NAMES))
                raise ValueError(
                    f"{text!r}: {part.strip()!r} is no part of a plan: give each of {allowed} once at most, with a"
                    " number of ranks, such as guidance=2,context=2."
                )
            given[name] = int(number)
        return cls(**given)

    def __str__(self) -> str:
        parts = [f"{name}={number}" for name, number in asdict(self).items() if number > 1]
        return ",".join(parts) or "one process"

    @property
    def size(self) -> int:
        """Number of processes."""
        return self.guidance * self.context * self.tensor * self.data

    def check_size(self, processes: int) -> None:
        """See that there are as many processes as the plan has ranks.

        Raises:
            ValueError: if not, saying how to start them.
        """
        if processes != self.size:
            raise ValueError(
                f"the plan {self} is for {self.size} processes, and there are {processes} (WORLD_SIZE): start"
                f" `torchrun --nproc-per-node {self.size} ...`, or change the plan."
            )

    def check_model(self, branch: str, sizes: Mapping[str, Any]) -> None:
        """See that a branch can be shared so, by its configuration alone.

        Args:
            branch: Name of the branch, for the message.
            sizes: The transformer's configuration.

        Raises:
            ValueError: if heads or feed-forward channels do not divide among the ranks of `tensor`.
        """
        heads, channels = int(sizes["num_attention_heads"]), int(sizes["intermediate_size"])
        if heads % self.tensor or channels % self.tensor:
            fitting = [n for n in range(1, heads + 1) if heads % n == 0 and channels % n == 0]
            raise ValueError(
                f"`tensor` is {self.tensor}, but the {branch} has {heads} heads and {channels} feed-forward channels,"
                f" which are shared in whole numbers: give one of {', '.join(map(str, fitting))}."
            )
