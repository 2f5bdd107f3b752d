"""Recognising a checkpoint by what it holds: whose names, which kinds of storage, which configuration."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..configuration import parameter_shapes
from .config import DEFAULTS, HEADER, config_of_shapes, parse_config
from .errors import CheckpointError, some
from .json_files import read_json
from .names import Branch, Naming, Target, find_prefix, targets
from .source import Source, TensorInfo, open_source
from .storage import KINDS, Infos, Storage

if TYPE_CHECKING:
    from ..model import Ideogram4Transformer2DModel

# A tensor's layer, and what it is of that layer: a weight, or what belongs with one.
_PART = re.compile(
    r"(?P<layer>.+?)\.(?P<part>weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+|gguf)"
    r"|weight_scale|scale_weight|input_scale|scale_input|comfy_quant|weight|bias)"
)
# Notes of programs on the whole file: no weights.
_NOTES = re.compile(r"(.*\.)?scaled_fp8")


@dataclass(frozen=True)
class StoredWeight:
    """A weight, or a bias, as the files hold it.

    Attributes:
        name: Of the layer in the files, without the prefix.
        parameter: "weight" or "bias".
        storage: Its kind.
        infos: Of its tensors, by what they are of the layer: "weight", "weight_scale", ...
        shape: Of the weight that they stand for.
        targets: Where it goes in the model.
    """

    name: str
    parameter: str
    storage: Storage
    infos: Infos
    shape: tuple[int, ...]
    targets: tuple[Target, ...]

    def pieces(self) -> Iterator[tuple[str, tuple[int, int] | None, tuple[int, ...]]]:
        """For each target: the model's name of the parameter, its rows (None for all), and its shape."""
        for target in self.targets:
            name = f"{target.layer}.{self.parameter}"
            if target.third is None:
                yield name, None, self.shape
            else:
                third = self.shape[0] // 3
                yield name, (target.third * third, (target.third + 1) * third), (third, *self.shape[1:])


@dataclass(frozen=True)
class Checkpoint:
    """A transformer's checkpoint, recognised and checked: every tensor is there, of the right shape, and none is left.

    Attributes:
        source: Its files.
        branch: Which transformer of the pipeline it is.
        prefix: What stands before the names in the files.
        naming: "peer" (diffusers' names) or "original" (q, k and v as one).
        weights: In the order of the model's layers.
        config: Of the model.
        notes: Tensors that say something of the file and are no weights.
        quantization_config: What a `config.json` says of a library that quantized the weights.
    """

    source: Source
    branch: Branch
    prefix: str
    naming: Naming
    weights: tuple[StoredWeight, ...]
    config: dict[str, Any]
    notes: tuple[str, ...] = ()
    quantization_config: Mapping[str, Any] | None = field(default=None, compare=False)

    @cached_property
    def kinds(self) -> Counter[str]:
        """How many weights are stored in which kind."""
        return Counter(weight.storage.name for weight in self.weights)

    @property
    def form(self) -> str:
        """Names and storage in words: "peer", "original, fp8"."""
        low = sorted(kind for kind in self.kinds if kind != "plain")
        return ", ".join([self.naming, *low])

    def empty_model(self, model_class: type[Ideogram4Transformer2DModel]) -> Ideogram4Transformer2DModel:
        """The model on the meta device, without weights."""
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
        path: A file, an index of shards, or a folder; a pipeline's folder is asked for the folder of `branch`.
        branch: Which transformer, where there are both.
        variant: Of a folder's files, as diffusers names them.
        config: A configuration, a JSON file of it, or a folder with a `config.json`; None for the one beside the files,
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
    weights, notes = _weights(source, prefix, naming)
    settings, quantization = _config(source, config, weights)
    weights = _checked(source, weights, settings)
    return Checkpoint(source, branch, prefix, naming, weights, settings, notes, quantization)


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


def _weights(source: Source, prefix: str, naming: Naming) -> tuple[tuple[StoredWeight, ...], tuple[str, ...]]:
    """The weights under `prefix`, and the names of notes."""
    layers: dict[tuple[str, str], dict[str, TensorInfo]] = {}
    notes, strange = [], []
    for full, info in source.infos.items():
        if _NOTES.fullmatch(full):
            notes.append(full)
        elif full.startswith(prefix):
            match = _PART.fullmatch(full.removeprefix(prefix))
            if match is None:
                strange.append(full)
            elif match["part"] == "bias":
                layers[match["layer"], "bias"] = {"weight": info}
            else:
                layers.setdefault((match["layer"], "weight"), {})[match["part"]] = info
    # A whole pipeline's file holds other models too; within a transformer's names nothing may be strange.
    strange = [name for name in strange if prefix or "." not in name or name.split(".")[0] in _TOPS]
    if strange:
        raise CheckpointError(f"{source.path} holds tensors that the model has no place for: {some(strange)}.")
    stored = []
    for (layer, parameter), infos in layers.items():
        if not prefix and layer.split(".")[0] not in _TOPS:
            names = [info.name for info in infos.values()]
            raise CheckpointError(f"{source.path} holds tensors that the model has no place for: {some(names)}.")
        storage, shape = recognise(source, infos)
        stored.append(StoredWeight(layer, parameter, storage, infos, shape, targets(layer, naming)))
    check_scales(source, [(weight.infos, weight.shape) for weight in stored], scaled=bool(notes))
    return tuple(stored), tuple(notes)


