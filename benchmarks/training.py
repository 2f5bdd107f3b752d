"""Training on pictures of many sizes: packed streams, against padding to the largest and against resolution buckets.

Run as `python -m benchmarks.training`. All sides train a scaled-down model on the same 64 samples of 40 sizes, forward,
backward and optimizer step, and alternate in one process. Ours is the trainer's own path: `PackedStream`, projected
text from the cache, `FlowMatching`. The other two are diffusers' transformer as a training script would use it, under
its mask: rows padded to the longest caption and the largest picture of the whole set, or pictures resized to the
nearest of 44 buckets (four resolutions, eleven aspect ratios) and captions padded to the longest of the batch. Before
anything is timed, every side's loss is compared with ours on the same samples, noise and times.
"""

from __future__ import annotations

import math
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import diffusers
import torch
from torch import Tensor

from benchmarks._measure import machine, make_parser, write
from ideoflow import Ideogram4Transformer2DModel
from ideoflow.packing import (
    IMAGE_POSITION_OFFSET,
    LLM_TOKEN_INDICATOR,
    OUTPUT_IMAGE_INDICATOR,
    SEQUENCE_PADDING_INDICATOR,
)
from ideoflow.training.batches import Draw, PackedStream
from ideoflow.training.objective import Batch, FlowMatching, make_batch

CONFIG = dict(
    in_channels=128,
    num_layers=4,
    attention_head_dim=128,
    num_attention_heads=3,
    intermediate_size=1024,
    adaln_dim=128,
    llm_features_dim=13 * 128,
    mrope_section=(24, 20, 20),
)
SIDES = (10, 28)  # tokens of a picture's sides: 160 to 448 pixels
CAPTIONS = (60, 400)  # text tokens
ASPECTS = (0.5, 0.57, 0.67, 0.75, 0.88, 1.0, 1.14, 1.33, 1.5, 1.75, 2.0)
AREAS = (144, 256, 400, 576)  # image tokens of the buckets: four resolutions, so that pictures keep about their size


@dataclass(frozen=True)
class Made:
    """A sample of random numbers."""

    name: str
    grid: tuple[int, int]
    text_tokens: int

    @property
    def tokens(self) -> int:
        """Text and image tokens."""
        return self.text_tokens + math.prod(self.grid)

    def load(self) -> tuple[Tensor, Tensor]:
        """Latents, and text features as the text encoder gives them."""
        generator = torch.Generator().manual_seed(int(self.name))
        latents = torch.randn(math.prod(self.grid), CONFIG["in_channels"], generator=generator)  # type: ignore[call-overload]
        return latents, torch.randn(self.text_tokens, CONFIG["llm_features_dim"], generator=generator)  # type: ignore[call-overload]


class Projected:
    """A sample whose text went through the projection, as the trainer's cache has it."""

    def __init__(self, sample: Made, transformer: Ideogram4Transformer2DModel) -> None:
        self.name, self.grid = sample.name, sample.grid
        latents, features = sample.load()
        with torch.no_grad():
            self._tensors = latents, transformer.project_text(features)

    def load(self) -> tuple[Tensor, Tensor]:
        """Latents and projected text."""
        return self._tensors


class Kept:
    """A sample whose tensors are in memory already."""

    def __init__(self, sample: Made) -> None:
        self.name, self.grid, self._tensors = sample.name, sample.grid, sample.load()

    def load(self) -> tuple[Tensor, Tensor]:
        """Latents and text features."""
        return self._tensors


def make_samples(count: int, sizes: int, seed: int = 0) -> list[Made]:
    """`count` samples of `sizes` different sizes, aspect ratios to 2:1."""
    draw = random.Random(seed)
    grids: list[tuple[int, int]] = []
    while len(grids) < sizes:
        grid = draw.randint(*SIDES), draw.randint(*SIDES)
        if grid not in grids and max(grid) <= 2 * min(grid):
            grids.append(grid)
    chosen = grids + [draw.choice(grids) for _ in range(count - sizes)]
    return [Made(str(i), grid, draw.randint(*CAPTIONS)) for i, grid in enumerate(chosen[:count])]


