"""How long a call is estimated to take: operations over a stated rate, bytes moved over a stated rate; not measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .activations import Call, decoder_blocks


@dataclass(frozen=True)
class Rates:
    """What a machine is assumed to do. The defaults are of no machine in particular.

    Attributes:
        flops: Operations a second of matrix products, whatever the precision of the weights.
        pinned: Bytes a second from pinned host memory to the device, as streaming copies them (PCIe 4.0 x16 has 32e9).
        pageable: Bytes a second between ordinary host memory and the device, either way.
    """

    flops: float = 70e12
    pinned: float = 20e9
    pageable: float = 8e9

    def __str__(self) -> str:
        return (
            f"{self.flops / 1e12:g} TFLOP/s, {self.pinned / 1e9:g} GB/s from pinned and {self.pageable / 1e9:g} GB/s"
            " from ordinary host memory"
        )


def encode_flops(call: Call) -> int:
    """Operations of the text encoder over the caption, and of the text projection."""
    text, t = call.model.text, call.caption
    hidden, heads = text["hidden_size"], text["num_attention_heads"] * text["head_dim"]
    keys = text["num_key_value_heads"] * text["head_dim"]
    layer = 2 * hidden * (2 * heads + 2 * keys) + 6 * hidden * text["intermediate_size"] + 4 * t * heads
    config = call.model.transformer
    return t * (text["num_hidden_layers"] * layer + 2 * config["llm_features_dim"] * _hidden(config))


def pass_flops(call: Call, unconditional: bool, together: int = 1) -> int:
    """Operations of one pass of one branch over some pictures; the last block is counted as the others are."""
    config = call.model.unconditional if unconditional else call.model.transformer
    assert config is not None
    tokens, hidden = call.image + (0 if unconditional else call.caption), _hidden(config)
    block = 2 * tokens * (4 * hidden**2 + 3 * hidden * config["intermediate_size"]) + 4 * tokens**2 * hidden
    return together * config["num_layers"] * block


def decode_flops(call: Call, tile: int | None = None) -> int:
    """Operations of the decoder's convolutions and attention over all pictures; tiles overlap, and are more."""
    areas = [(call.width, call.height)] if tile is None else call.tiles(tile)
    total = 0
    for block in decoder_blocks(call.model.autoencoder):
        per_pixel = sum(
            18 * (entering * leaving + leaving**2) + (2 * entering * leaving if entering != leaving else 0)
            for entering, leaving in block.resnets
        )
        channels = block.resnets[-1][1]
        if block.upsamples:
            per_pixel += 4 * 18 * channels**2
        for width, height in areas:
            pixels = (width // block.scale) * (height // block.scale)
            total += per_pixel * pixels
            if block.attention:
                total += 8 * channels**2 * pixels + 4 * channels * pixels**2
    return total * call.pictures


def _hidden(config: Mapping[str, Any]) -> int:
    return config["attention_head_dim"] * config["num_attention_heads"]
