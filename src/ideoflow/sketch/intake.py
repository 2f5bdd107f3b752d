"""What comes before the grammar: texts that are no words are refused, and letters to be written are found."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import replace

from ..captions import CaptionError
from ..captions.paths import looks_like_path
from ..captions.reading import find
from ..captions.schema import TOP_KEYS
from .lexicon import Word

MOST_CHARACTERS = 20_000
_AFTER = ("written", "letters", "lettering", "text", "spelled", "spelt")  # which may come after what is written
_NAMED = 8  # names that a note repeats
_LONGEST_NAME = 40
_KEYS = re.compile(rf"\b(?:{'|'.join((*TOP_KEYS, 'bbox', 'color_palette'))})\b\W{{0,3}}:")
_OPENED = re.compile(r"\s*(?:\{|\[\s*[\[{\"])")


def check_text(text: str) -> None:
    """Refuse what is no plain words.

    Raises:
        CaptionError: if the text is too long, a file's name, a caption, or like a damaged one.
    """
    if len(text) > MOST_CHARACTERS:
        raise CaptionError(f"the words have {len(text)} characters: at most {MOST_CHARACTERS} are read.")
    if looks_like_path(text):
        raise CaptionError(
            f"{text.strip()[:80]!r} is the name of a file, not words: give the words, or draw the caption in the file."
        )
    try:
        found = find(text, "the text")
    except CaptionError as error:
        raise CaptionError(f"the text looks like a caption that cannot be read, not like words: {error}") from None
    if found is not None:
        raise CaptionError("this is a caption or other JSON already, not words: it needs no writing.")
    if _OPENED.match(text) or _KEYS.search(text):
        raise CaptionError(
            "the text looks like a damaged caption or other JSON, not like words: mend it"
            " (`ideoflow caption check` says where), or give words alone."
        )


def few(names: Iterable[str]) -> str:
    """Some names, short, and how many more there are."""
    listed = [name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..." for name in dict.fromkeys(names)]
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + more


def with_letters(words: list[Word], text: str) -> tuple[list[Word], list[str]]:
    """The words with those after `the word`, `saying` and the like as letters to be written; nouns of letters go."""
    loud = text.isupper()
    found: list[Word] = []
    without: list[str] = []
    at = 0
    while at < len(words):
        word = words[at]
        if word.kind == "L" and word.said.lower().startswith("written") and found and _shouted(found[-1], loud):
            found[-1] = Word("W", found[-1].said, found[-1].said)  # "LOVE written in white"
        if word.kind != "t":
            found.append(word)
            at += 1
            continue
        after = at + 1
        while after < len(words) and (words[after].kind in "tF" or words[after].said == ":"):
            after += 1
        if after < len(words) and words[after].kind == "W":
            at = after
            continue
        letters = after
        while letters < len(words) and _are_letters(words[letters], loud, letters == after, words[after - 1].said):
            found.append(Word("W", words[letters].said, words[letters].said))
            letters += 1
        if letters == after and found and word.said.lower() in _AFTER and _shouted(found[-1], loud):
            found[-1] = Word("W", found[-1].said, found[-1].said)  # "LOVE lettering"
        elif letters == after:
            without += [noun.said for noun in words[at:after] if noun.kind == "t"]
            found += [other for other in words[at:after] if other.kind != "t"]
        at = letters
    if any(word.kind == "W" for word in found):
        without = []
    return found, without


def _shouted(word: Word, loud: bool) -> bool:
    return word.kind == "u" and word.said.isalnum() and word.said.isupper() and not loud


def _are_letters(word: Word, loud: bool, first: bool, after: str) -> bool:
    if not word.said.isalnum():
        return False
    if word.kind == "N":
        return first and word.said.isdecimal()
    if loud:
        return first and word.kind in "uXS"
    if word.said.isupper():
        return True
    return first and (word.kind in "uX" or (after.lower() == "letter" and len(word.said) == 1))


def with_pronouns(words: list[Word]) -> list[Word]:
    """The words with "a blue one" as a blue thing of the shape that was named last, and "in it" as inside it."""
    for at, (link, pronoun) in enumerate(itertools.pairwise(words)):
        if link.said.lower() in ("in", "on") and pronoun.kind == "Q" and link.kind == "L":
            words[at] = Word("R", "inside", link.said)
    kinds = "".join(word.kind for word in words)
    for one in re.finditer(r"a[CZUY]+(N)(?![CZUYSW])", kinds):
        at = one.start(1)
        shape = next((word for word in reversed(words[:at]) if word.kind == "S"), None)
        if shape is not None and words[at].said.lower() == "one":
            words[at] = replace(shape, plural=False)
    return words
