"""Telling whether models would still compute what they computed: by what their weights hold, or by which they are.

What a tensor holds is all that tells, since writes through `.data` (adapters, averages of weights and textual inversion
write so) leave no other trace. It takes reading every weight once, so it is asked once a call; between the steps of a
request which tensors there are has to do.
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from .hooks import computed_type_key, modules_within

PLAIN = (
    bool,
    int,
    float,
    str,
    torch.dtype,
    FunctionType,
    BuiltinFunctionType,
    type(None),
)  # attributes that are compared
LANES = 1021  # sums of a checksum; a prime, so that neither rows nor columns of a matrix can change places in one lane
SMALL = 2**11  # words; tensors up to here are laid together before they are summed
_KEPT = "_key_of_weights_let_go"


def contents_key(module: nn.Module) -> Hashable | None:
    """What changes when a module would compute something else, and not when it moves to another device.

    Counts every parameter and buffer by type, shape and a checksum of 64 bits, the classes and plain attributes of all
    its modules, and autocast. Waits for the device.

    Returns:
        A key, or None where none can tell: with adapters, whose scale changes from call to call; with hooks that are
        not of offloading; with weights that are not in memory.
    """
    kept: Hashable = module.__dict__.get(_KEPT)
    if kept is not None and all(parameter.numel() == 0 for parameter in module.parameters()):
        return kept
    parts: list[Any] = []
    tensors: list[Tensor] = []
    for part in modules_within(module):
        hooks = _hooks_key(part)
        if hooks is None:
            return None
        parts += [type(part), hooks, _attributes_key(part)]
        for name, tensor in chain(part._parameters.items(), part._buffers.items()):
            if tensor is not None and tensor.is_meta:
                return None
            own = list(_plain_tensors(tensor))
            parts.append((name, tuple((each.dtype, each.shape) for each in own)))
            tensors += own
    return tuple(parts), _autocast_key(tensors), _checksums(tensors)


def contents_digest(module: nn.Module) -> str | None:
    """A digest of a model's configuration and of what its weights hold, the same in every process and on every device.

    Counts every parameter and buffer by name, type, shape and a checksum of 64 bits. Waits for the device.

    Returns:
        64 hexadecimal digits, or None where none can tell, as `contents_key`.
    """
    total = hashlib.sha256()
    config = {key: value for key, value in getattr(module, "config", {}).items() if not key.startswith("_")}
    total.update(json.dumps(config, sort_keys=True, default=str).encode())  # tuples as lists, which files have
    tensors: list[Tensor] = []
    for place, part in module.named_modules():
        if _hooks_key(part) is None:
            return None
        for name, tensor in chain(part._parameters.items(), part._buffers.items()):
            if tensor is not None and (tensor.is_meta or tensor.numel() == 0):
                return None
            own = list(_plain_tensors(tensor))
            total.update(repr((place, name, [(str(each.dtype), tuple(each.shape)) for each in own])).encode())
            tensors += own
    total.update(repr(_checksums(tensors)).encode())
    return total.hexdigest()


def keep_contents_key(module: nn.Module) -> None:
    """Let `contents_key` stay what it is now, for as long as all parameters of `module` are emptied."""
    module.__dict__[_KEPT] = contents_key(module)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Which tensors modules have, and all about them that can be told without reading them.

    Attributes:
        tensors: The parameters and buffers themselves, so that none of them is gone and its address another's.
        facts: Where each lies, how often it was written to but through `.data`, and its type; classes and autocast.
    """

    tensors: tuple[Tensor, ...]
    facts: Hashable

    def is_still(self, now: Snapshot) -> bool:
        """Whether nothing has changed that can be told without reading."""
        return self.facts == now.facts and all(map(operator.is_, self.tensors, now.tensors))


