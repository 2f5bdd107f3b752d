"""Opening whatever a person names as a model: the bundled one, a folder, a hub id, or a file and what goes with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .._imports import bars
from ..bundled import SKETCH, SKETCH_FOLDER
from ..checkpoints.folders import is_alone
from .loading import HUB_ID
from .pipeline import Ideogram4Pipeline

FILES = (".safetensors", ".gguf", ".json")  # what a file of weights, or an index of them, is called


def open_pipeline(model: str, base: str | None, dtype: torch.dtype, **without: None) -> Ideogram4Pipeline:
    """The pipeline of a model, on the CPU.

    Args:
        model: `sketch` for the bundled one, a folder, a hub id, or a file that holds a transformer.
        base: For a transformer alone: what everything else comes from. None for the published model's hub id.
        dtype: What weights are loaded in.
        without: Components to leave out, each None; of a file that holds both transformers neither is.

    Raises:
        ValueError: naming the option that does not fit, as the command line has it.
    """
    options: dict[str, Any] = {"dtype": dtype, **without}
    if model == SKETCH and base:
        raise ValueError("--base goes with a file as --model; the bundled model has everything.")
    if model == SKETCH:
        with bars(False):  # it takes a second
            return Ideogram4Pipeline.from_pretrained(SKETCH_FOLDER, **options)
    path = Path(model).expanduser()
    if (model.startswith((".", "~", "/")) or path.suffix in FILES) and not path.exists():
        raise ValueError(f"--model {model!r}: there is no such folder or file.")
    base = str(SKETCH_FOLDER) if base == SKETCH else base
    if path.is_file():
        return Ideogram4Pipeline.from_single_file(path, config=base or HUB_ID, **options)
    if not base:
        return Ideogram4Pipeline.from_pretrained(path if path.is_dir() else model, **options)
    if not (path.is_dir() and is_alone(path)):
        raise ValueError(
            "--base goes with a file, or a folder that holds a transformer alone, as --model; other folders, and hub"
            " ids, have everything."
        )
    return Ideogram4Pipeline.from_pretrained(path, config=base, **options)
