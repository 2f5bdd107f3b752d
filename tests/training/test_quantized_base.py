"""An adapter is trained on a base whose weights are stored in one byte, and acts there as on the expanded base."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ideoflow import Ideogram4Pipeline, sketch
from ideoflow.ops import Float8Linear
from ideoflow.training.run import train
from ideoflow.training.settings import Settings
from ideoflow.training.watch import Watcher


class Losses(Watcher):
    def __init__(self) -> None:
        self.found: list[float] = []

    def on_step(self, trainer, step) -> None:
        assert any(isinstance(part, Float8Linear) for part in trainer.pipeline.transformer.modules()) == self.kept
        self.found.append(step.loss)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The bundled model with the linear layers of its conditional transformer's blocks in fp8, a scale a row."""
    folder = shutil.copytree(sketch.path(), tmp_path_factory.mktemp("base") / "model")
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    stored = {}
    for name, tensor in load_file(file).items():
        if name.startswith("layers.") and tensor.ndim == 2:
            scale = tensor.float().abs().amax(1) / 448
            stored[name] = (tensor.float() / scale[:, None]).to(torch.float8_e4m3fn)
            stored[name.replace("weight", "weight_scale")] = scale
        else:
            stored[name] = tensor
    save_file(stored, file)
    return folder


def test_an_adapter_on_a_float8_base(base, pictures, tmp_path):
    """Losses of training on the stored weights are those of training on what they stand for."""
    expanded = tmp_path / "expanded"
    Ideogram4Pipeline.from_pretrained(base, dequantize=True).save_pretrained(expanded)
    found = {}
    for name, model in (("kept", base), ("expanded", expanded)):
        losses = Losses()
        losses.kept = name == "kept"
        options = dict(
            data=str(pictures), out=str(tmp_path / name), cache=str(pictures / ".cache-fp8"), model=str(model)
        )
        train(
            Settings.read(**options, steps=8, tokens=600, rank=2, lr=5e-3, warmup=1, ema=0.0, device="cpu"),
            watchers=[losses],
        )
        found[name] = losses.found
    assert len(found["kept"]) == 8
    assert found["kept"] == pytest.approx(found["expanded"], rel=1e-4)

    drawn = []
    for model in (base, expanded):
        pipe = Ideogram4Pipeline.from_pretrained(model)
        pipe.set_progress_bar_config(disable=True)
        pipe.load_lora_weights(tmp_path / "kept")
        caption = json.loads((pictures / "0.json").read_text())
        call = dict(width=112, height=96, num_inference_steps=3, guidance_scale=2.0, guidance_schedule=None)
        drawn.append(
            np.asarray(pipe(caption, generator=torch.Generator().manual_seed(1), **call).images[0]).astype(int)
        )
    assert np.abs(drawn[0] - drawn[1]).max() <= 1
