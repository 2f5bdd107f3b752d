"""Context parallelism: each rank has a share of the stream's tokens, and attention alone brings them together.

Where the heads divide among the ranks, each rank attends with some heads for all tokens (Ulysses, arXiv 2309.14509):
queries, keys and values go out and what was attended comes back. Where they do not, each attends with all heads for its
own tokens, and the keys and values of their segments come to it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..model import Context, Ideogram4Transformer2DModel, Modulation
from ..model.attention import Ideogram4AttnProcessor
from ..ops.ragged_attention import attend
from ..packing import Bounds
from .exchanges import Exchanges
from .stream_share import LayoutShare, SharedBounds, share_of


class SharedAttnProcessor(Ideogram4AttnProcessor):
    """Computes attention over a stream of which each rank has a share."""

    def __init__(self, ranks: Exchanges) -> None:
        self.ranks = ranks

    def attend(self, query: Tensor, key: Tensor, value: Tensor, bounds: Bounds, *how: Any) -> Tensor:
        """(queries, heads, head_dim) of this rank's share from its queries, keys and values; `how` as `ops`' attend."""
        assert isinstance(bounds, SharedBounds)
        by = self._by_heads if query.shape[1] % self.ranks.size == 0 else self._by_tokens
        return by(query, key, value, bounds, *how)

    def _by_heads(self, query: Tensor, key: Tensor, value: Tensor, bounds: SharedBounds, *how: Any) -> Tensor:
        heads, channels = query.shape[1] // self.ranks.size, query.shape[2]
        attended = attend(*self._some_heads(query, key, value, bounds), bounds.stream, *how)
        counts = [queries * heads * channels for queries in bounds.queries]
        own = counts[self.ranks.rank]
        back = self.ranks.all_to_all("attention", attended.reshape(-1), counts, [own] * self.ranks.size)
        return back.view(self.ranks.size, -1, heads, channels).transpose(0, 1).flatten(1, 2)

    def _some_heads(
        self, query: Tensor, key: Tensor, value: Tensor, bounds: SharedBounds
    ) -> tuple[Tensor, Tensor, Tensor]:
        """This rank's heads of the whole stream's queries, keys and values, for the other ranks' of its share.

        A function of its own, so that nothing of the exchange is in memory while attention is computed.
        """
        heads, channels = query.shape[1] // self.ranks.size, query.shape[2]
        each = heads * channels
        sizes = [
            [own * each for own in (queries, tokens, tokens)]
            for queries, tokens in zip(bounds.queries, bounds.tokens, strict=True)
        ]
        out = query.new_empty(sum(sizes[self.ranks.rank]) * self.ranks.size)
        places = iter(out.split(sizes[self.ranks.rank] * self.ranks.size))
        for rank in range(self.ranks.size):
            for x in (query, key, value):
                next(places).view(-1, heads, channels).copy_(x[:, rank * heads : (rank + 1) * heads])
        del places
        counts = [sum(own) for own in sizes]
        received = self.ranks.all_to_all("attention", out, [counts[self.ranks.rank]] * self.ranks.size, counts)
        del out
        parts = zip(*(part.split(own) for part, own in zip(received.split(counts), sizes, strict=True)), strict=True)
        some_query, some_key, some_value = (torch.cat(kind).view(-1, heads, channels) for kind in parts)
        return some_query, some_key, some_value

    def _by_tokens(self, query: Tensor, key: Tensor, value: Tensor, bounds: SharedBounds, *how: Any) -> Tensor:
        begins = [sum(bounds.tokens[:rank]) for rank in range(self.ranks.size + 1)]
        mine = begins[self.ranks.rank], begins[self.ranks.rank + 1]
        pair = torch.stack((key, value), dim=1)  # (tokens, 2, heads, head_dim)
        each = pair.shape[1:].numel()
        wanted = [_common(mine, keys) for keys in bounds.keys]
        found = [_common((begin, end), bounds.keys[self.ranks.rank]) for begin, end in pairwise(begins)]
        out = torch.cat([pair[begin - mine[0] : end - mine[0]].reshape(-1) for begin, end in wanted])
        received = self.ranks.all_to_all(
            "attention",
            out,
            [(end - begin) * each for begin, end in wanted],
            [(end - begin) * each for begin, end in found],
        )
        key, value = received.view(-1, *pair.shape[1:]).unbind(1)
        return attend(query, key, value, bounds.own, *how)


def _common(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    """Tokens of both runs; of none, an empty run at the begin of the first."""
    begin, end = max(one[0], other[0]), min(one[1], other[1])
    return (begin, end) if begin < end else (one[0], one[0])


def share_context(transformer: Ideogram4Transformer2DModel, ranks: Exchanges) -> None:
    """Have `transformer.velocity` compute this rank's share of a stream and give the velocities of all of it.

    Every rank calls it with the same arguments.

    Args:
        transformer: One branch, in each rank the same.
        ranks: The ranks that share its streams.
    """
    for block in transformer.layers:
        attention: Any = block.attention
        processor = SharedAttnProcessor(ranks)
        processor._attention_backend = attention.processor._attention_backend
        attention.set_processor(processor)
    whole = transformer.velocity
    shares: list[tuple[Context, Context]] = []  # of the stream that came last, and its share

    def velocity(
        latents: Tensor,
        times: Tensor,
        context: Context,
        attention_kwargs: dict[str, Any] | None = None,
        modulation: Modulation | None = None,
    ) -> Tensor:
        """As the model's own, of which each rank computes its share."""
        if not shares or shares[0][0] is not context:
            shares[:] = [(context, share_of(context, ranks.rank, ranks.size))]
        share = shares[0][1]
        layout = share.layout
        assert isinstance(layout, LayoutShare)
        begins = layout.image_begins
        own = whole(latents[slice(*begins[ranks.rank : ranks.rank + 2])], times, share, attention_kwargs, modulation)
        lengths = [end - begin for begin, end in pairwise(begins)]
        return ranks.all_gather("velocities", own, lengths)

    transformer.velocity = velocity  # type: ignore[method-assign]
