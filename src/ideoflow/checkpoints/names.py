"""Names of layers: those of files, and those of the model, which are diffusers'.

The original checkpoint has queries, keys and values as one matrix `attention.qkv`, rows in this order, and calls the
output projection `attention.o`. Its other names are the same.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection
from typing import Any, Literal

Naming = Literal["diffusers", "original"]
RENAMED = {"peer": "diffusers", "peer-lora": "diffusers-lora"}  # old words for forms, until the next version
Branch = Literal["transformer", "unconditional_transformer"]
BRANCHES: tuple[Branch, ...] = ("transformer", "unconditional_transformer")
UNUSED = ("llm_cond_norm", "llm_cond_proj")  # layers that the unconditional branch has and never uses

DIFFUSERS: Naming = "diffusers"
ORIGINAL: Naming = "original"
QKV = ("to_q", "to_k", "to_v")
ANCHORS: dict[Naming, str] = {DIFFUSERS: "layers.0.attention.to_q.weight", ORIGINAL: "layers.0.attention.qkv.weight"}
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


def targets(layer: str, naming: Naming) -> tuple[str, ...]:
    """The model's layers that a file's layer is for: three for queries, keys and values as one, in equal parts."""
    if naming == ORIGINAL:
        attention = re.fullmatch(r"(layers\.\d+\.attention\.)(qkv|o)", layer)
        if attention and attention[2] == "qkv":
            return tuple(attention[1] + one for one in QKV)
        if attention:
            return (attention[1] + "to_out.0",)
    return (layer,)


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


def current_form(form: Any) -> Any:
    """The form that is meant; an old word for it warns and says the new one."""
    if form not in RENAMED:
        return form
    warnings.warn(f"The form {form!r} is called {RENAMED[form]!r} now.", FutureWarning, stacklevel=3)
    return RENAMED[form]
