"""Plain words to a caption of the sketch world, by a small grammar that says what it understood and what it did not.

The bundled model knows captions with boxes alone. Here "a red heart on pink" becomes one: the kinds of its words
(`lexicon.KINDS`) are read by regular expressions, the background first, then each shape or word with what stands before
it and after it. What was not said is chosen, and what was not understood is named.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..captions import Caption, CaptionError
from ..captions.writing import Written
from .intake import check_text, few, with_letters, with_pronouns
from .lexicon import Word, nearest, tag
from .masks import OUTLINED, SHAPES
from .placing import Relation, boxes, kept
from .scene import COLOURS, Box, rgb
from .wanted import Ground, Thing

GRAMMAR = "the bundled model's grammar"
MOST = 9  # elements that are given a place; the model learned up to four
SEVERAL = 3  # "stars" without a number
LEARNED_ELEMENTS, LEARNED_LETTERS = 4, 5
_MOST_UNKNOWN, _MOST_NOTES = 8, 24  # notes of a text
_KNOWN = (
    f"The bundled model draws {', '.join(SHAPES)}, and words in quotation marks, in {', '.join(COLOURS)}, such as"
    ' "a red heart on pink".'
)
_PHRASES = {"left": "to the left of", "right": "to the right of"}
MOST_WORDS = 3000  # of a text, with its commas
_MOST_GROUNDS = 20  # that a text may name, of which one is drawn
_TURNED = ("tilted", "rotated", "leaning", "slanted", "turned", "flipped", "tilting", "facing", "mirrored", "moved")
_VERBS = ("is", "are", "has", "should be")  # "the star is red", where "the star in red" may be another one
_OTHER_GROUND = r"O[aL]*[ZU]*C(?![ZUYC]*[SWVG])|C[ZU]*B|B[LMQ]*a?C"
_CHOSEN = ("red", "blue", "yellow", "green", "purple", "orange", "black", "cyan", "brown", "pink", "white", "gray")


@dataclass
class Reading:
    """What was understood of a text.

    Attributes:
        things: shapes and words in the order in which they were said.
        ground: the background.
        relations: which thing lies where beside which other, by their numbers.
        unknown: words that were not understood, as they were said.
        remarks: what was chosen, since it was not said, and what is drawn as something near.
    """

    things: list[Thing]
    ground: Ground
    relations: list[Relation] = field(default_factory=list)
    unknown: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def understood(self) -> str:
        """The picture in words."""
        told: set[int] = set()

        def tell(number: int) -> str:
            if number in told:
                return str(self.things[number])
            told.add(number)
            said = [one for one in self.relations if one.thing == number]
            lies = [f" {_PHRASES.get(one.kind, one.kind)} {' and '.join(map(tell, one.others))}" for one in said]
            return self.things[number].described + " and".join(lies)

        others = {other for one in self.relations for other in one.others}
        order = sorted(range(len(self.things)), key=lambda number: number in others)
        named = [tell(number) for number in order if number not in told]
        return f"{', '.join(named) or 'nothing'}, on {self.ground}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of it: words that were not understood first."""
        said = (*_not_understood(self.unknown), *self.remarks)
        more = (f"and {len(said) - _MOST_NOTES} more notes",) if len(said) > _MOST_NOTES else ()
        return said[:_MOST_NOTES] + more

    def caption(self, size: tuple[int, int] | None = None) -> Caption:
        """The caption, its boxes for a picture of `(width, height)` pixels, or a square one."""
        width, height = size or (1, 1)
        places = boxes(self.things, self.relations, width / height)
        over = {one.thing for one in self.relations if one.kind in ("on", "inside")}
        order = sorted(
            range(len(self.things)), key=lambda number: number in over
        )  # what lies on another comes after it
        elements = [_element(self.things[number], places[number]) for number in order]
        data = {"compositional_deconstruction": {"background": str(self.ground), "elements": elements}}
        named = ", ".join(map(_named, self.things[:-1])) + " and " * (len(self.things) > 1)
        summary = f"{named}{''.join(map(_named, self.things[-1:]))} on {_summed(self.ground)}."
        if self.things:
            data = {"high_level_description": summary[:1].upper() + summary[1:], **data}  # type: ignore[dict-item]
        return Caption.parse(data)