def bucket(sample: Made) -> Made:
    """The sample resized to the nearest of the usual buckets."""
    grids = [(max(1, round((area * a) ** 0.5)), max(1, round((area / a) ** 0.5))) for area in AREAS for a in ASPECTS]

    def distance(grid: tuple[int, int]) -> float:
        return sum(abs(math.log(a / b)) for a, b in zip(grid, sample.grid, strict=True))

    return replace(sample, grid=min(grids, key=distance))


def padded_loss(peer: torch.nn.Module, batch: Batch, text: int, image: int) -> Tensor:
    """Mean over the samples of the peer's loss, rows padded to `text` and `image` tokens."""
    rows, length = len(batch), text + image
    hidden = torch.zeros(rows, length, batch.latents.shape[1])
    features = torch.zeros(rows, length, batch.text.shape[1])
    positions = torch.zeros(rows, length, 3, dtype=torch.long)
    segments = torch.full((rows, length), SEQUENCE_PADDING_INDICATOR)
    roles = torch.zeros(rows, length, dtype=torch.long)
    target, weight = torch.zeros_like(hidden), torch.zeros(rows, length)
    words, clean, noise = (
        tensor.split(list(lengths))
        for tensor, lengths in (
            (batch.text, batch.text_lengths),
            (batch.latents, batch.image_lengths),
            (batch.noise, batch.image_lengths),
        )
    )
    for row, (grid, t) in enumerate(zip(batch.grids, batch.times, strict=True)):
        begin, count = text - len(words[row]), len(clean[row])
        features[row, begin:text] = words[row]
        roles[row, begin:text] = LLM_TOKEN_INDICATOR
        positions[row, begin:text] = torch.arange(len(words[row]))[:, None]
        hidden[row, text : text + count] = torch.lerp(noise[row], clean[row], t)
        target[row, text : text + count] = clean[row] - noise[row]
        roles[row, text : text + count] = OUTPUT_IMAGE_INDICATOR
        cells = torch.cartesian_prod(torch.arange(1), torch.arange(grid[0]), torch.arange(grid[1]))
        positions[row, text : text + count] = cells + IMAGE_POSITION_OFFSET
        segments[row, begin : text + count] = 1
        weight[row, text : text + count] = 1 / count
    velocity = peer(
        hidden_states=hidden, timestep=batch.times, encoder_hidden_states=features, position_ids=positions,
        segment_ids=segments, indicator=roles, return_dict=False,
    )[0]  # fmt: skip
    return ((velocity - target).square().mean(-1) * weight).sum() / rows


