"""Upscaling: a picture enlarged and drawn anew at low strength, in tiles that overlap, beyond what the weights know.

Each tile is a request of its own, image to image on its part of the enlarged picture and of one field of noise, with
its part of the caption. Tiles are blended in their latents, and the whole is decoded in tiles again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .. import latents as latent_tokens
from ..checks import finite, whole
from ..engine import Request
from ..files import check_place, write_tensors
from ..ops.hooks import resting
from ..sizes import LARGEST_SIDE, MAX_ASPECT, UNIT
from .canvas import LANCZOS, digest, open_picture
from .caption_window import seen_caption
from .change import check_share, started
from .tiles import Blended, Tile, scaled, tiles

TILE = 1024  # pixels of a tile's side, where the weights know so much
SAMPLE = 256  # numbers of each tensor, at least, by which weights are told from others
LEAST_SEEN = 0.02  # of an element's box: of less, nobody could tell what it is


@dataclass(eq=False)
class Upscale:
    """A picture to be enlarged.

    Attributes:
        image: The picture, in any form that `open_picture` takes; an RGB picture afterwards.
        factor: How much longer each side becomes, above 1; each is rounded to a whole pixel.
        strength: Share of the steps that each tile takes: more invents more.
        tile: Pixels of a tile's side, a multiple of 16; None for 1024, or for what the weights know if that is less.
        overlap: Share of a tile's side that it overlaps its neighbours by, from 0 to 0.5.
        keep: A folder for tiles that are done: a call that was stopped goes on from them. None for no folder.

    Raises:
        TypeError: naming the argument that is of another type.
        ValueError: naming the argument that does not fit.
        OSError: a file that cannot be read.
    """

    image: Any
    factor: float = 2.0
    strength: float = 0.3
    tile: int | None = None
    overlap: float = 0.25
    keep: Path | str | None = None

    def __post_init__(self) -> None:
        """Check the arguments, and open the picture."""
        self.factor = finite("factor", self.factor, above=1)
        self.strength = check_share("strength", self.strength)
        if finite("overlap", self.overlap, least=0) > 0.5:
            raise ValueError(f"`overlap` is {self.overlap!r}: give a share of a tile's side, from 0 to 0.5.")
        if self.tile is not None:
            whole("tile", self.tile, UNIT)
            if self.tile % UNIT:
                raise ValueError(f"`tile` is {self.tile}: give a multiple of {UNIT} pixels.")
        self.image: Image.Image = open_picture(self.image)
        self.keep = _folder(self.keep)
        longest, shortest = max(self.image.size), min(self.image.size)
        if longest * self.factor > LARGEST_SIDE:
            raise ValueError(
                f"`factor` is {self.factor:g}: {self.image.width} x {self.image.height} pixels would have a side of"
                f" more than {LARGEST_SIDE}. The largest factor is {LARGEST_SIDE / longest:.4g}."
            )
        if longest > 8 * MAX_ASPECT * shortest:
            raise ValueError(f"`image` has {self.image.width} x {self.image.height} pixels: that is a line.")

    @property
    def size(self) -> tuple[int, int]:
        """`(width, height)` in pixels of the enlarged picture."""
        return round(self.image.width * self.factor), round(self.image.height * self.factor)

    def layout(self, unit: int, most: int) -> Tiling:
        """The enlarged picture in tiles.

        Args:
            unit: Pixels of a token's side.
            most: The longest side that the weights know.
        """
        side = min(TILE, most) if self.tile is None else self.tile
        width, height = self.size
        grid = -(-height // unit), -(-width // unit)
        tokens = side // unit
        overlap = round(self.overlap * tokens)
        pixels = np.asarray(self.image.resize(self.size, LANCZOS))
        beyond = ((0, grid[0] * unit - height), (0, grid[1] * unit - width), (0, 0))
        enlarged = Image.fromarray(np.pad(pixels, beyond, mode="edge"))
        return Tiling(enlarged, self.size, grid, tiles(grid, (tokens, tokens), overlap), overlap, unit)


def _folder(keep: Any) -> Path | None:
    """The folder for tiles that are done, which can be written.

    Raises:
        TypeError: if it is no path.
        ValueError: if it is a file, or nothing can be written there.
    """
    if keep is None:
        return None
    if not isinstance(keep, (str, os.PathLike)):
        raise TypeError(f"`keep` is {keep!r}: give the path of a folder, or None.")
    if not os.fspath(keep):
        raise ValueError("`keep` is empty: give the path of a folder, or None; for the current folder say '.'.")
    folder = Path(keep)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`keep` {folder} is a file: name a folder.")
    check_place(folder / "tile", "`keep`")
    return folder


@dataclass(frozen=True, eq=False)
class Tiling:
    """An enlarged picture in tiles.

    Attributes:
        enlarged: The picture, its edges continued to sides that are multiples of a token's.
        size: `(width, height)` of the picture without what its edges were continued by.
        grid: `(rows, cols)` of its tokens.
        tiles: The tiles, in tokens.
        overlap: Tokens by which they overlap at least.
        unit: Pixels of a token's side.
    """

    enlarged: Image.Image
    size: tuple[int, int]
    grid: tuple[int, int]
    tiles: list[Tile]
    overlap: int
    unit: int

    def part(self, tile: Tile) -> Image.Image:
        """The part of the enlarged picture that a tile covers."""
        (top, bottom), (left, right) = scaled(tile, self.unit).rows, scaled(tile, self.unit).cols
        return self.enlarged.crop((left, top, right, bottom))

    def caption(self, prompt: Any, tile: Tile) -> Any:
        """The caption of what a tile covers."""
        (top, bottom), (left, right) = scaled(tile, self.unit).rows, scaled(tile, self.unit).cols
        return seen_caption(prompt, self.size, (left, top, right, bottom), least=LEAST_SEEN)

    def noise(self, tile: Tile, field: Tensor) -> Tensor:
        """A tile's part of one field of noise, `(rows * cols, channels)`, which overlapping tiles share."""
        return tile.of(field.view(*self.grid, -1)).reshape(-1, field.shape[-1])

    def requests(
        self, fresh: list[Request], field: Tensor, known: Callable[[Tile], Tensor], strength: float
    ) -> list[Request]:
        """The requests of all tiles, from those of fresh pictures of their sizes and captions."""
        made = []
        for tile, request in zip(self.tiles, fresh, strict=True):
            noisy = replace(request, latents=self.noise(tile, field).to(request.latents))
            made.append(started(noisy, known(tile), strength))
        return made

    def merged(self, of: dict[Tile, Tensor]) -> Tensor:
        """Latents `(rows, cols, channels)` of the whole picture from those of the tiles."""
        blended = Blended(self.grid, next(iter(of.values())).shape[-1], self.overlap)
        for tile in self.tiles:
            rows, cols = tile.rows[1] - tile.rows[0], tile.cols[1] - tile.cols[0]
            blended.add(tile, of[tile].view(rows, cols, -1))
        return blended.whole()

    def decoded(self, vae: Any, latents: Tensor) -> Tensor:
        """The picture `(3, height, width)` of latents `(rows, cols, channels)`, decoded tile by tile and blended."""
        size = self.grid[0] * self.unit, self.grid[1] * self.unit
        blended = Blended(size, 3, self.overlap * self.unit)
        for tile in self.tiles:
            part = tile.of(latents)
            (picture,) = latent_tokens.decode(vae, [part.reshape(-1, part.shape[-1])], [(part.shape[0], part.shape[1])])
            blended.add(scaled(tile, self.unit), picture.permute(1, 2, 0).cpu())
        return blended.whole().permute(2, 0, 1)[:, : self.size[1], : self.size[0]]


