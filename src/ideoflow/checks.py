"""Checks of what callers give: the errors name the argument, what it got and what is allowed."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any


def whole(name: str, value: Any, least: int, otherwise: str = "", most: int | None = None) -> int:
    """A whole number of `least` or more, of any integer type.

    Args:
        name: Name of the argument.
        value: Value that the argument got.
        least: The smallest value that is allowed.
        otherwise: What else is allowed, for the message, such as " or None".
        most: The largest value that is allowed.

    Raises:
        TypeError: if it is no whole number; True and False are none.
        ValueError: if it is too small or too large.
    """
    allowed = f"give a whole number from {least}{'' if most is None else f' to {most}'}{otherwise}."
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"`{name}` is {value!r}: {allowed}") from None
    if number < least or (most is not None and number > most):
        raise ValueError(f"`{name}` is {_short(value)}: {allowed}")
    return number


def _short(number: Any) -> str:
    """A number for a message; Python refuses to print integers of more than some thousand digits."""
    text = repr(number) if abs(number) < 10**20 else ""
    return text or "a number of more than 20 digits"


def finite(name: str, value: Any, least: float = -math.inf, above: float = -math.inf) -> float:
    """A finite number.

    Args:
        name: Name of the argument.
        value: Value that the argument got.
        least: The smallest value that is allowed.
        above: What it has to be larger than.

    Raises:
        TypeError: if it is no number; text is none.
        ValueError: if it is infinite, not a number or too small.
    """
    allowed = f" from {least:g}" if least > -math.inf else f" above {above:g}" if above > -math.inf else ""
    allowed = f"give a finite number{allowed}."
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        number = float(value)
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError):
        raise TypeError(f"`{name}` is {value!r}: {allowed}") from None
    if not (math.isfinite(number) and number >= least and number > above):
        raise ValueError(f"`{name}` is {value!r}: {allowed}")
    return number


def all_finite(name: str, values: Iterable[Any]) -> tuple[float, ...]:
    """Finite numbers, of a sequence, an array or a tensor.

    Raises:
        TypeError: if they are no numbers.
        ValueError: if one is infinite or not a number.
    """
    try:
        if isinstance(values, (str, bytes)):
            raise TypeError
        numbers = tuple(map(float, values))
    except (TypeError, ValueError):
        raise TypeError(f"`{name}` is {values!r}: give a sequence of finite numbers.") from None
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"`{name}` is {values!r}: give finite numbers.")
    return numbers


def printable(text: object) -> str:
    """Text from outside as it may stand on one line of a terminal: whatever is no printable character is escaped.

    Line ends, terminal escapes, marks that change the direction of writing and halves of surrogate pairs show as
    `\\n`, `\\x1b`, `\\u202e`; letters of every script stay.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))
