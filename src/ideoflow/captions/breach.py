"""What can be said against a caption: one breach of the schema, the error that lists them, and the warning."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Breach:
    """One place where a caption leaves the schema, or its text leaves JSON.

    Attributes:
        path: Where, like `compositional_deconstruction.elements[2].bbox`; empty for the caption itself.
        message: What stands there, and what is allowed.
        fix: What to do about it.
        certain: Whether `repair` does it: nothing but the one fix can have been meant.
        done: What `repair` did, in the past tense; empty where it leaves the place alone.
    """

    path: str
    message: str
    fix: str
    certain: bool = False
    done: str = ""

    def __str__(self) -> str:
        return f"{self.path or 'the caption'}: {self.message}; {self.fix}"

    @property
    def mended(self) -> str:
        """What `repair` did and where, for people."""
        return f"{self.path or 'the caption'}: {self.done or self.fix}"


class CaptionError(ValueError):
    """A caption that cannot be read, or that was to be strict and breaks the schema.

    Attributes:
        breaches: Every breach of the schema; empty when the caption could not be read at all.
    """

    def __init__(self, message: str, breaches: list[Breach] | None = None) -> None:
        super().__init__(message)
        self.breaches = breaches or []


class CaptionWarning(UserWarning):
    """A prompt that the model will take, but that is unlike what it was trained on."""
