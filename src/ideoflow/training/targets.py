"""Which linear layers an adapter is put on: names and patterns, matched by the model's configuration alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..configuration import parameter_shapes

PRESETS = {
    "attention": r"layers\.\d+\.attention\.(to_q|to_k|to_v|to_out\.0)",
    "attention+feed_forward": r"layers\.\d+\.(attention\.(to_q|to_k|to_v|to_out\.0)|feed_forward\.w[123])",
    "all": r"layers\.\d+\.(attention\.(to_q|to_k|to_v|to_out\.0)|feed_forward\.w[123]|adaln_modulation)",
}


def linear_layers(config: Mapping[str, Any]) -> list[str]:
    """Names of the linear layers of the model that a configuration makes, in the model's order.

    Raises:
        ValueError: a configuration that makes no model.
    """
    matrices = [name for name, shape in parameter_shapes(config).items() if len(shape) == 2]
    return [name.removesuffix(".weight") for name in matrices if not name.startswith("embed_")]


def choose(linear: Sequence[str], targets: str | Sequence[str]) -> list[str]:
    """Of the names of linear layers, those that `targets` choose, in their order.

    Args:
        linear: Names of linear layers.
        targets: A name in `PRESETS`, or regular expressions that whole names match.

    Raises:
        ValueError: a pattern that matches no linear layer, or that is no regular expression.
    """
    patterns = [PRESETS.get(t, t) for t in ([targets] if isinstance(targets, str) else targets)]
    chosen: set[str] = set()
    for pattern in patterns:
        try:
            matched = {name for name in linear if re.fullmatch(pattern, name)}
        except re.error as error:
            raise ValueError(f"`targets` holds {pattern!r}, which is no regular expression: {error}.") from None
        if not matched:
            kinds = sorted({re.sub(r"\.\d+\.", r".\\d+.", name, count=1) for name in linear})
            raise ValueError(
                f"`targets` holds {pattern!r}, which matches no linear layer: use {', '.join(PRESETS)}, or patterns for"
                f" {', '.join(kinds)}."
            )
        chosen |= matched
    return [name for name in linear if name in chosen]
