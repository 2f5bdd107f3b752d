"""What `ideoflow generate` is asked for: pictures, the settings that they share, and the names of their files."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bundled import SKETCH
from ..pictures import FORMATS

PLACEHOLDERS = ("name", "seed", "index", "width", "height")
SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}  # of the values of --format
LARGEST = {"WEBP": 16383, "JPEG": 65500}  # pixels of a side that a format holds


@dataclass(frozen=True)
class Lora:
    """An adapter file or folder and how strongly it acts."""

    path: str
    scale: float = 1.0


@dataclass(frozen=True)
class Settings:
    """What the pictures of one pipeline call share.

    Attributes:
        model: `sketch` (the bundled model), a folder in the `diffusers` layout, a hub id, or a transformer's file.
        loras: Adapters, applied together.
        dtype: `float32`, `bfloat16` or `float16`.
        device: A torch device.
        preset: Name of the preset.
        steps: Denoising steps instead of the preset's.
        guidance: One guidance scale for all steps instead of the preset's.
        quantize: `fp8` or `int8`: linear layers of the transformers' blocks in one byte a weight.
        cache: Steps that are not computed, in words.
        base: Model that everything beside the transformer comes from, where `model` is a file.
    """

    model: str
    loras: tuple[Lora, ...]
    dtype: str
    device: str
    preset: str
    steps: int | None = None
    guidance: float | None = None
    quantize: str | None = None
    base: str | None = None
    cache: str | None = None

    @property
    def of_sketch(self) -> bool:
        """Whether the bundled model draws them."""
        return SKETCH in (self.model, self.base)


@dataclass(frozen=True)
class Picture:
    """One picture to make.

    Attributes:
        caption: As the model reads it.
        width: Pixels.
        height: Pixels.
        seed: Of its noise.
        name: Its file's stem.
        words: Plain text of which the model is to write the caption; empty for the one that is there.
    """

    caption: str
    width: int
    height: int
    seed: int
    name: str
    words: str = ""


@dataclass(frozen=True)
class Job:
    """One picture to make, how, and the settings in the picture that it is made from again, if it is."""

    picture: Picture
    settings: Settings
    recipe: dict[str, Any]


def slug(text: str, length: int = 48) -> str:
    """A file's stem from free text: lower case, words joined by hyphens; `picture` when nothing is left."""
    words = re.findall(r"[^\W_]+", text.lower())
    return "-".join(words)[:length].strip("-") or "picture"


def target(out: str, picture: Picture, index: int, count: int, form: str | None = None) -> Path:
    """Where picture number `index` of `count` goes.

    Args:
        out: A file (`.png`, `.jpg`, `.webp`), a folder, or either with placeholders such as `{seed}`.
        picture: The picture.
        index: Its place in the whole command, from 0.
        count: How many pictures the command makes.
        form: A key of `SUFFIXES`; None for what `out` says, or PNG.

    Raises:
        ValueError: if `out` has an unknown placeholder or another file type, or the format does not hold the picture.
    """
    values = {
        "name": picture.name,
        "seed": picture.seed,
        "index": index,
        "width": picture.width,
        "height": picture.height,
    }
    try:
        path = Path(out.format(**values)).expanduser()
    except RuntimeError:
        raise ValueError(f"--out {out!r}: there is no such user's home folder.") from None
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        raise ValueError(
            f"--out {out!r} has an unknown placeholder: use {', '.join('{' + p + '}' for p in PLACEHOLDERS)}."
        ) from None
    kind = FORMATS.get(path.suffix.lower())
    if kind is not None and not path.is_dir() and not out.endswith(("/", os.sep)):
        if form is not None and kind != FORMATS[SUFFIXES[form]]:
            raise ValueError(f"--out {out!r} and --format {form} are two file types: leave one of them out.")
        varies = any("{" + key in out for key in ("seed", "index"))
        path = path if count == 1 or varies else path.with_stem(f"{path.stem}-{index}")
    elif path.suffix and not path.is_dir() and not out.endswith(("/", os.sep)):
        raise ValueError(
            f"--out {out!r}: pictures are PNG, JPEG and WebP files; name a {', '.join(FORMATS)} file, or a folder (end"
            " it with '/')."
        )
    else:
        path = path / f"{picture.name}-{picture.seed}{SUFFIXES[form or 'png']}"
    most = LARGEST.get(FORMATS[path.suffix.lower()])
    if most is not None and max(picture.width, picture.height) > most:
        raise ValueError(f"--out {out!r}: a {path.suffix} file has at most {most} pixels a side; write a PNG.")
    return path
