"""Names and shapes of the text encoder's and the autoencoder's parameters and buffers, from their configurations.

Needs no torch. `ideoflow.configuration.parameter_shapes` has those of the transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

Shapes = dict[str, tuple[int, ...]]

# What configurations leave out: the defaults of transformers' Qwen3VLTextConfig and of diffusers' AutoencoderKLFlux2.
TEXT_DEFAULTS: dict[str, Any] = dict(
    vocab_size=151936,
    hidden_size=4096,
    intermediate_size=22016,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    head_dim=128,
    attention_bias=False,
)
AUTOENCODER_DEFAULTS: dict[str, Any] = dict(
    in_channels=3,
    out_channels=3,
    block_out_channels=(128, 256, 512, 512),
    decoder_block_out_channels=None,
    layers_per_block=2,
    latent_channels=32,
    use_quant_conv=True,
    use_post_quant_conv=True,
    mid_block_add_attention=True,
    patch_size=(2, 2),
)


def text_encoder_shapes(config: Mapping[str, Any]) -> Shapes:
    """Those of the language model.

    Args:
        config: Whole, as `TEXT_DEFAULTS` has it.
    """
    hidden, wide, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    found: Shapes = {"embed_tokens.weight": (config["vocab_size"], hidden)}

    def linear(name: str, inputs: int, outputs: int, bias: bool = False) -> None:
        found[f"{name}.weight"] = (outputs, inputs)
        if bias:
            found[f"{name}.bias"] = (outputs,)

    for block in (f"layers.{number}" for number in range(config["num_hidden_layers"])):
        for name, outputs in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            linear(f"{block}.self_attn.{name}", hidden, outputs, config["attention_bias"])
        linear(f"{block}.self_attn.o_proj", queries, hidden, config["attention_bias"])
        for name in ("q_norm", "k_norm"):
            found[f"{block}.self_attn.{name}.weight"] = (head,)
        linear(f"{block}.mlp.gate_proj", hidden, wide)
        linear(f"{block}.mlp.up_proj", hidden, wide)
        linear(f"{block}.mlp.down_proj", wide, hidden)
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{block}.{name}.weight"] = (hidden,)
    found["norm.weight"] = (hidden,)
    for name in ("inv_freq", "original_inv_freq"):
        found[f"rotary_emb.{name}"] = (head // 2,)
    return found


def autoencoder_shapes(config: Mapping[str, Any]) -> Shapes:
    """Those of an `AutoencoderKLFlux2`, encoder and decoder.

    Args:
        config: Whole, as `AUTOENCODER_DEFAULTS` has it.
    """
    latent, layers = config["latent_channels"], config["layers_per_block"]
    down = config["block_out_channels"]
    up = (config["decoder_block_out_channels"] or down)[::-1]
    found: Shapes = {}

    def convolution(name: str, entering: int, leaving: int, side: int = 3) -> None:
        found[f"{name}.weight"] = (leaving, entering, side, side)
        found[f"{name}.bias"] = (leaving,)

    def norm(name: str, channels: int) -> None:
        found[f"{name}.weight"] = found[f"{name}.bias"] = (channels,)

    def resnet(name: str, entering: int, leaving: int) -> None:
        norm(f"{name}.norm1", entering)
        convolution(f"{name}.conv1", entering, leaving)
        norm(f"{name}.norm2", leaving)
        convolution(f"{name}.conv2", leaving, leaving)
        if entering != leaving:
            convolution(f"{name}.conv_shortcut", entering, leaving, side=1)

    def middle(name: str, channels: int) -> None:
        if config["mid_block_add_attention"]:
            norm(f"{name}.attentions.0.group_norm", channels)
            for part in ("to_q", "to_k", "to_v", "to_out.0"):
                found[f"{name}.attentions.0.{part}.weight"] = (channels, channels)
                found[f"{name}.attentions.0.{part}.bias"] = (channels,)
        for number in range(2):
            resnet(f"{name}.resnets.{number}", channels, channels)

    def half(name: str, blocks: str, resampler: str, channels: Sequence[int], ends: tuple[int, int]) -> None:
        """The encoder or the decoder, which has a layer more in each block."""
        count = layers + (name == "decoder")
        convolution(f"{name}.conv_in", ends[0], channels[0])
        for index, (before, own) in enumerate(pairwise([channels[0], *channels])):
            block = f"{name}.{blocks}.{index}"
            for number in range(count):
                resnet(f"{block}.resnets.{number}", own if number else before, own)
            if index < len(channels) - 1:
                convolution(f"{block}.{resampler}.0.conv", own, own)
        middle(f"{name}.mid_block", up[0] if name == "decoder" else down[-1])
        norm(f"{name}.conv_norm_out", channels[-1])
        convolution(f"{name}.conv_out", channels[-1], ends[1])

    half("encoder", "down_blocks", "downsamplers", down, (config["in_channels"], 2 * latent))
    half("decoder", "up_blocks", "upsamplers", up, (latent, config["out_channels"]))
    if config["use_quant_conv"]:
        convolution("quant_conv", 2 * latent, 2 * latent, side=1)
    if config["use_post_quant_conv"]:
        convolution("post_quant_conv", latent, latent, side=1)
    rows, columns = config["patch_size"]
    for name in ("running_mean", "running_var"):
        found[f"bn.{name}"] = (rows * columns * latent,)
    found["bn.num_batches_tracked"] = ()
    return found
