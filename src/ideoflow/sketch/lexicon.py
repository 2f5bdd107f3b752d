"""The words that a person may use for the sketch world: which of its shapes, colours, places and backgrounds they name.

Each word or group of words is of one kind, a letter, so that the grammar in `prose` can be written in regular
expressions over the kinds. A word that is in no list is not understood, and is said to be so.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from ..captions import CaptionError
from .masks import SHAPES
from .scene import COLOURS

# Other names of the shapes, and what is said of those that are drawn as something near.
_SHAPE_NAMES: dict[str, tuple[str, ...]] = {
    "circle": ("disc", "disk", "dot", "ball"),
    "ring": ("donut", "doughnut", "hoop", "annulus", "torus"),
    "square": ("box", "block", "cube"),
    "triangle": ("pyramid",),
    "diamond": ("rhombus", "lozenge"),
    "hexagon": (),
    "star": (),
    "heart": ("love heart",),
    "half circle": ("semicircle", "semi circle", "halfcircle", "half disc", "half disk", "half moon"),
    "cross": ("plus", "plus sign", "plus symbol"),
    "arrow": ("arrow sign",),
}
_NEAR = {"rectangle": "square", "oblong": "square", "oval": "circle", "ellipse": "circle", "kite": "diamond",
         "sphere": "circle", "orb": "circle"}  # fmt: skip
_COLOUR_NAMES = {"grey": "gray", "violet": "purple", "lilac": "#C8A2C8", "mauve": "#E0B0FF", "amber": "#FFBF00",
                 "rose": "#FF007F", "scarlet": "#FF2400", "emerald": "#50C878", "mustard": "#FFDB58",
                 "golden": "#FFD700",
                 "burgundy": "#800020", "cream": "#FFFDD0", "peach": "#FFE5B4", "charcoal": "#36454F"}  # fmt: skip
_SHADES = {"light": 0.55, "pale": 0.65, "pastel": 0.6, "dark": -0.45, "deep": -0.35}  # towards white, towards black
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")

_GROUND = ("background", "backdrop", "back ground", "backround", "bg", "wall", "field", "paper", "canvas", "page",
           "surface", "sheet", "board", "ground", "card", "screen", "sky", "wallpaper")  # fmt: skip
_PICTURE = ("picture", "image")
_OPENERS = ("surrounded by", "everything else", "all else", "the rest", "rest", "otherwise", "elsewhere",
            "the remainder", "the space around it", "all around", "all around it", "around it")  # fmt: skip
_ON = ("on", "on top of", "upon", "atop", "against", "over", "in front of", "set against", "set on", "onto")
_LINKS = ("in", "is", "are", "of", "coloured", "colored", "colour", "color", "colours", "colors", "painted", "filled",
          "filled with", "filled in", "made of", "drawn in", "that is", "which is", "that are", "which are", "tinted",
          "shaded", "for", "as", "being", "be", "should be", "in the colour", "in the color", "it is", "they are",
          "it's", "using", "done in", "set in", "printed in", "written in", "has", "has a", ":")  # fmt: skip
_RELATIONS: dict[str, tuple[str, ...]] = {
    "above": ("above", "higher than"),
    "below": ("below", "under", "beneath", "underneath", "lower than"),
    "left": ("left of", "to the left of", "on the left of", "on the left side of"),
    "right": ("right of", "to the right of", "on the right of", "on the right side of"),
    "beside": ("next to", "beside", "besides", "alongside", "near", "close to", "by", "by the side of", "adjacent to"),
    "inside": ("inside", "inside of", "within", "in the middle of a", "in the centre of a", "in the center of a"),
    "contains": ("containing", "contains", "enclosing", "encloses", "around", "surrounding", "encircling", "framing"),
    "between": ("between", "in between"),
}
_OF_A_PLACE = ("side", "corner", "part", "half", "area", "edge")  # "the left side", "the bottom half"
_MIDDLE = ("middle", "centre", "center")
_FILLERS = (
    "i'd i'll i'm we'd please picture image drawing graphic illustration draw me make show generate create paint render"
    " can could you"
    " would like i want need to see let's let us give there there's is there's are sits stands lies floats"
    " where whose its their of it itself them plain solid simple flat single minimal minimalist geometric vector"
    " clean design bold style graphics we have put place placed positioned located shape shaped shapes symbol"
    " some only just alone completely entirely fully uniformly all-over"
    " that which this these what looks shows showing depicts depicting featuring consisting"
    " called piece font typeface type fonts front will my our and/or kind sort somewhere something minimalistic"
    " add include including"
)


@dataclass(frozen=True)
class Word:
    """One word, or several that mean one thing.

    Attributes:
        kind: a letter; see `KINDS`.
        value: what it means, by its kind.
        said: the characters that it was said with.
        plural: whether it names several.
        near: the shape's own name, where another is drawn for it.
    """

    kind: str
    value: Any
    said: str
    plural: bool = False
    near: str = ""


KINDS = {
    "C": "a colour: its name in the world, or #RRGGBB",
    "S": "a shape",
    "W": "letters to be written",
    "t": "a noun for letters, such as `word`",
    "N": "a number",
    "a": "an article",
    "Z": "a size: a factor",
    "U": "outlined",
    "Y": "a font",
    "P": "a place: (row, column), each -1 to 1 or None",
    "R": "a relation",
    "O": "on: before a background, or a shape that lies under another",
    "B": "a noun for the background",
    "K": "what comes before the colour of everything else",
    "H": "behind",
    "G": "a gradient",
    "V": "stripes",
    "D": "a direction of stripes or of a gradient",
    "T": "to, between the ends of a gradient",
    "A": "and",
    "M": "a comma",
    "E": "the end of a sentence",
    "L": "what links a thing to its colour",
    "J": "both, all",
    "Q": "it, them",
    "I": "pointing",
    "X": "no, without",
    "w": "a word that goes with a place, such as `corner`; alone it is not understood",
    "F": "a word that says nothing about the picture",
    "u": "a word that is not understood",
}


@cache
def lexicon() -> dict[tuple[str, ...], Word]:
    """Every group of words that is understood, in lower case and without hyphens."""
    words: dict[tuple[str, ...], Word] = {}

    def add(kind: str, value: Any, *names: str, plural: bool = False, near: str = "") -> None:
        for name in names:
            words[tuple(name.split())] = Word(kind, value, name, plural, near)

    add("F", None, *_FILLERS.split(), "many", "several", "a few", "lots of", "a lot of")  # a number is chosen, and said
    add("a", None, "a", "an", "the", "another")
    add("A", None, "and", "&", "/", "plus a", "and then", "as well as", "together with", "along with", "also")
    add("M", None, ",", "(", ")", "with", "while", "then", "but", "plus the", "having")
    add("E", None, ".", ";", "!", "?")
    for name in SHAPES:
        for known in (name, *_SHAPE_NAMES[name]):
            add("S", name, known)
            add("S", name, *_plurals(known), plural=True)
    for known, name in _NEAR.items():
        add("S", name, known, near=known)
        add("S", name, *_plurals(known), plural=True, near=known)
    for name in (*COLOURS, *_COLOUR_NAMES):
        add("C", _COLOUR_NAMES.get(name, name), name)
    for number, name in enumerate(_NUMBERS):
        add("N", number, name)
    add("N", 12, "dozen", "a dozen")
    add("N", 6, "half a dozen", "half dozen")
    add("N", 2, "pair of", "a pair of", "couple of", "a couple of")
    add("Z", 0.55, "tiny", "minuscule")
    add("Z", 0.7, "small", "little", "smaller")
    add("Z", 1.35, "big", "large", "bigger", "larger")
    add("Z", 1.6, "huge", "giant", "enormous", "gigantic", "massive")
    add("Z", 1.0, "medium", "medium sized", "normal sized", "mid sized")
    add("U", True, "outline", "outlined", "hollow", "empty", "unfilled", "outline of", "outlines of", "contour",
        "contour of", "outlines", "only outline", "not filled")  # fmt: skip
    add("Y", "serif", "serif", "serifed")
    add("Y", "sans", "sans", "sans serif", "sansserif")
    _add_places(add)
    for relation, names in _RELATIONS.items():
        add("R", relation, *names)
    add("O", "on", *_ON)
    add("B", None, *_GROUND)
    add("K", None, *_OPENERS)
    add("H", None, "behind", "in the background", "as background", "in back")
    add("G", None, "gradient", "gradients", "fading", "fades", "fade", "faded", "blending", "blends", "blended",
        "blend", "ombre", "transition", "transitioning", "graded", "turning", "shading", "melting", "merging",
        "smooth gradient", "colour gradient", "color gradient")  # fmt: skip
    add("V", None, "stripes", "stripe", "striped", "stripy", "stripey", "bands", "bars", "stripes of")
    add("D", "vertical", "vertical", "vertically", "from top to bottom", "top to bottom", "upright", "top down",
        "going down", "running down")  # fmt: skip
    add("D", "horizontal", "horizontal", "horizontally", "from left to right", "left to right", "sideways", "across",
        "going across", "running across")  # fmt: skip
    add("T", None, "to", "into", "towards", "toward", "through to", "until")
    add("F", None, "from", "starting", "ending")
    add("L", None, *_LINKS)
    add("I", None, "pointing", "pointing to", "pointing to the", "pointing towards the", "facing", "facing to the",
        "aiming", "pointed")  # fmt: skip
    add("J", None, "both", "all", "each", "both of them", "all of them")
    add("Q", None, "it", "them", "that one")
    add("X", None, "no", "without", "not", "except", "except for", "but no", "but not", "don't", "never",
        "instead of", "isn't", "aren't", "doesn't", "neither", "nor", "other than", "apart from", "anything but",
        "everything but", "anything except", "any colour but", "any color but")  # fmt: skip
    add("w", None, *_OF_A_PLACE)
    add("t", True, "word", "words", "text", "letters", "letter", "lettering", "number", "digit", "digits", "saying",
        "write", "says", "reading", "reads", "spelling", "spells", "spell", "written", "writing", "capitals", "label",
        "labelled", "labeled", "inscription", "title", "caps", "say", "read", "uppercase", "characters")  # fmt: skip
    return words


def _plurals(name: str) -> tuple[str, ...]:
    head, _, last = name.rpartition(" ")
    ends = ("es",) if last.endswith(("s", "x", "sh")) else ("s", "es") if last.endswith(("o", "us")) else ("s",)
    return tuple(f"{head} {last}{end}".strip() for end in ends)


def _add_places(add: Any) -> None:
    vertical = {-1: ("top", "upper"), 1: ("bottom", "lower"), 0: _MIDDLE}
    sides = {-1: ("left", "left hand"), 1: ("right", "right hand"), 0: _MIDDLE}
    bare: list[tuple[int | None, int | None, str]] = [(0, 0, name) for name in (*_MIDDLE, "centred", "centered")]
    bare += [(row, column, f"{high} {side}") for row, highs in vertical.items() for high in highs
             for column, names in sides.items() for side in names if high != side]  # fmt: skip
    bare += [(row, column, f"{side} {high}") for row, highs in vertical.items() for high in highs
             for column, names in sides.items() for side in names if row and column]  # fmt: skip
    for said, place in (("on top", (-1, None)), ("at top", (-1, None)), ("on bottom", (1, None)),
                        ("on left", (None, -1)), ("on right", (None, 1)), ("side by side", (0, None)),
                        ("in a row", (0, None)), ("in one row", (0, None)), ("in a line", (0, None))):  # fmt: skip
        add("P", place, said)
    bare += [(row, None, name) for row in (-1, 1) for name in vertical[row]]
    bare += [(None, column, name) for column in (-1, 1) for name in sides[column]]
    for row, column, name in bare:
        add("P", (row, column), name)
        for lead in ("at the", "in the", "on the", "to the", "near the", "at", "in", "towards the"):
            add("P", (row, column), f"{lead} {name}", f"{lead} {name} of", f"{lead} {name} side of the",
                f"{lead} very {name}", f"{lead} {name} corner of", f"{lead} {name} of the")  # fmt: skip


LONGEST_QUOTED = 40  # characters in quotation marks
_UNITS = "px|pixels?|pt|mm|cm|inch(?:es)?|percent|degrees?"
_PIECES = re.compile(
    r"\"(?P<d>[^\"]*)\"|[\u201c\u201e](?P<t>[^\u201c-\u201e]*)[\u201c\u201d]|\u00ab(?P<g>[^\u00ab\u00bb]*)\u00bb"
    r"|(?<!\w)['\u2018](?P<s>[^'\u2018\u2019]*)['\u2019](?!\w)"
    r"|#[0-9A-Fa-f]{6}\b|#[0-9A-Fa-f]{3}\b"
    # A number with what makes another thing of it: 1.5, 16:9, -3, 100 px, 3d, 6-pointed; and B2.
    rf"|(?:(?<!\w)[-\u2212])?\d+(?:[.,:/]\d+)*(?:\s*(?:{_UNITS})\b|[%\u00b0]|(?:-?[^\W\d_]+)+\d*)?"
    r"|[^\W\d_]+\d\w*"
    rf"|\b(?i:half|{'|'.join(_NUMBERS)})(?:-[^\W\d_]+)+"
    r"|w/|[^\W\d_]+(?:['\u2019][^\W\d_]+)*|[,;:.!?()&/]|\S"
)
_LONGEST = 6  # words of a group


def tag(text: str) -> list[Word]:
    """The words of a text with their kinds; those that are not understood have the kind `u`.

    Raises:
        CaptionError: if more stands in quotation marks than is read.
    """
    pieces: list[tuple[str, bool]] = []  # and whether they stood in quotation marks
    for found in _PIECES.finditer(text):
        quoted = next((letters for letters in found.groups() if letters is not None), None)
        if quoted is None:
            pieces += [(piece, False) for piece in _parts(found[0])]
        elif len(quoted) > LONGEST_QUOTED:
            raise CaptionError(
                f"{found[0][:LONGEST_QUOTED]}... has {len(quoted)} characters in quotation marks: at most"
                f" {LONGEST_QUOTED} are read."
            )
        else:
            pieces.append((quoted, True))
    pieces = [piece for piece in pieces if piece[0] not in ("-", "\u2013", "\u2014") and not _unseen(piece[0])]
    known = lexicon()
    tagged: list[Word] = []
    at = 0
    while at < len(pieces):
        said, quoted = pieces[at]
        if quoted:
            tagged.append(Word("W", said, said))
            at += 1
            continue
        run: list[str] = []
        for piece, in_marks in pieces[at : at + _LONGEST]:
            if in_marks:
                break
            run.append(piece.lower().replace("\u2019", "'"))
        for length in range(len(run), 0, -1):
            if word := known.get(tuple(run[:length])):
                said = " ".join(piece for piece, _ in pieces[at : at + length])
                tagged.append(Word(word.kind, word.value, said, word.plural, word.near))
                at += length
                break
        else:
            tagged.append(_unlisted(run[0], said))
            at += 1
    shaded = list(_shaded(_with_middles(_with_outlines(_with_places(tagged)))))
    # "A blue picture" has a blue background; elsewhere the word says nothing.
    return [
        Word("B", None, word.said) if word.said.lower() in _PICTURE and before.kind == "C" else word
        for before, word in zip([Word("F", None, ""), *shaded], shaded, strict=False)
    ]


def _parts(piece: str) -> list[str]:
    """The words of a piece of text; `half-circle` has two, `five-pointed` is one that is in no list."""
    if piece == "w/":
        return ["with"]
    parts = piece.split("-")
    return parts if len(parts) > 1 and tuple(part.lower() for part in parts) in lexicon() else [piece]


def _with_places(tagged: list[Word]) -> list[Word]:
    """The words with `corner` and the like as saying nothing after a place, and as not understood elsewhere."""
    found: list[Word] = []
    for word in tagged:
        if word.kind == "w":
            after_place = bool(found) and found[-1].kind in "PF" and any(one.kind == "P" for one in found[-2:])
            word = replace(word, kind="F" if after_place else "u")
        found.append(word)
    return found


def _with_outlines(tagged: list[Word]) -> list[Word]:
    """The words with `thick` as saying nothing before an outline: all outlines of the world are thick."""
    found = list(tagged)
    for at, word in enumerate(found):
        if word.kind == "u" and word.said.lower() == "thick":
            after = next((one.kind for one in found[at + 1 :] if one.kind not in "CFs"), "")
            found[at] = replace(word, kind="F" if after == "U" else "u")
    return found


def _with_middles(tagged: list[Word]) -> list[Word]:
    """The words with "in the middle of a white page" as a place and a background, not as inside a thing."""
    found: list[Word] = []
    for at, word in enumerate(tagged):
        after = next((one.kind for one in tagged[at + 1 :] if one.kind not in "CFZsu"), "")
        if word.kind == "R" and word.value == "inside" and word.said.lower().startswith("in the ") and after == "B":
            found += [Word("P", (0, 0), word.said), Word("O", "on", "")]
        else:
            found.append(word)
    return found


def _unseen(piece: str) -> bool:
    """Whether a piece has nothing to be seen, as the marks that make a picture of a sign."""
    return all(unicodedata.category(one) in ("Mn", "Cf") for one in piece) and bool(piece)


def _unlisted(word: str, said: str) -> Word:
    """A word that is in no list: a number, an exact colour, or not understood."""
    digits = word.replace(",", "") if re.fullmatch(r"\d{1,3}(?:,\d{3})+", word) else word
    if digits.isdecimal() and digits.isascii():
        return Word("N", int(digits) if len(digits) < 7 else 10**6, said)
    if re.fullmatch(r"#[0-9a-f]{6}|#[0-9a-f]{3}", word):
        digits = word[1:] if len(word) == 7 else "".join(2 * digit for digit in word[1:])
        return Word("C", f"#{digits.upper()}", said)
    if word in _SHADES:
        return Word("s", word, said)
    if word.isascii() and word.isalpha() and (colour := _standard(word)):
        return Word("C", colour, said)
    return Word("u", word, said)


def _standard(name: str) -> str | None:
    """`#RRGGBB` of a colour's name in CSS."""
    from PIL.ImageColor import colormap, getrgb

    return "#{:02X}{:02X}{:02X}".format(*getrgb(name)[:3]) if name in colormap else None


