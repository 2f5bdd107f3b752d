"""Parameters of tests of which some run each time, and the others where `pytest -m long` asks for them."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def thinned(values: Iterable[Any], kept: Collection[Any]) -> list[Any]:
    """Parameters of which those that are not `kept` are marked `long`.

    For tables whose rows take seconds each and go one way through the code: one row of each way is kept.

    Raises:
        ValueError: a kept value that there is not.
    """
    values = list(values)
    if missing := [value for value in kept if value not in values]:
        raise ValueError(f"{missing} are kept, and there are only {values}.")
    rows = [value if isinstance(value, tuple) else (value,) for value in values]
    return [
        pytest.param(*row, marks=[] if value in kept else pytest.mark.long)
        for value, row in zip(values, rows, strict=True)
    ]
