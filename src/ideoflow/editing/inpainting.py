"""Inpainting: parts of a picture drawn anew, the others kept, in latents at every step and in pixels at last."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..checks import whole
from ..engine import Edit, Request
from ..latents import PATCH
from .canvas import Box, Canvas, digest, lay_out, open_picture, pixels_of
from .change import Known, check_canvas, check_choice, check_share, fresh_noise, from_picture, noised, started, told
from .masking import CHANGES, box_mask, feathered, open_mask, to_text, token_mask

MOST_ROUNDS = 20
MOST_FEATHER = 256


@dataclass(frozen=True, eq=False)
class KeepOutside:
    """The guide of inpainting: outside of the mask, latents follow the known picture, at the noise level of each step.

    A soft mask says how strongly each place may change: one of value m follows the known picture until a share m of the
    steps is left.

    Attributes:
        known: `(tokens, channels)` clean latents of the picture.
        noise: The noise that the request started from, as large.
        mask: Its mask, as large.
        begins: `(steps + 1,)` noise level at which each step begins, 0 at last.
        ends: `(steps,)` noise level at which each Euler step ends.
        left: `(steps,)` share of the steps that is left after each, not counting rounds.
    """

    known: Tensor
    noise: Tensor
    mask: Tensor
    begins: tuple[float, ...]
    ends: tuple[float, ...]
    left: tuple[float, ...]

    def __call__(self, step: int, latents: Tensor, of_source: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The latents that the next step begins with."""
        level, end = self.begins[step + 1], self.ends[step]
        if level > end:  # another round: noise brings them to where the step began
            kept = (1 - level) / (1 - end)
            spread = (level**2 - (kept * end) ** 2) ** 0.5
            latents = kept * latents + spread * fresh_noise(self.noise, step)
        free = self.mask >= max(self.left[step], 1e-6)
        return torch.where(free, latents, noised(self.known, self.noise, level)), of_source


def keeping_outside(request: Request, noise: Tensor, known: Tensor, mask: Tensor, harmonise: int) -> Request:
    """A request that was started from a picture, kept as it is outside of a mask.

    Args:
        request: As `started` gives it.
        noise: The noise of the fresh request.
        known: Clean latents of the picture, `(tokens, channels)`.
        mask: As large, 1 where it may change.
        harmonise: Further rounds of each step but the last: noise is added again to what it gave, and the step taken
            again, so that what is drawn has seen what is kept. From Lugmayr et al., "RePaint: Inpainting using
            Denoising Diffusion Probabilistic Models" (2022).
    """
    steps, rounds = request.steps, 1 + harmonise
    of = [step for step in range(steps) for _ in range(rounds if step < steps - 1 else 1)]
    begins = torch.cat((request.sigmas[of], request.sigmas[-1:]))
    ends = request.sigmas[1:][of]
    guide = KeepOutside(
        known.to(noise), noise, mask.to(noise.device),
        tuple(begins.tolist()), tuple(ends.tolist()), tuple(1 - (step + 1) / steps for step in of),
    )  # fmt: skip
    assert request.times is not None
    start = torch.where(guide.mask == 1, request.latents, noised(guide.known, noise, float(begins[0])))
    return replace(
        request,
        latents=start,
        sigmas=begins,
        times=request.times[of],
        guidance=tuple(request.guidance[step] for step in of),
        cache=None if request.cache is None else request.cache.at(of),
        edit=Edit(guide=guide, ends=ends),
    )


@dataclass(frozen=True, eq=False)
class Blend:
    """What is given back of an inpainted picture: the source, with what was drawn in its place.

    Attributes:
        image: The source.
        shown: `(height, width)` how much of what was drawn shows in each of its pixels.
        canvas: The canvas that was drawn.
    """

    image: Image.Image
    shown: Tensor
    canvas: Canvas

    def __call__(self, picture: Tensor) -> Tensor:
        """The picture `(3, height, width)` in [-1, 1] of a decoded canvas."""
        left, top, right, bottom = self.canvas.window
        source = pixels_of(self.image).to(picture)
        drawn = self.canvas.cut_window(picture).clamp(-1, 1)
        shown = self.shown[top:bottom, left:right].to(picture)
        part = source[:, top:bottom, left:right]
        # Where nothing shows, the source's numbers stay what they are, whatever rounding would make of a sum.
        source[:, top:bottom, left:right] = torch.where(shown > 0, part + shown * (drawn - part), part)
        return source


