"""The text encoder without its vision tower, which no caption needs and which is never brought into memory."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModel, PreTrainedModel, Qwen3VLConfig  # noqa: F401 (diffusers looks for the second here)

from .errors import CheckpointError
from .resting import Reader, Resting
from .source import Source, open_source

TOWER = "visual."
WHY = "captions need the language model alone. `transformers.Qwen3VLModel.from_pretrained` loads the vision tower too."


class Qwen3VLModel(transformers.Qwen3VLModel):
    """transformers' model of this name, its vision tower left in the file it was loaded from.

    Everything else is transformers': the files it reads, sharded or quantized, types, device maps. Saving it writes the
    tower too, as long as its file is there.
    """

    _keys_to_ignore_on_load_unexpected = (r"(.*\.)?visual\..*", r"lm_head\..*")

    def __init__(self, config: Qwen3VLConfig) -> None:
        transformers.Qwen3VLPreTrainedModel.__init__(self, config)
        self.visual = Resting({}, WHY, torch.float32)
        self.language_model = AutoModel.from_config(config.text_config)
        self.rope_deltas = None
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers' method."""
        model = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        folder = Path(str(pretrained_model_name_or_path)) / kwargs.get("subfolder", "")
        loaded = model[0] if isinstance(model, tuple) else model
        if folder.is_dir():
            loaded.visual = Resting(_tower(folder, kwargs.get("variant")), WHY, loaded.dtype)
        return model


def _tower(folder: Path, variant: str | None) -> dict[str, Reader]:
    """What reads each tensor of the vision tower in a folder; nothing where it holds none that can be read."""
    try:
        source = open_source(folder, variant)
    except CheckpointError:  # transformers has loaded the model from something else
        return {}
    names = {name[name.index(TOWER) + len(TOWER) :]: name for name in source.infos if TOWER in name}
    return {name: partial(_read, source, full) for name, full in names.items()}


def _read(source: Source, name: str) -> torch.Tensor:
    return source.read(name)