def snapshot(modules: Sequence[nn.Module]) -> Snapshot | None:
    """The snapshot of modules; None with adapters, hooks and weights that are not in memory, as `contents_key`."""
    tensors: list[Tensor] = []
    facts: list[Any] = []
    for part in chain.from_iterable(map(modules_within, modules)):
        hooks = _hooks_key(part)
        if hooks is None:
            return None
        facts += [type(part), hooks]
        for tensor in chain(part._parameters.values(), part._buffers.values()):
            if tensor is not None and tensor.is_meta:
                return None
            for own in _plain_tensors(tensor):
                tensors.append(own)
                facts.append((own.data_ptr(), 0 if own.is_inference() else own._version, own.dtype, own.shape))
    facts.append(_autocast_key(tensors))
    return Snapshot(tuple(tensors), tuple(facts))


def _hooks_key(part: nn.Module) -> Hashable | None:
    """Hooks of a module that change types; None if it has adapters, or hooks that might do anything."""
    return None if "base_layer" in part._modules else computed_type_key(part)


def _attributes_key(part: nn.Module) -> Hashable:
    own = part.__dict__.items()
    plain = tuple((name, value) for name, value in own if name[0] != "_" and isinstance(value, PLAIN))
    return plain, getattr(part.__dict__.get("config"), "_attn_implementation", None)


def _autocast_key(tensors: Sequence[Tensor]) -> Hashable:
    kinds = sorted({tensor.device.type for tensor in tensors})
    return tuple(torch.get_autocast_dtype(kind) for kind in kinds if torch.is_autocast_enabled(kind))


def _plain_tensors(tensor: Tensor | None) -> Iterator[Tensor]:
    """The ordinary tensors that a parameter or buffer consists of: quantized ones have several."""
    if tensor is None:
        return
    if type(tensor) in (Tensor, nn.Parameter, nn.Buffer):
        yield tensor
    elif hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _plain_tensors(getattr(tensor, name))
    else:
        with torch._C.DisableTorchFunctionSubclass():
            yield tensor.detach().as_subclass(Tensor)
        yield from _tensors_within(vars(tensor))


def _tensors_within(attributes: dict[str, Any]) -> Iterator[Tensor]:
    """Tensors among attributes and those of the states of quantization."""
    for name, value in attributes.items():
        if isinstance(value, Tensor):
            yield from _plain_tensors(value)
        elif name in ("quant_state", "state2") and hasattr(value, "__dict__"):
            yield from _tensors_within(vars(value))


@torch.no_grad()
def _checksums(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """Checksums of 64 bits of what the tensors hold, the same on every device; small tensors of a type share one."""
    words = [_words(tensor) for tensor in tensors]
    together: dict[torch.device, list[Tensor]] = {}
    for each in words:
        if len(each) <= SMALL:
            together.setdefault(each.device, []).append(each)
    found: list[int] = []
    for device in dict.fromkeys(each.device for each in words):
        own = [each for each in words if each.device == device and len(each) > SMALL]
        if device in together:
            own.append(torch.cat(together[device]))
        weights = _multipliers().to(device)
        found += torch.stack([_checksum(each, weights) for each in own]).tolist()
    return tuple(found)


def _checksum(words: Tensor, multipliers: Tensor) -> Tensor:
    """Sum of 1021 sums, each times an odd number, modulo 2^64."""
    even = len(words) - len(words) % LANES
    lanes = words[:even].view(-1, LANES).sum(0)
    lanes[: len(words) - even] += words[even:]
    return (lanes * multipliers).sum()


def _words(tensor: Tensor) -> Tensor:
    """The memory of a tensor as int64."""
    flat = tensor.detach().contiguous().view(-1)
    if flat.element_size() == 8:  # the signs are the words' highest bits, of which any two cancel
        return flat.view(torch.int32).to(torch.int64)
    octets = flat.view(torch.uint8)
    if len(octets) % 8 or octets.storage_offset() % 8:
        octets = nn.functional.pad(octets, (0, -len(octets) % 8)) if len(octets) % 8 else octets.clone()
    return octets.view(torch.int64)


def _multipliers() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-(2**62), 2**62, (LANES,), generator=generator) * 2 + 1
