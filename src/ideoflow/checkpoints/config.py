"""The model's configuration: from a `config.json` with either form's keys, a file's header, or the shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..configuration import DEFAULTS
from .errors import CheckpointError, ConfigNeededError, some

# The original's keys, and the model's; the head's width follows from two of them.
ORIGINAL_KEYS = {
    "num_layers": "num_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "adanln_dim": "adaln_dim",  # spelt so
    "in_channels": "in_channels",
    "llm_features_dim": "llm_features_dim",
    "rope_theta": "rope_theta",
    "mrope_section": "mrope_section",
    "norm_eps": "norm_eps",
}
KEYS = tuple(DEFAULTS)
_COUNT = "a whole number above 0"
_KINDS = {
    "mrope_section": "three whole numbers above 0",
    "rope_theta": "a number above 0",
    "norm_eps": "a number above 0",
}
HEADER = "ideoflow.config"  # the key of single files that `convert` writes


def parse_config(found: Any, where: str) -> dict[str, Any]:
    """The model's configuration from either form's keys; others are left out.

    Args:
        found: the value that JSON gave.
        where: the place of it, for messages.
    """
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{where} holds no configuration: it must be a JSON object.")
    if "emb_dim" not in found:
        config = {key: found[key] for key in KEYS if key in found}
    else:
        config = {ours: found[theirs] for theirs, ours in ORIGINAL_KEYS.items() if theirs in found}
        width, heads = found["emb_dim"], found.get("num_heads", DEFAULTS["num_attention_heads"])
        if not isinstance(width, int) or not isinstance(heads, int) or heads < 1 or width % heads:
            raise CheckpointError(f"{where}: `emb_dim` {width!r} is no multiple of `num_heads` {heads!r}.")
        config["attention_head_dim"] = width // heads
    if not config:
        raise CheckpointError(
            f"{where} holds no configuration of this model: found {', '.join(list(found)[:8]) or 'nothing'}, expected"
            f" {', '.join(KEYS[:4])} ... or emb_dim, num_layers ..."
        )
    for key, value in config.items():
        if not _fits(key, value):
            raise CheckpointError(
                f"{where}: `{key}` is {repr(value)[:60]}, which is not of its kind: {_KINDS.get(key, _COUNT)}."
            )
    # What no shape tells, and diffusers always writes: a default in its place would be another model.
    lost = [key for key in _KINDS if "_class_name" in found and key not in config]
    if lost:
        raise CheckpointError(f"{where} does not say {some(lost)}, which the weights do not tell.")
    if "mrope_section" in config:
        config["mrope_section"] = tuple(config["mrope_section"])
    return config


def _fits(key: str, value: Any) -> bool:
    """Whether a value is of the kind that the model takes; whether it suits the weights is seen later."""
    if key == "mrope_section":
        return isinstance(value, (list, tuple)) and len(value) == 3 and all(_fits("", one) for one in value)
    if key in ("rope_theta", "norm_eps"):
        return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e30
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def original_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the original's keys."""
    full = {**DEFAULTS, **config}
    found = {theirs: full[ours] for theirs, ours in ORIGINAL_KEYS.items()}
    return {"emb_dim": full["attention_head_dim"] * full["num_attention_heads"], **found}


def config_of_shapes(shapes: Mapping[str, tuple[int, ...]], where: str) -> dict[str, Any]:
    """What the shapes of the model's tensors tell, by the model's names; the rest is the published model's.

    Raises:
        CheckpointError: a tensor that is needed and missing, or heads whose rotary sections cannot be told.
    """

    def size(name: str, axis: int) -> int:
        shape = shapes.get(name)
        if shape is None or len(shape) <= axis:
            raise CheckpointError(
                f"{where}: no configuration beside it, and without a fitting {name!r} ({shape}) none can be told."
            )
        return shape[axis]

    layers = [int(match[1]) for name in shapes if (match := re.match(r"layers\.(\d+)\.", name))]
    head = size("layers.0.attention.norm_q.weight", 0)
    hidden = size("layers.0.attention.to_q.weight", 0)
    if head != DEFAULTS["attention_head_dim"]:
        raise ConfigNeededError(
            f"{where}: heads of {head} channels are not the published model's {DEFAULTS['attention_head_dim']}, and the"
            " rotary sections cannot be told from shapes: put the config.json beside the file, or give `config`."
        )
    return {
        "in_channels": size("input_proj.weight", 1),
        "num_layers": max(layers) + 1,
        "attention_head_dim": head,
        "num_attention_heads": hidden // head,
        "intermediate_size": size("layers.0.feed_forward.w1.weight", 0),
        "adaln_dim": size("adaln_proj.weight", 0),
        "llm_features_dim": size("llm_cond_norm.weight", 0),
    }
