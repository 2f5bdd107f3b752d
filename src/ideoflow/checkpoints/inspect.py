"""What a file or folder holds, told from headers alone: form, configuration, parameters, bytes, and memory it needs."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..precision.layers import is_quantized_layer
from .errors import CheckpointError
from .forms import Checkpoint, open_checkpoint
from .names import ANCHORS, Branch
from .source import Source, TensorInfo, open_source

BRANCHES: tuple[Branch, ...] = ("transformer", "unconditional_transformer")
SIZES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
UNUSED = ("llm_cond_norm", "llm_cond_proj")  # of the unconditional transformer
LONGEST = 200  # characters of a header's entry that are shown


def inspect(path: str | os.PathLike[str], *, variant: str | None = None) -> dict[str, Any]:
    """Describe a pipeline's folder, a transformer of any form, or a LoRA adapter, in what JSON can hold.

    Args:
        path: File, index or folder.
        variant: Of a folder's files.

    Returns:
        "path", "kind" ("pipeline", "transformer", "transformers", "adapter", "tensors") and what there is to say of it.

    Raises:
        CheckpointError: what cannot be read.
    """
    path = Path(path).expanduser()
    if path.is_dir() and ((path / "model_index.json").is_file() or (path / "transformer").is_dir()):
        return _pipeline(path, variant)
    source = open_source(path, variant)
    if any("lora_" in name for name in source.infos):
        return {"path": str(path), "kind": "adapter", **_tensors(source), "ranks": _ranks(source)}
    found = {}
    problem: CheckpointError | None = None
    for branch in BRANCHES:
        try:
            found[branch] = open_checkpoint(path, branch, variant=variant)
        except CheckpointError as error:
            problem = problem or error
    both = len({checkpoint.prefix for checkpoint in found.values()}) == 2
    if both:
        return {"path": str(path), "kind": "transformers", **{one: _transformer(found[one]) for one in BRANCHES}}
    if found:
        return {"path": str(path), "kind": "transformer", **_transformer(next(iter(found.values())))}
    assert problem is not None
    anchors = tuple(ANCHORS.values())
    if not any(name.endswith(anchors) for name in source.infos):
        return {"path": str(path), "kind": "tensors", **_tensors(source), "note": str(problem)}
    raise problem


def _pipeline(folder: Path, variant: str | None) -> dict[str, Any]:
    """Each component of a pipeline's folder."""
    components: dict[str, Any] = {}
    for part in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        if part.name in BRANCHES:
            branch: Branch = "transformer" if part.name == "transformer" else "unconditional_transformer"
            components[part.name] = _transformer(open_checkpoint(part, branch, variant=variant))
        elif any(part.glob("*.safetensors")):
            components[part.name] = _tensors(open_source(part, variant))
            if part.name == "text_encoder":
                components[part.name]["parts"] = _parts_of_text_encoder(open_source(part, variant))
        else:
            components[part.name] = {"bytes": sum(file.stat().st_size for file in part.rglob("*") if file.is_file())}
    return {"path": str(folder), "kind": "pipeline", "components": components}


def _transformer(checkpoint: Checkpoint) -> dict[str, Any]:
    """Form, configuration and sizes of a transformer's checkpoint."""
    infos = [info for weight in checkpoint.weights for info in weight.infos.values()]
    shapes = {name: shape for weight in checkpoint.weights for name, _, shape in weight.pieces()}
    described = {
        "form": checkpoint.form,
        "prefix": checkpoint.prefix,
        "config": checkpoint.config,
        "parameters": sum(math.prod(shape) for shape in shapes.values()),
        "stored_as": dict(checkpoint.kinds),
        **_sizes(infos),
        "files": [str(file) for file in checkpoint.source.files],
        "header": _header(checkpoint.source),
        "memory": {mode: memory(shapes, mode) for mode in MODES},
    }
    if checkpoint.branch == "unconditional_transformer":
        unused = {name: shape for name, shape in shapes.items() if name.split(".")[0] in UNUSED}
        described["left_in_file"] = {mode: memory(unused, mode) for mode in MODES}
    return described


MODES = ("float32", "bfloat16", "fp8", "int8")


def memory(shapes: Mapping[str, tuple[int, ...]], mode: str) -> int:
    """Bytes of weights of the model in a mode: in fp8 and int8, layers of the blocks take a byte a weight and 4 a row.

    Args:
        shapes: Of the model's parameters, by name.
        mode: "float32", "bfloat16", "fp8" or "int8"; in the last two, the other weights are in bfloat16.
    """
    total = 0
    for name, shape in shapes.items():
        count = math.prod(shape)
        if mode == "float32":
            total += 4 * count
        elif mode != "bfloat16" and is_quantized_layer(name.removesuffix(".weight")):
            total += count + 4 * shape[0]
        else:
            total += 2 * count
    return total


def _tensors(source: Source) -> dict[str, Any]:
    """Sizes of any file of tensors."""
    return {
        "tensors": len(source.infos),
        "parameters": sum(math.prod(info.shape) for info in source.infos.values()),
        **_sizes(source.infos.values()),
        "files": [str(file) for file in source.files],
        "header": _header(source),
    }


def _sizes(infos: Iterable[TensorInfo]) -> dict[str, Any]:
    """How many tensors of which type, and their bytes."""
    infos = list(infos)
    kinds = Counter(info.dtype for info in infos)
    return {"dtypes": dict(kinds.most_common()), "bytes": sum(_bytes(info) for info in infos)}


def _bytes(info: TensorInfo) -> int:
    return math.prod(info.shape) * SIZES.get(info.dtype, 1)


def _parts_of_text_encoder(source: Source) -> dict[str, int]:
    """Bytes of the language model, which captions need, and of what stays in the file."""
    parts: Counter[str] = Counter()
    for name, info in source.infos.items():
        part = "vision tower" if "visual." in name else "head" if name.startswith("lm_head") else "language model"
        parts[part] += _bytes(info)
    return dict(parts)


def _ranks(source: Source) -> dict[str, int]:
    """How many layers of which rank."""
    down = [info for name, info in source.infos.items() if "lora_A" in name or "lora_down" in name]
    ranks = Counter(str(info.shape[0]) for info in down if info.shape)
    return dict(ranks)


def _header(source: Source) -> dict[str, str]:
    """Strings of the files' headers, long ones cut."""
    return {key: text if len(text) <= LONGEST else f"{text[:LONGEST]}..." for key, text in source.metadata.items()}
