"""Both transformers on random weights that are made once: ours, ours quantized, and the peer's; and twins of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from torch import nn

from ideoflow import Ideogram4Transformer2DModel
from ideoflow.ops import quantize_

TINY: dict[str, Any] = dict(
    in_channels=128,
    num_layers=2,
    attention_head_dim=32,
    num_attention_heads=2,
    intermediate_size=64,
    adaln_dim=16,
    llm_features_dim=26,
    mrope_section=(6, 5, 5),
)
Branches = list[nn.Module]  # the conditional and the unconditional transformer


class Models:
    """The forms of one set of weights: bf16 is there once for ours and the peer's, and each quantization once.

    Args:
        config: Of both transformers; the published sizes for what it does not name.
        device: Where the weights are made and lie. At full size they take 37 GB, each quantization 17 GB more.
    """

    def __init__(self, config: Mapping[str, Any], device: str) -> None:
        ours = [_make(config, device, seed) for seed in range(2)]
        self.device = device
        self._ours: dict[str, Branches] = {"bf16": ours}
        self._peers = [_peer_of(branch, config, device) for branch in ours]

    def ours(self, precision: str) -> Branches:
        """Twins of ours in "bf16", "fp8" or "int8"."""
        if precision not in self._ours:
            made = [twin(branch) for branch in self._ours["bf16"]]
            for branch in made:
                quantize_(branch, precision)
            self._ours[precision] = made
        return [twin(branch) for branch in self._ours[precision]]

    def peers(self) -> Branches:
        """Twins of the peer's."""
        return [twin(branch) for branch in self._peers]

    def forget_quantized(self) -> None:
        """Let go of what was quantized."""
        self._ours = {"bf16": self._ours["bf16"]}


def twin(model: nn.Module) -> nn.Module:
    """A copy on the very tensors of `model`, to be compiled or changed without it."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def _make(config: Mapping[str, Any], device: str, seed: int) -> Ideogram4Transformer2DModel:
    """Ours, in small random numbers drawn on the device in bfloat16; gains of norms are one."""
    with torch.device("meta"):
        model = Ideogram4Transformer2DModel(**config)
    nn.Module.to(model, torch.bfloat16).to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.ones_(parameter)
        else:
            parameter.normal_(0, 0.02, generator=generator)
    # The weights come to lie together once, for all twins, so that fusing one takes no memory.
    model.fuse_projections()
    model.unfuse_projections()
    return model


def _peer_of(ours: nn.Module, config: Mapping[str, Any], device: str) -> nn.Module:
    with torch.device("meta"):
        model = diffusers.Ideogram4Transformer2DModel(**config)
    model.load_state_dict(ours.state_dict(), assign=True)
    # Its rotary frequencies are in no state dict, and have no values on the meta device: take a small one's.
    small = dict(num_layers=1, num_attention_heads=1, intermediate_size=1, llm_features_dim=1)
    model.rotary_emb = diffusers.Ideogram4Transformer2DModel(**{**config, **small}).rotary_emb.to(device)
    return model.eval().requires_grad_(False)
