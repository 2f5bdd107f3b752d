"""A whole run: look at the data, encode it, train, save."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..pipeline import Ideogram4Pipeline
from . import checkpoints
from .cache import Store
from .dataset import Survey, scan
from .encoding import Encoder, Sample
from .parallel import Group, processes
from .settings import Settings
from .trainer import Trainer
from .watch import Watcher


def train(settings: Settings, *, resume: bool = False, watchers: Sequence[Watcher] = ()) -> list[Path]:
    """Train as `settings` say, in this process or as one of those that torchrun or accelerate started.

    Args:
        settings: Of the run.
        resume: Go on from the last checkpoint in the run's folder; from the beginning when there is none.
        watchers: Who is told about the run.

    Returns:
        The files and folders with the trained weights.

    Raises:
        ValueError: data or settings that cannot be trained on, a folder that already holds another run.
        Stopped: a loss that cannot be trained on.
    """
    with processes(settings.model.device) as group:
        trainer = prepare(settings, group, watchers)
        begin(trainer, resume)
        return trainer.run()


def prepare(settings: Settings, group: Group, watchers: Sequence[Watcher] = ()) -> Trainer:
    """All that comes before the first step: the model, the data, its encodings, what is trained."""
    if not group.leads:
        watchers = ()
    pipeline = load_pipeline(settings, group)
    samples = encode(settings, pipeline, survey(settings, watchers), group, watchers)
    return Trainer(settings, pipeline, samples, group, watchers)


def begin(trainer: Trainer, resume: bool) -> None:
    """Go on from the run's last checkpoint, or make sure that a new run overwrites none.

    Raises:
        ValueError: if the folder holds checkpoints and `resume` is false.
    """
    if resume:
        trainer.resume()
    elif checkpoints.saved(trainer.folder / "checkpoints"):
        raise ValueError(
            f"{trainer.folder} holds checkpoints of an earlier run: go on with it (--resume), remove them, or train"
            " into another folder (--out)."
        )


def load_pipeline(settings: Settings, group: Group) -> Ideogram4Pipeline:
    """The pipeline that is trained, on the device of this process; frozen weights in the settings' precision."""
    from .. import sketch

    dtype = getattr(torch, settings.model.dtype)
    pipeline = Ideogram4Pipeline.from_pretrained(settings.model.model or sketch.path(), dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(group.device)


def survey(settings: Settings, watchers: Sequence[Watcher] = ()) -> Survey:
    """Look at all data of the settings.

    Raises:
        ValueError: if nothing of it can be trained on.
    """

    def on_scan(done: int, total: int) -> None:
        for watcher in watchers:
            watcher.on_scan(done, total)

    data = settings.data
    found = scan(
        data.data,
        pixels=data.pixels,
        crop=data.crop,
        convert=data.convert,
        image_column=data.image_column,
        caption_column=data.caption_column or None,
        on_progress=on_scan,
    )
    for watcher in watchers:
        watcher.on_survey(found)
    if not found.examples:
        raise ValueError(f"`data` {data.data}: nothing to train on.\n{found.report()}")
    return found


def encode(
    settings: Settings, pipeline: Ideogram4Pipeline, found: Survey, group: Group, watchers: Sequence[Watcher] = ()
) -> list[Sample]:
    """Encode what the cache does not hold yet, each process its share."""

    def on_encode(done: int, total: int, what: str) -> None:
        for watcher in watchers:
            watcher.on_encode(done, total, what)

    encoder = Encoder(pipeline, Store(Path(settings.data.cache or Path(settings.output.out) / "cache")))
    encoder.encode(found.examples, on_encode, group.rank, group.size)
    group.wait()
    if group.device.type != "cpu" and pipeline.text_encoder is not None:
        pipeline.text_encoder.to("cpu")  # it is large, and captions are encoded
    return encoder.samples(found.examples)
