"""Telling paths from words: a path that is misspelt must not be drawn as the words that it consists of."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

ENDINGS = (".json", ".jsonl", ".txt", ".caption", ".png", ".jpg", ".jpeg", ".webp")
_LONGEST = 1024  # characters of a path
_ROOTED = re.compile(r"~?/|~[\w-]*/|\.{1,2}/|~$|\.{1,2}$|[A-Za-z]:[\\/]|\\\\")
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,5}$")


def existing(text: str) -> Path | None:
    """The file or folder that a text names; None if there is none."""
    text = text.strip()
    if not text or len(text) > _LONGEST or "\n" in text or "\0" in text:
        return None
    try:
        path = Path(text).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long a name, no such user, half a character
        return None


def looks_like_path(text: str) -> bool:
    """Whether a text is written like a path: words have spaces and no slashes, endings or drives."""
    text = text.strip()
    if not text or len(text) > _LONGEST or "\n" in text or text[0] in "{[<":
        return False
    if text.lower().endswith(ENDINGS):
        return True
    if re.search(r"\s", text):
        rooted = _ROOTED.match(text)
        return rooted is not None and (rooted[0] != "/" or text.count("/") > 1)
    return "/" in text or "\\" in text or _ROOTED.match(text) is not None or _SUFFIX.search(text) is not None


def missing(text: str) -> str:
    """What to say of a path that is not there: the names in its place that are most like it."""
    text = text.strip()
    said = f"{text}: No such file or directory"
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        return f"{text}: there is no such user's home folder."
    try:
        place = path.parent
        while not place.is_dir():
            path, place = place, place.parent
        beside = sorted(one.name for one in place.iterdir() if not one.name.startswith("."))
    except (OSError, ValueError):
        return f"{said}."
    close = [name for name in beside if name != path.name and Path(name).stem == path.stem][:3]
    close = close or difflib.get_close_matches(path.name, beside, 1, 0.6)
    return f"{said}; did you mean {' or '.join(str(place / name) for name in close)}?" if close else f"{said}."
