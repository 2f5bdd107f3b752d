"""A whole run: look at the data, encode it, train, save."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..bundled import SKETCH, SKETCH_FOLDER
from ..checkpoints.folders import is_alone
from ..checkpoints.hub import check_id
from ..dtypes import of_name
from ..files import check_writable, lock
from ..pipeline import Ideogram4Pipeline
from ..pipeline.loading import HUB_ID
from ..text_encoder import tokenise
from .cache import Store
from .dataset import Survey, scan
from .encoding import Encoder, too_long
from .parallel import Group, processes
from .precheck import check
from .settings import Data, Settings, check_new
from .trainer import Trainer
from .watch import Watcher

WEIGHTS = (".safetensors", ".gguf", ".json")  # what a file of weights, or an index of them, is called


def train(settings: Settings, *, resume: bool = False, watchers: Sequence[Watcher] = ()) -> list[Path]:
    """Train as `settings` say, in this process or as one of those that torchrun or accelerate started.

    Args:
        settings: Options of the run.
        resume: Go on from the last checkpoint in the run's folder; from the beginning when there is none.
        watchers: Who is told about the run.

    Returns:
        The files and folders with the trained weights.

    Raises:
        ValueError: data or settings that cannot be trained on, a folder that already holds another run or is in use.
        Stopped: a loss that cannot be trained on, or a checkpoint that cannot be written.
        Interrupted: SIGINT or SIGTERM came during the steps; a checkpoint was written.
    """
    with processes(settings.model.device) as group, reserved(settings, group, resume):
        trainer = prepare(settings, group, watchers)
        if resume:
            trainer.resume()
        return trainer.run()


@contextmanager
def reserved(settings: Settings, group: Group, resume: bool) -> Iterator[None]:
    """Hold the run's folder, so that no other run writes into it.

    Raises:
        ValueError: if the folder is another run's, cannot be written, or holds checkpoints and `resume` is false.
    """
    out = Path(settings.output.out)
    if not resume:
        check_new(out)
    if not group.leads:
        yield
        return
    check_writable(settings.output.record, "--out")
    with lock(out / "lock", f"the run {out}"):
        yield


def prepare(settings: Settings, group: Group, watchers: Sequence[Watcher] = ()) -> Trainer:
    """All that comes before the first step: the model, the data, its encodings, what is trained."""
    if not group.leads:
        watchers = ()
    check(settings)
    folder = Path(settings.output.out).absolute()  # a watcher may change directory
    cache = Path(settings.data.cache or folder / "cache").absolute()
    pipeline = load_pipeline(settings, group)
    found = survey(settings, pipeline.tokenizer, watchers)
    check_budget(found, settings.training.tokens, pipeline)
    encoder = encode(cache, pipeline, found, group, watchers)
    return Trainer(
        settings, folder, pipeline, encoder.samples(found.examples), group, watchers, encoder.samples(found.held_out)
    )


def load_pipeline(settings: Settings, group: Group) -> Ideogram4Pipeline:
    """The pipeline that is trained, on the device of this process; frozen weights in the settings' precision.

    Raises:
        ValueError: if `model` or `base` is not there, or `base` goes with a model that has everything.
    """
    model = _place("model", settings.model.model or SKETCH)
    base = settings.model.base and _place("base", settings.model.base)
    # What is stored in few bits can stay so under an adapter, but cannot be trained itself.
    options: dict[str, Any] = {"dtype": of_name(settings.model.dtype), "dequantize": settings.model.method == "full"}
    path = Path(model)
    if path.is_file():
        pipeline = Ideogram4Pipeline.from_single_file(model, config=base or HUB_ID, **options)
    elif base and not (path.is_dir() and is_alone(path)):
        raise ValueError(
            "`base` goes with a file, or a folder that holds a transformer alone, as `model`;"
            f" {settings.model.model or 'the sketch model'} has everything."
        )
    elif base:
        pipeline = Ideogram4Pipeline.from_pretrained(model, config=base, **options)
    else:
        pipeline = Ideogram4Pipeline.from_pretrained(model, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(group.device)


def _place(option: str, name: str) -> str:
    """A path that is there, or a name on the hub: OWNER/NAME."""
    if name == SKETCH:
        return str(SKETCH_FOLDER)
    path = Path(name).expanduser()
    if path.exists():
        return str(path)
    if path.suffix in WEIGHTS:
        raise ValueError(f"`{option}` {name}: there is no such file.")
    try:
        check_id(name)
    except ValueError as error:
        raise ValueError(f"`{option}` {error}") from None
    return name


def survey(settings: Settings, tokenizer: Any, watchers: Sequence[Watcher] = ()) -> Survey:
    """Look at all data of the settings, and hold out what is for validation.

    Raises:
        ValueError: if nothing of it can be trained on, or nothing is left to be held out.
    """
    data = settings.data
    found = _scan(data, "data", tokenizer, watchers)
    if data.share is not None:
        found.hold_out(data.share)
    elif data.validation:
        found.hold_out_all(_scan(data, "validation", tokenizer, watchers))
    for watcher in watchers:
        watcher.on_survey(found)
    if not found.examples:
        raise ValueError(_nothing("data", data.data, "train on", found))
    if data.validation and not found.held_out:
        raise ValueError(_nothing("validation", data.validation, "hold out", found))
    return found


def _nothing(option: str, source: str, use: str, found: Survey) -> str:
    if found.examples or found.skipped or found.ignored:
        return f"`{option}` {source}: nothing to {use}.\n{found.report()}"
    return f"`{option}` {source}: nothing to {use}: there is no picture in it. Each needs its caption beside it."


def check_budget(found: Survey, tokens: int, pipeline: Ideogram4Pipeline) -> None:
    """See that every example fits into a batch, before any is encoded.

    Raises:
        ValueError: naming the largest one.
    """
    unit = pipeline.vae_scale_factor * pipeline.patch_size
    examples = [*found.examples, *found.held_out]
    texts = tokenise(pipeline.tokenizer, [example.caption for example in examples], sys.maxsize)
    images = [example.size[0] // unit * (example.size[1] // unit) for example in examples]
    sizes = [len(text) + image for text, image in zip(texts, images, strict=True)]
    if max(sizes) > tokens:
        largest = sizes.index(max(sizes))
        raise ValueError(
            f"`tokens` is {tokens:,}, but the largest sample, {examples[largest].name}, has {max(sizes):,},"
            f" {images[largest]:,} of them of its picture: raise it (--tokens), or make pictures smaller (--pixels)."
        )


def _scan(data: Data, option: str, tokenizer: Any, watchers: Sequence[Watcher]) -> Survey:
    def on_scan(done: int, total: int) -> None:
        for watcher in watchers:
            watcher.on_scan(done, total)

    found = scan(
        getattr(data, option),
        option=option,
        pixels=data.pixels,
        crop=data.crop,
        convert=data.convert,
        follow_links=data.follow_links,
        wrap=data.wrap,
        image_column=data.image_column,
        caption_column=data.caption_column or None,
        on_progress=on_scan,
    )
    found.skip(lambda example: too_long(tokenizer, example.caption))
    return found


def encode(
    cache: Path, pipeline: Ideogram4Pipeline, found: Survey, group: Group, watchers: Sequence[Watcher] = ()
) -> Encoder:
    """Encode what the cache does not hold yet, each process its share."""

    def on_encode(done: int, total: int, what: str) -> None:
        for watcher in watchers:
            watcher.on_encode(done, total, what)

    encoder = Encoder(pipeline, Store(cache))
    encoder.encode([*found.examples, *found.held_out], on_encode, group.rank, group.size)
    group.wait()
    if group.device.type != "cpu" and pipeline.text_encoder is not None:
        pipeline.text_encoder.to("cpu")  # it is large, and captions are encoded
    return encoder
