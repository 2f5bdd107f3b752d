"""What a step costs where several GPUs share it: the time of one device, divided as a plan says, and what is sent.

Collectives are counted by bytes over bandwidth plus a latency, which is what each takes beside its bytes: its launch,
waiting for the slowest rank, and tensors put in order before and after. With n ranks that each hold B bytes, an
all-to-all sends B (n - 1) / n from each, an all-gather of B in all the same, and an all-reduce is two of these.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ..checks import finite, whole
from .cost import Cost
from .pace import Variation

NAMES = ("guidance", "context", "tensor", "data")
# Reads and writes of a stream in a block that tensor parallel divides among nobody: two norms, each read and written,
# modulated, gated and added to the stream, and what of that is kept between two kernels.
STREAM_PASSES = 16


@dataclass(frozen=True)
class Plan:
    """How many GPUs share a step, by the names of `ParallelConfig`; their product is the GPUs of a replica.

    Attributes:
        guidance: 2 for a branch on GPUs of its own, 1 for both on all.
        context: GPUs that share the tokens of a branch.
        tensor: GPUs that share the weights of a branch.
        data: GPUs that share the pictures of a step.
    """

    guidance: int = 1
    context: int = 1
    tensor: int = 1
    data: int = 1

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            TypeError: naming the number that is none.
            ValueError: naming the one that is out of range.
        """
        for name in NAMES:
            whole(name, getattr(self, name), 1, most=2 if name == "guidance" else 1000)

    @classmethod
    def of(cls, text: str) -> Plan:
        """The plan that a text such as "guidance=2,context=3" means; "one" is a single GPU.

        Raises:
            ValueError: if it means none.
        """
        parts = [] if text.strip() == "one" else [part.strip() for part in text.split(",")]
        found = [re.fullmatch(rf"({'|'.join(NAMES)})=(\d{{1,4}})", part, re.ASCII) for part in parts]
        given = {match[1]: int(match[2]) for match in found if match}
        if len(given) < len(parts):
            raise ValueError(
                f"{text!r} is no plan: give each of {', '.join(NAMES)} once at most, such as guidance=2,context=3; or"
                " one, for a single GPU."
            )
        return cls(**given)

    def __str__(self) -> str:
        """As `of` reads it."""
        return ",".join(f"{name}={number}" for name, number in asdict(self).items() if number > 1) or "one"

    @property
    def gpus(self) -> int:
        """GPUs of a replica."""
        return self.guidance * self.context * self.tensor * self.data


@dataclass(frozen=True)
class Network:
    """What of a transformer says how many bytes are sent.

    Attributes:
        layers: Blocks.
        hidden: Channels of the stream.
        heads: Heads of attention.
        channels: Channels of an image token's velocity.
        width: Bytes of a number in the stream; velocities have 4.
        sums: All-reduces of a block under tensor parallel: after attention and after the feed-forward part.
    """

    layers: int
    hidden: int
    heads: int
    channels: int = 128
    width: int = 2
    sums: int = 2


