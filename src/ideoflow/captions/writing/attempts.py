"""What comes back from a caption writer: read, repaired, checked, and asked for again with the complaint.

What is wrong is asked for again, and refused in the end. What is right and yet poor (no elements, elements without
boxes) is asked for again too, and in the end taken, with what is poor about it told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..boxes import EXPECTED
from ..breach import Breach, CaptionError
from ..caption import Caption
from ..lint import LONG_LINE, advice, weaknesses
from ..reading import Found, find
from ..rules import BOX_NAMES
from ..schema import elements
from .written import WritingError, Written

Message = dict[str, Any]  # {"role": ..., "content": ...}, as chat models take them
Ask = Callable[[list[Message]], str]
ATTEMPTS = 3  # the first, and twice with the complaint
MOST_SHOWN = 600  # characters of a text in an error
MOST_COMPLAINTS = 6
MOST_READ = 200_000  # characters of an answer; longer ones, thinking and all, are none
MOST_SENT_BACK = 8_000  # characters of an answer that is complained about
LONGEST = 2 * LONG_LINE  # characters of a caption's line: more tokens than any model reads


class Answer(NamedTuple):
    """A caption in an answer.

    Attributes:
        caption: with what is certain mended.
        notes: what was mended, in words.
        renamed: elements whose box has another name, as the path of each.
    """

    caption: Caption
    notes: tuple[str, ...] = ()
    renamed: tuple[str, ...] = ()


def settle(
    ask: Ask,
    messages: list[Message],
    by: str,
    judge: Callable[[Caption], str] | None = None,
    *,
    layout: bool | None = True,
    known: Sequence[Breach] = (),
) -> Written:
    """Have a caption written that keeps the schema.

    Args:
        ask: gives a chat model's answer to messages.
        messages: what it is asked.
        by: who it is, in words.
        judge: what is wrong with a caption beside the schema, in words; empty for nothing.
        layout: whether a style, boxes and palettes were asked for; False takes them out, None takes what comes.
        known: weaknesses that nobody complains about, for the caption that is changed has them.

    Raises:
        WritingError: if there is none after `ATTEMPTS`, with the last text.
    """
    messages = list(messages)
    complaint = text = ""
    usable: Written | None = None
    for attempt in range(ATTEMPTS):
        text = ask(messages)
        try:
            answer = read_answer(text)
            if layout is False:
                answer = _without_layout(answer)
        except CaptionError as error:
            complaint = str(error)
        else:
            complaint = _wrong(answer.caption) or (judge(answer.caption) if judge else "")
            if not complaint:
                tried = (f"took {attempt + 1} attempts",) if attempt else ()
                poor = _poor(answer, bool(layout), known)
                told = [str(one) for one in advice(answer.caption) if one not in known]
                usable = Written(answer.caption, by, (*tried, *answer.notes, *poor.values(), *_few(told)))
                if not poor:
                    return usable
                complaint = _joined([*poor])
        if attempt + 1 < ATTEMPTS:
            sent = text if len(text) <= MOST_SENT_BACK else f"{text[:MOST_SENT_BACK]}..."
            again = f"That cannot be used: {complaint}\nWrite the whole JSON object again."
            messages += [
                {"role": "assistant", "content": _whole_characters(sent)},
                {"role": "user", "content": _whole_characters(again)},
            ]
    if usable is not None:
        return usable
    shown = text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
    raise WritingError(
        f"{by} gave no caption that can be drawn in {ATTEMPTS} attempts ({complaint}). Its last answer was: {shown!r}",
        text,
    )


def read_answer(text: str) -> Answer:
    """The caption in an answer with what is certain mended, and what was mended.

    Raises:
        CaptionError: if there is none, or what there is has no key of a caption.
    """
    if len(text) > MOST_READ:
        raise CaptionError(f"the answer has {len(text)} characters, far more than a caption has.")
    found = find(text, "the answer")
    if found is None:
        raise CaptionError(f"the answer is no JSON object but {text.strip()[:60]!r}." if text.strip() else
                           "the answer is empty.")  # fmt: skip
    caption, done = Caption.of_found(found).mended()
    caption, renamed = _with_boxes_named(caption)
    caption, dropped = caption.mended(drop_unknown=True)
    if not caption.is_one():
        raise CaptionError(f"the answer's JSON has none of the keys {', '.join(Caption.model_fields)}.")
    mended = dict.fromkeys(f"mended {breach.mended}" for breach in (*done, *dropped))
    return Answer(caption, tuple(_few([*mended])), renamed)


def _with_boxes_named(caption: Caption) -> tuple[Caption, tuple[str, ...]]:
    """The caption with boxes of other names called by the schema's; the model was told which edge comes first."""
    data, renamed = caption.data(), []
    for number, element in enumerate(elements(data)):
        names = [name for name in BOX_NAMES if isinstance(element, dict) and isinstance(element.get(name), list)]
        if len(names) == 1 and "bbox" not in element:
            element["bbox"] = element.pop(names[0])
            renamed.append(f"elements[{number}].{names[0]}")
    return (Caption.of_found(Found(data)), tuple(renamed)) if renamed else (caption, ())


def _without_layout(answer: Answer) -> Answer:
    """The answer without a style, boxes and palettes, which were not asked for."""
    data, out = answer.caption.data(), []
    if data.pop("style_description", None) is not None:
        out.append("style_description")
    for element in elements(data):
        if isinstance(element, dict):
            out += [key for key in ("bbox", "color_palette") if element.pop(key, None) is not None]
    if not out:
        return answer
    note = f"left out what was not asked for: {', '.join(dict.fromkeys(out))}"
    return Answer(Caption.of_found(Found(data)), (*answer.notes, note))


def _wrong(caption: Caption) -> str:
    """What breaks the schema, or cannot be drawn at all."""
    if breaches := caption.check():
        return _joined([str(one) for one in breaches])
    if (length := len(caption.line())) > LONGEST:
        count = len(elements(caption.data()))
        return f"the caption has {count} elements and {length} characters: {LONGEST} are more than any model reads"
    return ""


def _poor(answer: Answer, layout: bool, known: Sequence[Breach]) -> dict[str, str]:
    """What is right, and not what was asked for: complaints, each with what is said of it where it stays so."""
    found = {
        f"{path}: is called `bbox` here; write {EXPECTED}": f"{path} was read as `bbox`, y first, as it was asked for;"
        " elsewhere such names have x first: look whether things lie where they should, else `ideoflow caption fix"
        " --boxes xyxy` turns them"
        for path in answer.renamed
    }
    for number, element in enumerate(elements(answer.caption.data())):
        if layout and isinstance(element, dict) and "type" in element and "bbox" not in element:
            path = f"elements[{number}]"
            found[f"{path}.bbox: is missing; give {EXPECTED}"] = f"{path} has no box: it may be drawn anywhere"
    return found | {str(one): str(one) for one in weaknesses(answer.caption) if one not in known}


def _whole_characters(text: str) -> str:
    """A text that can be sent: an answer may hold halves of surrogate pairs."""
    return text.encode("utf-8", "replace").decode()


def _joined(complaints: Sequence[str]) -> str:
    return "; ".join(_few(complaints))


def _few(lines: Sequence[str]) -> list[str]:
    more = [f"and {len(lines) - MOST_COMPLAINTS} more"] if len(lines) > MOST_COMPLAINTS else []
    return [*lines[:MOST_COMPLAINTS], *more]
