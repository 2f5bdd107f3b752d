"""The error of a checkpoint that cannot be read, and what every file goes through before a tensor is taken from it."""

from __future__ import annotations

from pathlib import Path

from ..checks import printable

LONGEST = 120  # characters of a name that are shown
PICKLES = {b"PK\x03\x04": "a zip archive, as torch.save writes"} | {
    bytes((0x80, protocol)): "a pickle" for protocol in range(2, 6)
}


class CheckpointError(ValueError):
    """A checkpoint that cannot be read: the message names the file, the tensor where there is one, and what to do."""


class ConfigNeededError(CheckpointError):
    """Weights whose shapes alone do not tell the model's configuration."""


class MissingFileError(CheckpointError, OSError):
    """A folder without the file that was looked for: an OSError as well, which programs written for diffusers await."""


def refuse_pickle(path: Path, head: bytes) -> None:
    """Raise for files that only unpickling could read, which may run any code: it is never done here.

    Args:
        path: Of the file.
        head: Its first bytes, nine or more. The first eight of a safetensors file are the length of its header, which
            may look like anything; the ninth is a brace.
    """
    if head[8:9] == b"{":
        return
    for magic, what in PICKLES.items():
        if head.startswith(magic):
            raise CheckpointError(
                f"{path} is {what}: such files can run code when they are opened, so they never are. Convert it to"
                " safetensors with a program that you trust it with."
            )


def some(names: list[str] | tuple[str, ...], most: int = 6) -> str:
    """The first few of `names`, as they may stand on one line of a terminal, and how many more there are."""
    more = len(names) - most
    short = [printable(name if len(name) <= LONGEST else f"{name[:LONGEST]}...") for name in names[:most]]
    return ", ".join(short) + (f" and {more} more" if more > 0 else "")
