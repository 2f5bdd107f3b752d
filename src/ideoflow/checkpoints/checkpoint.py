"""Recognising a transformer's checkpoint by what it holds: whose names, which kinds of storage, which configuration."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..configuration import parameter_shapes
from .config import DEFAULTS, HEADER, config_of_shapes, parse_config
from .errors import CheckpointError, read_json, some
from .names import Branch, Naming, find_prefix, targets
from .source import open_source
from .stored_weights import KINDS, Piece, StoredWeight, check_names, check_order, check_scales, parameters, recognise
from .tensors import Source

if TYPE_CHECKING:
    from torch import nn

    Model = TypeVar("Model", bound=nn.Module)

_TOPS = {
    "input_proj",
    "llm_cond_norm",
    "llm_cond_proj",
    "t_embedding",
    "adaln_proj",
    "embed_image_indicator",
    "layers",
    "final_layer",
}


@dataclass(frozen=True)
class Checkpoint:
    """A transformer's checkpoint, recognised and checked: every tensor is there, of the right shape, and none is left.

    Attributes:
        source: its files.
        branch: which transformer of the pipeline it is.
        prefix: what stands before the names in the files.
        naming: "diffusers" for its names, "original" for those with q, k and v as one.
        weights: in the order of the model's layers.
        config: the model's configuration.
        quantization_config: what a `config.json` says of a library that quantized the weights.
    """

    source: Source
    branch: Branch
    prefix: str
    naming: Naming
    weights: tuple[StoredWeight, ...]
    config: dict[str, Any]
    quantization_config: Mapping[str, Any] | None = field(default=None, compare=False)

    @cached_property
    def kinds(self) -> Counter[str]:
        """How many weights are stored in which kind."""
        return Counter(weight.storage.name for weight in self.weights)

    @property
    def form(self) -> str:
        """Names and storage in words: "diffusers", "original, fp8"."""
        low = sorted(kind for kind in self.kinds if kind != "plain")
        return ", ".join([self.naming, *low])

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the model's parameters, by name."""
        return {piece.name: piece.shape for weight in self.weights for piece in weight.pieces}

    def empty_model(self, model_class: type[Model]) -> Model:
        """A model of that class on the meta device, without weights."""
        import torch

        with torch.device("meta"):
            return model_class(**self.config)


