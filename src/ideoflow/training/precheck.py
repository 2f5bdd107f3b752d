"""What of a run's settings can be seen to be wrong before a model is loaded; it needs no torch."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..bundled import SKETCH, SKETCH_FOLDER
from ..captions.paths import existing, looks_like_path, missing
from ..captions.reading import read_file
from ..checkpoints.checkpoint import open_checkpoint
from ..checkpoints.errors import CheckpointError
from .lines import line_of
from .settings import Model, Settings
from .targets import choose, linear_layers

PACKAGES = {"adamw_8bit": "bitsandbytes", "paged_adamw_8bit": "bitsandbytes", "adamw_8bit_torchao": "torchao"}


def check(settings: Settings) -> None:
    """Refuse targets, captions of previews and optimizers that the run could not use, while nothing is loaded.

    Raises:
        ValueError: naming the option.
    """
    if settings.model.method == "lora" and (config := _config(settings.model)) is not None:
        choose(linear_layers(config), settings.model.targets)
    for prompt in settings.output.previews:
        preview_line(prompt, settings.data.wrap)
    package = PACKAGES.get(settings.training.optimizer)
    if package and find_spec(package) is None:
        raise ValueError(
            f"`optimizer` {settings.training.optimizer} needs {package}: `pip install {package}`, or train with adamw."
        )


def preview_line(prompt: str, wrap: bool) -> str:
    """The line of a preview's caption, or of the file that it names.

    Raises:
        ValueError: naming the prompt, if it cannot be used.
    """
    path = existing(prompt)
    if path is None and looks_like_path(prompt):
        raise ValueError(f"`previews`: {missing(prompt)}")
    try:
        return line_of(read_file(path) if path else prompt, wrap)[0]
    except (OSError, ValueError) as error:
        raise ValueError(f"`previews` {prompt[:60]!r}: {error}") from None


def _config(model: Model) -> dict[str, Any] | None:
    """The configuration of the transformer that is trained; None where it is still to be fetched, or not told here."""
    place = SKETCH_FOLDER if model.model in ("", SKETCH) else Path(model.model).expanduser()
    if not place.exists():
        return None  # a hub id
    try:
        return open_checkpoint(place).config
    except CheckpointError:  # the configuration is in `base`, or the loader says what is wrong
        return None
