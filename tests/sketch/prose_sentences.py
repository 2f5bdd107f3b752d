"""Sentences for the sketch world with what they say: made from many wordings, and those written by hand.

Run as `python -m tests.sketch.prose_sentences`, it prints how many of each list the grammar understands.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from ideoflow.captions import CaptionError
from ideoflow.sketch.prose import Reading, read

HELD_OUT = Path(__file__).parent / "prose_held_out.txt"
SECOND = Path(__file__).parent / "prose_second.txt"
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "black", "white", "gray")
SHAPES = (
    "circle",
    "ring",
    "square",
    "triangle",
    "diamond",
    "hexagon",
    "star",
    "heart",
    "half circle",
    "cross",
    "arrow",
)
OUTLINED = ("circle", "square", "triangle", "diamond", "hexagon", "heart", "half circle")
OTHER_NAMES = {
    "circle": ("disc", "dot", "ball"),
    "ring": ("donut", "hoop"),
    "square": ("box", "block"),
    "diamond": ("rhombus",),
    "half circle": ("semicircle", "half-circle"),
    "cross": ("plus sign",),
}
CSS = {"navy": "#000080", "gold": "#FFD700", "teal": "#008080", "maroon": "#800000", "olive": "#808000"}
NONSENSE = ("dragon", "castle", "lighthouse", "teapot", "violinist", "mountain")
WORDS = ("GO", "HI", "YES", "STOP", "A", "42", "LOVE", "EXIT", "B2")


@dataclass(frozen=True)
class Sentence:
    """A sentence and what it says.

    Attributes:
        text: the sentence.
        things: `(colour, outline, shape or word)` of each, sorted; an empty colour is any.
        ground: the words of the background; empty for any.
        unknown: words that must be named as not understood.
        refused: whether nothing of it can be drawn.
    """

    text: str
    things: tuple[tuple[str, bool, str], ...]
    ground: tuple[str, ...]
    unknown: tuple[str, ...] = ()
    refused: bool = False


def held_out() -> list[Sentence]:
    """The list written by hand before the grammar was."""
    return _listed(HELD_OUT)


def second() -> list[Sentence]:
    """The list written by hand after the grammar, by one who had not seen it."""
    return _listed(SECOND)


def _listed(file: Path) -> list[Sentence]:
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    return [_parsed(*line.rsplit(" | ", 1)) for line in lines]


def _parsed(text: str, meant: str) -> Sentence:
    if meant.startswith("!"):
        return Sentence(text, (), (), tuple(meant[1:].split()), refused=True)
    meant, _, unknown = meant.partition("?")
    named, _, ground = meant.partition("@")
    things = sorted(_thing(one.split()) for one in named.split("+") if one.strip())
    return Sentence(text, tuple(things), tuple(ground.replace("-", "").split()), tuple(unknown.split()))


def _thing(words: list[str]) -> tuple[str, bool, str]:
    outline = words[0] == "outline"
    colour, *name = words[outline:]
    return "" if colour == "-" else colour, outline, name[1] if name[0] == "word" else " ".join(name)


def made(number: int) -> Sentence:
    """Sentence number `number` of the ones put together from many wordings."""
    draw = random.Random(f"prose/{number}")
    colours = list(COLOURS)
    draw.shuffle(colours)
    ground, ground_text = _ground(draw, colours)
    count = draw.choices((1, 2, 3), (5, 4, 2))[0]
    things, texts, unknown = [], [], []
    places = draw.sample(_PLACES, count) if draw.random() < 0.4 else [""] * count
    for place in places:
        thing, text = _named(draw, colours.pop())
        things += thing
        texts.append(f"{text} {place}".strip())
    if draw.random() < 0.15:
        word = draw.choice(NONSENSE)
        unknown.append(word)
        texts.insert(draw.randrange(len(texts) + 1), f"a {word}")
    joined = texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
    if any(places):
        relation = ""
    elif len(texts) == 2 and not unknown and draw.random() < 0.4:
        relation = draw.choice((" above ", " next to ", " below ", " to the left of ", " beside ", " underneath "))
        joined = relation.join(texts)
    text = draw.choice(_FRAMES).format(things=joined, ground=ground_text)
    text = text[0].upper() + text[1:] if draw.random() < 0.5 else text
    return Sentence(text, tuple(sorted(things)), ground, tuple(unknown))


_PLACES = ("in the top left corner", "at the bottom", "on the right", "in the middle", "at the lower left",
           "on the left side", "in the bottom right", "at the top right")  # fmt: skip
_FRAMES = (
    "{things} on {ground}",
    "{things}, on {ground}",
    "{things} on {ground}.",
    "draw {things} on {ground}",
    "please draw me {things} on {ground}!",
    "a picture of {things} against {ground}",
    "a simple flat graphic: {things} over {ground}",
    "on {ground}, {things}",
    "there is {things} on {ground}",
    "I'd like to see {things} in front of {ground}",
    "could you make {things}, on {ground}?",
    "{things}; it is all on {ground}",
    "show {things} set against {ground}",
)


def _ground(draw: random.Random, colours: list[str]) -> tuple[tuple[str, ...], str]:
    first, last = colours.pop(), colours.pop()
    kind = draw.choices(("plain", "gradient", "stripes"), (6, 2, 2))[0]
    direction = draw.choice(("vertical", "horizontal"))
    ends = ("top", "bottom") if direction == "vertical" else ("left", "right")
    if kind == "plain":
        return (first,), draw.choice((
            first, f"a {first} background", f"a plain {first} background", f"a solid {first} backdrop",
            f"plain {first}",
            f"a {first} wall", f"a {first} page", f"a background that is {first}", f"a background of {first}",
            f"a field of {first}", f"a uniformly {first} background",
        ))  # fmt: skip
    if kind == "gradient":
        at = "on" if direction == "horizontal" else "at"
        return ("gradient", first, last, direction[0]), draw.choice((
            f"a {direction} gradient from {first} to {last}",
            f"a gradient from {first} {at} the {ends[0]} to {last} {at} the {ends[1]}",
            f"a {direction} {first} to {last} gradient",
            f"a background fading from {first} {at} the {ends[0]} into {last} {at} the {ends[1]}",
            f"a gradient, {first} {at} the {ends[0]} and {last} {at} the {ends[1]}",
        ))  # fmt: skip
    return ("stripes", first, last, direction[0]), draw.choice((
        f"{direction} stripes of {first} and {last}",
        f"{direction} {first} and {last} stripes",
        f"{first} and {last} {direction} stripes",
        f"a {direction}ly striped background in {first} and {last}",
        f"a background of {direction} {first} and {last} stripes",
        f"{direction} bands of {first} and {last}",
    ))  # fmt: skip


def _named(draw: random.Random, colour: str) -> tuple[list[tuple[str, bool, str]], str]:
    """Things of one colour, and words for them."""
    said = {"gray": draw.choice(("gray", "grey")), "purple": draw.choice(("purple", "violet"))}.get(colour, colour)
    size = draw.choice(("", "", "", "small ", "large ", "big ", "tiny "))
    if draw.random() < 0.15:
        said, colour = draw.choice(list(CSS.items()))
    if draw.random() < 0.25:
        word = draw.choice(WORDS)
        return [(colour, False, word)], draw.choice((
            f'the word "{word}" in {said}', f'"{word}" in {said}', f"the text '{word}' in {said} letters",
            f"{said} letters saying “{word}”", f'the {said} word "{word}"', f'{said} lettering that says "{word}"',
            f'a {said} "{word}" in a serif font',
        ))  # fmt: skip
    shape = draw.choice(SHAPES)
    name = draw.choice((shape, shape, *OTHER_NAMES.get(shape, ())))
    if shape in OUTLINED and draw.random() < 0.2:
        return [(colour, True, shape)], draw.choice((
            f"a hollow {said} {name}", f"an outlined {size}{said} {name}", f"the outline of a {said} {name}",
            f"a {said} {name} outline",
        ))  # fmt: skip
    if draw.random() < 0.12:
        count = draw.choice((2, 3))
        number = draw.choice((str(count), {2: "two", 3: "three"}[count]))
        return [(colour, False, shape)] * count, f"{number} {size}{said} {_plural(name)}"
    article = "an" if (size or said)[0] in "aeiou" else "a"
    return [(colour, False, shape)], draw.choice((
        f"{article} {size}{said} {name}", f"{article} {size}{said} {name}", f"{article} {size}{said} {name}",
        f"one {size}{said} {name}", f"a {name} in {said}", f"a {name} filled with {said}", f"a {name} coloured {said}",
        f"a {size}{name} painted {said}", f"a {name} that is {said}", f"a single {said} {name}", f"{said} {name}",
    ))  # fmt: skip


def _plural(name: str) -> str:
    return f"{name}es" if name.endswith(("x", "s")) else f"{name}s"


def misread(sentence: Sentence) -> str:
    """What is wrong with how a sentence is understood; empty if nothing is."""
    try:
        reading = read(sentence.text)
    except CaptionError as error:
        unnamed = [word for word in sentence.unknown if word.lower() not in str(error).lower()]
        return f"{unnamed} unnamed" if sentence.refused and unnamed else "" if sentence.refused else f"refused: {error}"
    if sentence.refused:
        return f"drawn: {reading.understood}"
    found = sorted((thing.colour, thing.outline, thing.shape or thing.word) for thing in reading.things)
    if not alike(found, sentence) or reading.caption().check():
        return f"{found} {reading.caption().check()}"
    if not _same_ground(reading, sentence.ground):
        return f"on {reading.ground}"
    said = " ".join(reading.unknown).lower()
    unnamed = [word for word in sentence.unknown if word not in said]
    invented = [word for word in said.split() if word not in sentence.unknown]
    return f"unnamed {unnamed}, invented {invented}" if unnamed or invented else ""


def alike(found: list[tuple[str, bool, str]], sentence: Sentence) -> bool:
    """Whether things are those of the sentence; a colour that it leaves open is any."""
    left = list(found)
    for colour, outline, name in sentence.things:
        wanted = {"darkgreen": "#006400", "lightblue": "#ADD8E6", "turquoise": "#40E0D0", **CSS}.get(colour, colour)
        match = next((one for one in left if one[1:] == (outline, name) and wanted in ("", one[0])), None)
        if match is None:
            return False
        left.remove(match)
    return not left


def _same_ground(reading: Reading, wanted: tuple[str, ...]) -> bool:
    if not wanted:
        return True
    kind, *rest = wanted if wanted[0] in ("gradient", "stripes") else ("solid", *wanted)
    direction = {"v": "vertical", "h": "horizontal"}.get(rest[-1])
    colours = tuple(rest[:-1] if direction else rest)
    ground = reading.ground
    return (ground.kind, ground.colours) == (kind, colours) and direction in (None, ground.direction)


def wrong(sentences: list[Sentence]) -> dict[str, str]:
    return {one.text: told for one in sentences if (told := misread(one))}


def main() -> None:
    """Print how many of each list are understood, and what is wrong with the others."""
    lists = {
        "written before the grammar": held_out(),
        "written after it, by another": second(),
        "put together of many wordings": [made(number) for number in range(300)],
    }
    for name, sentences in lists.items():
        found = wrong(sentences)
        print(f"{name}: {len(sentences) - len(found)} of {len(sentences)}")
        for text, told in found.items():
            print(f"  {text}: {told:.100}")


if __name__ == "__main__":
    main()
