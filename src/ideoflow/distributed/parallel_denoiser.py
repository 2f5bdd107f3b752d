"""Rank 0's denoiser: a step as ever, but that its velocities come from all ranks."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from itertools import count
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from ..engine import Denoiser, Request
from ..engine.graphs import Choice, check_choice
from ..model import Context
from ..ops.adapters import adapter_layers
from ..ops.weights import Snapshot, snapshot
from .followers import Line, failing_together
from .heartbeats import RankLost
from .ranks import BRANCHES, Branch, Ranks


class Leader:
    """Rank 0's side of what the ranks say to each other; one for all engines of a pipeline, which take turns.

    Args:
        ranks: The ranks.
        transformers: The branches that this rank has, shared out already.
        dtype: The type that velocities and latents are sent in.
    """

    def __init__(self, ranks: Ranks, transformers: Mapping[Branch, Any], dtype: torch.dtype) -> None:
        self.ranks = ranks
        self.transformers = transformers
        self.dtype = dtype
        self.lock = Lock()
        self._numbers: dict[int, tuple[weakref.ref[Any], int]] = {}  # of contexts and requests, by id
        self._count = count()
        self._dropped: list[int] = []
        self._lines = self._forgotten = 0  # said; and gone from the store
        self._weights = self._snapshots()
        self._ended = False

    def check(self, attention_kwargs: Mapping[str, Any] | None) -> None:
        """See that the ranks can still step together.

        Raises:
            RankLost: if the run has failed.
            ValueError: if something was changed in this process alone.
        """
        if self.ranks.heartbeats.failure is not None:
            raise RankLost(self.ranks.heartbeats.failure)
        if self._ended:
            raise ValueError("the other ranks have been let go: the pipeline draws within `with` of its plan alone.")
        now = self._snapshots()
        for branch, before in self._weights.items():
            after = now[branch]
            if before is not None and after is not None and not before.is_still(after):
                raise ValueError(
                    f"the {branch} branch's weights were changed in this process alone: change them in every process,"
                    " before the plan is applied."
                )
        if self.ranks.config.size == self.ranks.config.guidance:
            return  # this rank alone has its branch, and may have adapters on it
        if attention_kwargs:
            raise ValueError(f"`attention_kwargs` {attention_kwargs!r} reach this rank alone: leave them out.")
        if any(map(adapter_layers, self.transformers.values())):
            raise ValueError("adapters under a plan that shares a branch: fuse them in every process before it.")

    def _snapshots(self) -> dict[Branch, Snapshot | None]:
        return {branch: snapshot([transformer]) for branch, transformer in self.transformers.items()}

    def number(self, thing: Any) -> tuple[int, bool]:
        """The number of a context or a request among the ranks, and whether it is new there."""
        if (known := self._numbers.get(id(thing))) is not None:
            return known[1], False
        number, place = next(self._count), id(thing)

        def forget(_: Any) -> None:
            self._numbers.pop(place, None)
            self._dropped.append(number)

        self._numbers[place] = weakref.ref(thing, forget), number
        return number, True

    def say(self, line: Line) -> None:
        """Hand a line to the other ranks."""
        line.dropped = [self._dropped.pop() for _ in range(len(self._dropped))]
        self.ranks.store.set(f"line/{self._lines}", line.write())
        self._lines += 1
        # Of all lines that all others together have read, one may lag behind by as many as the rest are ahead.
        others = self.ranks.config.size - 1
        read_by_all = self.ranks.store.add("read", 0) - (others - 1) * self._lines
        while self._forgotten < read_by_all:
            self.ranks.store.delete_key(f"line/{self._forgotten}")
            self._forgotten += 1

    def end(self) -> None:
        """Let the other ranks go."""
        with self.lock:
            if not self._ended and self.ranks.heartbeats.failure is None:
                self.say(Line(ends=True))
            self._ended = True


class ParallelDenoiser(Denoiser):
    """A denoiser whose branches are computed by all ranks of a plan; arguments and methods as those of `Denoiser`."""

    def __init__(self, leader: Leader, *arguments: Any, cuda_graphs: Choice = "auto", **options: Any) -> None:
        if check_choice(cuda_graphs) is True:
            raise ValueError("CUDA graphs cannot be recorded across ranks: `disable_cuda_graphs` first.")
        super().__init__(*arguments, cuda_graphs=False, **options)
        self._leader = leader

    def velocities(
        self, conditional: Mapping[Request, Context], unconditional: Mapping[Request, Context]
    ) -> tuple[dict[Request, Tensor], dict[Request, Tensor]]:
        """As `Denoiser`'s, from all ranks.

        Raises:
            RankLost: if a rank has failed or is gone; from then on at every call.
            ValueError: if something was changed in this process alone.
        """
        with self._leader.lock:
            self._leader.check(self.attention_kwargs)
            with failing_together(self._leader.ranks):
                return self._exchange({"conditional": conditional, "unconditional": unconditional})

    def _exchange(
        self, contexts: dict[Branch, Mapping[Request, Context]]
    ) -> tuple[dict[Request, Tensor], dict[Request, Tensor]]:
        leader, ranks = self._leader, self._leader.ranks
        replicas = share_out(list(contexts["conditional"]), ranks.config.data)
        line = Line(replicas=[[] for _ in replicas])
        texts: list[Tensor] = []
        for replica, requests in enumerate(replicas):
            for request in requests:
                number, is_new = leader.number(request)
                if is_new:
                    line.requests[number] = request.schedule
                numbers: list[int | None] = []
                for branch in BRANCHES:
                    context = contexts[branch].get(request)
                    numbers.append(None if context is None else self._tell(line, texts, branch, request, context))
                line.replicas[replica].append((number, request.step, request.image_tokens, *numbers))  # type: ignore[arg-type]
        leader.say(line)
        for text in texts:
            assert ranks.conditional is not None
            ranks.conditional.broadcast("text", text)
        every = [request for requests in replicas for request in requests]
        packed = torch.cat([request.latents for request in every]).to(ranks.device, leader.dtype)
        ranks.world.broadcast("latents", packed)

        found: dict[Branch, dict[Request, Tensor]] = {"conditional": {}, "unconditional": {}}
        for branch in BRANCHES:  # its own first, while the others compute theirs
            own = {request: contexts[branch][request] for request in replicas[0] if request in contexts[branch]}
            if branch in ranks.branches and own:
                computed = self._conditional if branch == "conditional" else self._unconditional
                assert computed is not None
                found[branch].update(computed.velocities(own))
        for replica, requests in enumerate(replicas):
            for branch in BRANCHES:
                lead = ranks.lead_of(replica, branch)
                sent = [request for request in requests if request in contexts[branch]]
                if lead == ranks.rank or not sent:
                    continue
                lengths = [request.image_tokens for request in sent]
                room = packed.new_empty(sum(lengths), packed.shape[1])
                parts = ranks.world.receive(room, lead).to(torch.float32).split(lengths)
                for request, part in zip(sent, parts, strict=True):
                    found[branch][request] = part.to(request.latents.device)
        return found["conditional"], found["unconditional"]

    def _tell(self, line: Line, texts: list[Tensor], branch: Branch, request: Request, context: Context) -> int:
        """The number of a context, which a new one is told with."""
        number, is_new = self._leader.number(context)
        if is_new:
            text_tokens = context.layout.tokens - request.image_tokens
            line.contexts[number] = branch, text_tokens, *request.grid
            if branch == "conditional" and text_tokens and self._leader.ranks.conditional is not None:
                texts.append(context.text.to(self._leader.ranks.device).contiguous())
        return number


def share_out(requests: Sequence[Request], replicas: int) -> list[list[Request]]:
    """Requests for each replica, of about as many tokens; the largest are dealt first."""
    shares: list[list[Request]] = [[] for _ in range(replicas)]
    for request in sorted(requests, key=lambda one: -one.tokens):
        min(shares, key=lambda share: sum(one.tokens for one in share)).append(request)
    return shares
