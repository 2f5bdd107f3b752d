"""The model that a server serves: opened, fitted and given its adapters, with what clients are told of it."""

from __future__ import annotations

from functools import partial
from threading import Lock

from ..bundled import SKETCH
from ..captions import Caption, writing
from ..captions.writing import Writer, Written
from ..devices import best_device
from ..dtypes import of_name
from ..pipeline import Ideogram4Pipeline
from ..pipeline.opening import open_pipeline
from ..sizes import SIDE_LIMITS
from ..sketch import GUIDANCE
from ..sketch.prose import GRAMMAR
from ..sketch.prose import write as write_by_grammar
from .job_settings import ServedModel
from .server_settings import ServerSettings, without_folders

SKETCH_SIZE, DEFAULT_SIZE = (128, 128), (1024, 1024)
DEFAULT_PRESET = "V4_DEFAULT_20"
TEXT_ENCODER = "the model's own text encoder"
_BY_THE_MODEL = Lock()  # it draws besides: one caption at a time


def load_model(settings: ServerSettings) -> Ideogram4Pipeline:
    """The pipeline with its adapters, on its device.

    Raises:
        ValueError: naming the option that does not fit.
    """
    device = settings.device or best_device()
    settings.check_graphs(device)
    dtype = settings.dtype or ("float32" if settings.model == SKETCH or device == "cpu" else "bfloat16")
    pipe = open_pipeline(settings.model, settings.base, of_name(dtype))
    pipe.set_progress_bar_config(disable=True)
    for name, path in settings.loras.items():
        pipe.load_lora_weights(path, adapter_name=name)
    if settings.memory is not None:
        pipe.fit_memory(
            settings.memory, device=device, quantize=settings.quantize, pictures=settings.max_pictures,
            steps=settings.max_steps,
        )  # fmt: skip
        return pipe
    pipe.to(device)
    if settings.quantize:
        pipe.quantize(settings.quantize)
    return pipe


def writer_for(settings: ServerSettings, enhancer: Writer | None) -> Writer | None:
    """What makes captions of clients' words, `enhancer` where the model does; None to put them into minimal ones."""
    if settings.writer == "none":
        return None
    if (endpoint := settings.language_model) is not None:
        return lambda words, size: writing.write(words, endpoint, size)
    if SKETCH in (settings.model, settings.base):
        return write_by_grammar
    return enhancer


def enhancer_of(pipe: Ideogram4Pipeline) -> Writer | None:
    """What makes captions of words by the model itself; None where it has no head for that."""
    return None if pipe.prompt_enhancer_head is None else partial(_by_the_model, pipe)


def name_of_writer(settings: ServerSettings, pipe: Ideogram4Pipeline | None) -> str | None:
    """Who writes captions of clients' words, as far as can be told before the model is there; None for nobody."""
    if settings.writer == "none":
        return None
    if settings.llm is not None:
        return settings.llm
    if SKETCH in (settings.model, settings.base):
        return GRAMMAR
    return TEXT_ENCODER if pipe is not None and pipe.prompt_enhancer_head is not None else None


def _by_the_model(pipe: Ideogram4Pipeline, words: str, size: tuple[int, int] | None) -> Written:
    width, height = size or DEFAULT_SIZE
    with _BY_THE_MODEL:
        (line,) = pipe.upsample_prompt(words, height, width)
    return Written(Caption.parse(line), TEXT_ENCODER)


def served_by(settings: ServerSettings, pipe: Ideogram4Pipeline | None) -> ServedModel:
    """What orders are settled by; with what can be told before the model is there, if it is not."""
    bundled = settings.model == SKETCH
    limits = pipe.config.get("side_limits") if pipe is not None else None
    return ServedModel(
        settings,
        default_size=SKETCH_SIZE if bundled else DEFAULT_SIZE,
        default_preset=DEFAULT_PRESET,
        default_guidance=GUIDANCE if bundled else None,
        side_limits=tuple(limits or ((96, 192) if bundled else SIDE_LIMITS)),
        adapters=tuple(settings.loras),
        writer=name_of_writer(settings, pipe),
        calibrated=frozenset(pipe.cache_calibrations) if pipe is not None else frozenset(),
    )


def name_of_model(settings: ServerSettings) -> str:
    """The model's name for clients: a path without its folders."""
    return without_folders(settings.model)
