"""What a prompt given in Python is: a caption, words, or a mistake."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

from .breach import CaptionError, CaptionWarning
from .caption import Caption
from .paths import existing, looks_like_path
from .reading import MARKS, find


def prompt_line(prompt: str | Mapping[str, Any] | Caption, *, strict: bool = False) -> str:
    """The string that the text encoder reads for a prompt.

    A string of JSON or of words is left as it is, byte for byte, as `diffusers` leaves it. A string that holds a
    caption among other things (a Markdown fence, words, a model's thinking) or that is one but for a few slips gives
    that caption's canonical line, and so do a mapping and a `Caption`. Anything unlike what the model was trained on
    draws a `CaptionWarning`.

    Args:
        prompt: Plain text, a JSON string, a mapping or a `Caption`.
        strict: Refuse what breaks the schema instead of warning.

    Raises:
        CaptionError: if the prompt is a path, means to be a caption and cannot be read as one, cannot be encoded, or
            `strict` and it breaks the schema.
        TypeError: if it is of another type.
    """
    if isinstance(prompt, str):
        line, problem = _string(prompt, strict)
    elif isinstance(prompt, Mapping | Caption):
        caption = Caption.parse(prompt)
        line, problem = caption.line(), _problem(caption, strict)
    elif isinstance(prompt, os.PathLike):
        raise TypeError(f"`prompt` is a path: give Caption.parse({os.fspath(prompt)!r}), or the words in it.")
    else:
        raise TypeError(f"`prompt` is a {type(prompt).__name__}: give a string, a mapping or a Caption.")
    try:
        line.encode()
    except UnicodeEncodeError as error:
        raise CaptionError(f"the prompt holds half of a surrogate pair at character {error.start}.") from None
    if problem:
        warnings.warn(problem, CaptionWarning, stacklevel=2)
    return line


def _string(prompt: str, strict: bool) -> tuple[str, str | None]:
    """The line of a prompt given as a string, and what is wrong with it."""
    path = existing(prompt)
    if looks_like_path(prompt) or (path is not None and path.is_file()):
        raise CaptionError(
            f"the prompt {prompt.strip()[:80]!r} is the name of a file, not words: give Caption.parse of it, or a"
            " caption from Caption.from_text if these are the words."
        )
    try:
        found = find(prompt, "the prompt")
    except CaptionError as error:
        if strict or not prompt.lstrip(MARKS).startswith("{"):
            raise
        return prompt, str(error)  # `diffusers` draws it too
    if found is None:
        plain = f"the prompt {prompt[:40]!r} is plain text"
        if strict:
            raise CaptionError(f"{plain}, not a JSON caption: see Caption.from_text.")
        return prompt, f"{plain}; the model was trained on JSON captions: see Caption.from_text"
    caption = Caption.of_found(found)
    problem = _problem(caption, strict)
    if found.slips:
        return caption.line(), problem
    if problem is None and prompt != caption.line():
        problem = "the prompt is a caption but not in its canonical form: Caption.parse(prompt).line() gives that"
    return prompt, problem


def _problem(caption: Caption, strict: bool) -> str | None:
    if strict:
        caption.strict()
    breaches = caption.check()
    if not breaches:
        return None
    first = "; ".join(str(breach) for breach in breaches[:3])
    more = f"; and {len(breaches) - 3} more" if len(breaches) > 3 else ""
    return f"the caption breaks the schema that the model was trained on: {first}{more} (Caption.check lists all)"
