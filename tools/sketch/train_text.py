"""Train the sketch model's reading half on captions alone, until every element's closing token tells its box.

Two minutes here save the transformer hours: positions come early only when the features hold them plainly.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from ideoflow.sketch.world import sample
from ideoflow.training.ema import Ema

from .curve import Curve
from .readouts import CaptionProbe, Truth
from .resume import SAVE_EVERY, descend, load_state, save_state
from .text import Encoder, Reader, build_tokenizer


def train(
    folder: Path, minutes: float, batch: int = 64, peak_rate: float = 2e-3, total_steps: int = 2000, device: str = "cpu"
) -> None:
    """Train `Reader` and `CaptionProbe`; the state goes to `folder / "text.safetensors"`, the tokenizer to `folder`."""
    torch.manual_seed(0)
    if not (folder / "tokenizer").exists():
        build_tokenizer().save_pretrained(folder / "tokenizer")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    encode = Encoder(tokenizer)
    reader = Reader(len(tokenizer))
    model = nn.ModuleDict({"reader": reader, "probe": CaptionProbe(reader.config.hidden_size)}).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate, betas=(0.9, 0.98), weight_decay=0.01)
    average = Ema(dict(model.named_parameters()), 0.995)
    state = folder / "text.safetensors"
    step = load_state(state, model, [optimizer], average)
    curve, begun = Curve(folder / "text.jsonl", step), time.monotonic()
    while step < total_steps and time.monotonic() - begun < 60 * minutes:
        optimizer.param_groups[0]["lr"] = peak_rate * min(1.0, (step + 1) / 100) * max(0.05, 1 - step / total_steps)
        pictures = [sample(-1 - step * batch - i) for i in range(batch)]
        ids, places = zip(*(encode(p.caption) for p in pictures), strict=True)
        states = reader(list(ids))[-1]
        loss, errors = model["probe"](states, list(places), [Truth(p) for p in pictures])
        descend(loss, model, optimizer, average)
        step += 1
        if step % 50 == 0:
            curve.add(step, {"loss": loss.item()} | {f"{name} error": error.item() for name, error in errors.items()})
        if step % SAVE_EVERY == 0:
            save_state(state, step, model, [optimizer], average)
    save_state(state, step, model, [optimizer], average)
