"""What files hold of each weight: its tensors, their kind of storage, and the parameters of the model they are for.

A weight in few bits is several tensors: its bytes, and scales or notes beside them. Headers alone tell all of this.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from .comfy_int8 import ComfyInt8
from .comfy_notes import NOTE
from .errors import CheckpointError, some
from .nf4 import NF4
from .nvfp4 import NVFP4, by_model_optimizer
from .storage_kinds import Float8, Gguf, Infos, Integers, Plain, Storage
from .tensors import Source, TensorInfo

if TYPE_CHECKING:
    from torch import nn

KINDS: tuple[Storage, ...] = (Plain(), Float8(), ComfyInt8(), NF4(), NVFP4(), Gguf())
INTEGERS = ("I64", "I32", "U8", "BOOL")
# The end of a tensor's name, of those that belong with a weight.
_PART = re.compile(
    r"(?P<layer>.+?)\.(?P<part>weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+|gguf)"
    r"|weight_scale|weight_scale_2|scale_weight|input_scale|scale_input|comfy_quant|weight)"
)
_SCALED = re.compile(r"(.*\.)?scaled_fp8")  # ComfyUI's note that the weights of a file have scales; no weight itself


class Piece(NamedTuple):
    """What a stored weight fills in a model.

    Attributes:
        name: the model's name of the parameter or buffer.
        shape: the parameter's.
        rows: the first row of the stored weight that is taken, and the one after the last; None for all.
    """

    name: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class StoredWeight:
    """A weight, a bias or a buffer, as the files hold it.

    Attributes:
        infos: its tensors, by what they are of it: "weight", "weight_scale", ...
        storage: the kind of storage.
        pieces: the parameters that it fills; three for a projection that holds queries, keys and values.
    """

    infos: Infos
    storage: Storage
    pieces: tuple[Piece, ...]

    @property
    def told(self) -> str:
        """The file and the name of the weight, for messages."""
        return f"{self.infos['weight'].file}: {self.infos['weight'].name!r}"


def part_of(name: str) -> tuple[str, str]:
    """The parameter that a tensor of a file belongs to, and what it is of it: "weight", "weight_scale" ...

    Whatever is not known to belong with a weight is "weight" of its own name: biases, buffers.
    """
    match = _PART.fullmatch(name)
    return (name, "weight") if match is None else (f"{match['layer']}.weight", match["part"])


def parameters(source: Source, rename: Callable[[str], str | None]) -> tuple[dict[str, dict[str, TensorInfo]], bool]:
    """The tensors of each parameter, by what they are of it; and whether a note says that float8 weights have scales.

    Args:
        source: the files.
        rename: from a tensor's name in the files to the one wanted; None for tensors that are left out.

    Raises:
        CheckpointError: two tensors that are renamed to one.
    """
    found: dict[str, dict[str, TensorInfo]] = {}
    scaled = False
    for full, info in source.infos.items():
        if _SCALED.fullmatch(full):
            scaled = True
        elif (name := rename(full)) is not None:
            parameter, part = part_of(name)
            parts = found.setdefault(parameter, {})
            if part in parts:
                raise CheckpointError(f"{source.path}: {parts[part].name!r} and {full!r} are the same tensor.")
            parts[part] = info
    return found, scaled


def recognise(source: Source, infos: Infos) -> tuple[Storage, tuple[int, ...]]:
    """The kind of storage of a weight's tensors, and the weight's shape.

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


def check_scales(source: Source, weights: Iterable[StoredWeight], scaled: bool) -> None:
    """Raise where a float8 weight would be used without the scale that it was stored with.

    Files without any scale are those that were cast as a whole, and need none.

    Args:
        source: the files.
        weights: all of the model's.
        scaled: whether a note or a configuration says that they have scales.
    """
    matrices = [
        weight.infos
        for weight in weights
        if weight.infos["weight"].dtype.startswith("F8_") and len(weight.infos["weight"].shape) >= 2
    ]
    bare = [infos["weight"].name for infos in matrices if set(infos) == {"weight"}]
    if bare and (scaled or len(bare) < len(matrices)):
        why = "that others have" if len(bare) < len(matrices) else "that the file, or its configuration, speaks of"
        raise CheckpointError(f"{source.path}: fp8 weights without the scales {why}: {some(bare)}.")


def check_order(source: Source, weights: Iterable[StoredWeight], config: Mapping[str, Any] | None) -> None:
    """Raise where nothing says in which order a file's codes and scales are.

    Args:
        source: The files.
        weights: All of the model's.
        config: The `quantization_config` of the configuration, if there is one.

    Raises:
        CheckpointError: saying where it is looked for.
    """
    unsaid = [
        weight.infos["weight"].name
        for weight in weights
        if isinstance(weight.storage, NVFP4) and NOTE not in weight.infos
    ]
    if unsaid and not by_model_optimizer(source, config):
        raise CheckpointError(
            f"{source.path} holds NVFP4 weights such as {some(unsaid, 2)}, and nothing says in which of two orders:"
            f" ComfyUI writes `{NOTE}` tensors or a header, NVIDIA Model Optimizer a `quantization_config` in"
            " config.json or an hf_quant_config.json beside the weights. If they are Model Optimizer's, write there"
            ' {"quantization_config": {"quant_method": "modelopt"}}.'
        )


def check_names(what: str, missing: list[str], extra: list[str]) -> None:
    """Raise where a model's parameters are missing from files, or the files hold more; `what` begins the sentence."""
    told = [f"missing are {some(missing)}"] if missing else []
    told += [f"no place is there for {some(extra)}"] if extra else []
    if told:
        raise CheckpointError(f"{what}: {'; '.join(told)}.")


def match_tensors(
    source: Source, module: nn.Module, rename: Callable[[str], str | None] = lambda name: name, scaled: bool = False
) -> list[StoredWeight]:
    """What fills each parameter and buffer of a module, by the headers alone.

    Args:
        source: the files.
        module: on the meta device; its state dict has the names and shapes that are wanted.
        rename: from a tensor's name in the files to the module's; None for tensors that the module does without.
        scaled: whether a configuration says that float8 weights have scales.

    Raises:
        CheckpointError: tensors that are missing, left over, of a wrong shape or of no storage that is known.
    """
    found, noted = parameters(source, rename)
    wanted = module.state_dict()
    check_names(
        f"{source.path} does not hold what the {type(module).__name__} of its configuration is made of",
        [name for name in wanted if "weight" not in found.get(name, {})],
        [info.name for name, parts in found.items() if name not in wanted for info in parts.values()],
    )
    weights = []
    for name, tensor in wanted.items():
        infos = found[name]
        storage: Storage = Integers()
        shape = infos["weight"].shape
        if tensor.is_floating_point():
            storage, shape = recognise(source, infos)
        elif infos["weight"].dtype not in INTEGERS or len(infos) > 1:
            raise CheckpointError(f"{source.path}: {infos['weight'].name!r} must hold whole numbers.")
        weight = StoredWeight(infos, storage, (Piece(name, shape),))
        if shape != tuple(tensor.shape):
            raise CheckpointError(
                f"{weight.told} is of shape {list(shape)}; the configuration wants {list(tensor.shape)}."
            )
        weights.append(weight)
    check_scales(source, weights, scaled or noted)
    check_order(source, weights, None)
    return weights
