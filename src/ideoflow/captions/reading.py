"""From a text, a file or a mapping to a caption's data: the one reader behind every way in.

A caption is found where it stands: by itself, in a Markdown fence, among words, after a model's thinking, under a key
such as `prompt`. What had to be taken off is told as breaches, so that a strict caller refuses it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel

from .breach import Breach, CaptionError
from .schema import TOP_KEYS, Repeated, write
from .tolerant import MARKS as QUOTES
from .tolerant import MAX_DEPTH, Cut, Tolerant

MAX_BYTES = 4 * 2**20  # of a file of one caption; the longest that a model takes has some ten thousand characters
MAX_LIST = 256 * 2**20  # of a file with one caption a line

# Keys under which programs that talk to language models keep a whole caption.
WRAPPERS = ("prompt", "caption", "json_prompt", "text", "output", "result", "response", "content", "data")
_OBJECTS = 1000  # places where an object may begin that are tried in one text
MARKS = "\ufeff \t\r\n"
_OPENED = re.compile(r"\s*<think(?:ing)?>", re.IGNORECASE)
_THINKING = re.compile(r"\A.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"[`~]{3,}[ \t]*[A-Za-z0-9_-]*")
_TOP = "|".join(TOP_KEYS)
_BEGUN = re.compile(rf"\{{\s*(?:[{QUOTES}](?:{_TOP})[{QUOTES}]|(?:{_TOP})\s*:)")  # a caption, readable or not


@dataclass
class Found:
    """A caption's data as read.

    Attributes:
        data: The JSON object.
        slips: What stood around it or was no JSON in it; all of them are mended by reading alone.
    """

    data: dict[str, Any]
    slips: list[Breach] = field(default_factory=list)


def read_file(path: Path) -> str:
    """The text of a file of captions, without its byte order mark.

    Raises:
        CaptionError: if it is no UTF-8 text, or far larger than captions are.
        OSError: if it cannot be read.
    """
    most = MAX_LIST if path.suffix.lower() == ".jsonl" else MAX_BYTES
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise CaptionError(f"{path} is larger than {most // 2**20} MiB: no captions are.")
    return decode(data, str(path))


def decode(data: bytes, source: str) -> str:
    """The text of bytes, without their byte order mark.

    Raises:
        CaptionError: if they are no UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CaptionError(f"{source} is not UTF-8 text: byte {error.start} is wrong.") from None


def find(text: str, source: str) -> Found | None:
    """The caption that a text holds; None for plain text, which holds none and does not try to.

    Args:
        text: The text of a prompt or a file.
        source: What it is, for messages: "the prompt", or a file's name.

    Raises:
        CaptionError: if it means to be a caption and cannot be read as one, or holds several.
    """
    start = len(text) - len(text.lstrip(MARKS))
    if not text.strip(MARKS):
        return None
    try:
        data = json.loads(text.strip(MARKS), object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        return _find_within(text, source, error.pos + start, error.msg)
    except RecursionError:
        _refuse(source, "it is nested too deeply")
    except ValueError:  # a whole number of thousands of digits
        return _find_within(text, source, start, "a number in it is too long")
    if isinstance(data, str):  # a caption as a string of JSON, or words in quotation marks
        inner = find(data, source)
        return inner and _with(inner, "is written as a string", "write the object itself", "took it out of a string")
    if isinstance(data, list):
        objects = [value for value in data if isinstance(value, dict)]
        if len(data) != 1 or not objects or not _is_caption(objects[0]):
            what = f"a JSON list of {len(data)}" if len(data) != 1 else "a JSON list"
            raise CaptionError(f"{source} is {what}, not one caption: a caption is a JSON object in braces.")
        return _with(_of(objects[0], source), "stands in a list", "take it out", "took it out of a list")
    return _of(data, source) if isinstance(data, dict) else None


def data_of(value: Mapping[str, Any], source: str = "the caption") -> Found:
    """The caption that a mapping is or holds, as JSON data of its own.

    Raises:
        CaptionError: if it holds what JSON cannot, or is nested more than 64 levels deep.
    """
    return _of(plain(value), source)


def plain(data: Any) -> Any:
    """JSON data of its own from Python's: mappings, caption parts and arrays become plain, tuples become lists.

    Raises:
        CaptionError: if it holds what JSON cannot.
    """
    try:
        text = json.dumps(data, default=_plain_value)
        copy = json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise CaptionError("the caption is nested too deeply.") from None
    except (TypeError, ValueError) as error:  # another type, a loop, a whole number of thousands of digits
        raise CaptionError(f"the caption holds what JSON cannot: {error}.") from None
    return _shallow(copy, "the caption")


def _plain_value(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_none=True, warnings=False)
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):  # boxes computed with numpy or torch
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} is no JSON value")


