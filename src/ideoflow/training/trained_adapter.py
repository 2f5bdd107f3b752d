"""LoRA adapters: put on a transformer, and saved in the forms that diffusers and ComfyUI load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ..checkpoints.lora import Adapter, Lora
from ..checkpoints.lora_convert import to_comfy
from ..files import write_tensors
from ..model import Ideogram4Transformer2DModel
from .parallel import whole
from .targets import choose

FILE, COMFY_FILE = "pytorch_lora_weights.safetensors", "comfyui_lora.safetensors"
ADAPTER = "default"


@dataclass(frozen=True)
class AdapterSettings:
    """How an adapter is made.

    Attributes:
        rank: rank of the adapter's matrices.
        alpha: their product is scaled by `alpha / rank`; None for the rank.
        targets: a name in `targets.PRESETS`, or regular expressions that whole names of linear layers match.
        dora: whether to learn the magnitude of each weight's rows apart from their direction (Liu et al., 2024).
        dropout: share of the adapter's inputs that are dropped, 0 to below 1.
        seed: seed of the initial weights.
    """

    rank: int = 16
    alpha: float | None = None
    targets: str | Sequence[str] = "attention"
    dora: bool = False
    dropout: float = 0.0
    seed: int = 0


def add_adapter(transformer: Ideogram4Transformer2DModel, settings: AdapterSettings) -> list[nn.Parameter]:
    """Freeze a transformer and put a new adapter on it, which changes nothing until it is trained.

    Args:
        transformer: Changed in place; it may be quantized or in half precision.
        settings: How the adapter is made.

    Returns:
        The adapter's parameters, float32, the only ones that require gradients.
    """
    linear = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    chosen = choose(linear, settings.targets)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha or settings.rank,
        target_modules=chosen,
        lora_dropout=settings.dropout,
        use_dora=settings.dora,
        init_lora_weights=True,
    )
    transformer.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        transformer.add_adapter(config, adapter_name=ADAPTER)
    parameters = [p for p in transformer.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    return parameters


def adapter_weights(transformer: Ideogram4Transformer2DModel) -> dict[str, dict[str, Tensor]]:
    """`lora_A`, `lora_B` and, with DoRA, `lora_magnitude_vector` of each layer; `lora_B` with the scale in it.

    Where the weights are sharded, every process must call it.
    """
    weights: dict[str, dict[str, Tensor]] = {}
    for name, module in transformer.named_modules():
        if not isinstance(module, LoraLayer) or ADAPTER not in module.lora_A:
            continue
        down, up = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight
        down, up = whole(down.detach()), whole(up.detach())
        weights[name] = {"lora_A": down.clone(), "lora_B": up * module.scaling[ADAPTER]}
        if ADAPTER in module.lora_magnitude_vector:
            magnitude = whole(module.lora_magnitude_vector[ADAPTER].weight.detach())
            weights[name]["lora_magnitude_vector"] = magnitude.clone()
    return weights


def save_adapter(
    folder: Path,
    weights: Mapping[str, Mapping[str, Tensor]],
    *,
    metadata: Mapping[str, str],
    also: Sequence[str] = (),
) -> list[Path]:
    """Write an adapter into `folder` for `pipeline.load_lora_weights(folder)`, and in other forms.

    `alpha / rank` is part of the weights, so that every loader gives the adapter the strength that it was trained with.

    Args:
        folder: Made when absent; files of the same names are replaced, each at once.
        weights: From `adapter_weights`.
        metadata: Strings for the files' headers, such as `base`, `config` and `trigger`.
        also: `"comfy"` for ComfyUI's form, with q, k and v as one.

    Returns:
        The files.

    Raises:
        ValueError: an unknown form, or DoRA in one that has no place for it.
    """
    unknown = set(also) - {"comfy"}
    if unknown:
        raise ValueError(f"`also` holds {', '.join(sorted(unknown))}; it may hold comfy.")
    files = _files(weights, metadata, "comfy" in also)
    for name, (tensors, header) in files.items():
        write_tensors(folder / name, tensors, header)
    return [folder / name for name in files]


def _files(
    weights: Mapping[str, Mapping[str, Tensor]], metadata: Mapping[str, str], comfy: bool
) -> dict[str, tuple[dict[str, Tensor], dict[str, str]]]:
    """Tensors and header of each file."""
    layers = {
        name: Adapter(parts["lora_A"].cpu(), parts["lora_B"].cpu(), magnitude=parts.get("lora_magnitude_vector"))
        for name, parts in weights.items()
    }
    if comfy and any(adapter.magnitude is not None for adapter in layers.values()):
        raise ValueError("`also` holds comfy, which has no common form for DoRA: train without `dora`.")
    header = {"format": "pt"} | {name: str(value) for name, value in metadata.items()}
    lora = Lora("the trained adapter", "diffusers", layers, header)
    forms = {FILE: lora} | ({COMFY_FILE: to_comfy(lora)} if comfy else {})
    return {name: (form.tensors(), form.metadata) for name, form in forms.items()}