def write(text: str, size: tuple[int, int] | None = None) -> Written:
    """The caption of a text, for a picture of `(width, height)` pixels or a square one; see `read`."""
    reading = read(text)
    return Written(reading.caption(size), GRAMMAR, reading.notes)


def read(text: str) -> Reading:
    """What is understood of a text.

    Raises:
        CaptionError: if it is no words but a caption or a file's name, or too long; or if no shape, no letters and no
            background of the sketch world is in it, naming what it has.
    """
    check_text(text)
    if not text.strip():
        raise CaptionError(f"The words are empty. {_KNOWN}")
    words = tag(text)
    if len(words) > MOST_WORDS:
        raise CaptionError(f"the words are {len(words)}: at most {MOST_WORDS} are read.")
    words, unknown = with_letters(words, text)
    return _Grammar(words, unknown).read()


class _Grammar:
    """Reads one text: its words, and the string of their kinds on which the expressions work."""

    def __init__(self, words: Sequence[Word], unknown: Sequence[str]) -> None:
        self.unknown = list(unknown)
        self.remarks: list[str] = []
        self.negated: list[tuple[str, list[Word]]] = []  # each "no" with what it takes
        self.words = self._known(words)
        self.ground: Ground | None = None
        self.grounds = 0
        self.things: list[Thing] = []
        self.relations: list[Relation] = []

    @property
    def kinds(self) -> str:
        return "".join(word.kind for word in self.words)

    def _known(self, words: Sequence[Word]) -> list[Word]:
        """The words that say something; of those that are not understood, the nouns, as `x`, which take what is theirs.

        "No" and "without" take what follows them up to the next pause.
        """
        kept: list[Word] = []
        said = [word for word in words if word.kind != "F"]
        leads = _before_a_head("".join(word.kind for word in said))
        turned = -1
        dropped: list[Word] | None = None  # what was left out since the last "no"
        for at, word in enumerate(said):
            if at == turned:  # where a thing is turned to is no place
                continue
            if at and said[at - 1].kind == "I" and word.kind == "P":
                if word.value != (None, 1):
                    self.unknown.append(f"pointing {word.said}")
                continue
            if word.kind == "I":
                continue
            if dropped is not None and self._ends_negation(dropped, word, said[at + 1 :][:1]):
                dropped = None
            elif dropped is not None or word.kind == "X":
                if word.kind in "Xu":
                    self.unknown.append(word.said)
                if dropped is None:
                    kept.append(Word("x", None, word.said))
                    dropped = []
                    self.negated.append((word.said, dropped))
                elif word.kind != "X":
                    dropped.append(word)
                continue
            if word.kind != "u":
                kept.append(word)
                continue
            if word.said.lower() in _TURNED and [one.kind for one in said[at + 1 : at + 2]] == ["P"]:
                self.unknown.append(f"{word.said} {said[at + 1].said}")
                turned = at + 1
                continue
            self.unknown.append(word.said)
            if not leads[at + 1] and (not kept or kept[-1].kind in "aNCZUYAMEJ"):
                kept.append(Word("x", None, word.said))
        for no, left in self.negated:
            if left:
                self.remarks.append(f"left out with {no!r}: {few(word.said for word in left if word.kind not in 'aA')}")
        return with_pronouns(kept)

    @staticmethod
    def _ends_negation(dropped: Sequence[Word], word: Word, ahead: Sequence[Word]) -> bool:
        """Whether what a "no" takes is over with a word: at a pause, and at a background that comes after something."""
        if word.kind in "ME":
            return True
        if word.kind == "A":  # "not red and blue"
            return not (dropped and dropped[-1].kind == "C" and ahead and ahead[0].kind == "C")
        return word.kind == "O" and bool(dropped)

    def read(self) -> Reading:
        self._patterns()
        self._gradient()
        self._stripes()
        self._plain()
        self._elements()
        if not self.things and self.ground is None:
            self._lone_colour()
        if not self.things and (self.ground is None or self.unknown):
            raise CaptionError(self._nothing())
        self._choose()
        return Reading(
            self.things, self.ground or Ground("solid", ("white",)), self.relations,
            tuple(dict.fromkeys(self.unknown)), tuple(dict.fromkeys(self.remarks)),
        )  # fmt: skip

    # The background

    def _settle(self, pattern: str, kind: str) -> bool:
        """Take the background that an expression finds, its colours in the groups `c` and `d`; whether it does."""
        found = re.search(pattern, self.kinds)
        if not found:
            return False
        groups = found.groupdict()
        colours = [self._of_ground(self.words[found.start(name)]) for name in "cd" if groups.get(name)]
        places = [self.words[found.start(name)].value for name in "pq" if groups.get(name)]
        self.grounds += 1
        if self.grounds > _MOST_GROUNDS:  # each is looked for in the whole text
            raise CaptionError(f"more than {_MOST_GROUNDS} backgrounds are named: a picture has one.")
        if self.ground is not None:
            self.remarks.append(f"a second background, {' and '.join(colours)}, is left out")
        else:
            self.ground = self._made(kind, colours, places)
        self.words[found.start() : found.end()] = [Word("g", None, "")]
        kinds = self.kinds
        for shape in (r"(?:O[La]*)?[aD]*g[LD]*[aB]*H?(?=a|C|N|$|M|E|S|A)", r"O[La]*[aD]*g", r"g[LD]*B"):
            if near := re.search(shape, kinds):
                self.words[near.start() : near.end()] = [Word("g", None, "")]
                kinds = self.kinds
        return True

    def _of_ground(self, colour: Word) -> str:
        """The world's colour for a background, which has no others."""
        if colour.value in COLOURS:
            return str(colour.value)
        name = min(COLOURS, key=lambda one: _distance(one, colour.value))
        self.remarks.append(f"backgrounds have the world's twelve colours alone: {name} is nearest to {colour.said}")
        return name

    def _made(self, kind: str, colours: list[str], places: list[tuple[int | None, int | None]]) -> Ground:
        if kind == "solid" and len(colours) == 2:
            self.remarks.append(f"a background of {colours[0]} and {colours[1]} is taken for stripes")
            kind = "stripes"
        if kind == "solid":
            return Ground(kind, tuple(colours))
        if len(set(colours)) == 1:
            other = "white" if colours[0] != "white" else "gray"
            need = "stripes need" if kind == "stripes" else "a gradient needs"
            self.remarks.append(f"{need} two colours: {other} is the other one")
            colours = [colours[0], other]
        said = [word.value for word in self.words if word.kind == "D"]
        if any(column for _, column in places):
            said = ["horizontal"]
        if kind == "stripes" and not said:
            self.remarks.append("the stripes are vertical: their direction was not said")
        if places and any(one in (1, -1) and number == (one == -1) for number, place in enumerate(places)
                          for one in place if one):  # fmt: skip
            colours.reverse()  # the first was said to be at the bottom, or at the right
        return Ground(kind, tuple(colours[:2]), said[0] if said else "vertical")

    def _patterns(self) -> None:
        """Stripes and gradients of a thing, which the world does not have, are said, and their first colour stays."""
        kinds = self.kinds
        two = r"C[AMT]+a?C"
        for pattern in (
            rf"D?(?:{two}|C)?D?[GV](?=[ZUYC]*[SW])",  # "a red and white striped heart"
            rf"(?<=[SW])(?:[LMa]*D?(?:{two}|C)D?V|[LMa]*D?[GV]+[LMDa]*{two})(?=.*(?:{_OTHER_GROUND}))",
        ):
            found = re.search(pattern, kinds)
            if found is None or re.search("[OBKg][LMaD]*$", kinds[: found.start()]):
                continue
            if re.match("[aD]*[HB]", kinds[found.end() :]):
                continue
            words = self.words[found.start() : found.end()]
            said = " ".join(word.said for word in words)
            self.remarks.append(f"a thing has one plain colour here; left out: {few([said])}")
            colours = [word for word in words if word.kind == "C"][:1]
            link = [Word("L", None, "in")] if colours and found.start() and kinds[found.start() - 1] in "SW" else []
            self.words[found.start() : found.end()] = [*link, *colours]
            kinds = self.kinds

    def _gradient(self) -> None:
        if "G" not in self.kinds:
            return
        settled = (
            self._settle(r"D?(?P<c>C)(?P<p>P?)[MD]?T[La]*(?P<d>C)(?P<q>P?)D?G+", "gradient")
            or self._settle(r"D?B?[LM]?D?G[BLMDa]*(?P<c>C)(?P<p>P?)[MD]*[TAG]*[ML]?a?(?P<d>C)(?P<q>P?)D?", "gradient")
            or self._settle(r"(?P<c>C)(?P<p>P?)[LM]*GD?[TAG]?[La]*(?P<d>C)(?P<q>P?)", "gradient")
            or self._settle(r"D?(?P<c>C)[AM]a?(?P<d>C)D?G", "gradient")
            or self._settle(r"(?P<c>C)D?G", "gradient")
            or self._settle(r"D?G[BLMDa]*(?P<c>C)(?![ZUYC]*[SW])", "gradient")
        )
        if not settled:
            self.unknown.append(next(word.said for word in self.words if word.kind == "G"))

    def _stripes(self) -> None:
        if "V" not in self.kinds or self.ground is not None:
            return
        settled = (
            self._settle(r"D?(?P<c>C)D?VO[La]*(?P<d>C)(?![ZUYC]*[SW])", "stripes")
            or self._settle(r"D?(?P<c>C)(?:[AMT]|Aa)+(?P<d>C)D?V", "stripes")
            or self._settle(r"D?V[BLMDa]*(?P<c>C)(?:[AM]+a?(?P<d>C))(?![ZUYC]*[SW])D?", "stripes")
            or self._settle(r"D?(?P<c>C)D?V", "stripes")
            or self._settle(r"D?V[BLMDa]*(?P<c>C)(?![ZUYC]*[SW])", "stripes")
        )
        if not settled:
            self.unknown.append(next(word.said for word in self.words if word.kind == "V"))

    def _plain(self) -> None:
        none = r"(?![ZUYC]*[SWVG])"
        for pattern in (
            r"(?<!L)(?P<c>C)A(?P<d>C)[ZU]*B",
            r"(?P<c>C)[ZU]*B",
            rf"B[LMQ]*a?(?P<c>C){none}",
            rf"K[LQB]*a?(?P<c>C){none}",
            r"(?P<c>C)HQ?",
            rf"H[QL]+a?(?P<c>C){none}",
            r"(?P<c>C)La?B",
            r"O[aL]*[ZU]*(?P<c>C)A(?P<d>C)(?![ZUYC]*[SWVGB])(?!A|MA)",
            r"O[aL]*[ZU]*(?P<c>C)(?![ZUYC]*[SWVGB])",
        ):
            while self._settle(pattern, "solid"):
                pass

    def _lone_colour(self) -> None:
        """A text of one colour, "plain green", means a picture of it."""
        colours = [word for word in self.words if word.kind == "C"]
        if len(colours) == 1 and "x" not in self.kinds:
            self.ground = Ground("solid", (self._of_ground(colours[0]),))

    # Shapes and words

    def _elements(self) -> None:
        kinds = self.kinds
        heads = [at for at, kind in enumerate(kinds) if kind in "SWx"]
        starts = [self._start(kinds, head, before) for before, head in itertools.pairwise([-1, *heads])]
        groups: list[list[int]] = []
        for start, head in zip(starts, heads, strict=True):
            after = self.words[head + 1 : head + 3]
            apart = "".join(word.kind for word in after) == "LC" and after[0].said.lower() not in _VERBS
            again = [] if apart else self._named_before(self.words[start:head], self.words[head])
            groups.append(again or self._group(self.words[start:head], self.words[head]))
        ends = [0, *(head + 1 for head in heads)]
        for number, (begin, end) in enumerate(zip(ends, [*starts, len(kinds)], strict=True)):
            self._gap(self.words[begin:end], number - 1, groups)

    @staticmethod
    def _start(kinds: str, head: int, before: int) -> int:
        """Where what stands before a head, and belongs to it, begins."""
        at = head
        listed = False  # whether an `and` joins its colours
        while at - 1 > before:
            kind = kinds[at - 1]
            if kind in "CZUYD":
                at -= 1
            elif kind == "a":
                at -= 1
                joined = kinds[:at].endswith(("CA", "CMA")) and "C" in kinds[at:head]
                if not (joined or kinds[:at].endswith("U")):
                    return at
            elif kind in "NJ":
                return at - 1
            elif kind in "AM" and "C" in kinds[at:head] and (kind == "A" or listed) and kinds[at] in "CMAa":
                first = at - 2 if kinds[: at - 1].endswith("C") else at - 3 if kinds[: at - 1].endswith("CM") else -1
                if first <= before or kinds[first] != "C" or kinds[:first].endswith(("L", "g")):
                    return at
                listed = True
                at = first
            else:
                return at
        return at

    def _group(self, before: Sequence[Word], head: Word) -> list[int]:
        """The things that a head and what stands before it name; their numbers."""
        if head.kind == "x":
            return []
        colours = [word for word in before if word.kind == "C"]
        counts = [word.value for word in before if word.kind == "N"]
        joined = bool(re.search("C[AM]+aC", "".join(word.kind for word in before)))  # "a red and a blue star"
        count = counts[-1] if counts else 1
        if not counts and (head.plural or joined):
            count = len(colours) if len(colours) > 1 else SEVERAL
            if len(colours) < 2:
                self.remarks.append(f"how many {head.said} was not said: {SEVERAL} are drawn")
        elif not counts and len(colours) > 1:
            colours = self._one_colour(head.said, colours)
        if not 0 < count <= MOST - len(self.things):
            said = next((word.said for word in before if word.kind == "N"), "")
            others = f", and there are {len(self.things)} already" if self.things and 0 < count <= MOST else ""
            raise CaptionError(f"{said} {head.said}: a picture has 1 to {MOST} things{others}.".strip())
        numbers = []
        for number in range(count):
            thing = self._thing(head, before)
            if colours:
                colour = colours[number % len(colours)]
                thing.colour, thing.called = colour.value, colour.said.lower()
            numbers += self._add(thing)
        return numbers

    def _named_before(self, before: Sequence[Word], head: Word) -> list[int]:
        """The things that "the star", or "the stars", speaks of again; none if it is a new one."""
        if not any(word.said.lower() == "the" for word in before) or any(word.kind in "NJ" for word in before):
            return []
        colours = [word for word in before if word.kind == "C"]
        same = [
            number for number, thing in enumerate(self.things)
            if (thing.shape or thing.word) == head.value and (not colours or thing.colour == colours[0].value)
        ]  # fmt: skip
        if not same or len(colours) > 1:
            return []
        if len(same) > 1 and not head.plural:
            self.remarks.append(f"the {head.said}: it was not clear which, so it is the last that was named")
            same = same[-1:]
        for number in same:
            for word in before:
                self._attribute(self.things[number], word)
        return same

    def _one_colour(self, what: str, colours: Sequence[Word]) -> list[Word]:
        left = few(word.said for word in colours[1:])
        self.remarks.append(f"{what}: a thing has one colour here, {colours[0].said}; {left} is left out")
        return list(colours[:1])

    def _thing(self, head: Word, before: Sequence[Word]) -> Thing:
        thing = Thing(shape=head.value) if head.kind == "S" else Thing(word=head.value)
        if head.near:
            thing.wide = {"rectangle": 1.5, "oblong": 1.6, "oval": 1.4, "ellipse": 1.4}.get(head.near, 1.0)
            self.remarks.append(f"{head.said}: drawn as a {head.value}, the nearest that the world has")
        for word in before:
            self._attribute(thing, word)
        return thing

    def _attribute(self, thing: Thing, word: Word) -> None:
        if word.kind == "Z":
            thing.size = word.value
        elif word.kind == "Y":
            thing.font = word.value
        elif word.kind == "U" and thing.shape:
            thing.outline = thing.shape in OUTLINED
            if not thing.outline and thing.shape != "ring":
                self.remarks.append(f"{thing.shape}: the world has no outlines of it, so it is filled")

    def _add(self, thing: Thing) -> list[int]:
        """Keep a thing; of letters, those that the world has, one thing for each of several words."""
        if thing.shape:
            self.things.append(thing)
            return [len(self.things) - 1]
        numbers = []
        if not thing.word.strip():
            self.remarks.append("there are no letters in the quotation marks")
        for part in thing.word.split():
            letters = "".join(letter for letter in part.upper() if letter.isascii() and letter.isalnum())
            if dropped := sorted(set(part.upper()) - set(letters)):
                self.remarks.append(f"{part}: the world has the letters A to Z and digits, not {' '.join(dropped)}")
            if len(letters) > LEARNED_LETTERS:
                self.remarks.append(
                    f"{letters} has more than {LEARNED_LETTERS} letters, the most that the model learned: it may be"
                    " misspelt"
                )
            if letters:
                self.things.append(Thing(**{**vars(thing), "word": letters}))
                numbers.append(len(self.things) - 1)
        return numbers

    # What stands between two heads

    def _gap(self, gap: Sequence[Word], head: int, groups: list[list[int]]) -> None:
        """What stands after one head and before what belongs to the next; `head` is -1 before the first."""
        kinds = "".join(word.kind for word in gap)
        last = head + 1 >= len(groups)
        group = groups[head] if head >= 0 else []
        gap = self._without_outline_colour(gap, [self.things[number] for number in group])
        kinds = "".join(word.kind for word in gap)
        back: list[Word] = []
        for at, word in enumerate(gap):
            if (word.kind == "N" and word.said.lower() != "one") or word.kind == "K":
                self.unknown.append(word.said)
            elif word.kind == "H":
                self._behind(word, group, [] if last else groups[head + 1])
            elif word.kind == "P":
                pause = head < 0 or bool(re.search("[AME]", kinds[:at]))
                if not last and pause and not re.search("[AME]", kinds[at + 1 :]):
                    self._put([self.things[number] for number in groups[head + 1]], [word])
                else:
                    back.append(word)
            elif word.kind in "ZYU" and not (word.kind == "U" and "g" in kinds[:at]):
                for number in group:
                    self._attribute(self.things[number], word)
        of = re.search("L+a?B", kinds)  # "a heart the colour of the sky"
        if of and any(word.said.lower().endswith(("colour", "color")) for word in gap[of.start() : of.end()]):
            self.unknown.append(gap[of.end() - 1].said)
        self._put([self.things[number] for number in group], back)
        colours = [word for word in gap if word.kind == "C"]
        if colours:
            things = self._uncoloured(group, head, groups, "J" in kinds)
            if head < 0 and not last:  # "white on red: a cross"
                things = [self.things[number] for number in groups[0] if not self.things[number].colour]
            self._colour(colours, things)
        self._relate(gap, kinds, head, groups)

    def _behind(self, word: Word, group: list[int], after: list[int]) -> None:
        """Take up "a circle behind a square": the square lies on the circle."""
        if word.said.lower() not in ("behind", "in back") or not group or not after:
            self.unknown.append(word.said)
            return
        self.relations += [Relation("on", number, (group[0],)) for number in after if number != group[0]]

    def _without_outline_colour(self, gap: Sequence[Word], things: Sequence[Thing]) -> list[Word]:
        """What stands after coloured things, without an outline in another colour, which the world does not have."""
        kinds = "".join(word.kind for word in gap)
        found = re.search(r"C[ZY]*U|U[La]*C", kinds)
        coloured = bool(things) and all(thing.colour for thing in things)
        if found and things and not coloured and re.search("C[AM]+$|C[AM]+a$", kinds[: found.start()]):
            coloured = True  # "a circle, blue, with a white outline"
        if not coloured:
            hollow = things and all(thing.outline for thing in things)
            if hollow and any(word.said.lower().startswith("filled") for word in gap) and "C" in kinds:
                self.remarks.append(f"{things[0].shape}: a hollow thing is not filled; its outline has the colour")
            return list(gap)
        if found is None:
            return list(gap)
        left = " ".join(word.said for word in gap[found.start() : found.end()])
        self.remarks.append(f"{things[0]}: a thing has one colour here; {left} is left out")
        return [*gap[: found.start()], *gap[found.end() :]]

    def _put(self, things: Sequence[Thing], places: Sequence[Word]) -> None:
        """Give things their places: one each where there are as many, otherwise all of them to each."""
        for number, thing in enumerate(things):
            row = column = None
            for place in [places[number]] if len(places) == len(things) > 1 else places:
                down, across = place.value
                if (row is not None and down not in (None, row)) or (
                    column is not None and across not in (None, column)
                ):
                    self.remarks.append(f"{thing}: a thing has one place here; {place.said} is left out")
                    continue
                row = place.value[0] if place.value[0] is not None else row
                column = place.value[1] if place.value[1] is not None else column
            thing.row = row if row is not None else thing.row
            thing.column = column if column is not None else thing.column

    def _uncoloured(self, group: list[int], head: int, groups: list[list[int]], all_of_them: bool) -> list[Thing]:
        """The things that colours after a head are said of: those just before that have none yet."""
        found: list[int] = []
        earlier = [*itertools.chain.from_iterable(groups[: head + 1])] if head >= 0 else []
        for number in reversed(earlier):
            if self.things[number].colour:
                if all_of_them:
                    continue
                break
            found.insert(0, number)
        return [self.things[number] for number in found]

    def _colour(self, colours: Sequence[Word], things: Sequence[Thing]) -> None:
        if not things:
            self.remarks.append(f"{few(word.said for word in colours)}: it was not clear of what this was said")
            return
        if len(things) == 1 and len(colours) > 1:
            colours = self._one_colour(str(things[0]), colours)
        for number, thing in enumerate(things):
            colour = colours[number % len(colours)]
            thing.colour, thing.called = colour.value, colour.said.lower()

    def _relate(self, gap: Sequence[Word], kinds: str, head: int, groups: list[list[int]]) -> None:
        """Take up a relation: `X above Y`, `above Y is X`, `X, above it Y`."""
        at = next((at for at, kind in enumerate(kinds) if kind in "RO"), None)
        if at is None:
            return
        relation = gap[at].value
        ends = head + 1 >= len(groups)
        # "with a star in it", and "with a star inside" before a pause
        alone = relation == "inside" or (relation in ("above", "below") and head > 0)  # "with a star below"
        pronoun = "Q" in kinds[at:] or (alone and (ends or kinds[at + 1 : at + 2] in tuple("MAEg")))
        opens = head < 0 or bool(re.search("[AME]", kinds[:at]))
        closes = bool(re.search("[AME]", kinds[at + 1 :])) or ends
        many = relation == "between" and head + 1 < len(groups) and len(groups[head + 1]) == 1  # two groups are meant
        if pronoun:
            pair = (head, head - 1) if closes or relation == "inside" else (head + 1, head)
        elif relation == "contains":
            relation, pair = "inside", (head + 1, head)
        elif opens and head + 2 + many < len(groups) and relation != "on":
            pair = (head + 2 + many, head + 1)
        else:
            pair = (head, head + 1)
        if not all(0 <= one < len(groups) and groups[one] for one in pair):
            if gap[at].kind == "R" and gap[at].value != "contains":
                self.remarks.append(f"{gap[at].said}: it was not clear of what this was said")
            return
        others = groups[pair[1]]
        if relation == "between":
            others = [*others, *(groups[pair[1] + 1] if len(others) == 1 and pair[1] + 1 < len(groups) else [])]
            if len(set(others)) != 2 or set(others) & set(groups[pair[0]]):
                self.remarks.append("between: it was not clear which two things this was said of")
                return
            self.relations += [Relation(relation, number, tuple(others)) for number in groups[pair[0]]]
            return
        if relation in ("on", "inside") and len(others) > 1:
            self.remarks.append(f"{gap[at].said}: a thing lies on one other here, the first of {len(others)}")
            others = others[:1]
        for number in groups[pair[0]]:
            self.relations += [Relation(relation, number, (other,)) for other in others if other != number]
        if len([kind for kind in kinds if kind == "R"]) > (gap[at].kind == "R"):
            rest = [word.said for word in gap[at + 1 :] if word.kind == "R"]
            self.remarks.append(f"{few(rest)}: it was not clear of what this was said")

    # What was not said

    def _choose(self) -> None:
        refused = {word.value for _, left in self.negated for word in left if word.kind == "C"}
        if self.ground is None:
            light = any(_distance(thing.colour, "white") < 100 for thing in self.things if thing.colour)
            plain = [name for name in (("black", "white") if light else ("white", "black")) if name not in refused]
            self.ground = Ground("solid", (plain[0] if plain else "gray",))
            self.remarks.append(f"no background was named: it is {self.ground.colours[0]}")
        used = {*self.ground.colours, *(thing.colour for thing in self.things)}
        for thing in self.things:
            if not thing.colour:
                thing.colour = next((name for name in _CHOSEN if name not in used | refused), _CHOSEN[0])
                used.add(thing.colour)
                named = thing.shape or f"word {thing.word}"
                self.remarks.append(f"no colour was named for the {named}: it is {thing.colour}")
            elif thing.colour in self.ground.colours and self.ground.kind == "solid":
                self.remarks.append(f"{_the(thing)} has the colour of the background and will hardly be seen")
        for one in self.relations:
            if one.kind in ("on", "inside"):
                self.remarks.append(
                    f"the model learned no things that lie on others: {_the(self.things[one.thing])} may be missing"
                )
        places = boxes(self.things, self.relations, 1.0)
        for one in self.relations:
            if one.kind == "beside":
                self.remarks.append(self._beside(one, places))
            if not kept(one, places):
                others = " and ".join(str(self.things[other]) for other in one.others)
                phrase = _PHRASES.get(one.kind, one.kind)
                self.remarks.append(f"not drawn so: {self.things[one.thing]} {phrase} {others}")
        if len(self.things) > LEARNED_ELEMENTS:
            self.remarks.append(
                f"the model learned pictures of up to {LEARNED_ELEMENTS} things: some of {len(self.things)} may be"
                " missing"
            )

    def _beside(self, one: Relation, places: Sequence[Box]) -> str:
        """On which side a thing lies that is to be beside another, which was not said."""
        own, other = places[one.thing], places[one.others[0]]
        across = own[3] <= other[1] or other[3] <= own[1]
        side = ("left" if own[1] < other[1] else "right") if across else ("above" if own[0] < other[0] else "below")
        thing, another = self.things[one.thing], self.things[one.others[0]]
        return f"on which side was not said: {_the(thing)} is {_PHRASES.get(side, side)} {_the(another)}"

    def _nothing(self) -> str:
        said = _not_understood(self.unknown) + self.remarks[:_MOST_NOTES]
        first = " ".join(f"{one}." for one in said) or "There is no shape in it."
        return f"{first} {_KNOWN}"


