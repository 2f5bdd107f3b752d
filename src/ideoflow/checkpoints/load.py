"""Loading a transformer: one weight at a time, straight to its device and type."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers.utils import logging
from torch import Tensor, nn

from ..model import Ideogram4Transformer2DModel
from .errors import CheckpointError
from .finite import Finite
from .forms import Checkpoint, StoredWeight
from .on_the_fly import plan
from .resting import Resting
from .source import Source
from .storage import Storage

FIRST = "input_proj"  # never kept in few bits: the type of its weight is taken for the model's
NO_TEXT = "the unconditional branch takes no text. Load the model with `text_projection=True` to give it text tokens."
TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
QUIET_SECONDS = 2  # before a progress bar is shown


@torch.no_grad()
def load_transformer(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    dequantize: bool = False,
    text_projection: bool = True,
    check: bool = True,
    quantization_config: Any = None,
    model_class: type[Ideogram4Transformer2DModel] = Ideogram4Transformer2DModel,
) -> Ideogram4Transformer2DModel:
    """Load a transformer from a checkpoint of any form.

    On the CPU, weights that have the wanted type already are mapped: their pages are read when they are used, shared
    with other processes, and dropped where memory is short.

    Args:
        checkpoint: From `open_checkpoint`.
        dtype: Of the weights that are not stored in few bits, and of what is computed.
        device: To put them on.
        dequantize: Expand the weights that are stored in few bits to `dtype`; False keeps those of linear layers as
            they are, where a layer for them can be had.
        text_projection: Whether to load the projection of text features, which the unconditional branch has and never
            uses: 0.49 GB in bfloat16. Without it, it rests in the file until the model is saved.
        check: Look for values that are not finite, which takes a pass over the weights.
        quantization_config: Of diffusers, for bitsandbytes, torchao and others: what quantizes each weight of a linear
            layer, expanded from whatever form it is stored in. For a GGUF file, a `GGUFQuantizationConfig`, whose
            `compute_dtype` takes the place of `dtype`. Weights that are stored as bitsandbytes' 4 bits stay so.
        model_class: To make.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: naming the file and the tensor that cannot be used.
        ImportError, RuntimeError: from a quantizer of diffusers: a library is missing, or it needs another device.
    """
    model = checkpoint.empty_model(model_class)
    device = torch.device(device)
    finite = Finite() if check else None
    dtype, on_the_fly = plan(quantization_config, checkpoint, dtype, device)
    if on_the_fly:
        on_the_fly.begin(model)
        dequantize = True
    finishing: dict[str, Storage] = {}
    resting: dict[str, list[StoredWeight]] = {"llm_cond_norm": [], "llm_cond_proj": []}
    progress = logging.tqdm(
        checkpoint.weights, desc=f"Loading {checkpoint.branch}", unit="tensor", delay=QUIET_SECONDS, leave=False
    )
    for weight in progress:
        if not text_projection and weight.name in resting:
            resting[weight.name].append(weight)
            continue
        plain = weight.storage.name == "plain"
        as_stored = TYPES.get(weight.infos["weight"].dtype) == dtype if plain else not dequantize
        stays = as_stored and device.type == "cpu"
        parts = {key: _tensor(checkpoint, info.name, device, stays, finite) for key, info in weight.infos.items()}
        if check:
            weight.storage.check(parts, f"{weight.infos['weight'].file}: {weight.infos['weight'].name!r}")
        for name, rows, _ in weight.pieces():
            piece = parts if rows is None else weight.storage.rows(parts, *rows)
            layer, _, parameter = name.rpartition(".")
            module = model.get_submodule(layer)
            kept = None
            if parameter == "weight" and isinstance(module, nn.Linear) and layer != FIRST and not dequantize:
                kept = weight.storage.layer(piece, dtype)  # before its bias, which comes next
            if kept is not None:
                model.set_submodule(layer, kept)
                finishing[weight.storage.name] = weight.storage
                continue
            expanded = weight.storage.expand(piece, dtype)
            if on_the_fly is None or not on_the_fly.put(model, name, expanded):
                setattr(module, parameter, nn.Parameter(expanded))
    for name, weights in resting.items():
        if weights:
            readers = {weight.parameter: partial(_expanded, checkpoint.source, weight, dtype) for weight in weights}
            model.set_submodule(name, Resting(readers, NO_TEXT, dtype))
    left = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if left:
        raise CheckpointError(f"{checkpoint.source.path}: nothing was loaded into {', '.join(left[:6])}.")
    for storage in finishing.values():
        storage.finish(model, dtype)
    if on_the_fly:
        on_the_fly.finish(model)
    model.register_to_config(_name_or_path=str(checkpoint.source.path))
    return model.eval()


def _tensor(checkpoint: Checkpoint, name: str, device: torch.device, stays: bool, check: Finite | None) -> Tensor:
    """A tensor of the file on the device; mapped, if it stays as it is."""
    tensor = checkpoint.source.map(name) if stays else checkpoint.source.read(name)
    if check is not None:
        check(tensor, f"{checkpoint.source.infos[name].file}: {name!r}")
    return tensor.to(device)


def _expanded(source: Source, weight: StoredWeight, dtype: torch.dtype) -> Tensor:
    """A weight read whole from its file."""
    parts = {key: source.read(info.name) for key, info in weight.infos.items()}
    return weight.storage.expand(parts, dtype)
