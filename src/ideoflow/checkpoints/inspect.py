"""What a file or folder holds, told from headers alone: form, configuration, parameters, bytes, and memory it needs."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..dtypes import STORED_BYTES
from ..ops.quantized_layers import is_quantized_layer
from ..pictures import FORMATS, read_settings
from .checkpoint import Checkpoint, open_checkpoint
from .errors import CheckpointError
from .names import ANCHORS, BRANCHES, UNUSED, Branch
from .source import open_source
from .tensors import Source, TensorInfo

LONGEST = 200  # characters of a header's entry that are shown


def inspect(
    path: str | os.PathLike[str],
    *,
    variant: str | None = None,
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Describe a model's file or folder, an adapter, or a picture of ours, in what JSON can hold.

    Args:
        path: a file, index or folder.
        variant: the variant of a folder's files.
        config: a transformer's configuration, where none is beside the file, in it, or told by its shapes.

    Returns:
        "path", "kind" ("pipeline", "transformer", "transformers", "text encoder", "autoencoder", "adapter", "adapters",
        "picture", "tensors") and what there is to say of it.

    Raises:
        CheckpointError: what cannot be read.
        ValueError: a picture without settings.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() in FORMATS and path.is_file():
        said = {key: value for key, value in read_settings(path).items() if value not in (None, [])}
        return {"path": str(path), "kind": "picture", **said}
    if path.is_dir() and ((path / "model_index.json").is_file() or (path / "transformer").is_dir()):
        return _pipeline(path, variant)
    if path.is_dir() and variant is None and len(adapters := _adapters(path)) > 1:
        return {"path": str(path), "kind": "adapters", "components": adapters}
    source = open_source(path, variant)
    if any(_ADAPTER.search(name) for name in source.infos):
        return {"path": str(path), "kind": "adapter", **_adapter(source)}
    found = {}
    problem: CheckpointError | None = None
    for branch in BRANCHES:
        try:
            found[branch] = open_checkpoint(path, branch, variant=variant, config=config)
        except CheckpointError as error:
            problem = problem or error
    both = len({checkpoint.prefix for checkpoint in found.values()}) == 2
    if both:
        return {"path": str(path), "kind": "transformers", **{one: _transformer(found[one]) for one in BRANCHES}}
    if found:
        return {"path": str(path), "kind": "transformer", **_transformer(next(iter(found.values())))}
    assert problem is not None
    anchors = tuple(ANCHORS.values())
    if any(name.endswith(anchors) for name in source.infos):
        raise problem
    if any(_TEXT_ENCODER.search(name) for name in source.infos):
        more: dict[str, Any] = {"kind": "text encoder", "parts": _parts_of_text_encoder(source)}
    elif any(_AUTOENCODER.search(name) for name in source.infos):
        more = {"kind": "autoencoder"}
    else:
        more = {"kind": "tensors", "note": str(problem)}
    return {"path": str(path), "kind": more.pop("kind"), **_tensors(source), **more}


# Names that tell what a file is of, behind whatever prefix.
_TEXT_ENCODER = re.compile(r"(^|\.)layers\.0\.self_attn\.q_proj\.weight$")
_AUTOENCODER = re.compile(r"(^|\.)decoder\.conv_in\.weight$")
_ADAPTER = re.compile(r"(^|\.)(?P<part>lora_|lora\.(up|down)|lokr_w|hada_w|dora_scale$)")
_KINDS = {"lokr_w": "LoKr", "hada_w": "LoHa"}


def _adapters(folder: Path) -> dict[str, Any]:
    """The adapters of a folder, such as a training run leaves, by their files' names."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            source = open_source(file)
        except CheckpointError as error:
            found[file.name] = {"bytes": file.stat().st_size, "note": str(error)}
            continue
        if any(_ADAPTER.search(name) for name in source.infos):
            found[file.name] = _adapter(source)
    return found


def _adapter(source: Source) -> dict[str, Any]:
    """Kinds, layers, ranks and sizes of an adapter's file."""
    layers: dict[str, set[str]] = {}
    ranks: Counter[str] = Counter()
    for name, info in source.infos.items():
        if (match := _ADAPTER.search(name)) is None:
            continue
        part = name[match.start("part") :]
        layers.setdefault(name[: match.start("part")], set()).add(part)
        if re.match(r"lora_A|lora_down|lora\.down|lora_linear_layer\.down|lokr_w2_b|hada_w1_b", part) and info.shape:
            ranks[str(info.shape[0])] += 1
    kinds: Counter[str] = Counter()
    for parts in layers.values():
        own = {kind for start, kind in _KINDS.items() if any(part.startswith(start) for part in parts)}
        dora = any("magnitude" in part or part == "dora_scale" for part in parts)
        kinds[own.pop() if own else "DoRA" if dora else "LoRA"] += 1
    stated = [where for where, found in _strengths(source).items() if found]
    strength = f"alpha {' and '.join(stated)}" if stated else "1"
    return {"adapter": dict(kinds), "ranks": dict(ranks), "strength": strength, **_tensors(source)}


def _strengths(source: Source) -> dict[str, bool]:
    """Where a file tells the strength of its adapters."""
    header = re.compile(r"lora_adapter_metadata|((transformer|diffusion_model)\.)?(lora_alpha|network_alpha|alpha)")
    return {
        "beside the weights": any(name.endswith(".alpha") for name in source.infos),
        "in the header": any(header.fullmatch(key) for key in source.metadata),
    }


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
    shapes = checkpoint.shapes
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
        shapes: shapes of the model's parameters, by name.
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
    return math.prod(info.shape) * STORED_BYTES.get(info.dtype, 1)


def _parts_of_text_encoder(source: Source) -> dict[str, int]:
    """Bytes of the language model, which captions need, and of what stays in the file."""
    parts: Counter[str] = Counter()
    for name, info in source.infos.items():
        part = "vision tower" if "visual." in name else "head" if name.startswith("lm_head") else "language model"
        parts[part] += _bytes(info)
    return dict(parts)


def _header(source: Source) -> dict[str, str]:
    """Strings of the files' headers, long ones cut."""
    return {key: text if len(text) <= LONGEST else f"{text[:LONGEST]}..." for key, text in source.metadata.items()}