class KeptTiles:
    """Tiles that are done, in files of a folder, so that a call that was stopped goes on.

    Args:
        folder: The folder; None keeps nothing.
        key: What the tiles depend on. A folder that holds tiles of another key is refused.
        channels: Channels of a token.

    Raises:
        ValueError: naming the folder.
    """

    def __init__(self, folder: Path | None, key: dict[str, Any], channels: int) -> None:
        self.folder = folder
        self.channels = channels
        self.key = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        if folder is not None and folder.exists():
            others = [path.name for path in folder.glob("tile-*.safetensors") if self.key[:16] not in path.name]
            if others:
                raise ValueError(
                    f"`keep` {folder} holds tiles of another picture or of other settings ({others[0]}): name another"
                    " folder, or remove them."
                )

    def get(self, tile: Tile) -> Tensor | None:
        """Latents of a tile that is done; None if it is not."""
        path = self._path(tile)
        if path is None or not path.is_file():
            return None
        try:
            latents = load_file(path)["latents"]
        except (SafetensorError, KeyError):  # cut off by somebody else: it is drawn again, as are others' numbers
            return None
        tokens = (tile.rows[1] - tile.rows[0]) * (tile.cols[1] - tile.cols[0])
        fits = latents.shape == (tokens, self.channels) and latents.is_floating_point()
        return latents if fits and bool(latents.isfinite().all()) else None

    def put(self, tile: Tile, latents: Tensor) -> None:
        """Keep the latents of a tile."""
        if (path := self._path(tile)) is not None:
            write_tensors(path, {"latents": latents})

    def _path(self, tile: Tile) -> Path | None:
        name = f"tile-{self.key[:16]}-{tile.rows[0]}-{tile.cols[0]}.safetensors"
        return None if self.folder is None else self.folder / name


