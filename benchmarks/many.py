"""Sixteen pictures of mixed sizes and captions on the bundled model: packed, one by one, and in the peer's batches.

Run as `python -m benchmarks.many`. The peer takes each size as a batch, captions padded to its longest. The sides
alternate, from captions to pictures; before anything is timed, all pictures are compared with those made alone.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable

import diffusers
import numpy as np
import torch
from PIL import Image

from benchmarks._measure import alternate, machine, make_parser, publish
from ideoflow import sketch
from ideoflow.sketch.wording import line
from ideoflow.text_encoder import tokenise
from tools.sketch.score import held_out

SIZES = ((96, 96), (128, 96), (128, 128), (192, 128))


class Sides:
    """The same sixteen requests, drawn in three ways."""

    def __init__(self, steps: int, count: int) -> None:
        self.ours = sketch.load()
        self.peer = diffusers.Ideogram4Pipeline.from_pretrained(sketch.path())
        for pipe in (self.ours, self.peer):
            pipe.set_progress_bar_config(disable=True)
        self.captions = [line(sample.caption) for sample in held_out(count)]
        self.sizes = [SIZES[i % len(SIZES)] for i in range(count)]
        self.lengths = [len(ids) for ids in tokenise(self.ours.tokenizer, self.captions)]
        self.settings = dict(
            num_inference_steps=steps, guidance_scale=sketch.GUIDANCE, guidance_schedule=None, mu=0.0, std=1.75
        )

    def noise(self, indices: list[int]) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(i) for i in indices]

    def draw(self, indices: list[int]) -> list[Image.Image]:
        """Some of the pictures in one call of ours, captions encoded anew."""
        self.ours.text_cache.clear()
        return self.ours(  # type: ignore[return-value]
            [self.captions[i] for i in indices],
            size=[self.sizes[i] for i in indices],
            generator=self.noise(indices),
            **self.settings,
        ).images

    def packed(self) -> list[Image.Image]:
        return self.draw(list(range(len(self.captions))))

    def alone(self) -> list[Image.Image]:
        return [self.draw([i])[0] for i in range(len(self.captions))]

    def batches(self) -> list[Image.Image]:
        """The peer's, one batch for each size."""
        pictures: dict[int, Image.Image] = {}
        for size in SIZES:
            members = [i for i, own in enumerate(self.sizes) if own == size]
            drawn = self.peer(
                [self.captions[i] for i in members],
                width=size[0],
                height=size[1],
                generator=self.noise(members),
                max_sequence_length=max(self.lengths[i] for i in members),
                **self.settings,
            ).images
            pictures.update(zip(members, drawn, strict=True))
        return [pictures[i] for i in range(len(self.captions))]


def apart(ours: list[Image.Image], theirs: list[Image.Image]) -> int:
    """The largest difference of any two pixels, in grey levels."""
    pairs = zip(ours, theirs, strict=True)
    return max(int(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max()) for a, b in pairs)


def main() -> None:
    """Compare, time, print and write."""
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--count", type=int, default=16, help="pictures")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, help="of torch; all cores by default")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", message=".*outside what the weights were trained on.*")
    sides = Sides(options.steps, options.count)
    calls: dict[str, Callable[[], list[Image.Image]]] = {
        "packed": sides.packed,
        "one by one": sides.alone,
        "diffusers, batches of equal size": sides.batches,
    }
    alone = sides.alone()
    differences = {name: apart(call(), alone) for name, call in calls.items()}
    seconds = {name: statistics.median(values) for name, values in alternate(calls, options.rounds).items()}
    report = {
        "benchmark": "many",
        "machine": machine(),
        "pictures": options.count,
        "steps": options.steps,
        "rounds": options.rounds,
        "grey_levels_from_alone": differences,
        "pictures_per_second": {name: options.count / value for name, value in seconds.items()},
        "times_packed": {name: value / seconds["packed"] for name, value in seconds.items()},
    }
    publish(report, options.out)


if __name__ == "__main__":
    main()
