"""ComfyUI's notes on how a layer's weight is stored: JSON in a tensor `LAYER.comfy_quant`, or for all in the header."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import CheckpointError

NOTE = "comfy_quant"
HEADER = "_quantization_metadata"
LONGEST = 4096  # bytes; ComfyUI writes some 70


def read_note(note: bytes, name: str) -> dict[str, Any]:
    """What a note says; it has at least a `format`.

    Raises:
        CheckpointError: naming the note that is none.
    """
    try:
        found = json.loads(note)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("format"), str):
        raise CheckpointError(f"{name!r} is no note of ComfyUI's on how a weight is stored.")
    return found


def notes_of_header(header: Mapping[str, str], names: Iterable[str], file: object) -> dict[str, bytes]:
    """Notes of a file's header as the tensors that they stand for.

    A header names layers as they are called in the file, or without what stands before the names of a model in it.

    Args:
        header: The file's metadata.
        names: The file's tensors.
        file: The file, for messages.

    Returns:
        By the name of the tensor, `LAYER.comfy_quant`; layers that are not in the file are left out.

    Raises:
        CheckpointError: a header that is no such note.
    """
    if HEADER not in header:
        return {}
    try:
        layers = json.loads(header[HEADER])["layers"]
        notes = {str(layer): json.dumps(dict(note)).encode() for layer, note in dict(layers).items()}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{file}: `{HEADER}` in its header is no note of ComfyUI's: {error}.") from error
    found = {}
    for name in names:
        if not name.endswith(".weight"):
            continue
        layer = name.removesuffix(".weight")
        parts = layer.split(".")
        known = next((end for start in range(len(parts)) if (end := ".".join(parts[start:])) in notes), None)
        if known is not None:
            found[f"{layer}.{NOTE}"] = notes[known]
    return found