def key_of(
    change: Upscale, tiling: Tiling, field: Tensor, settings: dict[str, Any], parts: dict[str, Any], adapters: Any
) -> dict[str, Any]:
    """What the tiles of an upscaled picture depend on.

    Args:
        change: The picture, and how it is enlarged.
        tiling: Its tiles.
        field: The noise of all of it.
        settings: Settings of the picture, which tell of the files that the models came from.
        parts: The models by name. What was done to them since is in no file, so that their numbers count too.
        adapters: The `attention_kwargs` of the call.

    Raises:
        ValueError: models whose numbers cannot be read and that their files do not tell of.
    """
    noise = hashlib.sha256(field.cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
    weights = {name: _weights_of(name, part) for name, part in parts.items() if isinstance(part, nn.Module)}
    if None in weights.values() and settings["unrepeatable"]:
        raise ValueError(
            f"`keep` is given, and the weights of the pipeline cannot be told from others: {settings['unrepeatable']}."
            " Leave `keep` out."
        )
    return {
        "image": digest(change.image), "size": tiling.size, "grid": tiling.grid,
        "tiles": [[*tile.rows, *tile.cols] for tile in tiling.tiles],
        "strength": change.strength, "noise": noise, "weights": weights, "adapters": repr(adapters or {}), **settings,
        "device": str(settings["device"]).partition(":")[0],  # which of its kind does not matter, nor who names it
    }  # fmt: skip


def _weights_of(name: str, model: nn.Module) -> str | None:
    """A digest of a model's numbers, some of each tensor, and of how strong its adapters are; None of packed numbers.

    Raises:
        ValueError: offloaded numbers that cannot be read.
    """
    known = hashlib.sha256()
    for place, module in model.named_modules():
        if isinstance(scaling := getattr(module, "scaling", None), dict):
            known.update(f"{place} {scaling} {module.active_adapters} {module.disable_adapters}".encode())
    for place, tensor in (*model.named_parameters(), *model.named_buffers()):
        known.update(f"{place} {tuple(tensor.shape)} {tensor.dtype}".encode())
        numbers = resting(model, place)
        if numbers is None:
            raise ValueError(
                f"`keep` is given, and the weights of `{name}` cannot be read where they are offloaded to: offload them"
                " to the CPU, or leave `keep` out."
            )
        try:
            some = numbers.detach().flatten()[:: max(1, numbers.numel() // SAMPLE)].cpu().contiguous()
            known.update(some.view(torch.uint8).numpy().tobytes())
        except (RuntimeError, NotImplementedError, TypeError):  # of a kind whose numbers are packed
            return None
    return known.hexdigest()
