"""Between pictures and latent tokens: patches of 2 x 2 latent pixels, normalised by the autoencoder's statistics.

A token covers 16 x 16 pixels (8 from the autoencoder, 2 from the patch). Its channel index is
`(patch_row * 2 + patch_col) * latent_channels + channel`; tokens are in reading order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderKLFlux2
from torch import Tensor

from .ops.hooks import execution_device, fires_hooks

PATCH = 2


def patchify(latents: Tensor) -> Tensor:
    """`(batch, channels, 2 * rows, 2 * cols)` to tokens `(batch, rows * cols, 4 * channels)`.

    Raises:
        ValueError: if the rank is not 4 or a side is odd.
    """
    if latents.ndim != 4 or latents.shape[-1] % PATCH or latents.shape[-2] % PATCH:
        raise ValueError(f"`latents` has shape {tuple(latents.shape)}: expected (batch, channels, even, even).")
    batch, channels, height, width = latents.shape
    patches = latents.reshape(batch, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    patches = patches.permute(0, 2, 4, 3, 5, 1)  # (batch, row, col, patch_row, patch_col, channel)
    return patches.reshape(batch, height * width // PATCH**2, PATCH**2 * channels)


def unpatchify(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Inverse of `patchify`: `(batch, rows * cols, 4 * channels)` to `(batch, channels, 2 * rows, 2 * cols)`.

    Raises:
        ValueError: if the tokens do not fill the grid.
    """
    rows, cols = grid
    if tokens.ndim != 3 or tokens.shape[1] != rows * cols or tokens.shape[2] % PATCH**2:
        raise ValueError(
            f"`tokens` has shape {tuple(tokens.shape)}: a grid of {rows} x {cols} needs"
            f" (batch, {rows * cols}, 4 * channels)."
        )
    batch, _, width = tokens.shape
    channels = width // PATCH**2
    patches = tokens.reshape(batch, rows, cols, PATCH, PATCH, channels)
    latents = patches.permute(0, 5, 1, 3, 2, 4)  # (batch, channel, row, patch_row, col, patch_col)
    return latents.reshape(batch, channels, rows * PATCH, cols * PATCH)


def normalise(vae: AutoencoderKLFlux2, tokens: Tensor) -> Tensor:
    """Tokens `(..., 4 * channels)` of the autoencoder's own scale to zero mean and unit variance; keeps the dtype."""
    mean, std = _statistics(vae, tokens)
    return (tokens - mean) / std


def denormalise(vae: AutoencoderKLFlux2, tokens: Tensor) -> Tensor:
    """Inverse of `normalise`."""
    mean, std = _statistics(vae, tokens)
    return tokens * std + mean


@torch.no_grad()
def encode(vae: AutoencoderKLFlux2, images: Sequence[PIL.Image.Image | Tensor]) -> list[Tensor]:
    """Normalised latent tokens of each picture (the posterior's mode). Pictures of equal size are encoded as one batch.

    Args:
        vae: The autoencoder; its slicing and tiling options apply.
        images: Each a PIL picture, or a tensor `(3, height, width)` in [-1, 1]; sides are multiples of 16.

    Returns:
        For each picture `(rows * cols, 4 * channels)` float32, on the autoencoder's device.

    Raises:
        ValueError: if a picture is not of three channels or a side does not divide.
    """
    device = execution_device(vae)
    side = PATCH * scale_factor(vae)
    pixels = [_pixels(image, side) for image in images]
    tokens: dict[int, Tensor] = {}
    for indices in _equal([tuple(p.shape) for p in pixels]):
        batch = torch.stack([pixels[i] for i in indices]).to(device, vae.dtype)
        latents = _encode(vae, batch)
        tokens.update(zip(indices, normalise(vae, patchify(latents).float()), strict=True))
    return [tokens[i] for i in range(len(pixels))]


@torch.no_grad()
def decode(vae: AutoencoderKLFlux2, tokens: Sequence[Tensor], grids: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Pictures of normalised latent tokens. Pictures of equal grids are decoded as one batch.

    Args:
        vae: The autoencoder; its slicing and tiling options apply.
        tokens: For each picture `(rows * cols, 4 * channels)`, on any device.
        grids: `(rows, cols)` of each picture.

    Returns:
        For each picture `(3, 16 * rows, 16 * cols)` float32, about [-1, 1] (not clamped), on the autoencoder's device.

    Raises:
        ValueError: if tokens and grids do not match.
    """
    if len(tokens) != len(grids):
        raise ValueError(f"`tokens` has {len(tokens)} pictures and `grids` {len(grids)}: give one grid for each.")
    for sample, grid in zip(tokens, grids, strict=True):
        if sample.ndim != 2 or sample.shape[0] != grid[0] * grid[1]:
            raise ValueError(
                f"`tokens` holds a picture of shape {tuple(sample.shape)}, but its grid {grid} needs"
                f" ({grid[0] * grid[1]}, channels)."
            )
    device = execution_device(vae)
    pictures: dict[int, Tensor] = {}
    for indices in _equal(list(grids)):
        batch = denormalise(vae, torch.stack([tokens[i] for i in indices]).to(device))
        latents = unpatchify(batch, grids[indices[0]])
        decoded = _decode(vae, latents.to(vae.dtype))
        pictures.update(zip(indices, decoded.float(), strict=True))
    return [pictures[i] for i in range(len(tokens))]


@fires_hooks
def _encode(vae: AutoencoderKLFlux2, pixels: Tensor) -> Tensor:
    return vae.encode(pixels).latent_dist.mode()


@fires_hooks
def _decode(vae: AutoencoderKLFlux2, latents: Tensor) -> Tensor:
    return vae.decode(latents).sample


def scale_factor(vae: AutoencoderKLFlux2) -> int:
    """Pixels a side of one latent pixel: 8 for the published autoencoder."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def _statistics(vae: AutoencoderKLFlux2, tokens: Tensor) -> tuple[Tensor, Tensor]:
    mean = vae.bn.running_mean
    std = torch.sqrt(vae.bn.running_var + vae.config.batch_norm_eps)
    if tokens.shape[-1] != mean.shape[0]:
        raise ValueError(
            f"`tokens` has {tokens.shape[-1]} channels, but the autoencoder keeps statistics of {mean.shape[0]}."
        )
    return mean.to(tokens), std.to(tokens)


def _pixels(image: PIL.Image.Image | Tensor, side: int) -> Tensor:
    """`(3, height, width)` in [-1, 1]."""
    if isinstance(image, PIL.Image.Image):
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 127.5 - 1.0
    else:
        pixels = image
    if pixels.ndim != 3 or pixels.shape[0] != 3 or pixels.shape[1] % side or pixels.shape[2] % side:
        raise ValueError(
            f"`images` holds a picture of shape {tuple(pixels.shape)}: expected (3, height, width) with sides that are"
            f" multiples of {side}."
        )
    return pixels


def _equal(keys: Sequence[Any]) -> list[list[int]]:
    """Indices of equal keys together, groups in order of first appearance."""
    groups: dict[Any, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(tuple(key), []).append(index)
    return list(groups.values())
