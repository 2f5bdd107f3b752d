"""What every way of changing a picture has: it turns the request of a fresh picture into that of a changed one.

A change begins as the request of a picture drawn from noise, with its seed, captions, guidance and schedule; what it
changes of that is all there is to it. So whatever holds for requests holds for changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..checks import finite, whole
from ..engine import Edit, Request
from ..sizes import UNIT, misfit
from .canvas import Canvas

Known = Tensor | Callable[[], Tensor]  # clean latents of a picture `(tokens, channels)`, or what encodes it


def check_share(name: str, value: Any) -> float:
    """A number from 0 to 1.

    Raises:
        TypeError: if it is no number.
        ValueError: if it is another.
    """
    share = finite(name, value)
    if not 0 <= share <= 1:
        raise ValueError(f"`{name}` is {value!r}: give a number from 0 to 1.")
    return share


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """One of some words.

    Raises:
        ValueError: if it is none of them.
    """
    if value not in choices:
        raise ValueError(f"`{name}` is {value!r}: give one of {', '.join(map(repr, choices))}.")
    return str(value)


def check_pair(name: str, value: Any) -> tuple[Any, Any]:
    """Two values.

    Raises:
        TypeError: if they are not two.
    """
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"`{name}` is {value!r}: give two whole numbers.")
    return value[0], value[1]


def check_canvas(name: str, size: Any) -> tuple[int, int]:
    """`(width, height)` in pixels that the model draws.

    Raises:
        TypeError: if they are not two whole numbers.
        ValueError: if they are no positive multiples of 16, or too large.
    """
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise TypeError(f"`{name}` is {size!r}: give (width, height) in pixels, multiples of {UNIT}.")
    width, height = (whole(name, side, 1, f", a multiple of {UNIT}") for side in size)
    if wrong := misfit(width, height):
        raise ValueError(f"`{name}` is {tuple(size)}: {wrong}")
    return width, height


def started(fresh: Request, known: Tensor, strength: float) -> Request:
    """The request that starts from a picture, at a noise level within the fresh request's schedule.

    Args:
        fresh: The request of a fresh picture, whose latents are its noise.
        known: Clean latents of the picture, as the request's.
        strength: Share of the steps that are taken, the last ones; a part of a step begins at a level between those of
            the schedule. 1 takes all of them and starts from noise alone, which is the fresh picture; 0 changes
            nothing.
    """
    place = round(fresh.steps * (1 - strength), 6)
    first = min(int(place), fresh.steps - 1)
    known = known.to(fresh.latents)
    times = 1 - fresh.sigmas[:-1] if fresh.times is None else fresh.times.to("cpu", torch.float32)
    sigmas, times = (
        _from(fresh.sigmas, first, place - first),
        _from(torch.cat((times, torch.ones(1))), first, place - first),
    )
    level = float(sigmas[0])
    return replace(
        fresh,
        latents=fresh.latents if strength == 1 else noised(known, fresh.latents, level),
        sigmas=sigmas,
        times=times[:-1],
        guidance=fresh.guidance[first:],
        cache=None if fresh.cache is None else fresh.cache.at(range(first, fresh.steps)),
    )


def from_picture(make: Callable[[Tensor], Request], known: Known, noise: Tensor) -> Request:
    """The request that starts from a picture, or that has it encoded when it starts.

    Args:
        make: Makes the request of the picture's clean latents.
        known: These, or what makes them. Then the request waits with its noise alone.
        noise: The noise of the fresh request, as large.
    """
    if isinstance(known, Tensor):
        return make(known)
    request = make(noise)  # of other latents, and all else as it will be

    def start(begun: Request) -> None:
        made = make(known())
        begun.latents = made.latents
        if begun.edit is not None and made.edit is not None:
            begun.edit.guide = made.edit.guide
            if begun.edit.source is not None and made.edit.source is not None:
                begun.edit.source.latents = made.edit.source.latents

    request.edit = request.edit or Edit()
    request.edit.start = start
    return request


def _from(values: Tensor, first: int, share: float) -> Tensor:
    """A sequence from one of its entries on, that one moved towards the next by a share of the way."""
    rest = values[first:].clone()
    rest[0] = torch.lerp(rest[0], rest[1], share)
    return rest


def noised(known: Tensor, noise: Tensor, level: float) -> Tensor:
    """Clean latents at a noise level."""
    return (1 - level) * known + level * noise


def fresh_noise(like: Tensor, step: int) -> Tensor:
    """Noise of one step: other than that of every other step, and the same whenever the step is computed.

    Args:
        like: The noise that the picture starts from, which it is seeded by.
        step: Number of the step.
    """
    start = int(like.flatten()[:2].to("cpu", torch.float32).contiguous().view(torch.int64))
    generator = torch.Generator().manual_seed((start + 0x9E3779B97F4A7C15 * (step + 1)) % 2**63)
    return torch.randn(like.shape, generator=generator).to(like)


def finishing(canvas: Canvas) -> Callable[[Tensor], Tensor] | None:
    """What cuts a decoded canvas to what is given back; None where that is all of it."""
    return None if canvas.given == (0, 0, *canvas.picture.size) else canvas.cut


def told(fresh: Request, given: tuple[int, int], /, **edit: Any) -> dict[str, Any] | None:
    """The settings of a fresh request with the size of what is given back, and what the edit is."""
    if fresh.settings is None:
        return None
    return {**fresh.settings, "width": given[0], "height": given[1], "edit": edit}