@dataclass(eq=False)
class Inpaint:
    """A part of a picture drawn anew, the rest as it is to the last bit.

    Attributes:
        image: The picture, in any form that `open_picture` takes; an RGB picture afterwards.
        mask: What may change: a mask as `open_mask` reads it, or boxes in thousandths as captions have them;
            `(height, width)` in [0, 1] afterwards, 1 where it may. Soft masks say how strongly.
        strength: Share of the steps that are taken within the mask: 1 forgets what was there.
        feather: Pixels over which what was drawn fades in, counted from the mask's edge to its inside.
        harmonise: Further rounds of each step, against seams; each takes as long as the steps themselves.
        mask_changes: What is to be changed: where the mask is "white", "black" or "transparent".
        padding: Draw only the mask's surroundings, so many pixels on each side of it, at the canvas's full size; None
            for the whole picture.
        fit: How the picture comes to whole tokens: "pad" or "stretch".
        size: `(width, height)` in pixels to draw at; None for the picture's own, within what the weights were trained
            on. What is given back has the picture's size in any case.
        settings: What the picture's file says of the change beside all this.

    Raises:
        TypeError: naming the argument that is of another type.
        ValueError: naming the argument that does not fit.
        OSError: a file that cannot be read.
    """

    image: Any
    mask: Any
    strength: float = 1.0
    feather: int = 8
    harmonise: int = 0
    mask_changes: str = "white"
    padding: int | None = None
    fit: str = "pad"
    size: tuple[int, int] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the arguments, and open picture and mask."""
        self.strength = check_share("strength", self.strength)
        self.feather = whole("feather", self.feather, 0, most=MOST_FEATHER)
        self.harmonise = whole("harmonise", self.harmonise, 0, most=MOST_ROUNDS)
        self.fit = check_choice("fit", self.fit, ("pad", "stretch"))
        check_choice("mask_changes", self.mask_changes, CHANGES)
        if self.padding is not None:
            self.padding = whole("padding_mask_crop", self.padding, 0)
        self.size = None if self.size is None else check_canvas("size", self.size)
        self.image: Image.Image = open_picture(self.image)
        if isinstance(self.mask, (list, tuple)):
            self.mask: Tensor = box_mask(self.mask, self.image.size)
        else:
            self.mask = open_mask(self.mask, self.image.size, self.mask_changes)

    def canvas(self, unit: int, most: int | None) -> Canvas:
        """What the model works on; arguments as those of `lay_out`."""
        if self.padding is None:
            return lay_out(self.image, self.fit, unit, size=self.size, most=most)
        window = around(self.mask, self.padding, self.size or self.image.size)
        size = self.size or lay_out(self.image, "stretch", unit, most=most).picture.size
        return lay_out(self.image, "stretch", unit, size=size, window=window)

    @cached_property
    def shown(self) -> Tensor:
        """`(height, width)` how much of what was drawn shows in each pixel, of all pictures of this change."""
        return feathered(self.mask, self.feather)

    def result_size(self, unit: int, most: int | None) -> tuple[int, int]:
        """`(width, height)` of what is given back: the picture's own."""
        return self.image.size

    def request(self, fresh: Request, canvas: Canvas, known: Known) -> Request:
        """The request of the changed picture, from that of a fresh one and the canvas's clean latents."""
        on_canvas = canvas.lay(self.mask[None])[0]
        tokens = token_mask(on_canvas, on_canvas.shape[1] // (PATCH * fresh.grid[1]), fresh.latents.shape[1])

        def make(latents: Tensor) -> Request:
            request = started(fresh, latents, self.strength)
            return keeping_outside(request, fresh.latents, latents, tokens, self.harmonise)

        begun = from_picture(make, known, fresh.latents)
        assert begun.edit is not None
        begun.edit.finish = Blend(self.image, self.shown, canvas)
        begun.settings = told(
            fresh, self.image.size, kind="inpaint", strength=self.strength, feather=self.feather,
            harmonise=self.harmonise, padding=self.padding, fit=self.fit, size=self.size, image=digest(self.image),
            mask=to_text(self.mask), **self.settings,
        )  # fmt: skip
        return begun


def around(mask: Tensor, padding: int, size: tuple[int, int]) -> Box:
    """The part of a picture that holds all of a mask, with so many pixels around it, in the proportions of `size`.

    It is as large as it must be, lies within the picture where it can, and is never larger than that.
    """
    height, width = mask.shape
    rows, cols = mask.amax(1).nonzero().flatten(), mask.amax(0).nonzero().flatten()
    left, right = max(0, int(cols[0]) - padding), min(width, int(cols[-1]) + 1 + padding)
    top, bottom = max(0, int(rows[0]) - padding), min(height, int(rows[-1]) + 1 + padding)
    wide = min(width, max(right - left, round((bottom - top) * size[0] / size[1])))
    tall = min(height, max(bottom - top, round((right - left) * size[1] / size[0])))
    left = min(max(0, (left + right - wide) // 2), width - wide)
    top = min(max(0, (top + bottom - tall) // 2), height - tall)
    return left, top, left + wide, top + tall