def _before_a_head(kinds: str) -> list[bool]:
    """Whether at each place, and at the end, there begin unknown words and attributes that lead up to a head."""
    unknown, plain = [False], [False]
    for kind in reversed(kinds):
        plain.append(kind in "SWBVG" or (kind in "CZUYD" and plain[-1]))
        unknown.append(plain[-1] or (kind == "u" and unknown[-1]))
    return unknown[::-1]


def _not_understood(words: Iterable[str]) -> list[str]:
    """What to say of words that were not understood: each by itself, and those beyond a few together."""
    listed = list(dict.fromkeys(words))
    said = []
    for word in listed[:_MOST_UNKNOWN]:
        guess = nearest(word)
        hint = f" (did you mean {guess}?)" if guess and guess != word.lower() else ""
        said.append(f"not understood: {few([word])}{hint}")
    if len(listed) > _MOST_UNKNOWN:
        said.append(f"not understood: {len(listed) - _MOST_UNKNOWN} more words")
    return said


def _distance(one: str, other: str) -> float:
    """How different two colours look, by the redmean approximation."""
    (r, g, b), (x, y, z) = rgb(one), rgb(other)
    mean = (r + x) / 2
    squares = (2 + mean / 256) * (r - x) ** 2 + 4 * (g - y) ** 2 + (2 + (255 - mean) / 256) * (b - z) ** 2
    return float(squares**0.5)