def part_of(name: str) -> tuple[str, str]:
    """The name of the parameter that a tensor of a file belongs to, and what it is of it: "weight", "weight_scale" ...

    Whatever is not known to belong with a weight is "weight" of its own name: biases, buffers.
    """
    match = _PART.fullmatch(name)
    if match is None or match["part"] == "bias":
        return name, "weight"
    return f"{match['layer']}.weight", match["part"]


def is_note(name: str) -> bool:
    """Whether a tensor is a program's note on the whole file, which is scaled where it is there, and no weight."""
    return _NOTES.fullmatch(name) is not None


def recognise(source: Source, infos: Infos) -> tuple[Storage, tuple[int, ...]]:
    """The kind of storage of a weight's parts, and the weight's shape.

    Raises:
        CheckpointError: naming the tensor of which nothing is known.
    """
    if "weight" not in infos:
        name = next(iter(infos.values())).name
        raise CheckpointError(f"{source.path}: {name!r} belongs to a weight that is not there.")
    storage = next((kind for kind in KINDS if kind.claims(infos)), None)
    if storage is None:
        weight, beside = infos["weight"], ", ".join(sorted(set(infos) - {"weight"})) or "nothing"
        raise CheckpointError(
            f"{weight.file}: {weight.name!r} is {weight.dtype} with {beside} beside it, which is no storage that is"
            f" known: {', '.join(kind.name for kind in KINDS)}."
        )
    try:
        return storage, tuple(storage.shape(infos, lambda part: source.note(infos[part].name)))
    except CheckpointError as error:
        raise CheckpointError(f"{infos['weight'].file}: {error}") from error


def check_scales(source: Source, weights: Iterable[tuple[Infos, tuple[int, ...]]], scaled: bool) -> None:
    """Raise where a float8 weight would be used without the scale that it was stored with.

    Files without any scale are those that were cast as a whole, and need none.

    Args:
        source: Of the weights.
        weights: Parts and shapes.
        scaled: Whether a note or a configuration says that they have scales.
    """
    matrices = [infos for infos, shape in weights if infos["weight"].dtype.startswith("F8_") and len(shape) >= 2]
    bare = [infos["weight"].name for infos in matrices if set(infos) == {"weight"}]
    if bare and (scaled or len(bare) < len(matrices)):
        why = "that others have" if len(bare) < len(matrices) else "that the file, or its configuration, speaks of"
        raise CheckpointError(f"{source.path}: fp8 weights without the scales {why}: {some(bare)}.")


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
    shapes = {name: shape for weight in weights for name, _, shape in weight.pieces()}
    return config_of_shapes(shapes, str(source.path)), None


def _ranges(numbers: set[int]) -> str:
    """`0 to 33`, or the numbers one by one where some are missing."""
    whole = numbers == set(range(len(numbers)))
    return f"0 to {len(numbers) - 1}" if whole and numbers else some([str(one) for one in sorted(numbers)]) or "none"


def _checked(source: Source, weights: tuple[StoredWeight, ...], config: Mapping[str, Any]) -> tuple[StoredWeight, ...]:
    """The weights in the model's order, where they are all of the model's and nothing else."""
    layers = {int(match[1]) for weight in weights if (match := re.match(r"layers\.(\d{1,9})\.", weight.name))}
    if config.get("num_layers", DEFAULTS["num_layers"]) != len(layers) or layers != set(range(len(layers))):
        raise CheckpointError(
            f"{source.path} holds the layers {_ranges(layers)}, and its configuration says"
            f" {config.get('num_layers', DEFAULTS['num_layers'])!r} layers."
        )
    try:
        wanted = parameter_shapes(config)
    except ValueError as error:
        raise CheckpointError(f"{source.path}: its configuration makes no model: {error}") from error
    for weight in weights:
        if len(weight.targets) > 1 and (not weight.shape or weight.shape[0] % 3):
            raise CheckpointError(
                f"{source.path}: {weight.name!r} of shape {list(weight.shape)} should hold queries, keys and values."
            )
    found = {name: (shape, weight) for weight in weights for name, _, shape in weight.pieces()}
    missing = [name for name in wanted if name not in found]
    extra = [weight.infos["weight"].name for name, (_, weight) in found.items() if name not in wanted]
    if missing or extra:
        told = [f"missing are {some(missing)}"] if missing else []
        told += [f"no place is there for {some(extra)}"] if extra else []
        raise CheckpointError(f"{source.path} does not fit its configuration: {'; '.join(told)}.")
    for name, (shape, weight) in found.items():
        if shape != wanted[name]:
            raise CheckpointError(
                f"{weight.infos['weight'].file}: {weight.infos['weight'].name!r} stands for a {name} of shape"
                f" {list(shape)}; the configuration wants {list(wanted[name])}."
            )
    order = {name: number for number, name in enumerate(wanted)}
    return tuple(sorted(weights, key=lambda weight: order[next(weight.pieces())[0]]))
