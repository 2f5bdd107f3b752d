"""What a client sends as a prompt, and the line that is drawn of it: a caption, or words that are put into one.

Programs between a person and the server mangle prompts. What was certainly a caption is put right, and words become a
caption; the answer says which, so that nobody takes a picture of something else for the picture that was asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .breach import CaptionError
from .caption import Caption
from .reading import data_of, find
from .schema import elements, encodes
from .unquoted import lost_marks, restore
from .writing.written import Writer

Was = Literal["json", "repaired", "wrapped", "written"]

REBUILT = "the prompt had lost its quotation marks on the way; they could be put back for certain"
HALF = "{} holds half of a surrogate pair, which is no character: write the whole one."
UNCERTAIN = (
    "the prompt is like a caption whose quotation marks were lost on the way, and they cannot be put back for certain"
    " ({}): it was taken for words"
)


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt as read.

    Attributes:
        line: the characters that the model reads.
        caption: the caption's data that the line is written of.
        was: how the line came about: the caption that was sent ("json"), the same repaired ("repaired"), a minimal
            caption around words ("wrapped"), or one that a caption writer wrote of words ("written").
        warnings: who wrote it, what was repaired, and what still breaks the schema, in words.
        revised: the line, where it is not what was sent.
    """

    line: str
    caption: dict[str, Any]
    was: Was
    warnings: tuple[str, ...]
    revised: str | None


def read_prompt(
    prompt: str | Mapping[str, Any],
    *,
    drop_unknown: bool = False,
    write: Writer | None = None,
    size: tuple[int, int] | None = None,
) -> ReadPrompt:
    """Read a client's prompt. No file is looked for, whatever it names.

    Args:
        prompt: a caption as an object or as text, also among other words or with its quotation marks lost; or words.
        drop_unknown: leave out all keys that are not the schema's.
        write: makes a caption of words; None for the minimal one.
        size: (width, height) in pixels of the picture that it is written for.

    Raises:
        CaptionError: if it is empty, means to be a caption and cannot be read as one, or holds what JSON cannot.
        WritingError: if the writer cannot write one.
    """
    found, remarks = _read_text(prompt) if isinstance(prompt, str) else (_of_mapping(prompt), [])
    if found is None:
        return _of_words(str(prompt), remarks, write, size)
    caption, mended = found.mended(drop_unknown=drop_unknown)
    if not caption.is_one():
        raise CaptionError(f"the prompt is no caption: it has none of {', '.join(Caption.model_fields)}.")
    data, line = caption.data(), caption.line()
    check_characters(data, "the prompt")
    remarks += [f"mended {breach.mended}" for breach in mended] + [str(breach) for breach in caption.check()]
    sent = prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False, separators=(",", ":"))
    was: Was = "repaired" if mended or REBUILT in remarks else "json"
    return ReadPrompt(line, data, was, tuple(remarks), line if line != sent else None)


def _of_mapping(prompt: Mapping[str, Any]) -> Caption:
    return Caption.of_found(data_of(prompt, "the prompt"))


def _read_text(text: str) -> tuple[Caption | None, list[str]]:
    """The caption that a text holds, None for words; and what is to be said of it."""
    if not encodes(text):
        raise CaptionError(HALF.format("the prompt"))
    if not lost_marks(text):
        found = find(text, "the prompt")
        return (Caption.of_found(found) if found else None), []
    try:
        return restore(text), [REBUILT]
    except CaptionError as error:
        quoted = _in_other_marks(text)
        return (quoted, []) if quoted else (None, [UNCERTAIN.format(error)])


def _in_other_marks(text: str) -> Caption | None:
    """The caption in a text that never had double quotation marks, as its elements' types show: they have others."""
    try:
        found = find(text, "the prompt")
    except CaptionError:
        return None
    typed = found is not None and any(isinstance(one, dict) and "type" in one for one in elements(found.data))
    return Caption.of_found(found) if found and typed else None


def _of_words(words: str, remarks: list[str], write: Writer | None, size: tuple[int, int] | None) -> ReadPrompt:
    if not words.strip():
        raise CaptionError("the prompt is empty: describe a picture.")
    if write is None:
        caption = Caption.from_text(words)
        return ReadPrompt(caption.line(), caption.data(), "wrapped", tuple(remarks), caption.line())
    written = write(words, size)
    line = written.caption.line()
    notes = (*remarks, f"the caption was written by {written.by}", *written.notes)
    return ReadPrompt(line, written.caption.data(), "written", notes, line)


def check_characters(data: dict[str, Any], what: str) -> None:
    """See that a caption can be sent and kept: that JSON and UTF-8 can hold it.

    Args:
        data: the caption.
        what: what an error calls it.

    Raises:
        CaptionError: if not.
    """
    try:
        json.dumps(data, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise CaptionError(HALF.format(what)) from None
    except ValueError:
        raise CaptionError(f"{what} holds a number that is none, such as NaN: give finite ones.") from None
