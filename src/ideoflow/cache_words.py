"""Which steps of a picture are computed, in words: a name, an interval, or the steps themselves. Imports no torch.

    fast, faster                                 what was calibrated of the model, at so many steps for one
    interval=3 before=3 after=18 order=1         every third step, and all of them before step 3 and from step 18 on
    steps=0,1,2,4,7 guidance=0,4 order=1         these steps, and these with the unconditional branch
    off                                          all steps

`order` is the degree of the polynomial by which the others follow; `guidance_every=2` may go with an interval.
"""

from __future__ import annotations

import re

NAMED = {"fast": 1.8, "faster": 2.5}  # at least so many steps of a picture for one that is computed
OFF = "off"
FORMS = "give " + ", ".join(map(repr, (*NAMED, OFF))) + ', "interval=2 before=3 order=1" or "steps=0,1,2,4,7 order=1"'

_NUMBER, _STEPS = r"\d{1,4}", r"\d{1,4}(,\d{1,4})*"
_VALUES = {
    "steps": _STEPS,
    "guidance": _STEPS,
    "interval": r"[1-9]\d{0,3}",
    "guidance_every": r"[1-9]\d{0,3}",
    "before": _NUMBER,
    "after": _NUMBER,
    "order": r"[0-3]",
}
_WITH_STEPS = {"steps", "guidance", "order"}
_WITH_INTERVAL = {"interval", "guidance_every", "before", "after", "order"}


def read_words(text: str, name: str = "`cache`") -> dict[str, str]:
    """What the words say, by the names of the values; {"named": text} of a name.

    Args:
        text: The words.
        name: What the message calls them.

    Raises:
        ValueError: if they are of none of the forms.
    """
    if text in (*NAMED, OFF):
        return {"named": text}
    parts = [part.partition("=") for part in text.split()]
    words = {key: value for key, _, value in parts}
    allowed = _WITH_STEPS if "steps" in words else _WITH_INTERVAL
    complete = len(words) == len(parts) and bool({"steps", "interval"} & set(words))
    if not complete or any(
        key not in allowed or not re.fullmatch(_VALUES[key], value, re.ASCII) for key, value in words.items()
    ):
        raise ValueError(f"{name} is {text[:80]!r}: {FORMS}.")
    return words