def _shaded(tagged: list[Word]) -> Any:
    """The words with `dark` and `light` taken into the colour that they stand before; alone they mean nothing."""
    waiting: Word | None = None
    for word in tagged:
        if waiting is not None:
            if word.kind == "C":
                yield Word("C", _shade(waiting.value, word), f"{waiting.said} {word.said}")
                waiting = None
                continue
            yield Word("u", waiting.value, waiting.said)
            waiting = None
        if word.kind == "s":
            waiting = word
        else:
            yield word
    if waiting is not None:
        yield Word("u", waiting.value, waiting.said)


def _shade(shade: str, colour: Word) -> str:
    amount = _SHADES[shade]
    kind = "light" if amount > 0 else "dark"
    if kind in (shade, {"pale": "light", "deep": "dark"}.get(shade)) and (
        known := _standard(kind + colour.said.lower())
    ):
        return known
    value = COLOURS.get(colour.value, colour.value).removeprefix("#")
    goal = 255 if amount > 0 else 0
    channels = (int(value[i : i + 2], 16) for i in (0, 2, 4))
    return "#" + "".join(f"{round(one + abs(amount) * (goal - one)):02X}" for one in channels)


def nearest(word: str) -> str | None:
    """The shape or colour that a misspelt word is most like."""
    if len(word) > 30:
        return None
    names = [" ".join(key) for key, value in lexicon().items() if value.kind in "SC"]
    close = difflib.get_close_matches(word.lower(), names, 1, 0.75)
    return close[0] if close else None
