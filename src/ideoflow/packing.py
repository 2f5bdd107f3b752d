"""Who is who in a packed stream of tokens: segment bounds, roles and positions; a stream never holds padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor

OUTPUT_IMAGE_INDICATOR = 2
LLM_TOKEN_INDICATOR = 3
SEQUENCE_PADDING_INDICATOR = -1

# Image positions start here on every axis, so that they never meet the position of a text token.
IMAGE_POSITION_OFFSET = 65536


@dataclass(frozen=True)
class Run:
    """Adjacent segments of equal length, which attention can treat as one batch.

    Attributes:
        segments: number of segments.
        length: tokens of each segment.
        queries: tokens of each segment whose attention is wanted: all, or those of its image.
    """

    segments: int
    length: int
    queries: int


@dataclass(eq=False)
class Bounds:
    """Where segments begin and end, and which tokens are wanted: all that attention needs to know of a layout.

    Not frozen, though nothing changes it: of a frozen argument torch's compiler may compile every field in, and a graph
    would hold for these lengths alone.

    Attributes:
        runs: the segments as runs of equal lengths, in stream order.
        cu_seqlens: (segments + 1,) int32 stream index where each segment begins, and the end of the last.
        wanted: (queries,) stream index of each token whose attention is wanted, ascending; None if all are.
        cu_queries: (segments + 1,) int32, where the queries of each segment begin among all; `cu_seqlens` if all are.
        mask: (segments, 1, length, length) whom each query attends, of segments of one length that are rows of several
            samples; None if a segment is one sample, as everywhere but in exported programs.
    """

    runs: tuple[Run, ...]
    cu_seqlens: Tensor
    wanted: Tensor | None
    cu_queries: Tensor
    mask: Tensor | None = None

    @classmethod
    def of(cls, lengths: tuple[int, ...], cu_seqlens: Tensor) -> Bounds:
        """The bounds of segments of these lengths, one after another; all tokens are wanted."""
        runs = tuple(Run(len(list(equal)), length, length) for length, equal in groupby(lengths))
        return cls(runs, cu_seqlens, None, cu_seqlens)

    @property
    def segments(self) -> int:
        """Number of segments."""
        return sum(run.segments for run in self.runs)

    @property
    def longest(self) -> int:
        """Tokens of the longest segment, 0 if there is none."""
        return max((run.length for run in self.runs), default=0)

    @property
    def most_queries(self) -> int:
        """The most queries that a segment has."""
        return max((run.queries for run in self.runs), default=0)

    def to(self, device: torch.device | str | int | None, non_blocking: bool = False) -> Bounds:
        """The same bounds with their tensors on `device`; where they are if None."""
        return (
            self
            if device is None or self.cu_seqlens.device == torch.device(device)
            else _moved(self, device, non_blocking)
        )


@dataclass(frozen=True)
class Layout:
    """The segments of one stream, one after another.

    Lengths are host integers, so that nothing that uses a layout has to wait for the device. Index tensors are int64.

    Attributes:
        lengths: tokens of each segment.
        image_lengths: image tokens of each segment.
        position_ids: (tokens, 3) positions on the axes t, h, w.
        text: (text_tokens,) stream index of each text token, ascending.
        image: (image_tokens,) stream index of each image token, ascending.
        other: (tokens - image_tokens,) stream index of each token that is not an image token, ascending: the text
            tokens, and the empty ones that a row may hold between them.
        segment: (tokens,) the segment that each token belongs to.
        cu_seqlens: (segments + 1,) int32 stream index where each segment begins, and the end of the last.
    """

    lengths: tuple[int, ...]
    image_lengths: tuple[int, ...]
    position_ids: Tensor
    text: Tensor
    image: Tensor
    other: Tensor
    segment: Tensor
    cu_seqlens: Tensor

    @classmethod
    def of_samples(cls, samples: Sequence[tuple[int, int, int]], device: torch.device | str | None = None) -> Layout:
        """Lay out samples, each its text tokens and then its image tokens row by row.

        Text token i has the position (i, i, i); the image token at (row, col) has (0, row, col) plus
        `IMAGE_POSITION_OFFSET` on every axis.

        Args:
            samples: (text_tokens, grid_rows, grid_cols) of each sample; zero text tokens for a segment of the
                unconditional branch, a grid of zero rows and columns for text alone.
            device: where the tensors lie; the default device if not given.

        Raises:
            ValueError: no sample at all, a negative number, or a sample without any token.
        """
        if not samples:
            raise ValueError("`samples` is empty: give at least one (text_tokens, grid_rows, grid_cols).")
        for sample in samples:
            text_tokens, rows, cols = sample
            if min(sample) < 0 or text_tokens + rows * cols == 0:
                raise ValueError(
                    f"`samples` holds {tuple(sample)}: (text_tokens, grid_rows, grid_cols) must not be negative and "
                    "must give at least one token."
                )
        return cls.cat([cls._of_sample(*sample, device=device) for sample in samples])

    @classmethod
    def _of_sample(cls, text_tokens: int, rows: int, cols: int, device: torch.device | str | None) -> Layout:
        tokens = text_tokens + rows * cols
        stream = torch.arange(tokens, device=device)
        # No views: compiled graphs would hold for views of the same base alone.
        text, image = stream[:text_tokens].clone(), stream[text_tokens:].clone()
        cell = torch.arange(rows * cols, device=device)
        grid = torch.stack((torch.zeros_like(cell), cell // max(cols, 1), cell % max(cols, 1)), dim=-1)
        position_ids = torch.cat((text[:, None].expand(-1, 3), grid + IMAGE_POSITION_OFFSET))
        return cls(
            lengths=(tokens,),
            image_lengths=(rows * cols,),
            position_ids=position_ids,
            text=text,
            image=image,
            other=text,
            segment=torch.zeros_like(stream),
            cu_seqlens=torch.tensor((0, tokens), dtype=torch.int32, device=device),
        )

    @classmethod
    def cat(cls, layouts: Sequence[Layout]) -> Layout:
        """One stream of several streams' segments, in the order given."""
        if not layouts:
            raise ValueError("`layouts` is empty: give at least one.")
        if len(layouts) == 1:
            return layouts[0]
        token_offsets, segment_offsets = [0], [0]
        for layout in layouts:
            token_offsets.append(token_offsets[-1] + layout.tokens)
            segment_offsets.append(segment_offsets[-1] + len(layout.lengths))
        shifted = list(zip(layouts, token_offsets, segment_offsets, strict=False))
        return cls(
            lengths=tuple(length for layout in layouts for length in layout.lengths),
            image_lengths=tuple(length for layout in layouts for length in layout.image_lengths),
            position_ids=torch.cat([layout.position_ids for layout in layouts]),
            text=torch.cat([layout.text + tokens for layout, tokens, _ in shifted]),
            image=torch.cat([layout.image + tokens for layout, tokens, _ in shifted]),
            other=torch.cat([layout.other + tokens for layout, tokens, _ in shifted]),
            segment=torch.cat([layout.segment + segments for layout, _, segments in shifted]),
            cu_seqlens=torch.cat(
                [layouts[0].cu_seqlens[:1]] + [layout.cu_seqlens[1:] + tokens for layout, tokens, _ in shifted]
            ),
        )

    @property
    def tokens(self) -> int:
        return self.position_ids.shape[0]

    @property
    def device(self) -> torch.device:
        return self.position_ids.device

    @cached_property
    def bounds(self) -> Bounds:
        """Where the segments begin and end."""
        return Bounds.of(self.lengths, self.cu_seqlens)

    @cached_property
    def image_bounds(self) -> Bounds:
        """The same, where the attention of image tokens alone is wanted; `bounds` if there are no others."""
        if len(self.image) == self.tokens:
            return self.bounds
        sizes = zip(self.lengths, self.image_lengths, strict=True)
        runs = tuple(Run(len(list(equal)), *size) for size, equal in groupby(sizes))
        begins = torch.tensor((0, *accumulate(self.image_lengths)), dtype=torch.int32)
        return Bounds(runs, self.cu_seqlens, self.image, begins.to(self.device, non_blocking=True))

    @cached_property
    def image_segment(self) -> Tensor:
        """(image_tokens,) the segment that each image token belongs to."""
        return self.segment if len(self.image) == self.tokens else self.segment.index_select(0, self.image)

    @cached_property
    def order(self) -> Tensor:
        """(tokens,) where each token of the stream stands when `other` and then `image` lie one after another."""
        order = torch.empty_like(self.segment)
        order[torch.cat((self.other, self.image))] = torch.arange(self.tokens, device=self.device)
        return order

    def to(self, device: torch.device | str | int | None, non_blocking: bool = False) -> Layout:
        """The same layout with its tensors on `device`; where they are if None."""
        return self if device is None or self.device == torch.device(device) else _moved(self, device, non_blocking)


