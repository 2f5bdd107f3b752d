"""Train the sketch model's two transformers, and its reading half with them, on packed streams of latents."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLFlux2
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from ideoflow.files import write_tensors
from ideoflow.latents import encode
from ideoflow.model import Ideogram4Transformer2DModel
from ideoflow.packing import Layout
from ideoflow.schedule import sample_times
from ideoflow.sizes import UNIT
from ideoflow.sketch.scene import Sample
from ideoflow.sketch.world import sample
from ideoflow.training.ema import Ema

from .curve import Curve
from .readouts import CaptionProbe, LayoutProbe, Truth
from .resume import SAVE_EVERY, load_state, save_state
from .text import TAPS, TEXT_CONFIG, Encoder, Places, Reader, features

CONFIG = dict(
    in_channels=32,
    num_layers=7,
    attention_head_dim=64,
    num_attention_heads=4,
    intermediate_size=640,
    adaln_dim=64,
    llm_features_dim=TEXT_CONFIG["hidden_size"] * len(TAPS),  # type: ignore[operator]
    rope_theta=100,  # grids of 6 to 12 need fast frequencies
    mrope_section=(12, 10, 10),
)
UNCONDITIONAL_CONFIG = CONFIG | dict(num_layers=4, num_attention_heads=2, intermediate_size=320)
SHARD = 4096  # pictures whose latents are made and kept together
UNCONDITIONAL_EVERY = 4  # its task is easier, so it learns on every fourth batch
WEIGHTS = {  # of the losses
    "conditional": 1.0,
    "unconditional": 1.0,
    "read": 0.05,
    "place": 0.5,
    "letter": 1.0,
    "item": 0.1,
    "edges": 0.1,
    "paint": 0.5,
    "ground": 0.5,
}
LETTER_WEIGHT = 3.0  # of the velocity errors at tokens that show letters: there is most to learn
EARLY, LATE = 1, 3  # the blocks after which tokens must know where they are, and image tokens what they show
READER_RATE = 0.4  # of the others' learning rate: it comes trained


class Sketch(nn.Module):
    """Everything that learns together."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.reader = Reader(vocabulary)
        self.probe = CaptionProbe(self.reader.config.hidden_size)
        self.transformer = start(Ideogram4Transformer2DModel(**CONFIG))
        self.unconditional = start(Ideogram4Transformer2DModel(**UNCONDITIONAL_CONFIG))
        self.layout_probe = LayoutProbe(self.transformer.hidden_size)
        self.states: dict[int, Tensor] = {}  # what the layout's read-outs read, of the last pass
        for index in (EARLY, LATE):
            self.transformer.layers[index].register_forward_hook(partial(self._keep, index))

    @torch.compiler.disable
    def _keep(self, index: int, _module: nn.Module, _inputs: Any, state: Tensor) -> None:
        self.states[index] = state


def hasten(transformer: Ideogram4Transformer2DModel) -> None:
    """Compile the blocks for the processor, all but the attention itself, whose segments differ in every batch."""
    transformer.set_attention_backend("_native_math")  # its backward beats the flash kernel's at about 100 tokens
    transformer.compile_blocks()


def start(transformer: Ideogram4Transformer2DModel) -> Ideogram4Transformer2DModel:
    """Initial weights: no modulation, gates a little open, velocity zero."""
    for name, parameter in transformer.named_parameters():
        if "adaln_modulation" in name or name.startswith("final_layer.linear"):
            nn.init.zeros_(parameter)
        if name.startswith("layers.") and name.endswith("adaln_modulation.bias"):
            _, attention_gate, _, feed_forward_gate = parameter.data.chunk(4)
            attention_gate.fill_(0.3)
            feed_forward_gate.fill_(0.3)
    return transformer


@dataclass
class Picture:
    """One training picture, ready to be packed."""

    ids: Tensor
    places: Places
    truth: Truth
    latents: Tensor  # (rows * columns, channels)

    @property
    def tokens(self) -> int:
        return len(self.ids) + len(self.latents)


