"""Carrying a plan out on a loaded pipeline: precision, hooks, tiles and passes."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.utils import send_to_device
from diffusers.hooks import apply_group_offloading
from torch import nn

from ..devices import best_device
from ..dtypes import of_name
from ..ops.hooks import is_offloaded
from ..ops.weights import keep_contents_key
from .choice import plan as make_plan
from .components import AUTOENCODER, CONDITIONAL, NAMES, TEXT_ENCODER, UNCONDITIONAL
from .memory import free_memory
from .plans import FREED, STAYS, STREAMED, SWAPPED, TURNS, Plan
from .precisions import NF4, ONE_BYTE, has_bitsandbytes

HOST = torch.device("cpu")
AUTO = "auto"


def fit_memory(
    pipe: Any, memory: str | int | float = AUTO, *, device: str | torch.device | None = None, **options: Any
) -> Plan:
    """Make a plan for a loaded pipeline and carry it out.

    Args:
        pipe: An `Ideogram4Pipeline`, as it was loaded.
        memory: As in `plan`; "auto" for what is free on the device.
        device: Where to compute; None for the first accelerator, else the CPU.
        options: Options of `plan`.

    Returns:
        The plan.

    Raises:
        RuntimeError: if the pipeline is fitted already, compiled or offloaded.
        DoesNotFit: (a ValueError) if nothing fits.
        ValueError: naming the argument that does not fit.
    """
    check_untouched(pipe)
    target = torch.device(device if device is not None else best_device())
    if memory == AUTO:
        memory = free_memory(str(target))
    made = make_plan(pipe, memory, device=target.type, **options)
    carry_out(pipe, made, target)
    return made


def check_untouched(pipe: Any) -> None:
    """Raise RuntimeError where a plan cannot be carried out any more."""
    if pipe.plan is not None:
        raise RuntimeError("The pipeline is fitted already: load it anew to fit it otherwise (`pipe.plan`).")
    for name in NAMES:
        module = getattr(pipe, name)
        if module is None:
            continue
        if is_offloaded(module):
            raise RuntimeError(f"`{name}` is offloaded already: call `fit_memory` on a pipeline as it was loaded.")
        if any(getattr(part, "_compiled_call_impl", None) is not None for part in module.modules()):
            raise RuntimeError(f"`{name}` is compiled already: call `fit_memory` first, then `compile`.")


def carry_out(pipe: Any, plan: Plan, device: torch.device | str) -> None:
    """Change a pipeline, in place, to what a plan of it says.

    Args:
        pipe: The pipeline that the plan was made for.
        plan: The plan.
        device: Where to compute. Layers are prefetched on a stream of their own on CUDA alone.
    """
    device = torch.device(device)
    modules = {name: getattr(pipe, name) for name in plan.places}
    if plan.cast is not None:
        for module in modules.values():
            module.to(of_name(plan.cast))
    if plan.precision in ONE_BYTE:
        pipe.quantize(plan.precision)
    elif plan.precision == NF4:
        for name in (CONDITIONAL, UNCONDITIONAL):
            if name in modules:
                to_nf4(modules[name])
    if plan.per_decode < plan.call.pictures or plan.tile is not None:
        pipe.vae.enable_slicing()
    if plan.tile is not None:
        tile_decoding(pipe.vae, plan.tile)
    for name, module in modules.items():
        if plan.places[name] == STAYS:
            module.to(device)
        elif plan.places[name] == FREED:
            add_hook_to_module(module, FreeHook(device))
        elif plan.places[name] == STREAMED:
            _stream(module, device, by_layer=name == TEXT_ENCODER)
        else:
            module.to(HOST)
    for name, module in modules.items():
        moves = plan.places[name] in (TURNS, SWAPPED)
        away = [modules[other] for other in _leaving(plan, name)]
        if moves or away:
            add_hook_to_module(module, SwapHook(device, away, moves))
    pipe.plan = plan


def _leaving(plan: Plan, name: str) -> list[str]:
    """The components that leave the device when `name` begins."""
    movable = [other for other, place in plan.places.items() if place in (TURNS, SWAPPED) and other != name]
    branches = [other for other in movable if other != TEXT_ENCODER]
    if name == TEXT_ENCODER:
        return branches
    if name == AUTOENCODER:
        return branches if plan.clears else []
    encoder = [other for other in movable if other == TEXT_ENCODER]
    return encoder + (branches if plan.places[name] == SWAPPED else [])


class SwapHook(ModelHook):
    """Brings a module to the device when it is called, and sends away those that were there before it.

    accelerate's `CpuOffload` sends one module away, and only the one before in a chain: of two transformers that are
    called in turn at every step, both would be on the device from the second step on.

    Args:
        execution_device: Where the module computes.
        away: Modules that go to host memory first.
        moves: Whether the module itself comes; False where it is there, or where hooks bring its layers.
    """

    def __init__(self, execution_device: torch.device, away: list[nn.Module], moves: bool) -> None:
        self.execution_device, self.away, self.moves = execution_device, away, moves

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        leaving = [other for other in self.away if next(other.parameters()).device.type != HOST.type]
        for other in leaving:
            other.to(HOST)
        if leaving and self.execution_device.type == "cuda":
            torch.cuda.empty_cache()
        if self.moves:
            module.to(self.execution_device)
        return send_to_device(args, self.execution_device), send_to_device(kwargs, self.execution_device)


class FreeHook(ModelHook):
    """Frees a module's weights once it has been called; a later call is refused.

    Args:
        execution_device: Where the module computes.
    """

    def __init__(self, execution_device: torch.device) -> None:
        self.execution_device = execution_device

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        if any(parameter.numel() == 0 for parameter in module.parameters()):
            raise RuntimeError(
                "The text encoder was let go after the first captions, as `free_text_encoder=True` asked: give those"
                " captions, pass `prompt_features`, or load the pipeline anew."
            )
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        keep_contents_key(module.get_submodule("language_model"))  # under which embedded captions are kept
        for parameter in module.parameters():
            parameter.data = parameter.data.new_empty(0)
        return output


def tile_decoding(vae: Any, tile: int) -> None:
    """Have an autoencoder decode tiles of so many pixels a side; by itself it would begin above its `sample_size`."""
    vae.enable_tiling()
    vae.tile_sample_min_size = tile
    vae.tile_latent_min_size = tile // 2 ** (len(vae.config.block_out_channels) - 1)


def _stream(module: nn.Module, device: torch.device, by_layer: bool) -> None:
    """Let diffusers' group offloading bring a module to the device piece by piece.

    Args:
        module: A transformer, or the text encoder.
        device: Where it computes.
        by_layer: Layer by layer, without prefetching, as the text encoder needs it, whose decoder layers are called
            one by one. False for block by block, the next one copied while one computes.
    """
    if by_layer:
        apply_group_offloading(module, device, HOST, offload_type="leaf_level")
    else:
        apply_group_offloading(
            module, device, HOST, offload_type="block_level", num_blocks_per_group=1, use_stream=device.type == "cuda"
        )


def to_nf4(transformer: nn.Module) -> list[str]:
    """Put bitsandbytes' 4-bit layers in the place of the blocks' linear layers; they round when they are moved.

    Returns:
        Names of the layers.

    Raises:
        ValueError: if bitsandbytes is not installed.
    """
    if not has_bitsandbytes():
        raise ValueError("nf4 needs bitsandbytes: install it (pip install bitsandbytes), or use int8.")
    from bitsandbytes.nn import Linear4bit, Params4bit

    from ..ops.quantized_layers import is_quantized_layer

    names = [name for name, _ in transformer.named_modules() if is_quantized_layer(name)]
    for name in names:
        linear = transformer.get_submodule(name)
        weight = linear.weight.data
        layer = Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=False,
            compute_dtype=weight.dtype,
            quant_type=NF4,
            device="meta",
        )
        layer.weight = Params4bit(weight, requires_grad=False, quant_type=NF4, compress_statistics=True, module=layer)
        transformer.set_submodule(name, layer)
    return names