def _moved(parts: Any, device: torch.device | str | int, non_blocking: bool) -> Any:
    """The same data class with its tensors on `device`."""
    tensors = {
        field.name: value.to(device, non_blocking=non_blocking)
        for field in fields(parts)
        if isinstance(value := getattr(parts, field.name), Tensor)
    }
    return replace(parts, **tensors)


def rows_to_layout(position_ids: Tensor, segment_ids: Tensor, indicator: Tensor) -> tuple[Layout, Tensor]:
    """Find the segments of padded rows, and where their tokens stand.

    A segment is all tokens of one row with one id, wherever they stand in the row. A segment without any text or image
    token is padding and left out; any other is kept whole, with its tokens of no role. Segments come sorted by length
    (equal lengths in the order of rows and ids), so that equal ones lie side by side.

    Args:
        position_ids: (batch, length, 3) integer positions.
        segment_ids: (batch, length) integer ids.
        indicator: (batch, length) integer roles, `LLM_TOKEN_INDICATOR` or `OUTPUT_IMAGE_INDICATOR`.

    Returns:
        The layout, and the (tokens,) index of each of its tokens into the flattened batch * length positions.
    """
    batch = segment_ids.shape[0]
    role = indicator.flatten()
    is_image, is_text = role == OUTPUT_IMAGE_INDICATOR, role == LLM_TOKEN_INDICATOR

    # Ids may be any integers: number them, then tell rows apart.
    ids, number = torch.unique(segment_ids, return_inverse=True)
    rows = torch.arange(batch, device=role.device)[:, None]
    _, segment, lengths = torch.unique(number + rows * len(ids), return_inverse=True, return_counts=True)
    segment = segment.flatten()
    real = torch.zeros_like(lengths).index_add(0, segment, (is_image | is_text).long()) > 0
    image_lengths = torch.zeros_like(lengths).index_add(0, segment, is_image.long())

    # The shortest segments first; padding gets no place.
    by_length = torch.argsort(lengths, stable=True)
    by_length = by_length[real[by_length]]
    place = torch.full_like(lengths, -1)
    place[by_length] = torch.arange(len(by_length), device=role.device)
    segment = place[segment]
    index = (segment >= 0).nonzero().flatten()
    index = index[torch.argsort(segment[index], stable=True)]

    lengths = lengths[by_length]
    is_image, is_text = is_image[index], is_text[index]
    layout = Layout(
        lengths=tuple(lengths.tolist()),
        image_lengths=tuple(image_lengths[by_length].tolist()),
        position_ids=position_ids.flatten(0, 1)[index],
        text=is_text.nonzero().flatten(),
        image=is_image.nonzero().flatten(),
        other=(~is_image).nonzero().flatten(),
        segment=segment[index],
        cu_seqlens=torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int(),
    )
    return layout, index