def shard(folder: Path, index: int, vae: AutoencoderKLFlux2, encoder: Encoder) -> list[Picture]:
    """Training pictures `index * SHARD` to `(index + 1) * SHARD`; their latents are kept in `folder` between runs."""
    samples = [sample(index * SHARD + i) for i in range(SHARD)]
    path = folder / f"{index}.safetensors"
    if not path.exists():
        tensors: dict[str, Tensor] = {}
        for begin in range(0, SHARD, 64):
            latents = encode(vae, [s.image for s in samples[begin : begin + 64]])
            tensors |= {str(begin + i): z.half().cpu() for i, z in enumerate(latents)}
        write_tensors(path, tensors)
    kept = load_file(path)
    return [_picture(s, kept[str(i)], encoder) for i, s in enumerate(samples)]


def _picture(drawn: Sample, latents: Tensor, encoder: Encoder) -> Picture:
    return Picture(*encoder(drawn.caption), Truth(drawn), latents.float())


def batches(pictures: list[Picture], tokens: int, draw: random.Random) -> Iterator[list[Picture]]:
    """Batches of about `tokens` tokens, of pictures of like length, in random order."""
    ordered = sorted(pictures, key=lambda p: (p.tokens, draw.random()))
    packed: list[list[Picture]] = [[]]
    for picture in ordered:
        if sum(p.tokens for p in packed[-1]) + picture.tokens > tokens:
            packed.append([])
        packed[-1].append(picture)
    draw.shuffle(packed)
    yield from packed


def times(pictures: list[Picture], generator: torch.Generator) -> Tensor:
    """A time for each picture: a quarter from the sampling schedule, the rest noisier, where the layout is decided."""
    scheduled = sample_times(
        len(pictures), torch.tensor([UNIT**2 * len(p.latents) for p in pictures]), 0.0, 1.75, generator
    )
    noisy = torch.sigmoid(-1.1 + 1.4 * torch.randn(len(pictures), generator=generator))
    return torch.where(torch.rand(len(pictures), generator=generator) < 0.25, scheduled, noisy)


def losses(
    model: Sketch, pictures: list[Picture], generator: torch.Generator, unconditional: bool
) -> dict[str, Tensor]:
    """Velocity loss of the conditional branch, the read-outs' losses, and the unconditional one's when asked."""
    device = model.transformer.device
    clean = torch.cat([p.latents for p in pictures])
    noise = torch.randn(clean.shape, generator=generator).to(device)
    t, data = times(pictures, generator).to(device), clean.to(device)
    counts = torch.tensor([len(p.latents) for p in pictures], device=device)
    t_token = t.repeat_interleave(counts)[:, None]
    mixed = torch.lerp(noise, data, t_token)
    target = data - noise

    outputs = model.reader([p.ids for p in pictures])
    truths = [p.truth for p in pictures]
    read, _ = model.probe(outputs[-1], [p.places for p in pictures], truths)
    layout = Layout.of_samples([(len(p.ids), *p.truth.grid) for p in pictures], device)
    context = model.transformer.prepare(features(outputs, [len(p.ids) for p in pictures]), layout)
    velocity = model.transformer.velocity(mixed, t, context)
    weight = 1 + (LETTER_WEIGHT - 1) * torch.cat([t.letters for t in truths]).to(device).float()[:, None]
    result = {"conditional": (weight * (velocity.float() - target).square()).mean(), "read": read}
    early, late = model.states[EARLY], model.states[LATE]
    begins = layout.cu_seqlens[:-1].tolist()  # where each picture's text, and then its image tokens, begin
    letters = torch.cat([p.places.letters + begin for p, begin in zip(pictures, begins, strict=True)]).to(device)
    result |= model.layout_probe(early[layout.image], early[letters], late[layout.image], truths)
    if unconditional:
        layout = Layout.of_samples([(0, *p.truth.grid) for p in pictures], device)
        velocity = model.unconditional.velocity(mixed, t, model.unconditional.prepare(None, layout))
        result["unconditional"] = (velocity.float() - target).square().mean()
    return result


