"""What a person may give as a prompt: files, folders, JSON, plain text, standard input, or a picture to make again."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..pictures import FORMATS, read_settings
from .jobs import slug

if TYPE_CHECKING:
    from ..captions.reading import Found

CAPTIONS = (".json", ".txt", ".caption", ".jsonl")  # in the order in which a folder's are read


@dataclass(frozen=True)
class Prompt:
    """A prompt as read.

    Attributes:
        text: The characters that the model reads.
        name: Stem for file names.
        given: What to call it in messages: its file, or its name.
        mended: What was repaired in the caption, in words.
        breaches: What breaks the caption schema, in words.
        words: The words, if it is plain text, wrapped or not; empty for a caption.
        placed: Whether every element of the caption has a box.
        recipe: The settings in a picture, if it is one.
    """

    text: str
    name: str
    given: str
    mended: tuple[str, ...] = ()
    breaches: tuple[str, ...] = ()
    words: str = ""
    placed: bool = True
    recipe: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reader:
    """How prompts are read.

    Attributes:
        wrap: Whether plain text is put into a minimal JSON caption.
        fix: Whether what is certain is repaired.
        drop_unknown: Whether keys that are not the schema's are left out.
    """

    wrap: bool = True
    fix: bool = True
    drop_unknown: bool = False

    def read(self, value: str) -> list[Prompt]:
        """The prompts that one argument of the command line gives: one, but for a folder or a file of several.

        Args:
            value: The path of a caption, of a .jsonl file with one a line, of a folder of captions or of a picture made
                by ideoflow; `-` for standard input, a JSON caption, or plain text.

        Raises:
            ValueError: if it is empty, no valid caption, a file of a kind that is not read, or like the path of a file
                that is not there.
            OSError: if a file cannot be read.
        """
        from ..captions.paths import existing, looks_like_path, missing

        if value == "-":
            return [self._of_text(sys.stdin.read(), "standard input", "picture")]
        if value.lstrip().startswith("{"):
            return [self._of_text(value, "the prompt", None)]
        if path := existing(value):
            return list(self._of_path(path))
        if looks_like_path(value) or _lacks_its_ending(value):
            raise ValueError(missing(value))
        return [self._of_text(value, "the prompt", None)]

    def _of_path(self, path: Path) -> Iterator[Prompt]:
        from ..captions.reading import read_file

        kind = path.suffix.lower()
        if path.is_dir():
            files = [file for ending in CAPTIONS for file in sorted(path.glob(f"*{ending}")) if file.name[0] != "."]
            if not files:
                raise ValueError(f"{path} is a folder without captions: it has no {', '.join(CAPTIONS)} files.")
            for file in files:
                if not file.is_file():  # a pipe would be waited for without end
                    raise ValueError(f"{file} has a caption's name and is no file: rename it, or take it away.")
                yield from self._of_path(file)
        elif kind in FORMATS:
            recipe = read_settings(path)
            yield Prompt(recipe["caption"], path.stem, str(path), recipe=recipe)
        elif kind == ".jsonl":
            yield from self._of_lines(path, read_file(path))
        elif kind in CAPTIONS or not path.is_file():  # or a pipe
            yield self._of_text(read_file(path), str(path), path.stem, words=kind != ".json")
        else:
            raise ValueError(f"{path} is no caption: give a {', '.join(CAPTIONS)} file, a folder or a picture.")

    def _of_lines(self, path: Path, text: str) -> Iterator[Prompt]:
        # Not splitlines: a caption's text may hold other line ends, such as U+2028, which JSON leaves unescaped.
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        if not lines:
            raise ValueError(f"{path} is empty: give one caption a line.")
        for number, line in lines:
            yield self._of_text(line, f"{path}:{number}", f"{path.stem}-{number}", words=False)

    def _of_text(self, text: str, source: str, name: str | None, words: bool = True) -> Prompt:
        """A prompt from a text; `name` is its stem, taken from the text when None; `words`: whether it may be plain."""
        from ..captions import Caption
        from ..captions.reading import find

        text = text.strip("\ufeff \t\r\n")
        if not text:
            raise ValueError(f"{source} is empty: give a caption.")
        if found := find(text, source):
            return self._of_caption(found, source, name)
        if not words:
            raise ValueError(f"{source} is no JSON but the plain text {text[:40]!r}, which belongs into a .txt file.")
        named = partial(Prompt, name=name or slug(text), given=(name and source) or slug(text), words=text)
        if self.wrap:
            return named(Caption.from_text(text).line())
        return named(text, breaches=("it is plain text, but the models were trained on JSON captions",))

    def _of_caption(self, found: Found, source: str, name: str | None) -> Prompt:
        from ..captions import Caption
        from ..captions.reading import Found
        from ..captions.schema import is_placed

        if self.fix:
            caption, done = Caption.of_found(found).mended(drop_unknown=self.drop_unknown)
        else:
            caption, done = Caption.of_found(Found(found.data)), found.slips  # which reading alone mends
        if not caption.is_one():
            raise ValueError(f"{source} is no caption: it has none of {', '.join(Caption.model_fields)}.")
        breaches = tuple(f"{breach} (--fix does it)" if breach.certain else str(breach) for breach in caption.check())
        summary = caption.high_level_description
        short = slug(summary if isinstance(summary, str) else "")
        return Prompt(
            caption.line(),
            name or short,
            source if name else short,
            tuple(breach.mended for breach in done),
            breaches,
            placed=is_placed(caption.data()),
        )


def _lacks_its_ending(value: str) -> bool:
    """Whether a single word is the name of a caption file but for its ending."""
    word = value.strip()
    try:
        return len(word.split()) == 1 and any(Path(word + ending).is_file() for ending in CAPTIONS)
    except (OSError, ValueError):
        return False
