"""Previews of a picture in the making without the autoencoder's decoder: colours by a linear map of the latents.

Each latent pixel becomes one pixel, of an eighth of the picture's sides for the published autoencoder: its channels and
their mean over the 3 x 3 latent pixels around it, each times a matrix, and a constant. The matrices are fitted once for
an autoencoder by least squares, from latents of pictures made here to the colours of those pictures.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLFlux2
from PIL import Image, ImageDraw
from torch import Tensor

from .. import latents as latent_tokens
from ..engine import Request
from ..files import read_regular, write_text
from ..latents import PATCH
from ..ops.exclusive import exclusive
from ..ops.weights import contents_digest

PARTS = PATCH**2  # latent pixels of a token
PICTURES, SIDE = 12, 128  # of the fit: how many, and pixels a side
# Standard deviation of the noise that the fit puts on normalised latents. A picture in the making has latents that no
# picture encodes to, and a map fitted to clean ones alone answers to them wildly (benchmarks/previews.py).
NOISE = 0.3
DRAWS = 2  # of that noise for each picture
FORM = "ideoflow preview map 1"
MOST_BYTES = 2**20  # of a file; one of 32 channels has 17,000

logger = logging.getLogger(__name__)
_fitted: dict[str, PreviewMap] = {}  # by the autoencoder's digest, where there is no folder


@dataclass(frozen=True, eq=False)
class PreviewMap:
    """The linear map from an autoencoder's normalised latent tokens to colours in [-1, 1].

    Attributes:
        weight: `(4, 6, channels)` float32 by latent pixel of a token, in reading order: rows of the colours that the
            pixel gives to itself, then of those that it gives to the mean of its neighbourhood.
        bias: `(4, 6)` float32, added to these.
    """

    weight: Tensor
    bias: Tensor

    def __post_init__(self) -> None:
        """Check that the parts fit.

        Raises:
            ValueError: saying what does not.
        """
        shapes = tuple(self.weight.shape), tuple(self.bias.shape)
        if shapes != ((PARTS, 6, *shapes[0][2:3]), (PARTS, 6)) or self.weight.numel() == 0:
            raise ValueError(f"`weight` and `bias` have the shapes {shapes}: expected (4, 6, channels) and (4, 6).")
        if not (torch.isfinite(self.weight).all() and torch.isfinite(self.bias).all()):
            raise ValueError("`weight` or `bias` holds a number that is not finite.")

    @property
    def channels(self) -> int:
        """Channels of a latent pixel; a token has four times as many."""
        return self.weight.shape[-1]

    @classmethod
    @torch.no_grad()
    def fit(cls, vae: AutoencoderKLFlux2) -> PreviewMap:
        """Fit the map of an autoencoder, on the device where it computes; the same pictures each time.

        Raises:
            FloatingPointError: if the autoencoder's latents are not finite.
        """
        pictures = _pictures()
        grid = (SIDE // (PATCH * latent_tokens.scale_factor(vae)),) * 2
        tokens = torch.stack(latent_tokens.encode(vae, pictures)).to("cpu", torch.float64).repeat(DRAWS, 1, 1)
        if not torch.isfinite(tokens).all():
            raise FloatingPointError(
                "The autoencoder's latents of pictures are not finite: check its weights, or use bfloat16 or float32"
                " where float16 overflows."
            )
        noise = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        latents = latent_tokens.unpatchify(latent_tokens.denormalise(vae, tokens + NOISE * noise), grid)
        scale = latent_tokens.scale_factor(vae)
        colours = torch.stack([_averaged(picture, scale) for picture in pictures]).repeat(DRAWS, 1, 1, 1)
        features = torch.cat([latents, _around(latents), torch.ones_like(latents[:, :1])], dim=1)
        solution = torch.linalg.lstsq(_rows(features), _rows(colours), driver="gelsd").solution
        own, around, constant = solution.split([latents.shape[1], latents.shape[1], 1])
        return cls._of_tokens(vae, torch.cat([own.T, around.T]), torch.cat([constant[0], torch.zeros(3).double()]))

    @classmethod
    def _of_tokens(cls, vae: AutoencoderKLFlux2, weight: Tensor, bias: Tensor) -> PreviewMap:
        """The map of tokens, which are normalised, from that of latent pixels: `(6, channels)` and `(6,)`."""
        zeros = torch.zeros(1, PARTS * weight.shape[1], dtype=weight.dtype)
        means = latent_tokens.denormalise(vae, zeros)
        deviations = latent_tokens.denormalise(vae, zeros + 1) - means
        means, deviations = means.view(PARTS, -1), deviations.view(PARTS, 1, -1)
        return cls((weight * deviations).float(), (means @ weight.T + bias).float())

    @torch.no_grad()
    def pixels(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """The preview `(3, 2 * rows, 2 * cols)` float32, about [-1, 1] (not clamped), on the tokens' device.

        Args:
            tokens: Normalised latent tokens `(rows * cols, 4 * channels)`, such as `request.estimate`.
            grid: `(rows, cols)` of the tokens.

        Raises:
            ValueError: if the tokens do not fill the grid, or are of another autoencoder.
        """
        rows, cols = grid
        if tokens.ndim != 2 or tokens.shape != (rows * cols, PARTS * self.channels):
            raise ValueError(
                f"`tokens` has shape {tuple(tokens.shape)}: a grid of {rows} x {cols} and this map need"
                f" ({rows * cols}, {PARTS * self.channels})."
            )
        weight, bias = self.weight.to(tokens.device), self.bias.to(tokens.device)
        parts = tokens.float().view(-1, PARTS, self.channels).permute(1, 2, 0)  # (part, channel, token)
        planes = torch.baddbmm(bias[..., None], weight, parts)
        planes = planes.view(PATCH, PATCH, 6, rows, cols).permute(2, 3, 0, 4, 1)  # (colour, row, its part, col, ...)
        planes = planes.reshape(6, PATCH * rows, PATCH * cols)
        return planes[:3] + _around(planes[3:])

    def rgb(self, tokens: Tensor, grid: tuple[int, int]) -> Image.Image:
        """The preview as a picture of `2 * cols` x `2 * rows` pixels; arguments and errors as of `pixels`.

        Raises:
            FloatingPointError: if the tokens are not finite.
        """
        pixels = self.pixels(tokens, grid)
        if not torch.isfinite(pixels.sum()):
            raise FloatingPointError("`tokens` holds latents that are not finite: there is no picture of them.")
        levels = pixels.mul_(127.5).add_(128).clamp_(0, 255).to(torch.uint8)  # the half more rounds
        return Image.merge("RGB", [Image.fromarray(plane) for plane in levels.cpu().numpy()])

    def save(self, path: Path) -> None:
        """Write the map to a JSON file, whole or not at all.

        Raises:
            OSError: if it cannot be written.
        """
        content = {"form": FORM, "weight": self.weight.tolist(), "bias": self.bias.tolist()}
        write_text(Path(path), json.dumps(content) + "\n")

    @classmethod
    def load(cls, path: Path) -> PreviewMap:
        """Read a file that `save` wrote.

        Raises:
            ValueError: naming the file, if it holds anything else.
            OSError: if it cannot be read.
        """
        try:
            content = json.loads(read_regular(Path(path), MOST_BYTES))
            if not isinstance(content, dict) or content.get("form") != FORM:
                raise ValueError(f"it does not say that it is {FORM!r}.")
            return cls(*(_tensor(content.get(name)) for name in ("weight", "bias")))
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} is no preview map that can be used: {error} Fit one with PreviewMap.fit."
            ) from None


def preview_map_of(vae: AutoencoderKLFlux2, folder: Path | None = None) -> PreviewMap:
    """The map of an autoencoder: read from its file in a folder, or fitted and kept there.

    A file is found by what the autoencoder's weights hold, so one folder does for any number of models. One that is
    damaged is written anew. Where weights are not all in memory, or hooks may change what they compute, there is no
    telling whose a file is: the map is then fitted each time.

    Args:
        vae: The autoencoder.
        folder: Where maps are kept between processes; made if it is not there. None keeps them in this process alone.

    Raises:
        FloatingPointError: as `PreviewMap.fit`.
    """
    with exclusive(vae):
        digest = contents_digest(vae)
        if digest is None:
            return PreviewMap.fit(vae)
        if folder is None:
            if digest not in _fitted:
                _fitted[digest] = PreviewMap.fit(vae)
            return _fitted[digest]
        path = Path(folder) / f"preview-map-{digest[:32]}.json"
        try:
            kept = PreviewMap.load(path)
            if kept.channels == vae.config.latent_channels:
                return kept
            logger.warning("%s is of another autoencoder: it is fitted anew.", path)
        except FileNotFoundError:
            pass
        except (ValueError, OSError) as error:
            logger.warning("The map of previews is fitted anew: %s", error)
        fitted = PreviewMap.fit(vae)
        try:
            fitted.save(path)
        except OSError as error:
            logger.warning("The map of previews cannot be kept, and will be fitted again: %s", error)
        return fitted


def linear_previews(vae: AutoencoderKLFlux2, previews: str | PreviewMap) -> Callable[[Request, Tensor], Tensor] | None:
    """What an engine makes previews with, `previews` as in `Ideogram4Pipeline.engine`; None where it decodes them.

    Raises:
        TypeError: if `previews` is something else.
        ValueError: if it is another word, or the map of another autoencoder.
    """
    if not isinstance(previews, (str, PreviewMap)):
        raise TypeError(f'`previews` is a {type(previews).__name__}: give "decoded", "linear" or a PreviewMap.')
    if previews == "decoded":
        return None
    chosen = preview_map_of(vae) if previews == "linear" else previews
    if isinstance(chosen, str):
        raise ValueError(f'`previews` is {chosen!r}: give "decoded", "linear" or a PreviewMap.')
    if chosen.channels != vae.config.latent_channels:
        raise ValueError(
            f"`previews` is a map of {chosen.channels} latent channels, but this autoencoder has"
            f" {vae.config.latent_channels}: give the one of preview_map_of(pipe.vae)."
        )
    return lambda request, tokens: chosen.pixels(tokens, request.grid)


def _around(planes: Tensor) -> Tensor:
    """Mean of the 3 x 3 pixels around each of `(..., height, width)`; the borders go on outside."""
    planes = torch.cat([planes[..., :1, :], planes, planes[..., -1:, :]], dim=-2)
    planes = planes[..., :-2, :] + planes[..., 1:-1, :] + planes[..., 2:, :]
    planes = torch.cat([planes[..., :1], planes, planes[..., -1:]], dim=-1)
    return (planes[..., :-2] + planes[..., 1:-1] + planes[..., 2:]) / 9


def _rows(planes: Tensor) -> Tensor:
    """`(batch, channels, height, width)` to `(batch * height * width, channels)`."""
    return planes.permute(0, 2, 3, 1).flatten(0, 2)


def _averaged(picture: Image.Image, side: int) -> Tensor:
    """Colours `(3, height / side, width / side)` in [-1, 1], each the mean of `side` x `side` pixels of a picture."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).double() / 127.5 - 1
    return torch.nn.functional.avg_pool2d(pixels, side)


