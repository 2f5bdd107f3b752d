"""What the options of `ideoflow edit` ask for: the kind of change, whether they agree, and the change itself."""

from __future__ import annotations

import random
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..change_options import TAKES, not_taken
from ..checks import printable
from .generate import made_by
from .prompts import Reader

WAYS = (
    "say what it is to become: --caption NEW redraws what differs from its own caption; --mask FILE or --box Y,X,Y,X"
    " draws a part anew; --how image the whole, starting from it; --outpaint WxH draws a larger one around it;"
    " --variation 0.2 a neighbour."
)


@dataclass(frozen=True)
class Wish:
    """What the options say of the change; None where they say nothing."""

    how: str | None
    before: str | None
    mask: Path | None
    mask_changes: str | None
    boxes: tuple[tuple[float, ...], ...] | None
    outpaint: tuple[int, int] | None
    place: tuple[int, int] | None
    variation: float | None
    variation_seed: int | None
    strength: float | None
    feather: int | None
    harmonise: int | None
    padding: int | None
    margin: int | None
    fit: str | None

    @property
    def given(self) -> dict[str, Any]:
        """The options that were given, by their names in `TAKES`; `how` is none of them."""
        return {name: value for name, value in vars(self).items() if value is not None and name != "how"}


def check_again(command: str, name: str, made: dict[str, Any], given: dict[str, Any], typed: dict[str, Any]) -> None:
    """Refuse options beside --again that would make another picture than its file says, or a file of another command.

    Args:
        command: "edit" or "upscale".
        name: The file.
        made: What it says.
        given: Options of the change, whose values all stand in the file; None where they are left out.
        typed: Options of the steps; one that says what the file says is no fault.

    Raises:
        ValueError: naming the option, or the command that makes it again.
    """
    if not made["edit"]:
        raise ValueError(
            f"{printable(name)} was not made of another picture: make it again with"
            f" `ideoflow generate {shlex.quote(printable(name))}`."
        )
    if (made["edit"].get("kind") == "upscale") != (command == "upscale"):
        what = "an edit" if command == "upscale" else "an enlarged picture"
        raise ValueError(f"{printable(name)} is {what}: make it again with `{made_by(name, made)}`.")
    if why := made["unrepeatable"]:
        raise ValueError(
            f"{printable(name)} cannot be made again: {printable(why)}. Leave --again out, and give the options of the"
            " change."
        )
    others = [key for key, value in given.items() if value is not None]
    others += [key for key, value in typed.items() if value is not None and value != made[key]]
    if others:
        raise ValueError(
            f"--again makes {printable(name)} again, by what its file says, and {_spelt(others[0])} would make another"
            " picture: leave one of them out."
        )


def own_seed(name: str, own: dict[str, Any], seed: int | None, n: int) -> int:
    """The seed of a picture that a variation is to be a neighbour of.

    Raises:
        ValueError: where its seed, caption and settings alone do not make the picture, or another seed is asked for.
    """
    name = printable(name)
    if not own:
        raise ValueError(f"{name} was not made by ideoflow: only its settings have neighbours.")
    if own["edit"]:
        raise ValueError(
            f"{name} was made from another picture or seed, and its own seed's neighbours are those of something else:"
            " vary the picture that it was made of, or draw this one anew with --how image --strength 0.5."
        )
    if own["unrepeatable"] or own["seed"] is None:
        why = own["unrepeatable"] or "its file does not say its seed"
        raise ValueError(
            f"{name} cannot be made again from its seed ({printable(why)}), so its seed's neighbours are not its own:"
            " draw it anew with --how image --strength 0.5."
        )
    if seed is not None and seed != own["seed"]:
        raise ValueError(
            f"--seed {seed}: a variation of {name} begins with its own seed, {own['seed']}. Leave --seed out;"
            " --variation-seed says where the neighbour lies."
        )
    if n != 1:
        raise ValueError(f"--n {n}: a variation is one neighbour. Give each a --variation-seed of its own.")
    return int(own["seed"])


def _spelt(name: str) -> str:
    """An option as it is typed."""
    return "--box" if name == "boxes" else f"--{name.replace('_', '-')}"


