"""The model that a server serves: opened, fitted and given its adapters, with what clients are told of it."""

from __future__ import annotations

from ..bundled import SKETCH
from ..devices import best_device
from ..dtypes import of_name
from ..pipeline import Ideogram4Pipeline
from ..pipeline.opening import open_pipeline
from ..sizes import SIDE_LIMITS
from ..sketch import GUIDANCE
from .job_settings import Served
from .server_settings import ServerSettings, without_folders

SKETCH_SIZE, DEFAULT_SIZE = (128, 128), (1024, 1024)
DEFAULT_PRESET = "V4_DEFAULT_20"


def load_model(settings: ServerSettings) -> Ideogram4Pipeline:
    """The pipeline with its adapters, on its device.

    Raises:
        ValueError: naming the option that does not fit.
    """
    device = settings.device or best_device()
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


def served_by(settings: ServerSettings, pipe: Ideogram4Pipeline | None) -> Served:
    """What orders are settled by; with what can be told before the model is there, if it is not."""
    bundled = settings.model == SKETCH
    limits = pipe.config.get("side_limits") if pipe is not None else None
    return Served(
        settings,
        default_size=SKETCH_SIZE if bundled else DEFAULT_SIZE,
        default_preset=DEFAULT_PRESET,
        default_guidance=GUIDANCE if bundled else None,
        side_limits=tuple(limits or ((96, 192) if bundled else SIDE_LIMITS)),
        adapters=tuple(settings.loras),
    )


def name_of_model(settings: ServerSettings) -> str:
    """The model's name for clients: a path without its folders."""
    return without_folders(settings.model)