def fill(samples: Sequence[Made], indices: Sequence[int], budget: int, text: int, image: int) -> list[list[int]]:
    """Batches of at most `budget` padded tokens; at least one sample each."""
    size = max(1, budget // (text + image))
    return [list(indices[i : i + size]) for i in range(0, len(indices), size)]


def main() -> None:
    """Compare, time, print and write."""
    parser = make_parser(__doc__)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--sizes", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=4096, help="token budget of a batch, padding included")
    parser.add_argument("--repeats", type=int, default=5, help="epochs of each side")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    peer = diffusers.Ideogram4Transformer2DModel(**CONFIG)
    ours = Ideogram4Transformer2DModel(**CONFIG)
    ours.load_state_dict(peer.state_dict())
    loss = FlowMatching(ours)
    for model in (peer, ours):  # the text projection is frozen on every side, as the trainer has it
        for part in (model.llm_cond_norm, model.llm_cond_proj):
            part.requires_grad_(False)

    made = make_samples(options.samples, min(options.sizes, options.samples))
    bucketed = [bucket(sample) for sample in made]
    packed = [Projected(sample, ours) for sample in made]
    raw, raw_bucketed = [Kept(s) for s in made], [Kept(s) for s in bucketed]
    stream = PackedStream([s.tokens for s in made], options.tokens)
    filled: list[float] = []
    draw = random.Random(1)

    def train(transformer: torch.nn.Module) -> Callable[[Tensor], None]:
        optimizer = torch.optim.AdamW([p for p in transformer.parameters() if p.requires_grad], lr=1e-4)

        def step(value: Tensor) -> None:
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

        return step

    step_ours, step_peer = train(ours), train(peer)

    def epoch_packed() -> int:
        seen = 0
        while seen < len(made):
            draws = next(stream)
            filled.append(stream.tokens_of(draws) / options.tokens)
            step_ours(loss(make_batch(packed, draws))["conditional"])
            seen += len(draws)
        return seen

    largest = max(s.text_tokens for s in made), max(math.prod(s.grid) for s in made)

    def epoch_padded() -> int:
        order = draw.sample(range(len(made)), len(made))
        for indices in fill(made, order, options.tokens, *largest):
            step_peer(padded_loss(peer, make_batch(raw, [Draw(0, i) for i in indices]), *largest))
        return len(made)

    def epoch_buckets() -> int:
        groups: dict[tuple[int, int], list[int]] = {}
        for index in draw.sample(range(len(made)), len(made)):
            groups.setdefault(bucketed[index].grid, []).append(index)
        for grid, members in groups.items():
            longest = max(bucketed[i].text_tokens for i in members)
            for indices in fill(bucketed, members, options.tokens, longest, math.prod(grid)):
                text = max(bucketed[i].text_tokens for i in indices)
                batch = make_batch(raw_bucketed, [Draw(0, i) for i in indices])
                step_peer(padded_loss(peer, batch, text, math.prod(grid)))
        return len(made)

    def difference(
        samples: Sequence[Made], kept: Sequence[Kept], indices: Sequence[int], text: int, image: int
    ) -> float:
        draws = [Draw(0, i) for i in indices]
        same = [Projected(sample, ours) for sample in samples]
        with torch.no_grad():
            theirs = padded_loss(peer, make_batch(kept, draws), text, image)
            mine = loss(make_batch(same, draws))["conditional"]
        return float((theirs - mine).abs() / mine)

    few = list(range(min(3, len(made))))
    differences = {
        "padded": difference(made, raw, few, *largest),
        "buckets": difference(bucketed, raw_bucketed, few[:1], bucketed[0].text_tokens, math.prod(bucketed[0].grid)),
    }
    if max(differences.values()) > 1e-4:
        raise SystemExit(f"the sides do not agree: {differences}")

    epochs = {"packed": epoch_packed, "padded": epoch_padded, "buckets": epoch_buckets}
    for epoch in epochs.values():  # warm up
        epoch()
    filled.clear()
    paces: dict[str, list[float]] = {name: [] for name in epochs}
    for _ in range(options.repeats):
        for name, epoch in epochs.items():
            begun = time.perf_counter()
            seen = epoch()
            paces[name].append(seen / (time.perf_counter() - begun))
    median = {name: statistics.median(values) for name, values in paces.items()}
    figures = {
        "samples": len(made), "sizes": len({s.grid for s in made}), "buckets": len({s.grid for s in bucketed}),
        "tokens": options.tokens, "packing_efficiency": statistics.mean(filled),
        "samples_per_second": median, "all": paces,
        "over_padding": median["packed"] / median["padded"], "over_buckets": median["packed"] / median["buckets"],
        "relative_differences": differences, "machine": machine(),
    }  # fmt: skip
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    print(f"{len(made)} samples of {figures['sizes']} sizes, budget {options.tokens} tokens, float32")
    print(f"losses agree to {max(differences.values()):.1e}")
    for name, value in median.items():
        print(f"{name:8} {value:7.2f} samples/s")
    print(f"packed over padding {figures['over_padding']:.2f}x, over buckets {figures['over_buckets']:.2f}x")
    print(f"packing efficiency {figures['packing_efficiency']:.1%}")
    write(figures, options.out)


if __name__ == "__main__":
    main()
