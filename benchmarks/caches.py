"""What steps that are not computed save and cost, by the bundled model on held-out captions of the sketch world.

For each setting: tokens that went through the transformers as a share of the full picture's, seconds of a processor
for a picture's steps, how well captions are drawn (elements in place, their overlap with the truth, words read), and
mean distance from the full picture in grey levels. Pictures are drawn ten at a time, with every setting in turn; what
is done is in --out after each ten, and the same command goes on from there.

    python -m benchmarks.caches --out benchmarks/results/caches-cpu.json
    python -m benchmarks.caches --count 20 --only full fast faster
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig
from PIL import Image

from ideoflow import sketch
from ideoflow.sketch.scene import Sample
from ideoflow.sketch.world import sample
from tools.sketch.score import OVERLAP, judge

from ._measure import machine, make_parser, write

STEPS, BATCH = 20, 10
FULL = "full"
SETTINGS: dict[str, dict[str, Any]] = {
    FULL: {},
    "fast": {"cache": "fast"},
    "faster": {"cache": "faster"},
    "11 steps": {"num_inference_steps": 11},
    "8 steps": {"num_inference_steps": 8},
    "guidance_every=2": {"guidance_every": 2},
    "guidance_every=4": {"guidance_every": 4},
    "guidance_interval=(0, 0.5)": {"guidance_interval": (0, 0.5)},
    "fast, guidance_every=2": {"cache": "fast", "guidance_every": 2},
    "faster, guidance_every=2": {"cache": "faster", "guidance_every": 2},
    "interval=2 before=3": {"cache": "interval=2 before=3"},
    "TaylorSeerCacheConfig()": {"cache": TaylorSeerCacheConfig(use_lite_mode=True)},
    "FirstBlockCacheConfig(0.05)": {"cache": FirstBlockCacheConfig(0.05)},
    "5 of 20 steps": {"cache": "steps=0,1,3,6,11"},
    "5 steps": {"num_inference_steps": 5},
}


def requests_of(pipe: Any, samples: Sequence[tuple[int, Sample]], options: dict[str, Any]) -> list[Any]:
    """The requests of some samples, each with a seed of its own."""
    drawing = {"preset": "V4_DEFAULT_20", "num_inference_steps": STEPS, "guidance_scale": sketch.GUIDANCE, **options}
    return list(
        pipe.make_requests(
            [one.caption for _, one in samples],
            size=[(one.width, one.height) for _, one in samples],
            generator=[torch.Generator().manual_seed(index) for index, _ in samples],
            **drawing,
        )
    )


def drawn(pipe: Any, samples: Sequence[tuple[int, Sample]], options: dict[str, Any]) -> tuple[list[Any], int, float]:
    """Pictures, tokens that were computed, and seconds of the steps."""
    requests = requests_of(pipe, samples, options)
    tokens = sum(request.tokens_of(step) for request in requests for step in range(request.steps))
    begun = time.process_time()
    pipe.engine().complete(requests)
    return pipe.decode_requests(requests), tokens, time.process_time() - begun


def figures(picture: Image.Image, full: Image.Image, truth: Sample) -> dict[str, Any]:
    """What one picture is worth."""
    found = judge(picture, truth)
    words = [read for read, element in zip(found.read, truth.elements, strict=True) if element.word]
    gap = np.abs(np.asarray(picture, dtype=np.float32) - np.asarray(full, dtype=np.float32)).mean()
    return {"overlaps": list(found.overlaps), "words": words, "gap": float(gap)}


def batches(pipe: Any, names: Sequence[str], count: int, done: int) -> Iterator[dict[str, Any]]:
    """The figures of every setting, ten pictures after ten."""
    for begin in range(done * BATCH, count, BATCH):
        some = [(index, sample(index, split="held_out")) for index in range(begin, min(count, begin + BATCH))]
        found: dict[str, Any] = {}
        full: list[Image.Image] = []
        for name in names:
            pictures, tokens, seconds = drawn(pipe, some, SETTINGS[name])
            full = full or pictures
            judged = [figures(one, own, truth) for one, own, (_, truth) in zip(pictures, full, some, strict=True)]
            found[name] = {"tokens": tokens, "seconds": seconds, "pictures": judged}
        yield found


def summary(ten: Sequence[dict[str, Any]], name: str) -> dict[str, float]:
    """The figures of one setting over all batches."""
    own = [one[name] for one in ten]
    pictures = [picture for one in own for picture in one["pictures"]]
    overlaps = [overlap for picture in pictures for overlap in picture["overlaps"]]
    words = [read for picture in pictures for read in picture["words"]]
    tokens = [sum(one[which]["tokens"] for one in ten) for which in (FULL, name)]
    return {
        "times fewer tokens": tokens[0] / tokens[1],
        "share of tokens": tokens[1] / tokens[0],
        "seconds a picture": sum(one["seconds"] for one in own) / len(pictures),
        "elements": 100 * float(np.mean([overlap > OVERLAP for overlap in overlaps])),
        "overlap": float(np.mean(overlaps)),
        "words": 100 * float(np.mean(words)),
        "gap": float(np.mean([picture["gap"] for picture in pictures])),
    }


def table(summaries: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    head = "setting | tokens | times fewer | seconds | elements | overlap | words | grey levels from full"
    lines = [f"| {head} |", "|" + "---|" * 8]
    for name, own in summaries.items():
        lines.append(
            f"| `{name}` | {own['share of tokens']:.0%} | {own['times fewer tokens']:.2f} |"
            f" {own['seconds a picture']:.2f} | {own['elements']:.1f}% | {own['overlap']:.3f} | {own['words']:.1f}% |"
            f" {own['gap']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Draw, judge, and print a table."""
    parser = make_parser(__doc__)
    parser.add_argument("--count", type=int, default=200, help="held-out captions (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, help="these settings instead of all")
    given = parser.parse_args()
    names = [FULL, *(name for name in given.only or SETTINGS if name != FULL)]
    ten = kept(given.out, names, given.count)
    pipe = sketch.load()
    pipe.set_progress_bar_config(disable=True)
    for one in batches(pipe, names, given.count, len(ten)):
        ten.append(one)
        summaries = {name: summary(ten, name) for name in names}
        report = {"machine": machine(), "captions": sum(len(one[FULL]["pictures"]) for one in ten), "steps": STEPS}
        write({**report, "settings": summaries, "batches": ten}, given.out)
        print(f"{report['captions']} of {given.count} captions", flush=True)
    print(table({name: summary(ten, name) for name in names}))


def kept(out: Path | None, names: Sequence[str], count: int) -> list[dict[str, Any]]:
    """What an earlier run has left of the same settings: whole tens."""
    if out is None or not out.exists():
        return []
    ten: list[dict[str, Any]] = json.loads(out.read_text(encoding="utf-8")).get("batches", [])
    whole = [one for one in ten if list(one) == list(names) and len(one[FULL]["pictures"]) == BATCH]
    return whole[: count // BATCH]


if __name__ == "__main__":
    main()