def _tensor(numbers: Any) -> Tensor:
    try:
        return torch.tensor(numbers, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError("it holds something else than numbers.") from None


def _pictures() -> list[Image.Image]:
    """Pictures with colours and edges of all kinds: smooth fields, noise and blocks, with shapes and strokes on."""
    draw = np.random.default_rng(0)
    grounds = [(3, Image.Resampling.BICUBIC), (5, Image.Resampling.BICUBIC), (16, Image.Resampling.NEAREST),
               (4, Image.Resampling.NEAREST)]  # fmt: skip
    return [_picture(draw, *grounds[number % len(grounds)]) for number in range(PICTURES)]


def _picture(draw: np.random.Generator, cells: int, between: Image.Resampling) -> Image.Image:
    ground = Image.fromarray(draw.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
    picture = ground.resize((SIDE, SIDE), between)
    pen = ImageDraw.Draw(picture)
    for _ in range(4):
        for shape in (pen.rectangle, pen.ellipse):
            (left, right), (top, bottom) = np.sort(draw.uniform(0, SIDE, (2, 2)))
            shape((left, top, right, bottom), fill=_colour(draw))
        pen.line(tuple(draw.uniform(0, SIDE, 4)), fill=_colour(draw), width=int(draw.integers(1, 6)))
        start, colour = draw.uniform(0, SIDE, 2), _colour(draw)
        for letter in range(8):  # a word, of strokes as thin as those of small letters
            ends = start + (7 * letter, 0) + draw.uniform(0, 9, (3, 2)) * (0.6, 1)
            pen.line([tuple(end) for end in ends], fill=colour)
    return picture


def _colour(draw: np.random.Generator) -> tuple[int, ...]:
    return tuple(int(level) for level in draw.integers(0, 256, 3))
