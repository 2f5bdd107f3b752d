"""Edits by caption: from a picture and its old caption to a new one, without a mask and without inverting the picture.

The method is FlowEdit, of Kulikov et al., "FlowEdit: Inversion-Free Text-Based Editing Using Pre-Trained Flow Models"
(2024). At each step the picture is noised, once as it is and once as far as it has been edited, with the same noise;
the edit moves by the difference of the two velocities, that of the new caption less that of the old.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..captions import Caption, CaptionError
from ..checks import finite
from ..engine import Edit, Request
from .canvas import Canvas, digest
from .caption_window import data_of
from .change import Known, check_share, finishing, fresh_noise, from_picture, noised, started, told
from .whole_picture import WholePicture


@dataclass(frozen=True, eq=False)
class ByDifference:
    """The guide of an edit by caption: what two Euler steps differ by is the edit, and both are noised anew.

    Attributes:
        known: `(tokens, channels)` clean latents of the picture.
        noise: The noise of the first step, as large.
        begins: `(steps + 1,)` noise level at which each step begins, 0 at last.
    """

    known: Tensor
    noise: Tensor
    begins: tuple[float, ...]

    def __call__(self, step: int, latents: Tensor, of_source: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The latents that the next step begins with: of the edited picture, and of the picture itself."""
        if of_source is None:  # the last steps, which the new caption takes alone
            return latents, None
        noisy = noised(self.known, fresh_noise(self.noise, step), self.begins[step + 1])
        return latents - of_source + noisy, noisy


@dataclass(eq=False)
class CaptionEdit(WholePicture):
    """A picture changed from what its old caption says to what the new one says.

    Attributes:
        image: The picture, in any form that `open_picture` takes; an RGB picture afterwards.
        before: The caption of the picture as it is.
        strength: Share of the steps that are taken: with less, structure stays; with more, shapes can change.
        refine: Share of those steps, the last ones, that the new caption takes alone, which cleans up what was changed
            and moves all else a little.
        guidance_before: Guidance of the old caption's velocities; the new one's is that of the call.
        fit: How the picture comes to whole tokens: "pad", "crop" or "stretch".
        size: `(width, height)` in pixels to draw at; None for the picture's own.

    Raises:
        TypeError: naming the argument that is of another type.
        ValueError: naming the argument that does not fit.
        OSError: a file that cannot be read.
    """

    image: Any
    before: Any
    strength: float = 0.9
    refine: float = 0.0
    guidance_before: float = 1.0
    fit: str = "pad"
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Check the arguments, and open the picture."""
        super().__post_init__()
        if isinstance(self.before, (list, tuple)) and len(self.before) == 1:
            (self.before,) = self.before
        if not isinstance(self.before, (str, Mapping, Caption)):
            count = f" of {len(self.before)}" if isinstance(self.before, (list, tuple)) else ""
            raise TypeError(
                f"`before` is a {type(self.before).__name__}{count}: give the caption of the one picture, a string, a"
                " mapping or a Caption."
            )
        self.refine = check_share("refine", self.refine)
        self.guidance_before = finite("guidance_before", self.guidance_before)

    def check(self, after: Any) -> None:
        """See that another caption says something else.

        Raises:
            CaptionError: a ValueError: if it is the same.
        """
        was, is_to_be = data_of(self.before), data_of(after)
        same = self.before == after if was is None or is_to_be is None else was == is_to_be
        if same:
            raise CaptionError(
                "`before` and the caption of what the picture becomes say the same: nothing is to change."
            )

    def request(self, fresh: Request, canvas: Canvas, known: Known, fresh_before: Request) -> Request:
        """The request of the changed picture.

        Args:
            fresh: The request of a fresh picture of the new caption.
            canvas: The canvas.
            known: Its clean latents.
            fresh_before: The request of a fresh picture of the old caption, with its own guidance.
        """
        begun = from_picture(lambda latents: self._steps(fresh, latents, fresh_before), known, fresh.latents)
        assert begun.edit is not None
        begun.edit.finish = finishing(canvas)
        begun.settings = told(
            fresh, canvas.given_size, kind="caption", before=(fresh_before.settings or {}).get("caption"),
            strength=self.strength,
            refine=self.refine, guidance_before=self.guidance_before, fit=self.fit, size=self.size,
            image=digest(self.image),
        )  # fmt: skip
        return begun

    def _steps(self, fresh: Request, known: Tensor, fresh_before: Request) -> Request:
        """The request's steps; arguments as those of `request`."""
        begun = started(fresh, known, self.strength)
        noise, known = fresh.latents, known.to(fresh.latents)
        noisy = noised(known, noise, float(begun.sigmas[0]))
        together = begun.steps - round(self.refine * begun.steps)
        before = started(fresh_before, known, self.strength)
        assert before.times is not None
        source = None if together == 0 else replace(
            before, latents=noisy, sigmas=before.sigmas[: together + 1], times=before.times[:together],
            guidance=before.guidance[:together], cache=before.cache and before.cache.at(range(together)),
            id=f"{fresh.id}, before", settings=None,
        )  # fmt: skip
        guide = ByDifference(known, noise, tuple(begun.sigmas.tolist()))
        return replace(begun, latents=noisy, edit=Edit(guide=guide, source=source))
