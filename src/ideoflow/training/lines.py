"""The line that is trained on, from a caption in any form: read, repaired and wrapped as `ideoflow generate` does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..captions import Caption, CaptionError
from ..captions.reading import data_of, find
from ..captions.schema import encodes
from .survey import UnusableError

WRAPPED = "the caption is plain text: it is put into a minimal JSON caption (`wrap`), as `ideoflow generate` does."
RAW = "the caption is plain text, trained on as it is; the model was trained on JSON captions."


def line_of(caption: Any, wrap: bool = True) -> tuple[str, list[str]]:
    """The line to train on, and what was repaired, stays wrong or is unusual in it.

    Only what can have been meant in one way is repaired; the rest is trained on as it stands, and told.

    Args:
        caption: A text, which may hold a caption, or the data of one.
        wrap: Whether plain text is put into a minimal JSON caption.

    Raises:
        UnusableError: saying why, if it cannot be used.
    """
    if not caption or (isinstance(caption, str) and not caption.strip()):
        raise UnusableError("has an empty caption: say what the picture shows.")
    try:
        if isinstance(caption, str):
            found = find(caption, "it")
        elif isinstance(caption, Mapping):
            found = data_of(caption)
        else:
            raise CaptionError(f"it is a {type(caption).__name__}, neither text nor a JSON object.")
        if found is None:
            text = Caption.from_text(caption)
            return (text.line(), [WRAPPED]) if wrap else (" ".join(caption.split()), [RAW])
        given = Caption.of_found(found)
        repaired = given.repair()
        if not repaired.is_one():
            raise CaptionError(f"it has none of {', '.join(Caption.model_fields)}.")
        line = repaired.line()
        if not encodes(line):
            raise CaptionError("it holds half of a surrogate pair, which is no character.")
    except CaptionError as error:
        raise UnusableError(f"has a caption that cannot be used: {error}") from None
    notes = [f"the caption {slip.message}; this was mended." for slip in found.slips]
    if line != given.line():
        notes.append("the caption was repaired (`ideoflow caption check` tells how).")
    notes += [f"the caption breaks the schema at {breach}" for breach in repaired.check()]
    return line, notes
