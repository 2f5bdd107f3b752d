"""Pictures and captions in columns of a `datasets` dataset."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..files import read_regular
from .image_reading import MOST_BYTES
from .survey import CAPTION_COLUMNS, Found, UnusableError


def found_in_table(source: Any, image_column: str, caption_column: str | None, option: str = "data") -> list[Found]:
    """The rows of a dataset, a folder that one was saved to, or one on the hub (its split `train`).

    Raises:
        ValueError: a source that is none of these, or columns that it does not have.
    """
    if isinstance(source, str | os.PathLike) and not Path(source).is_dir():
        name = str(source)
        if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
            raise ValueError(f"`{option}` {name}: there is no such folder.")
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
