"""Names of layers: those of files, and those of the model, which are diffusers'.

The original checkpoint has queries, keys and values as one matrix `attention.qkv`, rows in this order, and calls the
output projection `attention.o`. Its other names are the same.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

Naming = Literal["peer", "original"]
Branch = Literal["transformer", "unconditional_transformer"]

PEER: Naming = "peer"
ORIGINAL: Naming = "original"
QKV = ("to_q", "to_k", "to_v")
ANCHORS: dict[Naming, str] = {PEER: "layers.0.attention.to_q.weight", ORIGINAL: "layers.0.attention.qkv.weight"}
# What stands before the names in files of single models, of both branches, and of whole pipelines.
PREFIXES: dict[Branch, tuple[str, ...]] = {
    "transformer": (
        "",
        "model.diffusion_model.",
        "diffusion_model.",
        "transformer.",
        "conditional_transformer.",
        "model.",
    ),
    "unconditional_transformer": ("unconditional_transformer.", "unconditional_model.", "uncond_transformer."),
}


@dataclass(frozen=True)
class Target:
    """Where a weight goes, or a part of it.

    Attributes:
        layer: The model's name of the layer.
        third: Which third of the file's rows: 0 for queries, 1 for keys, 2 for values; None for all of them.
    """

    layer: str
    third: int | None = None


def targets(layer: str, naming: Naming) -> tuple[Target, ...]:
    """Where the weight of a file's layer goes; for biases and what else is stored by row, the same."""
    if naming == ORIGINAL:
        attention = re.fullmatch(r"(layers\.\d+\.attention\.)(qkv|o)", layer)
        if attention and attention[2] == "qkv":
            return tuple(Target(attention[1] + one, third) for third, one in enumerate(QKV))
        if attention:
            return (Target(attention[1] + "to_out.0"),)
    return (Target(layer),)


def original_name(layer: str) -> str:
    """The original checkpoint's name of a layer of the model that it does not fuse."""
    return re.sub(r"(layers\.\d+\.attention\.)to_out\.0", r"\1o", layer)


def find_prefix(names: Collection[str], branch: Branch) -> tuple[str, Naming] | None:
    """The prefix and the naming of a branch's tensors; None where there are none.

    The unconditional branch in a file of its own has no prefix that tells it from the other: names without one are
    taken for either.
    """
    prefixes = PREFIXES[branch]
    if branch == "unconditional_transformer":
        prefixes += PREFIXES["transformer"] if not any(n.startswith(PREFIXES[branch]) for n in names) else ()
    for prefix in prefixes:
        for naming, anchor in ANCHORS.items():
            if prefix + anchor in names:
                return prefix, naming
    return None