def _refuse(source: str, why: str) -> NoReturn:
    raise CaptionError(f"{source} is no JSON: {why}.") from None


def _with(found: Found, message: str, fix: str, done: str) -> Found:
    return Found(found.data, [Breach("", message, fix, certain=True, done=done), *found.slips])


def _is_caption(data: Any) -> bool:
    return isinstance(data, dict) and any(key in data for key in TOP_KEYS)


def _of(data: dict[str, Any], source: str) -> Found:
    """The caption in an object: the object, or what stands under one of the keys of `WRAPPERS`."""
    _shallow(data, source)
    if _is_caption(data):
        return Found(data)
    inner = [(key, found) for key in WRAPPERS if (found := _inner(data.get(key), source))]
    if len(inner) != 1:
        return Found(data)
    key, found = inner[0]
    beside = ", ".join(_name(other) for other in data if other != key)
    more = f", and left out {beside}" if beside else ""
    return _with(found, f"stands under the key `{key}`", "take it out", f"took it out of `{key}`{more}")


def _inner(value: Any, source: str) -> Found | None:
    if isinstance(value, str) and any(sign in value for sign in TOP_KEYS):
        return find(value, source)
    found = _of(value, source) if isinstance(value, dict) else None
    return found if found and _is_caption(found.data) else None


def _find_within(text: str, source: str, place: int, message: str) -> Found | None:
    """The caption that a text which is no JSON holds; `place` and `message` say where JSON's own reader gave up."""
    answer = _after_thinking(text, source)
    one = _only_caption(answer, source)
    if one is None and answer != text and not _OPENED.match(text):  # the mark that ends thinking stood in the caption
        answer, one = text, _only_caption(text, source)
    if one is None:
        if _tries_to_be_json(answer):
            _refuse(source, _why(answer, place, message) + _lost_marks(answer))
        if answer != text:
            raise CaptionError(f"{source} holds a model's thinking and no caption after it.")
        return None
    found = _of(one.data, source)
    for slip in reversed(one.slips):
        found = _with(found, f"holds {slip}, which JSON does not know", "write plain JSON", f"read past {slip}")
    if around := _around(answer, one):
        found = _with(found, f"stands in {around}", "give the caption alone", f"took it out of {around}")
    if answer != text:
        found = _with(found, "stands after a model's thinking", "leave the thinking out", "left the thinking out")
    return found


def _after_thinking(text: str, source: str) -> str:
    """The text with spaces in the place of a model's thinking at its start, so that places stay what they are."""
    if text.strip(MARKS).startswith(("{", "```")):
        return text
    if _OPENED.match(text) and not _THINKING.match(text):
        raise CaptionError(f"{source} is a model's thinking without an end, and holds no caption after it.")
    return _THINKING.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)


def _only_caption(text: str, source: str) -> _Object | None:
    """The one caption in a text; None without any.

    Raises:
        CaptionError: if it holds different ones.
    """
    objects = list(_objects(text, source))
    captions = [one for one in objects if _is_caption(_of(one.data, source).data)]
    if not captions and len(objects) == 1 and not _around(text, objects[0]):
        return objects[0]  # an object by itself that is far from the schema: its checks will say so
    different = {write(one.data) for one in captions}
    if len(different) > 1:
        raise CaptionError(f"{source} holds {len(different)} captions: give one, or a .jsonl file with one a line.")
    read = [range(one.start, one.end) for one in captions]
    for begun in _BEGUN.finditer(text) if captions else ():
        if not any(begun.start() in one for one in read):
            line = text.count("\n", 0, begun.start()) + 1
            raise CaptionError(
                f"{source} holds a caption and, at line {line}, the beginning of another that cannot be read: give one."
            )
    return captions[0] if captions else None


