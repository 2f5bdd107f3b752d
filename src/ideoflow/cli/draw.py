"""Drawing of the pictures of one setting: the pipeline loaded, fitted if asked to, and called once."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ..dtypes import of_name
from .console import err, plain_warnings, shown, warn
from .jobs import Picture, Settings

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..pipeline import Ideogram4Pipeline


def draw(
    settings: Settings,
    pictures: Sequence[Picture],
    compiled: bool,
    cuda_graphs: bool | None,
    max_tokens: int | None,
    memory: str | None,
    verbose: bool,
    ignore_unknown: bool,
    max_sequence_length: int,
    opened: Callable[[], AbstractContextManager[Any]] | None = None,
) -> list[Image]:
    """All pictures of one setting in one call; each carries the settings that it was drawn with.

    `opened` gives the pipeline for a block, where it is not loaded here.
    """
    import torch

    from ..captions import CaptionWarning
    from ..presets import find_preset

    if cuda_graphs and not settings.device.startswith("cuda"):
        raise ValueError(f"--cuda-graphs needs --device cuda, and these pictures are drawn on {settings.device!r}.")
    preset = find_preset(settings.preset)
    with ExitStack() as block:
        with plain_warnings(), err.status(f"loading {shown(settings.model)} on {settings.device}"):
            place = memory is None
            pipe = load(settings, ignore_unknown, place) if opened is None else block.enter_context(opened())
            pictures = _written(pipe, pictures)
            tokens = _tokens(pipe, pictures, max_sequence_length)
            if memory is not None:
                steps = settings.steps or preset.steps
                _fit(pipe, settings, pictures, tokens, steps, memory, verbose)
        pipe.set_progress_bar_config(disable=True)
        if compiled:
            pipe.compile()
        if cuda_graphs is not None:
            pipe.cuda_graphs = cuda_graphs
        noun = "picture" if len(pictures) == 1 else "pictures"
        with plain_warnings(), steps_shown(f"{len(pictures)} {noun}") as on_step:
            warnings.simplefilter("ignore", CaptionWarning)  # said already, when the prompts were read
            result: Any = pipe(
                [picture.caption for picture in pictures],
                size=[(picture.width, picture.height) for picture in pictures],
                preset=preset if settings.steps is None else preset.with_steps(settings.steps),
                guidance_scale=settings.guidance,
                cache=settings.cache,
                # One generator a picture, on the CPU: the noise depends on the seed alone, not on device or company.
                generator=[torch.Generator("cpu").manual_seed(picture.seed) for picture in pictures],
                callback_on_step_end=on_step,
                callback_on_step_end_tensor_inputs=[],
                max_sequence_length=max_sequence_length,
                max_tokens=max_tokens,
            )
        images: list[Image] = result.images
        return images


@contextmanager
def steps_shown(what: str) -> Iterator[Callable[..., dict[str, Any]]]:
    """A bar on a terminal of the steps that are taken; gives what a pipeline calls back after each."""
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps, taken"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    ) as progress:
        task = progress.add_task(what, total=None)

        def on_step(pipe: Ideogram4Pipeline, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            progress.update(task, completed=step + 1, total=pipe.num_timesteps)
            return tensors

        yield on_step


def _written(pipe: Ideogram4Pipeline, pictures: Sequence[Picture]) -> list[Picture]:
    """The pictures with the captions that the model writes of words, one for all pictures of the same words."""
    import torch

    captions: dict[tuple[str, int, int], str] = {}
    for one in pictures:
        key = (one.words, one.width, one.height)
        if one.words and key not in captions:
            seed = torch.Generator("cpu").manual_seed(one.seed)
            try:
                (captions[key],) = pipe.upsample_prompt(one.words, one.height, one.width, generator=seed)
            except ValueError as error:
                error.args = (f"{one.name}: {error}",)
                raise
    return [
        replace(one, caption=captions.get((one.words, one.width, one.height), one.caption), words="")
        for one in pictures
    ]


def _tokens(pipe: Ideogram4Pipeline, pictures: Sequence[Picture], most: int) -> int:
    """Tokens of the longest caption.

    Raises:
        ValueError: naming the picture, if one has more than `most`.
    """
    from ..text_encoder import tokenise

    longest = 0
    for picture in pictures:
        tokens = len(tokenise(pipe.tokenizer, [picture.caption], max_sequence_length=sys.maxsize)[0])
        if tokens > most:
            raise ValueError(
                f"the caption of {picture.name} has {tokens} tokens, more than --max-sequence-length {most}: shorten"
                " it, or raise the limit."
            )
        longest = max(longest, tokens)
    return longest


def _fit(
    pipe: Ideogram4Pipeline,
    settings: Settings,
    pictures: Sequence[Picture],
    tokens: int,
    steps: int,
    memory: str,
    verbose: bool,
) -> None:
    """Fit the pipeline for these pictures, and say how."""
    plan = pipe.fit_memory(
        memory,
        device=settings.device,
        size=max(((picture.width, picture.height) for picture in pictures), key=lambda size: size[0] * size[1]),
        caption_tokens=tokens,
        pictures=len(pictures),
        steps=steps,
        quantize=settings.quantize,
    )
    if verbose:
        err.print(str(plan), markup=False)
    for loss in plan.losses:
        warn(f"to fit into {memory}: {loss}.")


def load(settings: Settings, ignore_unknown: bool, place: bool = True, **without: None) -> Ideogram4Pipeline:
    """The pipeline with its adapters; where `place` says so, on its device and quantized."""

    from ..checkpoints.lora import UnknownTensorsError
    from ..pipeline.opening import open_pipeline

    dtype = of_name(settings.dtype)
    pipe = open_pipeline(settings.model, settings.base, dtype, **without)
    loras = settings.loras if pipe.transformer is not None else ()
    for number, lora in enumerate(loras):
        try:
            pipe.load_lora_weights(lora.path, adapter_name=f"lora{number}", ignore_unknown=ignore_unknown)
        except UnknownTensorsError as error:
            raise ValueError(f"{error.told} To draw without them, give --ignore-unknown.") from error
    if loras:
        pipe.set_adapters([f"lora{number}" for number in range(len(loras))], [lora.scale for lora in loras])
    if place:
        pipe.to(settings.device)
        quantize(pipe, settings)
    return pipe


def quantize(pipe: Ideogram4Pipeline, settings: Settings) -> None:
    """Quantize the transformers as the settings say, if they do."""
    if settings.quantize:
        try:
            pipe.quantize(settings.quantize)
        except TypeError as error:  # the file holds few bits already
            raise ValueError(f"--quantize {settings.quantize}: {error}") from error
