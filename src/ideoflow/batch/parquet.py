"""Parquet files of pictures, as `datasets` reads them: a column of images, and one for each thing the index says."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .open_shard import samples

GROUP = 64  # pictures that are held in memory at a time
# `datasets` reads from the file's metadata that a column holds pictures.
_FEATURES: dict[str, dict[str, Any]] = {
    "image": {"_type": "Image"},
    **{name: {"dtype": "string", "_type": "Value"} for name in ("address", "caption", "preset")},
    **{name: {"dtype": "int64", "_type": "Value"} for name in ("line", "width", "height", "steps")},
    "seed": {"dtype": "uint64", "_type": "Value"},
    "guidance": {"dtype": "float64", "_type": "Value"},
    "notes": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"},
}


def check_installed() -> None:
    """See that pyarrow is here.

    Raises:
        ValueError: saying how to install it.
    """
    if find_spec("pyarrow") is None:
        raise ValueError("--as parquet needs pyarrow, which is not installed: pip install 'ideoflow[parquet]'")


def write_parquet(shard: Path, path: Path) -> None:
    """Write the pictures of a shard as a Parquet file, some of them at a time."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    kinds = {"string": pa.string(), "int64": pa.int64(), "uint64": pa.uint64(), "float64": pa.float64()}
    columns = {name: kinds[kind["dtype"]] for name, kind in _FEATURES.items() if "dtype" in kind}
    columns["image"] = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns["notes"] = pa.list_(pa.string())
    about = json.dumps({"info": {"features": _FEATURES}})
    schema = pa.schema([(name, columns[name]) for name in _FEATURES], metadata={"huggingface": about})
    with shard.open("rb") as file, ParquetWriter(path, schema, compression="none") as writer:
        rows: list[dict[str, Any]] = []
        for sample, _ in samples(file):
            rows.append({"image": {"bytes": sample.data, "path": sample.name}, **sample.about})
            if len(rows) == GROUP:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows.clear()
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema))
