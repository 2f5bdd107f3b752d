"""Colours: the one `#RRGGBB` that a name, `rgb()`, a short or a lower-case form can mean, and lists in one string."""

from __future__ import annotations

import re
from typing import Any

COLOUR = re.compile(r"#[0-9A-F]{6}")
_CHANNELS = re.compile(r"rgba?\(([^()]*)\)", re.IGNORECASE)


def meant(value: Any) -> str | None:
    """`#RRGGBB` if `value` can mean but one colour."""
    if isinstance(value, list):
        whole = len(value) == 3 and all(type(channel) is int for channel in value)
        return _of_channels(value) if whole and max(value) > 1 else None  # up to 1, it may be in shares
    if not isinstance(value, str):
        return None
    text = value.strip().strip("\"'").strip()
    digits = text.upper().removeprefix("0X")
    if re.fullmatch(r"#[0-9A-F]{3}", digits):
        return "#" + "".join(2 * digit for digit in digits[1:])
    if re.fullmatch(r"#?[0-9A-F]{6}|#[0-9A-F]{6}FF", digits):
        return "#" + digits.removeprefix("#")[:6]
    if function := _CHANNELS.fullmatch(text):
        return _of_function(function[1])
    return _of_name(text)


def several(value: str) -> list[str] | None:
    """The colours of a string that lists them, if each can mean but one."""
    pieces = [piece for piece in re.split(r"[,;|\n](?![^()]*\))", value) if piece.strip()]
    if len(pieces) == 1:
        pieces = value.split() if all(piece.startswith("#") for piece in value.split()) else pieces
    colours = [colour for piece in pieces if (colour := meant(piece))]
    return colours if colours and len(colours) == len(pieces) else None


def _of_channels(channels: list[int]) -> str | None:
    if len(channels) != 3 or not all(0 <= channel <= 255 for channel in channels):
        return None
    return "#" + "".join(f"{channel:02X}" for channel in channels)


def _of_function(inner: str) -> str | None:
    parts = [part for part in re.split(r"[\s,/]+", inner.strip()) if part]
    if len(parts) == 4 and parts[3] in ("1", "1.0", "100%"):
        parts = parts[:3]
    if all(re.fullmatch(r"[0-9]{1,3}", part) for part in parts):
        return _of_channels([int(part) for part in parts])
    if all(re.fullmatch(r"[0-9]{1,3}%", part) for part in parts) and all(int(part[:-1]) <= 100 for part in parts):
        return _of_channels([int(int(part[:-1]) * 255 / 100 + 0.5) for part in parts])
    return None


def _of_name(text: str) -> str | None:
    """A name of the CSS standard, which has one colour for each."""
    name = re.sub(r"[\s_-]+", "", text.lower())
    if not re.fullmatch(r"[a-z]{3,20}", name):
        return None
    from PIL.ImageColor import colormap, getrgb  # slow to import, and most captions have no names

    return _of_channels(list(getrgb(name)[:3])) if name in colormap else None
