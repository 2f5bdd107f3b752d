"""The kinds of changes of a picture, and the options that each takes: one table for the command line and the server."""

from __future__ import annotations

from collections.abc import Iterable

_MASKED = ("strength", "feather", "harmonise")
TAKES: dict[str, tuple[str, ...]] = {
    "redraw": ("before", "margin", "padding", *_MASKED),
    "inpaint": ("mask", "boxes", "mask_changes", "padding", "fit", *_MASKED),
    "image": ("strength", "fit"),
    "caption": ("before", "strength", "fit"),
    "outpaint": ("outpaint", "place", *_MASKED),
    "variation": ("variation", "variation_seed"),
}


def not_taken(how: str, given: Iterable[str]) -> tuple[str, list[str]] | None:
    """The first option that a kind of change would ignore, and the kinds that take it; None where it takes all.

    Args:
        how: The kind of change, a key of `TAKES`.
        given: Names of the options that were given.
    """
    for name in given:
        if name not in TAKES[how]:
            return name, [kind for kind, names in TAKES.items() if name in names]
    return None
