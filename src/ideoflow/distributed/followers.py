"""What rank 0 tells the other ranks to step, and how they do: contexts once, then numbers and latents at each step.

A step is a line of JSON in the store, which ranks that have nothing to do may wait for as long as they like, and then
collectives in an order that the line tells: text of new contexts to the ranks of the conditional branch, latents to
all, velocities back to rank 0. The followers know nothing of schedulers, guidance, callbacks or edits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..engine import Denoiser
from ..model import Context, Ideogram4Transformer2DModel
from ..model.rope import rotary_tables
from ..packing import Layout
from .exchanges import ExchangeFailed
from .heartbeats import RankLost
from .ranks import BRANCHES, Branch, Ranks


@dataclass
class Line:
    """What rank 0 says of a step.

    Attributes:
        contexts: New contexts by number: branch, text tokens, rows and columns.
        requests: New requests by number, with the times of all their steps.
        dropped: Numbers of contexts and requests that will not come again.
        replicas: For each replica its requests: number, step, tokens, context of each branch or None.
        ends: Whether this is the last line.
    """

    contexts: dict[int, tuple[Branch, int, int, int]] = field(default_factory=dict)
    requests: dict[int, tuple[float, ...]] = field(default_factory=dict)
    dropped: list[int] = field(default_factory=list)
    replicas: list[list[tuple[int, int, int, int | None, int | None]]] = field(default_factory=list)
    ends: bool = False

    def write(self) -> str:
        """As text."""
        return json.dumps(vars(self))

    @classmethod
    def read(cls, text: str) -> Line:
        """From text."""
        given = json.loads(text)
        for name in ("contexts", "requests"):
            given[name] = {int(number): tuple(value) for number, value in given[name].items()}
        given["replicas"] = [[tuple(one) for one in replica] for replica in given["replicas"]]
        return cls(**given)


@dataclass(eq=False)
class Stepped:
    """A request as far as a branch needs to know it: see `ideoflow.engine.Request`."""

    schedule: tuple[float, ...]
    times: Tensor
    step: int = 0
    latents: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def time(self) -> Tensor:
        """Model time of the step."""
        return self.times[self.step]


class Follower:
    """A rank other than 0: steps what it is told to.

    Args:
        ranks: The ranks.
        branches: The transformers of this rank, shared out already.
    """

    def __init__(self, ranks: Ranks, branches: Mapping[Branch, Ideogram4Transformer2DModel]) -> None:
        self.ranks = ranks
        self.transformers = branches
        self.denoisers = {branch: Denoiser(one, None, cuda_graphs=False) for branch, one in branches.items()}
        self.dtype = next(iter(branches.values())).dtype
        self.contexts: dict[int, Context] = {}
        self.requests: dict[int, Stepped] = {}
        self._read = 0

    def run(self) -> None:
        """Follow until rank 0 is done.

        Raises:
            RankLost: naming the rank that the run has failed from.
        """
        with failing_together(self.ranks):
            while not (line := self._next()).ends:
                self._step(line)

    def _next(self) -> Line:
        line = Line.read(self.ranks.wait_for(f"line/{self._read}"))
        self._read += 1
        self.ranks.store.add("read", 1)
        return line

    @torch.no_grad()
    def _step(self, line: Line) -> None:
        for number in line.dropped:
            self.contexts.pop(number, None)
            self.requests.pop(number, None)
        for number, schedule in line.requests.items():
            times = torch.tensor(schedule, dtype=torch.float32, device=self.ranks.device)
            self.requests[number] = Stepped(schedule, times)
        for number, (branch, *sizes) in line.contexts.items():
            self._prepare(number, branch, *sizes)
        self._receive_latents(line)
        for place, branch in enumerate(BRANCHES):
            if branch in self.denoisers:
                numbers = {one[0]: one[3 + place] for one in line.replicas[self.ranks.replica]}
                self._compute(branch, {number: context for number, context in numbers.items() if context is not None})

    def _receive_latents(self, line: Line) -> None:
        """Latents of all requests, as rank 0 sends them."""
        every = [one for replica in line.replicas for one in replica]
        channels = next(iter(self.transformers.values())).config.in_channels
        packed = torch.empty(sum(one[2] for one in every), channels, dtype=self.dtype, device=self.ranks.device)
        self.ranks.world.broadcast("latents", packed)
        for (number, step, *_), own in zip(every, packed.split([one[2] for one in every]), strict=True):
            self.requests[number].step, self.requests[number].latents = step, own

    def _compute(self, branch: Branch, numbers: dict[int, int]) -> None:
        """Take part in the pass of a branch; its first rank hands in the velocities."""
        if not numbers:
            return
        contexts: Any = {self.requests[number]: self.contexts[context] for number, context in numbers.items()}
        velocities, _ = self.denoisers[branch].velocities(contexts, {})
        if self.ranks.rank == self.ranks.lead_of(self.ranks.replica, branch):
            together = torch.cat([velocities[request] for request in contexts])
            self.ranks.world.send("velocities", together.to(self.dtype), 0)

    def _prepare(self, number: int, branch: Branch, text_tokens: int, rows: int, cols: int) -> None:
        """Make a context, with the others of the conditional branch from the text that rank 0 sends."""
        text = None
        if branch == "conditional" and self.ranks.conditional is not None and text_tokens:
            config = self.transformers["conditional"].config
            width = config.num_attention_heads * config.attention_head_dim
            text = torch.empty(text_tokens, width, dtype=self.dtype, device=self.ranks.device)
            self.ranks.conditional.broadcast("text", text)
        transformer = self.transformers.get(branch)
        if transformer is None:
            return
        layout = Layout.of_samples([(text_tokens, rows, cols)], self.ranks.device)
        config = transformer.config
        tables = rotary_tables(
            layout.position_ids, config.attention_head_dim, config.rope_theta, config.mrope_section, self.dtype
        )
        if text is None:
            text = tables[0].new_empty(0, transformer.hidden_size)
        self.contexts[number] = Context(layout, text, *tables)


@contextmanager
def failing_together(ranks: Ranks) -> Iterator[None]:
    """Have what goes wrong in the block end all ranks: here with the error itself, elsewhere with a `RankLost`.

    Raises:
        RankLost: where an exchange has failed because of another rank, naming that one.
    """
    try:
        yield
    except RankLost:
        raise
    except Exception as error:
        # Another's failure shows in an exchange: wait until it is known whose.
        lost = ranks.heartbeats.wait_for_failure() if isinstance(error, ExchangeFailed) else None
        if lost is not None:
            raise RankLost(lost) from error
        line = str(error).splitlines()[0] if str(error) else ""
        ranks.heartbeats.report(f"rank {ranks.rank} failed: {type(error).__name__}: {line}")
        raise
    except (KeyboardInterrupt, SystemExit):
        ranks.heartbeats.report(f"rank {ranks.rank} was interrupted in the middle of a step.")
        raise
