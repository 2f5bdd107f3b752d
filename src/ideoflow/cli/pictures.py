"""Picture files: the settings that a PNG carries so that it can be made again, their names, and writing them whole.

The settings are JSON under the key `ideoflow` in an iTXt chunk, which is UTF-8 and which image tools leave alone.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..images import ImageError, open_image, plain_errors

if TYPE_CHECKING:
    from PIL.Image import Image

KEY = "ideoflow"
PLACEHOLDERS = ("name", "seed", "index", "width", "height")
DTYPES = ("float32", "bfloat16", "float16")
QUANTIZED = ("fp8", "int8")

# What a PNG's settings hold, and whether they must: anyone can write into a PNG.
_KINDS: dict[str, tuple[Any, bool]] = {
    "caption": (str, True),
    "seed": (int, True),
    "width": (int, True),
    "height": (int, True),
    "model": (str, True),
    "loras": (list, True),
    "dtype": (str, True),
    "device": (str, True),
    "preset": (str, True),
    "steps": (int, False),
    "guidance": ((int, float), False),
    "together": (int, False),
    "quantize": (str, False),
    "base": (str, False),
    "torch": (str, False),
}


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


@dataclass(frozen=True)
class Picture:
    """One picture to make: its caption as the model reads it, its size in pixels, its seed and its file's stem."""

    caption: str
    width: int
    height: int
    seed: int
    name: str


def to_metadata(picture: Picture, settings: Settings, together: int) -> str:
    """The JSON that a PNG carries; `together` counts the pictures of the call that drew it."""
    import torch

    from .. import __version__

    return json.dumps(
        {
            "caption": picture.caption,
            "seed": picture.seed,
            "width": picture.width,
            "height": picture.height,
            **asdict(settings),
            "together": together,
            "ideoflow": __version__,
            "torch": torch.__version__,
        },
        ensure_ascii=False,
    )


def from_metadata(path: Path) -> dict[str, Any]:
    """The settings that a PNG carries.

    Raises:
        ValueError: if the file is no PNG written by ideoflow.
        OSError: if it cannot be read.
    """
    try:
        with plain_errors():
            image = open_image(path)
            image.load()  # text chunks may follow the pixels
            text = getattr(image, "text", {}).get(KEY)
    except ImageError as error:
        raise ValueError(f"{path} {error}") from None
    if text is None:
        raise ValueError(
            f"{path} carries no ideoflow settings: it was made by another program, saved from Python or made with "
            "--no-metadata."
        )
    try:
        found = json.loads(text)
        for key, (kind, needed) in _KINDS.items():
            value = found[key] if needed else found.get(key)
            if (value is not None or needed) and (not isinstance(value, kind) or isinstance(value, bool)):
                raise TypeError(f"{key} is {value!r}")
        found["loras"] = tuple(Lora(**lora) for lora in found["loras"])
        if not all(isinstance(lora.path, str) and isinstance(lora.scale, int | float) for lora in found["loras"]):
            raise TypeError("a LoRA adapter has no path or no scale")
        if found["dtype"] not in DTYPES:
            raise ValueError(f"dtype is {found['dtype']!r}")
        if found.get("quantize") not in (None, *QUANTIZED):
            raise ValueError(f"quantize is {found['quantize']!r}")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} carries ideoflow settings that cannot be read ({error!r}).") from None
    return found


def slug(text: str, length: int = 48) -> str:
    """A file's stem from free text: lower case, words joined by hyphens; `picture` when nothing is left."""
    words = re.findall(r"[^\W_]+", text.lower())
    return "-".join(words)[:length].strip("-") or "picture"


def target(out: str, picture: Picture, index: int, count: int) -> Path:
    """Where picture number `index` of `count` goes.

    Args:
        out: A file (`.png`), a folder, or either with placeholders such as `{seed}`.
        picture: The picture.
        index: Its place in the whole command, from 0.
        count: How many pictures the command makes.

    Raises:
        ValueError: if `out` has an unknown placeholder or another file type.
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
    if path.suffix.lower() == ".png":
        varies = any("{" + key in out for key in ("seed", "index"))
        return path if count == 1 or varies else path.with_stem(f"{path.stem}-{index}")
    if path.suffix and not path.is_dir() and not out.endswith(("/", os.sep)):
        raise ValueError(f"--out {out!r}: pictures are PNG files; name a .png file, or a folder (end it with '/').")
    return path / f"{picture.name}-{picture.seed}.png"


def save(image: Image, path: Path, metadata: str | None, overwrite: bool) -> Path:
    """Write a PNG whole or not at all.

    The bytes go to a hidden file beside the target, which then takes the target's name in one move. Without
    `overwrite` an existing file is kept and the picture goes to the first free `name-1.png`, `name-2.png`, ...

    Returns:
        The path that was written.
    """
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if metadata is not None:
        info.add_itxt(KEY, metadata, lang="", tkey="")
    encoded = BytesIO()
    image.save(encoded, format="PNG", pnginfo=info)

    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".tmp")
    leftovers = [Path(temporary)]
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(encoded.getvalue())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's files are for their owner alone
        if not overwrite:
            path = _claim(path)
            leftovers.append(path)
        os.replace(temporary, path)
    except BaseException:
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)
        raise
    return path


def _claim(path: Path) -> Path:
    """Create the first free file among `path`, `path-1`, ... empty, so that no other process takes the same name."""
    number, free = 0, path
    while True:
        try:
            free.touch(exist_ok=False)
            return free
        except FileExistsError:
            number += 1
            free = path.with_stem(f"{path.stem}-{number}")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
