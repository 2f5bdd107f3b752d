"""What a run would do, cost and take, before it begins."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from itertools import islice

from torch import nn

from .batches import PackedStream
from .trainer import Trainer

TIMED = 3  # steps
STATES = {"adamw": 8, "muon": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2, "adamw_8bit_torchao": 2}  # bytes a weight


def plan(trainer: Trainer) -> Iterator[tuple[str, str]]:
    """Take `TIMED` steps in memory and describe the run, as names and values for people.

    Nothing is written; the trainer's weights are no longer the initial ones afterwards.
    """
    settings, samples = trainer.settings, trainer.samples
    train = settings.training
    texts, images = [s.text_tokens for s in samples], [math.prod(s.grid) for s in samples]
    yield "samples", f"{len(samples)}"
    for name, counts in (("text tokens", texts), ("image tokens", images)):
        yield name, f"{min(counts)} to {max(counts)}, median {statistics.median(counts):.0f}, {sum(counts):,} in all"

    stream = PackedStream(trainer.stream.tokens, train.tokens, window=train.window, seed=train.seed)
    batches = list(islice(stream, max(32, 2 * math.ceil(sum(stream.tokens) / train.tokens))))
    filled = statistics.mean(stream.tokens_of(batch) / train.tokens for batch in batches)
    together = train.accumulate * trainer.group.size
    per_step = statistics.mean(map(len, batches)) * together
    yield "batches", f"{train.tokens:,} tokens, filled to {filled:.1%}; {per_step:.1f} samples a step"
    yield "steps", f"{train.steps:,}, {train.steps * per_step / len(samples):.1f} visits to every sample"

    trained = sum(p.numel() for p in trainer.trained.values())
    yield "trained weights", f"{trained:,} ({settings.model.method}, {settings.model.branch})"
    for name, size in memory(trainer).items():
        yield name, f"{size / 2**30:.2f} GiB"

    seconds = []
    for _ in range(TIMED):
        begun = time.perf_counter()
        trainer.advance(begun)
        seconds.append(time.perf_counter() - begun)
    pace = statistics.median(seconds)
    yield "time", f"{pace:.2f} s a step (median of {TIMED}), {_clock(pace * train.steps)} for all, without previews"


def memory(trainer: Trainer) -> dict[str, int]:
    """Bytes on the device, estimated.

    Weights are counted; gradients are 4 bytes for each trained one, optimizer states 8 (2 in 8 bits), the average 4.
    Activations are taken for 34 values of the width for each token and block ("Reducing Activation Recomputation in
    Large Transformer Models", Korthikanti et al., 2022), in the precision of the arithmetic; with checkpointing, one
    for each block and 34 for a single one.
    """
    settings = trainer.settings
    modules = [m for m in trainer.pipeline.components.values() if isinstance(m, nn.Module)]
    weights = sum(p.numel() * p.element_size() for module in modules for p in module.parameters())
    trained = sum(p.numel() for p in trainer.trained.values())
    values = 0
    for transformer in trainer.branches.values():
        blocks, width = len(transformer.layers), transformer.hidden_size
        values += width * (blocks + 34 if settings.training.gradient_checkpointing else 34 * blocks)
    size = 2 if settings.model.dtype == "bfloat16" else 4
    parts = {
        "memory: weights": weights,
        "memory: gradients": 4 * trained,
        "memory: optimizer": STATES[settings.training.optimizer] * trained,
        "memory: average": 4 * trained if settings.training.ema else 0,
        "memory: activations": settings.training.tokens * values * size,
    }
    return parts | {"memory: together": sum(parts.values())}


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"
