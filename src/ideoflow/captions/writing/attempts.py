"""What comes back from a caption writer: read, repaired, checked, and asked for again with the complaint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..breach import CaptionError
from ..caption import Caption
from ..reading import find
from .written import WritingError, Written

Message = dict[str, Any]  # {"role": ..., "content": ...}, as chat models take them
Ask = Callable[[list[Message]], str]
ATTEMPTS = 3  # the first, and twice with the complaint
MOST_SHOWN = 600  # characters of a text in an error
MOST_COMPLAINTS = 6


def settle(ask: Ask, messages: list[Message], by: str, judge: Callable[[Caption], str] | None = None) -> Written:
    """Have a caption written that keeps the schema.

    Args:
        ask: gives a chat model's answer to messages.
        messages: what it is asked.
        by: who it is, in words.
        judge: what is wrong with a caption beside the schema, in words; empty for nothing.

    Raises:
        WritingError: if there is none after `ATTEMPTS`, with the last text.
    """
    messages = list(messages)
    complaint = text = ""
    for attempt in range(ATTEMPTS):
        text = ask(messages)
        try:
            caption, notes = read_answer(text)
        except CaptionError as error:
            complaint = str(error)
        else:
            complaint = _complaint(caption) or (judge(caption) if judge else "")
            if not complaint:
                again = (f"took {attempt + 1} attempts",) if attempt else ()
                return Written(caption, by, (*again, *notes))
        if attempt + 1 < ATTEMPTS:
            messages += [
                {"role": "assistant", "content": text},
                {"role": "user", "content": f"That cannot be used: {complaint}\nWrite the whole JSON object again."},
            ]
    shown = text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
    raise WritingError(
        f"{by} gave no caption that can be drawn in {ATTEMPTS} attempts ({complaint}). Its last answer was: {shown!r}",
        text,
    )


def read_answer(text: str) -> tuple[Caption, tuple[str, ...]]:
    """The caption in an answer with what is certain mended, and what was mended.

    Raises:
        CaptionError: if there is none, or what there is has no key of a caption.
    """
    found = find(text, "the answer")
    if found is None:
        raise CaptionError(f"the answer is no JSON object but {text.strip()[:60]!r}." if text.strip() else
                           "the answer is empty.")  # fmt: skip
    caption, mended = Caption.of_found(found).mended(drop_unknown=True)
    if not caption.is_one():
        raise CaptionError(f"the answer's JSON has none of the keys {', '.join(Caption.model_fields)}.")
    return caption, tuple(f"mended {breach.mended}" for breach in mended)


def _complaint(caption: Caption) -> str:
    breaches = caption.check()
    if not breaches:
        return ""
    more = f"; and {len(breaches) - MOST_COMPLAINTS} more" if len(breaches) > MOST_COMPLAINTS else ""
    return "; ".join(map(str, breaches[:MOST_COMPLAINTS])) + more
