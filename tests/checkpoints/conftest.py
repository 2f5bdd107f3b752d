from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ideoflow import Ideogram4Pipeline, Ideogram4Transformer2DModel, sketch


@pytest.fixture(scope="module")
def loaded() -> Ideogram4Pipeline:
    pipe = sketch.load()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def ours(loaded: Ideogram4Pipeline) -> Iterator[Ideogram4Pipeline]:
    """The bundled model, whose adapters are taken off afterwards."""
    yield loaded
    loaded.unload_lora_weights()


@pytest.fixture
def hub_cache(tmp_path: Path) -> Path:
    """A cache as huggingface_hub keeps one, with the bundled model as `someone/sketch`."""
    model = tmp_path / "models--someone--sketch"
    snapshot = model / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(sketch.path(), snapshot)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(snapshot.name)
    return tmp_path


@pytest.fixture
def inputs_of() -> Callable[[Ideogram4Transformer2DModel, torch.dtype], dict[str, Any]]:
    """What makes arguments of `forward` for a model: two samples of 5 text tokens and 3 x 4 image tokens."""

    def make(model: Ideogram4Transformer2DModel, dtype: torch.dtype) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(7)
        text, height, width, batch = 5, 3, 4, 2
        length = text + height * width
        positions = torch.arange(length)[:, None].repeat(1, 3)
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        image = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).view(-1, 3) + 65536
        positions[text:] = image
        roles = torch.tensor([3] * text + [2] * (height * width))
        return dict(
            hidden_states=torch.randn(batch, length, model.config.in_channels, generator=generator).to(dtype),
            encoder_hidden_states=torch.randn(batch, length, model.config.llm_features_dim, generator=generator).to(
                dtype
            ),
            timestep=torch.tensor([0.3, 0.8], dtype=dtype),
            position_ids=positions[None].repeat(batch, 1, 1),
            segment_ids=torch.ones(batch, length, dtype=torch.long),
            indicator=roles[None].repeat(batch, 1),
        )

    return make
