"""From the states of the training runs to the model's folder, in the layout that the pipelines open."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from ideoflow.files import in_place
from ideoflow.pipeline import Ideogram4Pipeline

from .train_transformers import Sketch

SIDES = (96, 192)  # pixels, what the model is trained on


@torch.no_grad()
def export(folder: Path, destination: Path) -> None:
    """Write the averaged weights of the runs in `folder` as a folder in place of `destination`, but keep its card.

    The weights are kept in float16; whoever loads them computes in float32.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    sketch = Sketch(len(tokenizer)).eval()
    weights = load_file(folder / "sketch.safetensors")
    sketch.load_state_dict({k.removeprefix("average/"): v for k, v in weights.items() if k.startswith("average/")})
    pipeline = Ideogram4Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKLFlux2.from_pretrained(folder / "vae").half(),
        text_encoder=sketch.reader.export().half(),
        tokenizer=tokenizer,
        transformer=sketch.transformer.half(),
        unconditional_transformer=sketch.unconditional.half(),
        side_limits=SIDES,
    )
    with in_place(destination) as fresh:
        pipeline.save_pretrained(fresh)
        # transformers loads in the type that the config names, whatever the file holds; diffusers in float32.
        config = fresh / "text_encoder" / "config.json"
        config.write_text(config.read_text().replace('"float16"', '"float32"'))
        vocabulary = fresh / "tokenizer" / "tokenizer.json"  # written with indents that are half of it
        vocabulary.write_text(json.dumps(json.loads(vocabulary.read_text()), separators=(",", ":"), ensure_ascii=False))
        if (card := destination / "README.md").exists():
            shutil.copy(card, fresh)