def _element(thing: Thing, box: tuple[int, int, int, int]) -> dict[str, object]:
    """A thing as an element of a caption, in wordings that the model was trained on."""
    element: dict[str, object] = {"type": "text" if thing.word else "obj", "bbox": list(box)}
    if thing.word:
        element["text"] = thing.word
        element["desc"] = f"{thing.font} letters" if thing.exact else f"{thing.colour} {thing.font} letters"
    elif thing.outline:
        element["desc"] = f"hollow {thing.shape}" if thing.exact else f"a hollow {thing.colour} {thing.shape}"
    else:
        element["desc"] = _article(thing.shape if thing.exact else f"{thing.colour} {thing.shape}")
    if thing.exact:
        element["color_palette"] = [thing.colour]
    return element


def _the(thing: Thing) -> str:
    return str(thing) if thing.word else f"the {thing}"


def _named(thing: Thing) -> str:
    if thing.word:
        return f'the word "{thing.word}"'
    kind = f"{thing.shape} outline" if thing.outline else thing.shape
    return _article(kind if thing.exact else f"{thing.colour} {kind}")


def _summed(ground: Ground) -> str:
    colours = " and ".join(ground.colours)
    return {"solid": colours, "gradient": f"{_article(colours)} gradient"}.get(ground.kind, f"{colours} stripes")


def _article(phrase: str) -> str:
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"
