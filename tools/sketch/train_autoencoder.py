"""Train the sketch world's autoencoder: an `AutoencoderKLFlux2` of 8 latent channels on random crops."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLFlux2
from torch import Tensor, nn

from ideoflow.latents import patchify
from ideoflow.sketch.world import sample
from ideoflow.training.ema import Ema

from .curve import Curve
from .resume import SAVE_EVERY, descend, load_state, save_state

CONFIG = dict(
    block_out_channels=(16, 24, 48, 64),
    layers_per_block=1,
    latent_channels=8,
    norm_num_groups=8,
    mid_block_add_attention=False,
    sample_size=256,
)
CROP = 64
KL_WEIGHT = 1e-6  # only keeps the latents near unit scale
DECODER_CROPS = 10**7  # where the crops of the decoder's own training begin
LATENT_NOISE = 0.05  # so that the decoder forgives a velocity that is a little off


def crops(step: int, batch: int) -> Tensor:
    """`(batch, 3, CROP, CROP)` in [-1, 1]: two crops of each of `batch / 2` training pictures, a function of `step`."""
    draw = np.random.default_rng(step)
    pictures = []
    for i in range(batch // 2):
        pixels = np.asarray(sample(step * (batch // 2) + i).image)
        for _ in range(2):
            y = draw.integers(0, pixels.shape[0] - CROP + 1)
            x = draw.integers(0, pixels.shape[1] - CROP + 1)
            pictures.append(pixels[y : y + CROP, x : x + CROP])
    stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return stacked.float().div_(127.5).sub_(1).contiguous()


def train(
    folder: Path, minutes: float, batch: int = 16, peak_rate: float = 1e-3, total_steps: int = 7000, device: str = "cpu"
) -> None:
    """Train until `minutes` are over or until `total_steps`, and then write the averaged weights to `folder / "vae"`.

    Resumes from `folder / "autoencoder.safetensors"`. The latents' statistics are measured at the end and kept in the
    autoencoder's `bn`, where the pipeline looks for them.
    """
    torch.manual_seed(0)
    vae = AutoencoderKLFlux2(**CONFIG).to(device)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=peak_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    average = Ema(dict(vae.named_parameters()), 0.999)
    state = folder / "autoencoder.safetensors"
    step = load_state(state, vae, [optimizer], average)
    curve, begun = Curve(folder / "autoencoder.jsonl", step), time.monotonic()
    while step < total_steps and time.monotonic() - begun < 60 * minutes:
        torch.manual_seed(step)
        warm = min(1.0, (step + 1) / 100)
        optimizer.param_groups[0]["lr"] = peak_rate * warm * max(0.02, 1 - step / total_steps)
        pictures = crops(step, batch).to(device)
        with torch.autocast(device, torch.bfloat16):
            posterior = vae.encode(pictures).latent_dist
            latents = posterior.mode()
            drawn = vae.decode(latents + LATENT_NOISE * torch.randn_like(latents)).sample
        error = drawn.float() - pictures
        loss = error.abs().mean() + error.square().mean() + KL_WEIGHT * posterior.kl().mean()
        descend(loss, vae, optimizer, average)
        step += 1
        if step % 100 == 0:
            decibel = -10 * float(torch.log10(error.detach().div(2).square().mean()))
            curve.add(step, {"loss": loss.item(), "psnr": decibel})
        if step % SAVE_EVERY == 0:
            save_state(state, step, vae, [optimizer], average)
    save_state(state, step, vae, [optimizer], average)
    if step < total_steps:
        return
    with average.swapped():
        measure_latents(vae)
        vae.save_pretrained(folder / "vae")


def train_decoder(
    folder: Path,
    minutes: float,
    batch: int = 16,
    peak_rate: float = 1e-3,
    total_steps: int = 20000,
    device: str = "cpu",
) -> None:
    """Go on with the decoder alone: latents stay what they are, so transformers can learn from them meanwhile.

    Starts from what `train` left in `folder / "vae"` and writes the averaged weights back there. Resumes from
    `folder / "decoder.safetensors"`.
    """
    vae = AutoencoderKLFlux2.from_pretrained(folder / "vae").train().to(device)
    vae.encoder.requires_grad_(False)
    decoder = nn.ModuleList([vae.decoder, vae.post_quant_conv])
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=peak_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    average = Ema(dict(decoder.named_parameters()), 0.999)
    state = folder / "decoder.safetensors"
    step = load_state(state, decoder, [optimizer], average)
    curve, begun = Curve(folder / "decoder.jsonl", step), time.monotonic()
    while step < total_steps and time.monotonic() - begun < 60 * minutes:
        torch.manual_seed(step)
        rate = peak_rate * min(1.0, (step + 1) / 100) * max(0.02, 1 - step / total_steps)
        optimizer.param_groups[0]["lr"] = rate
        pictures = crops(DECODER_CROPS + step, batch).to(device)
        with torch.autocast(device, torch.bfloat16):
            with torch.no_grad():
                latents = vae.encode(pictures).latent_dist.mode()
            drawn = vae.decode(latents + LATENT_NOISE * torch.randn_like(latents)).sample
        error = drawn.float() - pictures
        loss = error.abs().mean() + error.square().mean()
        descend(loss, decoder, optimizer, average)
        step += 1
        if step % 100 == 0:
            decibel = -10 * float(torch.log10(error.detach().div(2).square().mean()))
            curve.add(step, {"loss": loss.item(), "psnr": decibel})
        if step % SAVE_EVERY == 0:
            save_state(state, step, decoder, [optimizer], average)
    save_state(state, step, decoder, [optimizer], average)
    with average.swapped():
        vae.save_pretrained(folder / "vae")


@torch.no_grad()
def measure_latents(vae: AutoencoderKLFlux2, pictures: int = 512) -> None:
    """Set `vae.bn` to mean and variance of the patchified latents of `pictures` training pictures."""
    vae.eval()
    tokens = []
    for step in range(10**6, 10**6 + pictures // 64):
        latents = vae.encode(crops(step, 64).to(vae.device)).latent_dist.mode()
        tokens.append(patchify(latents).flatten(0, 1))
    vae.bn.running_mean.copy_(torch.cat(tokens).mean(0))
    vae.bn.running_var.copy_(torch.cat(tokens).var(0))


def psnr(vae: AutoencoderKLFlux2, count: int = 64) -> float:
    """Peak signal-to-noise ratio in dB of decoding what it encoded, over `count` held-out pictures."""
    errors = []
    with torch.no_grad():
        for i in range(count):
            pixels = torch.from_numpy(np.asarray(sample(i, split="held_out").image).copy())
            picture = pixels.permute(2, 0, 1).float().div(127.5).sub(1)[None]
            drawn = vae.decode(vae.encode(picture).latent_dist.mode()).sample.clamp(-1, 1)
            errors.append((drawn - picture).div(2).square().mean())
    return float(-10 * torch.stack(errors).mean().log10())