def make_optimizers(model: Sketch, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the transformers' blocks, AdamW for everything else.

    Each group's `share` of the learning rate stays fixed.
    """
    blocks = [
        p for m in (model.transformer, model.unconditional) for n, p in m.named_parameters()
        if n.startswith("layers.") and p.ndim == 2 and "adaln" not in n
    ]  # fmt: skip
    inside = {id(p) for p in blocks}
    groups = [
        {"params": [p for m in modules for p in m.parameters() if (p.ndim > 1) == matrices and id(p) not in inside],
         "share": share, "weight_decay": 0.02 if matrices else 0.0}
        for modules, share in (
            ((model.reader, model.probe), READER_RATE),
            ((model.transformer, model.unconditional, model.layout_probe), 1.0),
        )
        for matrices in (True, False)
    ]  # fmt: skip
    muon = [{"params": blocks, "share": 1.0, "weight_decay": 0.02}]
    return [
        torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True),
        torch.optim.Muon(muon, lr=rate, adjust_lr_fn="match_rms_adamw"),
    ]


def train(
    folder: Path, minutes: float, tokens: int = 3600, peak_rate: float = 1.5e-3, total_steps: int = 5600,
    shards: int = 16, decay_from: float = 0.6, device: str = "cpu",
) -> None:  # fmt: skip
    """Train until `total_steps` or `minutes`; the state goes to `folder / "sketch.safetensors"`.

    Needs what `train_autoencoder` and `train_text` left in `folder`. The rate is held, then falls linearly from
    `decay_from` of the steps.
    """
    torch.manual_seed(0)
    vae = AutoencoderKLFlux2.from_pretrained(folder / "vae").eval().to(device)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    encoder = Encoder(tokenizer)
    model = Sketch(len(tokenizer)).to(device)
    optimizers = make_optimizers(model, peak_rate)
    average = Ema(dict(model.named_parameters()), 0.999)
    state = folder / "sketch.safetensors"
    step = load_state(state, model, optimizers, average)
    if step == 0:
        _adopt(model, folder / "text.safetensors")
        average = Ema(dict(model.named_parameters()), 0.999)
    if device == "cpu":
        hasten(model.transformer)
        hasten(model.unconditional)
    curve, begun, seen = Curve(folder / "transformers.jsonl", step), time.monotonic(), 0
    sums: dict[str, list[float]] = {}
    per_round = SHARD * 100 // tokens  # batches of each visit to a shard: a little fewer than it makes
    while step < total_steps and time.monotonic() - begun < 60 * minutes:
        visit, offset = divmod(step, per_round)
        pictures = shard(folder / "latents", visit % shards, vae, encoder)
        packed = list(batches(pictures, tokens, random.Random(visit)))
        for batch in islice(cycle(packed), offset, per_round):
            rate = peak_rate * min(1.0, (step + 1) / 200) * min(1.0, (1 - step / total_steps) / (1 - decay_from) + 0.01)
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = rate * group["share"]
            generator = torch.Generator().manual_seed(step)
            with torch.autocast(device, torch.bfloat16):
                parts = losses(model, batch, generator, unconditional=step % UNCONDITIONAL_EVERY == 0)
            loss = sum(WEIGHTS[name] * value for name, value in parts.items())
            model.zero_grad()
            loss.backward()  # type: ignore[union-attr]
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
            average.update()
            step, seen = step + 1, seen + len(batch)
            for name, value in parts.items():
                sums.setdefault(name, []).append(value.item())
            if step % 50 == 0:
                speed = {"norm": float(norm), "pictures/s": seen / (time.monotonic() - begun)}
                curve.add(step, {name: float(np.mean(values)) for name, values in sums.items()} | speed)
                sums = {}
            if step % SAVE_EVERY == 0:
                save_state(state, step, model, optimizers, average)
            if step >= total_steps or time.monotonic() - begun > 60 * minutes:
                break
    save_state(state, step, model, optimizers, average)


def _adopt(model: Sketch, path: Path) -> None:
    """Start from the averaged weights that `train_text` left."""
    weights = {k.removeprefix("average/"): v for k, v in load_file(path).items() if k.startswith("average/")}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or any(name.startswith(("reader.", "probe.")) for name in missing):
        raise ValueError(
            f"{path} does not fit: missing {missing[:3]}, unexpected {unexpected[:3]}; train the text again."
        )
