"""What was found in a source: the examples that can be trained on, and what is to be said about everything else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from ..checks import printable
from .image_reading import read

CAPTION_COLUMNS = ("text", "caption", "prompt", "description")  # of a dataset or a list, the first that there is
NAMED = 3  # examples that one line names


@dataclass(frozen=True)
class Example:
    """One picture with its caption.

    Attributes:
        name: path within the source, or row.
        caption: the line that the text encoder reads.
        size: (width, height) in pixels after resizing, multiples of 16.
        digest: sha256 of the image file's bytes.
        options: how it is read: `pixels`, `crop`, `convert`.
    """

    name: str
    caption: str
    size: tuple[int, int]
    digest: str
    options: dict[str, Any]
    _read: Callable[[], bytes] = field(repr=False, compare=False)

    def open(self) -> Image.Image:
        """The picture, RGB, of `size`.

        Raises:
            ValueError: if it is not what it was when it was looked at.
        """
        try:
            image = read(self._read(), **self.options)
            if image.size != self.size:
                raise ValueError(f"has {image.size[0]} x {image.size[1]} pixels")
        except (ValueError, OSError) as error:
            raise ValueError(f"{self.name} has changed since it was looked at: it {error}") from None
        return image


@dataclass(frozen=True)
class Remark:
    """What is to be said about one file or example: why it is left out, or what was done to its caption."""

    name: str
    text: str


@dataclass(frozen=True)
class Found:
    """A picture that was found, before it is looked at.

    Attributes:
        name: name of the example.
        read: gives the bytes of its file.
        caption: gives its caption, a string or the data of one, and remarks on where it is from.
    """

    name: str
    read: Callable[[], bytes]
    caption: Callable[[], tuple[Any, list[str]]]


class UnusableError(ValueError):
    """Why an example cannot be used."""


@dataclass
class Survey:
    """What was found in a source.

    Attributes:
        source: the folder or dataset that was looked at.
        examples: examples that can be trained on, in the order of their names.
        held_out: examples that the loss is only measured on.
        skipped: pictures that cannot be trained on, and why.
        ignored: files that are no pictures and not read.
        notes: captions that were repaired, or that keep breaches of the schema.
    """

    source: str
    examples: list[Example] = field(default_factory=list)
    held_out: list[Example] = field(default_factory=list)
    skipped: list[Remark] = field(default_factory=list)
    ignored: list[Remark] = field(default_factory=list)
    notes: list[Remark] = field(default_factory=list)

    def report(self) -> str:
        """For people: how many examples there are, and one line for everything that is skipped or noteworthy."""
        held = f", {len(self.held_out)} held out" if self.held_out else ""
        lines = [f"{self.source}: {_count(len(self.examples), 'example')}{held}, {len(self.skipped)} skipped"]
        lines += [f"skipped {remark.name}: {remark.text}" for remark in self.skipped]
        lines += [f"ignored {_names(names, 'file')}: {text}" for text, names in _together(self.ignored)]
        lines += [f"note on {_names(names, 'example')}: {text}" for text, names in _together(self.notes)]
        return "\n".join(map(printable, lines))

    def skip(self, why: Callable[[Example], str | None]) -> None:
        """Leave out the examples that something is said against."""
        verdicts = [(example, why(example)) for example in self.examples]
        self.examples = [example for example, against in verdicts if against is None]
        self.skipped += [Remark(example.name, against) for example, against in verdicts if against is not None]
        self.sort()

    def hold_out(self, share: float) -> None:
        """Hold a share of the pictures out, at least one of two: the same ones in every run, whatever their names are.

        Several examples with the same picture stay together.
        """
        digests = sorted({example.digest for example in self.examples})  # as good as drawn by lot
        chosen = {*digests[: min(max(1, round(share * len(digests))), len(digests) - 1)]}
        self.held_out = [example for example in self.examples if example.digest in chosen]
        self.examples = [example for example in self.examples if example.digest not in chosen]

    def hold_out_all(self, other: Survey) -> None:
        """Hold out what another source has, and say where a picture of it is trained on as well."""
        self.held_out = other.examples
        for mine, theirs in ((self.skipped, other.skipped), (self.ignored, other.ignored), (self.notes, other.notes)):
            mine += [Remark(f"{other.source}/{remark.name}", remark.text) for remark in theirs]
        digests = {example.digest for example in self.examples}
        self.notes += [
            Remark(f"{other.source}/{example.name}", "it is held out, but the same picture is trained on.")
            for example in other.examples
            if example.digest in digests
        ]

    def sort(self) -> None:
        """Put everything into the order of the names."""
        self.examples.sort(key=lambda example: example.name)
        for remarks in (self.skipped, self.ignored, self.notes):
            remarks.sort(key=lambda remark: remark.name)


def _together(remarks: list[Remark]) -> list[tuple[str, list[str]]]:
    """Names by what is said about them."""
    together: dict[str, list[str]] = {}
    for remark in remarks:
        together.setdefault(remark.text, []).append(remark.name)
    return list(together.items())


def _names(names: list[str], what: str) -> str:
    if len(names) == 1:
        return names[0]
    return f"{len(names)} {what}s ({', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''})"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
