"""The model's configuration: defaults, what it may be, and the parameters that it makes. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

AXES = 3  # t, h, w
TAPS = (0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 35)  # decoder layers that the published weights were trained on
# Of the model's constructor, whose signature says the same.
DEFAULTS: dict[str, Any] = {
    "in_channels": 128,
    "num_layers": 34,
    "attention_head_dim": 256,
    "num_attention_heads": 18,
    "intermediate_size": 12288,
    "adaln_dim": 512,
    "llm_features_dim": 53248,
    "rope_theta": 5_000_000,
    "mrope_section": (24, 20, 20),
    "norm_eps": 1e-5,
}
SIZES = (
    "in_channels",
    "num_layers",
    "attention_head_dim",
    "num_attention_heads",
    "intermediate_size",
    "adaln_dim",
    "llm_features_dim",
)


def check_config(config: Mapping[str, Any]) -> None:
    """Raise ValueError unless a whole configuration makes a model."""
    for name in SIZES:
        if not isinstance(config[name], int) or config[name] < 1:
            raise ValueError(f"`{name}` must be a positive integer, got {config[name]!r}.")
    head = config["attention_head_dim"]
    if head % 2:
        raise ValueError(f"`attention_head_dim` must be even, to be rotated in pairs, got {head}.")
    _check_sections(head, config["mrope_section"])
    hidden = head * config["num_attention_heads"]
    if hidden < 4:
        raise ValueError(
            f"`attention_head_dim` * `num_attention_heads` = {hidden}: the time embedding needs at least 4."
        )


def _check_sections(head_dim: int, sections: tuple[int, ...]) -> None:
    """Raise ValueError unless the h and w frequencies that `sections` asks for lie within half a head."""
    whole = all(isinstance(section, int) and section >= 0 for section in sections)
    if len(sections) != AXES or not whole:
        raise ValueError(f"`mrope_section` must be three integers (t, h, w), none negative; got {tuple(sections)}.")
    for axis, name in ((1, "h"), (2, "w")):
        last = axis + AXES * (sections[axis] - 1)
        if last >= head_dim // 2:
            raise ValueError(
                f"`mrope_section`={tuple(sections)} does not fit `attention_head_dim`={head_dim}: the {name} axis "
                f"would take frequency {last}, and a head has {head_dim // 2} (0 to {head_dim // 2 - 1})."
            )


def parameter_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model's parameters, in its order.

    Args:
        config: The model's configuration; what it leaves out is the published model's.

    Raises:
        ValueError: a configuration that makes no model.
    """
    full = {**DEFAULTS, **config}
    check_config(full)
    hidden = full["attention_head_dim"] * full["num_attention_heads"]
    channels, adaln, wide = full["in_channels"], full["adaln_dim"], full["intermediate_size"]
    found: dict[str, tuple[int, ...]] = {}

    def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> None:
        found[f"{name}.weight"] = (outputs, inputs)
        if bias:
            found[f"{name}.bias"] = (outputs,)

    linear("input_proj", channels, hidden)
    found["llm_cond_norm.weight"] = (full["llm_features_dim"],)
    linear("llm_cond_proj", full["llm_features_dim"], hidden)
    linear("t_embedding.mlp_in", hidden, hidden)
    linear("t_embedding.mlp_out", hidden, hidden)
    linear("adaln_proj", hidden, adaln)
    found["embed_image_indicator.weight"] = (2, hidden)
    for block in (f"layers.{number}" for number in range(full["num_layers"])):
        for name in ("to_q", "to_k", "to_v"):
            linear(f"{block}.attention.{name}", hidden, hidden, bias=False)
        for name in ("norm_q", "norm_k"):
            found[f"{block}.attention.{name}.weight"] = (full["attention_head_dim"],)
        linear(f"{block}.attention.to_out.0", hidden, hidden, bias=False)
        linear(f"{block}.feed_forward.w1", hidden, wide, bias=False)
        linear(f"{block}.feed_forward.w2", wide, hidden, bias=False)
        linear(f"{block}.feed_forward.w3", hidden, wide, bias=False)
        for name in ("attention_norm1", "ffn_norm1", "attention_norm2", "ffn_norm2"):
            found[f"{block}.{name}.weight"] = (hidden,)
        linear(f"{block}.adaln_modulation", adaln, 4 * hidden)
    linear("final_layer.linear", hidden, channels)
    linear("final_layer.adaln_modulation", adaln, hidden)
    return found