@dataclass(frozen=True)
class Machine:
    """What GPUs of a replica are joined by.

    Attributes:
        bandwidth: Bytes a second that each sends while it receives as many.
        latency: Seconds of a collective beside its bytes.
        memory: Bytes a second that a GPU reads or writes in its own memory.
    """

    bandwidth: float
    latency: float
    memory: float

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            TypeError: naming the number that is none.
            ValueError: naming the one that is out of range.
        """
        finite("bandwidth", self.bandwidth, above=0)
        finite("latency", self.latency, least=0)
        finite("memory", self.memory, above=0)

    def all_to_all(self, held: float, ranks: int) -> float:
        """Seconds in which each of the ranks, which holds so many bytes, gives every other its equal part of them."""
        return 0.0 if ranks == 1 else self.latency + held * (ranks - 1) / ranks / self.bandwidth

    def all_gather(self, whole_bytes: float, ranks: int) -> float:
        """Seconds in which each of the ranks comes to have all of so many bytes, of which it had an equal part."""
        return self.all_to_all(whole_bytes, ranks)

    def all_reduce(self, held: float, ranks: int) -> float:
        """Seconds in which so many bytes of each of the ranks are summed, and all have the sum."""
        return 2 * self.all_to_all(held, ranks)  # the parts are summed, and then gathered


IDEOGRAM_4 = Network(layers=34, hidden=4608, heads=18)
# Bandwidths by data sheet (NVLink 4 has 450 GB/s each way; PCIe 4 x16 32 GB/s, of which 25 arrive; HBM3 3.35 TB/s). The
# latency is fitted on one published figure, as tests/test_published_plans.py says, which checks it against others.
H100_NVLINK = Machine(bandwidth=450e9, latency=1.06e-4, memory=3.35e12)
PCIE_4 = Machine(bandwidth=25e9, latency=1.06e-4, memory=0.93e12)
MACHINES = {"nvlink": H100_NVLINK, "pcie": PCIE_4}
# Three measured steps of the full model with random weights on one H100, in bfloat16 (docs/performance.md, On a GPU:
# 71, 278 and 286 ms), which give the three numbers.
H100_BF16 = Cost(a=0.0020, b=3.0e-5, c=6.1e-10)


@dataclass(frozen=True)
class PlannedCost:
    """The cost of a step by a plan; takes the place of a `Cost` in `simulate`.

    Attributes:
        cost: Of one GPU by itself.
        plan: Who shares what.
        network: What is sent.
        machine: How fast.
    """

    cost: Cost
    plan: Plan
    network: Network = IDEOGRAM_4
    machine: Machine = H100_NVLINK

    def __post_init__(self) -> None:
        """Check that the heads divide among the ranks that share weights.

        Raises:
            ValueError: if they do not.
        """
        if self.network.heads % self.plan.tensor:
            fitting = [n for n in range(1, self.network.heads + 1) if self.network.heads % n == 0]
            raise ValueError(
                f"`tensor` is {self.plan.tensor}, and {self.network.heads} heads are shared in whole numbers: give one"
                f" of {', '.join(map(str, fitting))}."
            )

    @property
    def start(self) -> float:
        """Seconds of a request before its first step."""
        return self.cost.start

    @property
    def finish(self) -> float:
        """Seconds of an image token after the last step."""
        return self.cost.finish

    @property
    def variation(self) -> Variation:
        """What the machine's slow and fast moments are drawn from."""
        return self.cost.variation

    def of(self, requests: Sequence[Sequence[int]]) -> float:
        """Seconds of a step: each request has the length of its conditional segment, and of the other if guided."""
        groups: list[list[Sequence[int]]] = [[] for _ in range(self.plan.data)]
        loads = [0] * self.plan.data
        for request in sorted(requests, key=sum, reverse=True):  # the longest first, each where there is least
            least = loads.index(min(loads))
            groups[least].append(request)
            loads[least] += sum(request)
        return max(self._together(group) for group in groups if group)

    def _together(self, requests: Sequence[Sequence[int]]) -> float:
        """Seconds of a step of requests that one group of ranks has."""
        if self.plan.guidance == 1:
            return self._branch([length for request in requests for length in request])
        conditional = [request[0] for request in requests]
        unconditional = [request[1] for request in requests if len(request) > 1]
        if not unconditional:
            return self._branch(conditional)
        exchanged = sum(unconditional) / self.plan.context * self.network.channels * 4  # velocities of image tokens
        # The branch with text is the longer one.
        return self._branch(conditional) + self.machine.latency + exchanged / self.machine.bandwidth

    def _branch(self, segments: Sequence[int]) -> float:
        """Seconds of the segments that one group of ranks computes."""
        plan, net, machine = self.plan, self.network, self.machine
        alone = self.cost.step(segments)
        fixed = min(self.cost.a, alone)
        share = (alone - fixed) / plan.context
        tokens = sum(segments) / plan.context  # of a rank
        stream = tokens * net.hidden * net.width  # bytes
        everywhere = 0.0 if plan.tensor == 1 else min(share, net.layers * STREAM_PASSES * stream / machine.memory)
        computed = fixed + everywhere + (share - everywhere) / plan.tensor
        if net.heads // plan.tensor % plan.context == 0:  # queries, keys, values, and what attention gives
            attention = 4 * machine.all_to_all(stream / plan.tensor, plan.context)
        else:  # keys and values of all tokens, to each
            attention = 2 * machine.all_gather(stream * plan.context / plan.tensor, plan.context)
        # Several sums are of parts of the stream, so their bytes are those of two.
        latency = 2 * machine.latency * (net.sums - 2) if plan.tensor > 1 else 0.0
        reduced = 2 * machine.all_reduce(stream, plan.tensor) + latency
        return computed + net.layers * (attention + reduced)
