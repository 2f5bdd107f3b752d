"""Loading weights: one at a time, straight to their device and type, into a transformer or any other module."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from diffusers.utils import logging
from torch import Tensor, nn

from ..dtypes import PLAIN, TORCH_NAMES, of_name
from ..ops.quantized_linear import Float8Linear, Int8Linear, QuantizedLinear
from ..ops.rotated_linear import RotatedInt8Linear
from .checkpoint import Checkpoint
from .errors import CheckpointError
from .left_in_file import LeftInFile
from .names import UNUSED
from .on_the_fly import plan
from .storage_kinds import Storage
from .stored_weights import StoredWeight
from .tensors import Source

FIRST = "input_proj"  # never kept in few bits: the type of its weight is taken for the model's
NO_TEXT = "the unconditional branch takes no text. Load the model with `text_projection=True` to give it text tokens."
CALL = (
    "`load_transformer` is given an open checkpoint, and since this version the class to make:"
    " load_transformer(open_checkpoint(path), Ideogram4Transformer2DModel), with `from ideoflow import"
    " Ideogram4Transformer2DModel` and `from ideoflow.checkpoints import load_transformer, open_checkpoint`."
)
TYPES = {stored: of_name(TORCH_NAMES[stored]) for stored in PLAIN}
QUIET_SECONDS = 2  # before a progress bar is shown
CHECKED_AT_ONCE = 2**20  # values

Model = TypeVar("Model", bound=nn.Module)


def load_transformer(
    checkpoint: Checkpoint,
    model_class: type[Model] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    dequantize: bool = False,
    text_projection: bool = True,
    check: bool = True,
    quantization_config: Any = None,
) -> Model:
    """Load a transformer from a checkpoint of any form.

    Args:
        checkpoint: from `open_checkpoint`.
        model_class: the class to make, `Ideogram4Transformer2DModel` or one derived from it. A call without it, as it
            was once written, is answered with the new one.
        dtype: the type of the weights that are not stored in few bits, and of what is computed.
        device: to put them on.
        dequantize: expand the weights that are stored in few bits to `dtype`; False keeps those of linear layers as
            they are, where a layer for them can be had.
        text_projection: whether to load the projection of text features, which the unconditional branch has and never
            uses: 0.49 GB in bfloat16. Without it, it stays in the file until the model is saved.
        check: look for values that are not finite, which takes a pass over the weights.
        quantization_config: diffusers' kind, for bitsandbytes, torchao and others: what quantizes each weight of a
            linear layer, expanded from whatever form it is stored in. For a GGUF file, a `GGUFQuantizationConfig`,
            whose `compute_dtype` takes the place of `dtype`. Weights that are stored as bitsandbytes' 4 bits stay so.

    Returns:
        The model, in evaluation mode.

    Raises:
        TypeError: `checkpoint` is not an open one, or there is no class; the message shows the call.
        CheckpointError: naming the file and the tensor that cannot be used.
        ImportError, RuntimeError: from a quantizer of diffusers: a library is missing, or it needs another device.
    """
    if not isinstance(checkpoint, Checkpoint) or not isinstance(model_class, type):
        raise TypeError(CALL)
    model: Any = checkpoint.empty_model(model_class)
    device, source = torch.device(device), checkpoint.source
    dtype, on_the_fly = plan(quantization_config, checkpoint, dtype, device)
    if on_the_fly:
        on_the_fly.begin(model)
    weights: list[StoredWeight] = []
    left: dict[str, dict[str, partial[Tensor]]] = {}
    for weight in checkpoint.weights:
        layer, _, parameter = weight.pieces[0].name.rpartition(".")
        if layer in UNUSED and not text_projection:
            left.setdefault(layer, {})[parameter] = partial(expanded, source, weight, dtype)
        else:
            weights.append(weight)
    kept = fill(
        model,
        source,
        weights,
        dtype=dtype,
        device=device,
        keep=None if dequantize or on_the_fly else lambda layer: layer != FIRST,
        what=checkpoint.branch,
        check=check,
        put=None if on_the_fly is None else partial(on_the_fly.put, model),
    )
    for layer, readers in left.items():
        model.set_submodule(layer, LeftInFile(readers, NO_TEXT, dtype))
    if empty := [name for name, parameter in model.named_parameters() if parameter.is_meta]:
        raise CheckpointError(f"{source.path}: nothing was loaded into {', '.join(empty[:6])}.")
    for storage in kept:
        storage.finish(model, dtype)
    if on_the_fly:
        on_the_fly.finish(model)
    model.register_to_config(_name_or_path=str(source.path))
    return model.eval()


@torch.no_grad()
def fill(
    module: nn.Module,
    source: Source,
    weights: list[StoredWeight],
    *,
    dtype: torch.dtype,
    device: torch.device,
    keep: Callable[[str], object] | None,
    what: str,
    check: bool = True,
    exact: bool = False,
    put: Callable[[str, Tensor], bool] | None = None,
) -> list[Storage]:
    """Bring stored weights to their places, one at a time, in the type and on the device wanted.

    On the CPU, weights that have the wanted type already are mapped: their pages are read when they are used, shared
    with other processes, and dropped where memory is short.

    Args:
        module: on the meta device.
        source: the files.
        weights: what fills each parameter.
        dtype: the type of the floating-point tensors, and of what is computed.
        device: to put them on.
        keep: whether a linear layer of that name keeps a weight in few bits as it is stored, where a layer for it can
            be had; None for none, so that all are expanded.
        what: name for the progress bar.
        check: look for values that are not finite.
        exact: whether layers in float8 never round their input.
        put: places an expanded weight by its name, or returns False.

    Returns:
        The kinds of storage in few bits that layers keep.
    """
    finite = Finite() if check else None
    kept: dict[str, Storage] = {}
    progress = logging.tqdm(weights, desc=f"Loading {what}", unit="tensor", delay=QUIET_SECONDS, leave=False)
    for weight in progress:
        storage = weight.storage
        plain = storage.name == "plain"
        keeps = keep is not None and not plain and all(_is_kept(module, one.name, keep) for one in weight.pieces)
        as_stored = keeps or (plain and TYPES.get(weight.infos["weight"].dtype) == dtype)
        parts = read_parts(source, weight, finite, mapped=as_stored and device.type == "cpu")
        parts = {key: tensor.to(device) for key, tensor in parts.items()}
        for name, _, rows in weight.pieces:
            layer, _, parameter = name.rpartition(".")
            owner = module.get_submodule(layer)
            piece = parts if rows is None else storage.rows(parts, *rows)
            if keeps and (low := storage.layer(piece, dtype)) is not None:
                module.set_submodule(layer, _exact(low) if exact else low)  # before its bias, which comes next
                kept[storage.name] = storage
                continue
            value = storage.expand(piece, dtype)
            if put is None or not put(name, value):
                setattr(owner, parameter, nn.Parameter(value) if parameter in owner._parameters else value)
    return list(kept.values())


def read_parts(
    source: Source, weight: StoredWeight, finite: Finite | None = None, mapped: bool = False
) -> dict[str, Tensor]:
    """The tensors of a stored weight on the CPU, mapped or copied; with `finite`, refused where a value is not.

    Raises:
        CheckpointError: naming the tensor that cannot be read or used.
    """
    parts = {}
    for key, info in weight.infos.items():
        parts[key] = source.map(info.name) if mapped else source.read(info.name)
        if finite is not None:
            finite(parts[key], f"{info.file}: {info.name!r}")
    if finite is not None:
        weight.storage.check(parts, weight.told)
    return parts


def expanded(source: Source, weight: StoredWeight, dtype: torch.dtype) -> Tensor:
    """A weight read whole from its file."""
    return weight.storage.expand(read_parts(source, weight), dtype)


def _is_kept(module: nn.Module, name: str, keep: Callable[[str], object]) -> bool:
    layer, _, parameter = name.rpartition(".")
    return parameter == "weight" and isinstance(module.get_submodule(layer), nn.Linear) and bool(keep(layer))


class _NeverRounded:
    """A layer whose input is never rounded, on no device, so that features stay those of its weights."""

    def multiplies(self, tokens: Tensor) -> bool:
        """Never: the weight is expanded for each product."""
        return False


class WeightOnlyFloat8Linear(_NeverRounded, Float8Linear):
    """A layer that keeps float8 weights and never rounds its input."""


class WeightOnlyInt8Linear(_NeverRounded, Int8Linear):
    """A layer that keeps int8 weights and never rounds its input."""


class WeightOnlyRotatedInt8Linear(_NeverRounded, RotatedInt8Linear):
    """A layer that keeps rotated int8 weights and never rounds its input."""


EXACT = {
    Float8Linear: WeightOnlyFloat8Linear,
    Int8Linear: WeightOnlyInt8Linear,
    RotatedInt8Linear: WeightOnlyRotatedInt8Linear,
}


def _exact(layer: nn.Linear) -> nn.Linear:
    if not isinstance(layer, QuantizedLinear):
        return layer
    exact: Any = EXACT[type(layer)](
        layer.in_features, layer.out_features, bias=False, device="meta", dtype=layer.compute_dtype
    )
    exact.weight, exact.weight_scale = layer.weight, layer.weight_scale
    if isinstance(layer, RotatedInt8Linear):
        exact.group = layer.group
    return exact


class Finite:
    """A check of tensors on the CPU. It keeps one small buffer: the allocator would scatter many over its heap."""

    def __init__(self) -> None:
        self._bits = torch.empty(CHECKED_AT_ONCE, dtype=torch.uint8)

    def __call__(self, tensor: Tensor, what: str) -> None:
        """Raise a CheckpointError that begins with `what` where a value is infinite or not a number."""
        if not tensor.is_floating_point():
            return
        for values in tensor.flatten().split(CHECKED_AT_ONCE):
            if values.dtype == torch.float8_e4m3fn:
                # Without infinity; what is no number has all bits set but the sign.
                bits = torch.bitwise_and(values.view(torch.uint8), 0x7F, out=self._bits[: len(values)])
                finite = bool(bits.amax() != 0x7F)
            else:
                low, high = torch.aminmax(values.to(torch.float32) if values.dtype.itemsize == 1 else values)
                finite = bool(torch.isfinite(low) and torch.isfinite(high))
            if not finite:
                raise CheckpointError(
                    f"{what} holds values that are not finite: the file is damaged, or never was good."
                )
