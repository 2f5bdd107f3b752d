"""Pictures and captions in columns of a `datasets` dataset."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..files import read_regular
from .image_reading import MOST_BYTES
from .survey import CAPTION_COLUMNS, Found, UnusableError


def check_source(source: str, option: str) -> None:
    """See that there is a folder of this name, or that it may be the name of a dataset on the hub.

    Raises:
        ValueError: a file, what is written like a path and is not there, or what is nearly the name of a folder.
    """
    place = Path(source).expanduser()
    if place.is_dir():
        return
    if place.exists():
        raise ValueError(f"`{option}` {source} is a file: name the folder of the pictures.")
    folders = [one for one in place.parent.iterdir() if one.is_dir()] if place.parent.is_dir() else []
    likeness = 0.75 if place.name == source else 0.9  # datasets may have names near those of folders: v1 and v2
    near = get_close_matches(place.name, [one.name for one in folders], 1, likeness)
    if near or source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source:
        meant = f" Did you mean {place.with_name(near[0])}?" if near else ""
        raise ValueError(f"`{option}` {source}: there is no such folder.{meant}")


def found_in_table(source: Any, image_column: str, caption_column: str | None, option: str = "data") -> list[Found]:
    """The rows of a dataset, a folder that one was saved to, or one on the hub (its split `train`).

    Raises:
        ValueError: a source that is none of these, or columns that it does not have.
    """
    if isinstance(source, str | os.PathLike):
        check_source(str(source), option)
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"`{option}` {source}: there is no such folder, and for a dataset `pip install datasets` is needed."
        ) from None
    if isinstance(source, str | os.PathLike):
        try:
            saved = Path(source).is_dir()
            source = (
                datasets.load_from_disk(str(source)) if saved else datasets.load_dataset(str(source), split="train")
            )
        except Exception as error:
            raise ValueError(f"`{option}` {source}: no such folder, and no dataset can be loaded ({error}).") from None
    if isinstance(source, dict):
        source = source["train"] if "train" in source else next(iter(source.values()))
    columns = source.column_names
    chosen = caption_column or next((c for c in CAPTION_COLUMNS if c in columns), None)
    for name, wanted in (("image_column", image_column), ("caption_column", chosen)):
        if wanted not in columns:
            raise ValueError(f"`{name}` is {wanted!r}; the dataset has the columns {', '.join(columns)}.")
    rows = source.cast_column(image_column, datasets.Image(decode=False))
    digits = len(str(len(rows)))

    def found(index: int) -> Found:
        def data() -> bytes:
            cell = rows[index][image_column]
            if cell is None:
                raise UnusableError("has no image.")
            return cell["bytes"] if cell.get("bytes") is not None else read_regular(Path(cell["path"]), MOST_BYTES)

        return Found(f"row {index:0{digits}}", data, lambda: (rows[index][chosen], []))

    return [found(index) for index in range(len(rows))]