def open_checkpoint(
    path: str | os.PathLike[str],
    branch: Branch = "transformer",
    *,
    variant: str | None = None,
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Recognise the checkpoint of a transformer, reading headers alone.

    Args:
        path: a file, an index of shards, or a folder; a pipeline's folder is asked for the folder of `branch`.
        branch: which transformer, where there are both.
        variant: the part of the files' names that says it, as diffusers names them.
        config: a configuration, a JSON file of it, or a folder with a `config.json`; None for the one beside the files,
            in the file's header, or told from the shapes.

    Raises:
        CheckpointError: what is not a checkpoint of this model, with what was found and what is known; tensors that are
            missing, left over, or of a wrong shape.
    """
    path = Path(path).expanduser()
    if (path / branch).is_dir():
        path = path / branch
    source = open_source(path, variant)
    found = find_prefix(source.infos.keys(), branch)
    if found is None:
        raise CheckpointError(_unknown(source, branch))
    prefix, naming = found
    weights = _weights(source, prefix, naming)
    settings, quantization = _config(source, config, weights)
    check_order(source, weights, quantization)
    weights = _checked(source, weights, settings)
    return Checkpoint(source, branch, prefix, naming, weights, settings, quantization)


def _unknown(source: Source, branch: Branch) -> str:
    names = list(source.infos)
    loras = [name for name in names if "lora_" in name]
    hint = " It looks like a LoRA adapter: load it with `load_lora_weights`, or `--lora`." if loras else ""
    return (
        f"{source.path} holds no Ideogram 4 transformer ({branch}): found {len(names)} tensors"
        f"{' such as ' + some(names, 4) if names else ''}. Known are diffusers' names (layers.0.attention.to_q ...) and"
        " the original's (layers.0.attention.qkv ...), bare or behind a prefix such as model.diffusion_model, stored as"
        f" {', '.join(kind.name for kind in KINDS)}.{hint}"
    )


def _weights(source: Source, prefix: str, naming: Naming) -> tuple[StoredWeight, ...]:
    """The weights whose names begin with `prefix`."""
    found, scaled = parameters(source, lambda full: full.removeprefix(prefix) if full.startswith(prefix) else None)
    strange = [
        info.name
        for name, parts in found.items()
        if name.split(".")[0] not in _TOPS or not name.endswith((".weight", ".bias"))
        for info in parts.values()
    ]
    if strange:
        raise CheckpointError(f"{source.path} holds tensors that the model has no place for: {some(strange)}.")
    weights = []
    for name, infos in found.items():
        layer, _, parameter = name.rpartition(".")
        storage, shape = recognise(source, infos)
        goals = targets(layer, naming)
        if len(goals) > 1 and (not shape or shape[0] % 3):
            raise CheckpointError(
                f"{source.path}: {layer!r} of shape {list(shape)} should hold queries, keys and values."
            )
        pieces = [Piece(f"{goals[0]}.{parameter}", shape)]
        if len(goals) > 1:
            rows = shape[0] // len(goals)
            pieces = [
                Piece(f"{goal}.{parameter}", (rows, *shape[1:]), (third * rows, (third + 1) * rows))
                for third, goal in enumerate(goals)
            ]
        weights.append(StoredWeight(infos, storage, tuple(pieces)))
    check_scales(source, weights, scaled)
    return tuple(weights)


def _config(
    source: Source, given: str | os.PathLike[str] | Mapping[str, Any] | None, weights: tuple[StoredWeight, ...]
) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
    """The model's configuration, and what it says of a library that quantized the weights."""
    if isinstance(given, Mapping):
        return parse_config(given, "`config`"), given.get("quantization_config")
    if given is None and HEADER in source.metadata:
        try:
            return parse_config(json.loads(source.metadata[HEADER]), f"the header of {source.path}"), None
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"the header of {source.path} holds no configuration: {error}.") from error
    folder = source.path if source.path.is_dir() else source.path.parent
    file = Path(given).expanduser() if given is not None else folder / "config.json"
    if file.is_dir():
        file = file / "config.json"
    if file.is_file():
        found = read_json(file)
        return parse_config(found, str(file)), found.get("quantization_config")
    if given is not None:
        raise CheckpointError(f"`config` is {str(given)!r}: there is no such file.")
    shapes = {piece.name: piece.shape for weight in weights for piece in weight.pieces}
    return config_of_shapes(shapes, str(source.path)), None


def _ranges(numbers: set[int]) -> str:
    """`0 to 33`, or the numbers one by one where some are missing."""
    whole = numbers == set(range(len(numbers)))
    return f"0 to {len(numbers) - 1}" if whole and numbers else some([str(one) for one in sorted(numbers)]) or "none"


def _checked(source: Source, weights: tuple[StoredWeight, ...], config: Mapping[str, Any]) -> tuple[StoredWeight, ...]:
    """The weights in the model's order, where they are all of the model's and nothing else."""
    layers = {int(match[1]) for weight in weights if (match := re.match(r"layers\.(\d{1,9})\.", weight.pieces[0].name))}
    if config.get("num_layers", DEFAULTS["num_layers"]) != len(layers) or layers != set(range(len(layers))):
        raise CheckpointError(
            f"{source.path} holds the layers {_ranges(layers)}, and its configuration says"
            f" {config.get('num_layers', DEFAULTS['num_layers'])!r} layers."
        )
    try:
        wanted = parameter_shapes(config)
    except ValueError as error:
        raise CheckpointError(f"{source.path}: its configuration makes no model: {error}") from error
    found = {piece.name: (piece.shape, weight) for weight in weights for piece in weight.pieces}
    check_names(
        f"{source.path} does not fit its configuration",
        [name for name in wanted if name not in found],
        [weight.infos["weight"].name for name, (_, weight) in found.items() if name not in wanted],
    )
    for name, (shape, weight) in found.items():
        if shape != wanted[name]:
            raise CheckpointError(
                f"{weight.told} stands for a {name} of shape {list(shape)}; the configuration wants"
                f" {list(wanted[name])}."
            )
    order = {name: number for number, name in enumerate(wanted)}
    return tuple(sorted(weights, key=lambda weight: order[weight.pieces[0].name]))
