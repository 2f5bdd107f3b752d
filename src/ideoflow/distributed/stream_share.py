"""One rank's share of a stream: a run of its tokens, which the model takes for a stream, and the bounds of both.

Tokens are shared out in stream order whatever the segments' lengths, so that counts differ by one at most. All that a
rank computes of a token it computes from that token alone, but for attention.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, groupby, pairwise

import torch

from ..model import Context
from ..packing import Bounds, Layout, Run


def split_evenly(tokens: int, ranks: int) -> tuple[int, ...]:
    """Where each rank's tokens begin, and the end of the last; counts differ by one at most."""
    return tuple(rank * tokens // ranks for rank in range(ranks + 1))


@dataclass(eq=False, kw_only=True)
class SharedBounds(Bounds):
    """The bounds of a stream of which this rank has a share: `wanted` counts the share's tokens.

    Attributes:
        stream: Bounds of the whole stream.
        tokens: Tokens of each rank.
        queries: Tokens of each rank whose attention is wanted.
        keys: For each rank, the first of the stream's tokens that its own attend, and the end of the last's.
        own: Bounds of this rank's queries among the tokens that they attend.
        rank: This rank.
    """

    stream: Bounds
    tokens: tuple[int, ...]
    queries: tuple[int, ...]
    keys: tuple[tuple[int, int], ...]
    own: Bounds
    rank: int


@dataclass(frozen=True)
class LayoutShare(Layout):
    """The layout of a share; `lengths`, `image_lengths` and `cu_seqlens` are those of the whole stream.

    Attributes:
        stream: The whole stream's layout.
        begins: Where each rank's tokens begin, and the end of the last.
        rank: This rank.
    """

    stream: Layout
    begins: tuple[int, ...]
    rank: int

    @cached_property
    def bounds(self) -> SharedBounds:
        """Where the segments begin and end, all tokens wanted."""
        return self._shared(self.stream.bounds, self.begins, None)

    @cached_property
    def image_bounds(self) -> SharedBounds:
        """The same, where the attention of image tokens alone is wanted."""
        if len(self.stream.image) == self.stream.tokens:
            return self.bounds
        return self._shared(self.stream.image_bounds, self.image_begins, self.image)

    @cached_property
    def image_begins(self) -> tuple[int, ...]:
        """Where each rank's image tokens begin among all image tokens, and the end of the last."""
        return tuple(_images_before(self.stream, place) for place in self.begins)

    def _shared(self, stream: Bounds, begins: tuple[int, ...], wanted: torch.Tensor | None) -> SharedBounds:
        ends = tuple(accumulate(self.stream.lengths, initial=0))
        touched = [_segments(ends, *share) for share in pairwise(self.begins)]
        first, last = touched[self.rank]
        lengths = self.stream.lengths[first:last]
        queries = [
            _within(self.stream, max(begin, self.begins[self.rank]), min(end, self.begins[self.rank + 1]), wanted)
            for begin, end in pairwise(ends[first : last + 1])
        ]
        runs = tuple(Run(len(list(equal)), *sizes) for sizes, equal in groupby(zip(lengths, queries, strict=True)))
        cu_seqlens, cu_queries = (
            torch.tensor(tuple(accumulate(counts, initial=0)), dtype=torch.int32).to(self.device, non_blocking=True)
            for counts in (lengths, queries)
        )
        return SharedBounds(
            runs=stream.runs,
            cu_seqlens=stream.cu_seqlens,
            wanted=wanted,
            cu_queries=stream.cu_queries,
            stream=stream,
            tokens=tuple(end - begin for begin, end in pairwise(self.begins)),
            queries=tuple(end - begin for begin, end in pairwise(begins)),
            keys=tuple((ends[begin], ends[end]) for begin, end in touched),
            own=Bounds(runs, cu_seqlens, wanted, cu_queries),
            rank=self.rank,
        )


def share_of(context: Context, rank: int, ranks: int) -> Context:
    """A rank's share of a context: views of its tensors.

    Args:
        context: Of a stream whose segments are each text and then image.
        rank: Which share.
        ranks: How many.
    """
    layout = context.layout
    begins = split_evenly(layout.tokens, ranks)
    begin, end = begins[rank : rank + 2]
    image = slice(_images_before(layout, begin), _images_before(layout, end))
    other = slice(begin - image.start, end - image.stop)
    share = LayoutShare(
        lengths=layout.lengths,
        image_lengths=layout.image_lengths,
        position_ids=layout.position_ids[begin:end],
        text=layout.text[other] - begin,  # of these streams no token is without a role
        image=layout.image[image] - begin,
        other=layout.other[other] - begin,
        segment=layout.segment[begin:end],
        cu_seqlens=layout.cu_seqlens,
        stream=layout,
        begins=begins,
        rank=rank,
    )
    return replace(
        context, layout=share, text=context.text[other], cos=context.cos[begin:end], sin=context.sin[begin:end]
    )


def _images_before(layout: Layout, place: int) -> int:
    """Image tokens before a token of the stream."""
    begins = tuple(accumulate(layout.lengths, initial=0))
    segment = bisect_right(begins, place) - 1
    whole = sum(layout.image_lengths[:segment])
    if segment == len(layout.lengths):
        return whole
    text = layout.lengths[segment] - layout.image_lengths[segment]
    return whole + max(0, place - begins[segment] - text)


def _segments(ends: tuple[int, ...], begin: int, end: int) -> tuple[int, int]:
    """The first segment that has one of these tokens, and the end of the last."""
    if begin == end:
        return (0, 0)
    return bisect_right(ends, begin) - 1, bisect_right(ends, end - 1)


def _within(layout: Layout, begin: int, end: int, wanted: torch.Tensor | None) -> int:
    """Wanted tokens among these of the stream: all, or the image tokens."""
    return end - begin if wanted is None else _images_before(layout, end) - _images_before(layout, begin)
