"""The errors of checkpoints that cannot be read, and what files go through first: no pickles, no endless JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..checks import printable

LONGEST = 120  # characters of a name that are shown
PICKLES = {b"PK\x03\x04": "a zip archive, as torch.save writes"} | {
    bytes((0x80, protocol)): "a pickle" for protocol in range(2, 6)
}


class CheckpointError(ValueError):
    """A checkpoint that cannot be read: the message names the file, the tensor where there is one, and what to do."""


class UnknownSettingsError(CheckpointError, TypeError):
    """Settings of an adapter that the peft which is installed does not know."""


class ConfigNeededError(CheckpointError):
    """Weights whose shapes alone do not tell the model's configuration."""


class MissingFileError(CheckpointError, OSError):
    """A folder without the file that was looked for: an OSError as well, which programs written for diffusers await."""


def refuse_pickle(path: Path, head: bytes) -> None:
    """Raise for files that only unpickling could read, which may run any code: it is never done here.

    Args:
        path: the file.
        head: its first bytes, nine or more. The first eight of a safetensors file are the length of its header, which
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


def read_object(path: Path, most: int = 2**20) -> dict[str, Any]:
    """A configuration in a JSON file, read as by `read_json`.

    Raises:
        CheckpointError: a file that cannot be read, or that is no JSON object.
    """
    found = read_json(path, most)
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no configuration: it must be a JSON object.")
    return found


# What stands in a folder's configurations while weights of another save take the places of those before them. It is no
# JSON, so that no reader opens a folder whose weights are of two saves.
UNFINISHED = "Saving into this folder was cut short: its weights may be of two models. Save the model into it again.\n"


def read_json(path: Path, most: int = 2**20) -> Any:
    """What a JSON file of at most so many bytes holds.

    Raises:
        CheckpointError: a file that is not there, too large, or not JSON.
    """
    try:
        if not path.is_file() or path.stat().st_size > most:
            raise CheckpointError(f"{path} is no file of at most {most} bytes, as its kind are.")
        text = path.read_text(encoding="utf-8")
        if text == UNFINISHED:
            raise CheckpointError(f"{path}: {UNFINISHED.strip()}")
        return json.loads(text)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from error


def unusable_quantization(folder: Path, error: Exception) -> CheckpointError:
    """What to raise where a library cannot make anything of what a folder's configuration says of quantization."""
    return CheckpointError(
        f"{folder / 'config.json'}: its `quantization_config` cannot be used ({type(error).__name__}: {error})."
    )
