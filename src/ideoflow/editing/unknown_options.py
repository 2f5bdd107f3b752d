"""Arguments that a way of changing pictures does not have: what they are called there, or where there is such a one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

from ..pipeline.unknown_arguments import explain

C = TypeVar("C", bound=Callable[..., Any])

SAME = (("padding", "padding_mask_crop"), ("mask", "mask_image"), ("size", "width"))  # other names of the same
_MASKS = "a mask is an argument of Ideogram4InpaintPipeline's call"
ELSEWHERE = {
    "mask": _MASKS,
    "mask_image": _MASKS,
    "padding": "the part around a mask is drawn alone by Ideogram4InpaintPipeline's call and by `redraw`",
    "padding_mask_crop": "the part around a mask is drawn alone by Ideogram4InpaintPipeline's call and by `redraw`",
    "masked_image_latents": "give the picture as `image`; its latents are made of it",
    "control_image": "the model reads captions alone beside the picture that is changed",
    "ip_adapter_image": "the model reads captions alone beside the picture that is changed",
    "ip_adapter_image_embeds": "the model reads captions alone beside the picture that is changed",
}
FOLLOWS = "the size follows from the picture, or is given by the change itself"
OF_CHANGES = ("image", "strength")  # arguments that plain pipelines say are those of the pipelines here


def explain_option(name: str, known: Iterable[str]) -> str:
    """What to do instead of passing an argument that a way of changing pictures has none of."""
    known = list(known)
    for names in SAME:
        if name in names and (here := [one for one in names if one in known]):
            return f"There is no argument `{name}`: it is called `{here[0]}` here."
    if name in ELSEWHERE:
        return f"There is no argument `{name}`: {ELSEWHERE[name]}."
    if name in ("size", "width", "height"):
        return f"There is no argument `{name}`: {FOLLOWS}."
    if name in OF_CHANGES:
        return f"There is no argument `{name}` here: the arguments are {', '.join(f'`{one}`' for one in known)}."
    return explain(name, known)


def check_known(given: Iterable[str], known: Iterable[str], method: Callable[..., Any]) -> None:
    """Refuse arguments that are none.

    Args:
        given: Their names.
        known: Names that are passed on.
        method: The method, whose own arguments are known too.

    Raises:
        TypeError: saying what there is instead.
    """
    known = list(known)
    if unknown := [name for name in given if name not in known]:
        own = [name for name, one in inspect.signature(method).parameters.items() if one.kind is not one.VAR_KEYWORD]
        raise TypeError(" ".join(explain_option(name, dict.fromkeys([*own, *known])) for name in unknown))


def explains_options(function: C) -> C:
    """Have a method answer arguments that it does not have with a TypeError that says what there is instead."""
    known = [name for name in inspect.signature(function).parameters if name != "self"]

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if unknown := [name for name in kwargs if name not in known]:
            raise TypeError(" ".join(explain_option(name, known) for name in unknown))
        return function(*args, **kwargs)

    return cast(C, wrapper)