def change_asked_for(picture: Path, how: str, wish: Wish, own: dict[str, Any], text: str) -> tuple[Any, str]:
    """The change that the options ask for, and the caption of what is drawn."""
    from .. import editing
    from ..editing.caption_window import seen_caption

    before = Reader().read(wish.before)[0].text if wish.before else own.get("caption")
    if how in ("redraw", "caption") and before is None:
        raise ValueError(f"{printable(picture)} brings no caption along: give --before, its caption as it is.")
    given = {name: value for name, value in wish.given.items() if name != "before"}  # which this kind takes, all of it
    if how == "redraw":
        return editing.redrawn(picture, before, text, **given), text
    if how == "inpaint":
        mask = given.pop("mask", None) or list(given.pop("boxes"))
        return editing.Inpaint(picture, mask, **given), text
    if how == "outpaint":
        size = given.pop("outpaint")
        change = editing.outpainted(picture, size, given.pop("place", None), **given)
        if own and text == own["caption"]:  # of the old picture: its elements stay where they are
            import json

            (left, top), (wide, tall) = change.settings["place"], change.settings["of"]
            window = (-left, -top, size[0] - left, size[1] - top)
            seen = seen_caption(text, (wide, tall), window)
            text = seen if isinstance(seen, str) else json.dumps(seen, separators=(",", ":"), ensure_ascii=False)
        return change, text
    if how == "variation":
        other = given.get("variation_seed", random.SystemRandom().randrange(2**31))
        amount = {"amount": given["variation"]} if "variation" in given else {}
        return editing.Variation(other, (int(own["width"]), int(own["height"])), **amount), text
    if how == "caption":
        by_caption = editing.CaptionEdit(picture, before, **given)
        by_caption.check(text)
        return by_caption, text
    return editing.ImageToImage(picture, **given), text


def kind_asked_for(wish: Wish, own: dict[str, Any], text: str, same: bool) -> str:
    """The kind of change that the options ask for.

    Args:
        wish: The options of the change.
        own: What the picture's file says.
        text: What it is to become.
        same: Whether that is its own caption, for none was given.

    Raises:
        ValueError: for options that contradict each other, or that the kind does not take.
    """
    said = [
        kind
        for kind, asked in (
            ("inpaint", wish.mask is not None or wish.boxes is not None),
            ("outpaint", wish.outpaint is not None),
            ("variation", wish.variation is not None),
        )
        if asked
    ]
    if wish.mask is not None and wish.boxes is not None:
        raise ValueError("--mask and --box both say what may change: give one of them.")
    if wish.how is not None and wish.how not in TAKES:
        raise ValueError(f"--how {wish.how!r} is unknown: choose one of {', '.join(TAKES)}.")
    if len(said) > 1 or (wish.how is not None and said and said != [wish.how]):
        options = " and ".join(dict.fromkeys([*said, *([wish.how] if wish.how else [])]))
        raise ValueError(f"the options ask for {options} at once: leave one of them out.")
    redraws = wish.before is not None or (own and own["caption"] != text)
    how = wish.how or (said[0] if said else "redraw" if redraws else "image")
    if found := not_taken(how, wish.given):
        name, kinds = found
        raise ValueError(
            f"{_spelt(name)} goes with {' and '.join(kinds)}, and this change is {how}: leave it out, or ask for"
            f" another kind with --how."
        )
    if wish.mask_changes is not None and wish.mask is None:
        raise ValueError("--mask-changes says what of a mask changes, and there is none: give --mask.")
    if how == "image" and wish.how is None and own and not wish.given:
        told = "no change is asked for" if same else "--caption says what the picture's own caption does"
        raise ValueError(f"{told}: {WAYS}")
    if how == "inpaint" and not said:
        raise ValueError("--how inpaint needs --mask or --box, which say what may change.")
    if how == "outpaint" and not said:
        raise ValueError("--how outpaint needs --outpaint WxH, the size of the larger picture.")
    return how


def box_of(text: str) -> tuple[float, ...]:
    """Four numbers, in thousandths, of `Y,X,Y,X`."""
    try:
        box = tuple(float(edge) for edge in text.split(","))
    except ValueError:
        box = ()
    if len(box) != 4:
        raise ValueError(f"--box {text!r}: give y_min,x_min,y_max,x_max in thousandths, such as 100,200,300,400.")
    return box


def place_of(text: str) -> tuple[int, int]:
    """Two whole numbers of `X,Y`."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(part.isdecimal() and len(part) < 7 for part in parts):
        raise ValueError(f"--place {text!r}: give X,Y in pixels from the left and the top, such as 32,0.")
    return int(parts[0]), int(parts[1])
