"""Filling the parameters of any module from files of any form: the text encoder's and the autoencoder's.

Every parameter is filled, every tensor of the files is used, and anything else is an error before a value is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers.utils import logging
from torch import Tensor, nn

from ..ops import Float8Linear
from .errors import CheckpointError, some
from .finite import Finite
from .forms import check_scales, is_note, part_of, recognise
from .load import QUIET_SECONDS, TYPES
from .source import Source, TensorInfo
from .storage import Infos, Storage

INTEGERS = ("I64", "I32", "U8", "BOOL")


@dataclass(frozen=True)
class Match:
    """What fills a parameter or a buffer of the module.

    Attributes:
        name: The module's.
        infos: Of the tensors in the files, by what they are of it.
        storage: Its kind; None for whole numbers, which are taken as they are.
    """

    name: str
    infos: Infos
    storage: Storage | None


class WeightOnlyFloat8Linear(Float8Linear):
    """A layer that keeps float8 weights and never rounds its input, on no device: text features stay exact."""

    def multiplies(self, tokens: Tensor) -> bool:
        """Never: the weight is expanded for each product."""
        return False


def match_tensors(
    source: Source, module: nn.Module, rename: Callable[[str], str | None] = lambda name: name, scaled: bool = False
) -> list[Match]:
    """What fills each parameter and buffer of a module, by the headers alone.

    Args:
        source: The files.
        module: Whose state dict has the names and shapes that are wanted; on the meta device.
        rename: From a tensor's name in the files to the module's; None for tensors that the module does without.
        scaled: Whether a configuration says that float8 weights have scales.

    Raises:
        CheckpointError: tensors that are missing, left over, of a wrong shape or of no storage that is known.
    """
    found: dict[str, dict[str, TensorInfo]] = {}
    for full, info in source.infos.items():
        if is_note(full):
            scaled = True
        elif (name := rename(full)) is not None:
            parameter, part = part_of(name)
            parts = found.setdefault(parameter, {})
            if part in parts:
                raise CheckpointError(f"{source.path}: {parts[part].name!r} and {full!r} are the same tensor.")
            parts[part] = info
    wanted = module.state_dict()
    missing = [name for name in wanted if "weight" not in found.get(name, {})]
    extra = [info.name for name, parts in found.items() if name not in wanted for info in parts.values()]
    if missing or extra:
        told = [f"missing are {some(missing)}"] if missing else []
        told += [f"no place is there for {some(extra)}"] if extra else []
        raise CheckpointError(
            f"{source.path} does not hold what the {type(module).__name__} of its configuration is made of:"
            f" {'; '.join(told)}."
        )
    matches, shapes = [], []
    for name, tensor in wanted.items():
        infos = found[name]
        storage, shape = None, infos["weight"].shape
        if tensor.is_floating_point():
            storage, shape = recognise(source, infos)
        elif infos["weight"].dtype not in INTEGERS or len(infos) > 1:
            raise CheckpointError(f"{source.path}: {infos['weight'].name!r} must hold whole numbers.")
        if shape != tuple(tensor.shape):
            raise CheckpointError(
                f"{infos['weight'].file}: {infos['weight'].name!r} is of shape {list(shape)}; the configuration wants"
                f" {list(tensor.shape)}."
            )
        matches.append(Match(name, infos, storage))
        shapes.append((infos, shape))
    check_scales(source, shapes, scaled)
    return matches


@torch.no_grad()
def fill(
    module: nn.Module,
    source: Source,
    matches: list[Match],
    *,
    dtype: torch.dtype,
    device: torch.device,
    keep: str | None,
    what: str,
) -> dict[str, Storage]:
    """Bring tensors to their places, one at a time, in the type and on the device wanted.

    On the CPU, weights that have the wanted type already are mapped, as those of the transformers are.

    Args:
        module: On the meta device.
        source: The files.
        matches: Of `match_tensors`.
        dtype: Of the floating-point tensors, and of what is computed.
        device: To put them on.
        keep: A regular expression for linear layers that keep weights in few bits as they are stored, where a layer for
            them can be had; None for none, so that all are expanded.
        what: For the progress bar.

    Returns:
        The kinds of storage, but the plain one, that layers keep, by name.
    """
    finite = Finite()
    kept: dict[str, Storage] = {}
    progress = logging.tqdm(matches, desc=f"Loading {what}", unit="tensor", delay=QUIET_SECONDS, leave=False)
    for match in progress:
        layer, _, name = match.name.rpartition(".")
        part, storage = module.get_submodule(layer), match.storage
        keeps = keep is not None and type(part) is nn.Linear and name == "weight" and re.fullmatch(keep, layer)
        plain = storage is None or storage.name == "plain"
        stays = device.type == "cpu" and (TYPES.get(match.infos["weight"].dtype) == dtype if plain else bool(keeps))
        parts = {key: _read(source, info, stays, finite).to(device) for key, info in match.infos.items()}
        weight = match.infos["weight"]
        if storage is None:
            setattr(part, name, parts["weight"])
            continue
        storage.check(parts, f"{weight.file}: {weight.name!r}")
        if keeps and not plain and (low := _kept(storage, parts, dtype)) is not None:
            module.set_submodule(layer, low)
            kept[storage.name] = storage
            continue
        value = storage.expand(parts, dtype)
        setattr(part, name, nn.Parameter(value) if name in part._parameters else value)
    return kept


def _read(source: Source, info: TensorInfo, stays: bool, finite: Finite) -> Tensor:
    tensor = source.map(info.name) if stays else source.read(info.name)
    finite(tensor, f"{info.file}: {info.name!r}")
    return tensor


def _kept(storage: Storage, parts: dict[str, Tensor], dtype: torch.dtype) -> nn.Linear | None:
    layer = storage.layer(parts, dtype)
    if isinstance(layer, Float8Linear):
        exact = WeightOnlyFloat8Linear(layer.in_features, layer.out_features, bias=False, device="meta", dtype=dtype)
        exact.weight, exact.weight_scale = layer.weight, layer.weight_scale
        return exact
    return layer