@dataclass
class _Object:
    data: dict[str, Any]
    start: int
    end: int
    slips: Sequence[str] = ()


def _objects(text: str, source: str) -> Iterator[_Object]:
    """The outermost objects of a text, as JSON or as what can be read like it."""
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    at = text.find("{")
    for _ in range(_OBJECTS):
        if at < 0:
            return
        end = at + 1
        try:
            data, end = decoder.raw_decode(text, at)
            yield _Object(data, at, end)
        except RecursionError:
            _refuse(source, "it is nested too deeply")
        except ValueError:
            tolerant = Tolerant(text, _object)
            try:
                data, end = tolerant.read(at)
                yield _Object(data, at, end, tolerant.slips)
            except RecursionError:
                _refuse(source, "it is nested too deeply")
            except json.JSONDecodeError:
                pass
        at = text.find("{", end)


def _around(text: str, one: _Object) -> str:
    """What an object stands in, in words; empty if it stands alone."""
    before, after = text[: one.start].strip(MARKS), text[one.end :].strip(MARKS)
    if not (before or after):
        return ""
    return "a Markdown fence" if _FENCE.fullmatch(before) and after in ("", "```", "~~~") else "other text"


def _tries_to_be_json(text: str) -> bool:
    start = _FENCE.sub("", text.strip(MARKS), count=1) if text.strip(MARKS).startswith(("```", "~~~")) else text
    return start.strip(MARKS).startswith("{") or any(sign in text for sign in TOP_KEYS)


def _why(text: str, place: int, message: str) -> str:
    """What keeps the first object of a text from being read, and where."""
    try:
        start = text.find("{")
        if start >= 0:
            Tolerant(text).read(start)
            place, message = _after(text, start)
    except Cut as error:
        if error.pos >= len(text):
            return f"it ends before its last bracket, as if it had been cut off ({error.msg.lower()})"
    except json.JSONDecodeError as error:
        place, message = error.pos, error.msg
    line, column = text.count("\n", 0, place) + 1, place - text.rfind("\n", 0, place)
    return f"{message[:1].lower()}{message[1:].removesuffix(' at')} at line {line}, column {column}"


def _after(text: str, start: int) -> tuple[int, str]:
    tolerant = Tolerant(text)
    _, end = tolerant.read(start)
    return end, "something follows its last bracket"


def _lost_marks(text: str) -> str:
    if any(mark in text for mark in QUOTES) or not any(sign in text for sign in TOP_KEYS):
        return ""
    return "; its quotation marks are gone, which some programs take away: give the text as its author wrote it"


def _shallow(data: Any, source: str) -> Any:
    if (depth := _depth(data)) > MAX_DEPTH:
        raise CaptionError(f"{source} is nested {depth} levels deep, where {MAX_DEPTH} are allowed.")
    return data


def _depth(data: Any) -> int:
    """Levels of nesting; without recursion, for it guards against too many."""
    depth, level = 0, [data]
    while level:
        depth += 1
        level = [inner for outer in level if isinstance(outer, dict | list) for inner in _held(outer)]
    return depth


def _held(outer: dict[str, Any] | list[Any]) -> list[Any]:
    if isinstance(outer, Repeated):
        return [*outer.values(), *(value for values in outer.earlier.values() for value in values)]
    return list(outer.values()) if isinstance(outer, dict) else outer


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    held = dict(pairs)
    return held if len(held) == len(pairs) else Repeated.of_pairs(pairs)


def _name(key: str) -> str:
    return key if key.isprintable() else repr(key)[1:-1]
