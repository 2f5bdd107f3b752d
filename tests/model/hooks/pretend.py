"""Devices that a machine has not: tensors that lie on the CPU, say that they lie elsewhere, and refuse to meet others.

What hooks do with devices is all there to see: where a tensor says it is, where it is moved, and whom it meets there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CPU = torch.device("cpu")
WITHOUT_NUMBERS = ("aten::detach", "aten::empty_like")
NEAR, FAR = "maia:0", "maia:1"  # a kind of device that torch has a name for, and nobody has


class Pretending(Tensor):
    """A tensor that says it lies on `place`; to torch it is one on the CPU."""

    own: Tensor
    place: torch.device

    @staticmethod
    def __new__(cls, own: Tensor, place: Any = None, requires_grad: bool = False) -> Pretending:
        place = torch.device(place) if place is not None else own.device  # as itself
        own = own.own if isinstance(own, Pretending) else own
        made = Tensor._make_wrapper_subclass(
            cls,
            own.shape,
            strides=own.stride(),
            storage_offset=own.storage_offset(),
            dtype=own.dtype,
            requires_grad=requires_grad,
        )
        made.own, made.place = own.detach(), place
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.place

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self.own.dtype

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return self.place.type == "meta"

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        self.own, self.place = (value.own, value.place) if isinstance(value, Pretending) else (value, value.device)

    def data_ptr(self) -> int:
        return self.own.data_ptr()

    def pin_memory(self, device: Any = None) -> Tensor:  # type: ignore[override]
        return Pretending(self, self.place)

    def is_pinned(self, device: Any = None) -> bool:  # type: ignore[override]
        return False

    def record_stream(self, stream: Any) -> None:
        pass

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Pretending({self.own}, {self.place})"

    def __deepcopy__(self, memo: dict) -> Pretending:
        return Pretending(self.own.clone(), self.place, self.requires_grad)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is Tensor.to:
            return _moved(*args, **kwargs)
        if function is Tensor.cpu:
            return _moved(args[0], CPU)
        if function is Tensor.tolist:
            return args[0].own.tolist()
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, kwargs or {})


def _moved(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`tensor.to(...)`: the device is ours to say, the type is torch's."""
    given = [kwargs.pop("device", None), *args]
    like = next((x for x in given if isinstance(x, Tensor)), None)
    if like is not None:
        given = [like.device, like.dtype]
    place = next((torch.device(x) for x in given if isinstance(x, str | torch.device)), None)
    dtype = kwargs.get("dtype") or next((x for x in given if isinstance(x, torch.dtype)), None)
    own = tensor.own if isinstance(tensor, Pretending) else tensor
    place = tensor.device if place is None else place
    if place == tensor.device and dtype in (None, tensor.dtype):
        return tensor
    return Pretending(own if dtype is None else own.to(dtype), place, tensor.requires_grad and tensor.is_leaf)


def _run(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    asked = kwargs.get("device")
    # Numbers may come from anywhere.
    places = {x.device for x in tensors if x.ndim > 0}
    if len(places) > 1 and operation._schema.name != "aten::copy_":
        found = ", ".join(sorted(map(str, places)))
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {found} in {operation}")
    if "meta" in {place.type for place in places} and operation._schema.name not in WITHOUT_NUMBERS:
        raise RuntimeError(f"{operation} wants numbers, and found a tensor on the meta device")
    place = torch.device(asked) if asked is not None else next(iter(places), None)
    if place is None:
        place = tensors[0].device if tensors else CPU
    own_args, own_kwargs = tree_map(lambda x: x.own if isinstance(x, Pretending) else x, (args, kwargs))
    if asked is not None:
        own_kwargs["device"] = CPU
    own_kwargs = {name: value for name, value in own_kwargs.items() if name != "pin_memory"}
    output = operation(*own_args, **own_kwargs)
    if operation._schema.name.endswith("_") and isinstance(args[0], Tensor):
        return args[0]
    if "out" in kwargs:
        return kwargs["out"]
    return tree_map(lambda x: Pretending(x, place) if isinstance(x, Tensor) else x, output)


class _Everywhere(TorchDispatchMode):
    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, kwargs or {})


class _Made(TorchFunctionMode):
    """`torch.tensor` makes tensors past the dispatcher."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is not torch.tensor:
            return function(*args, **kwargs)
        place = kwargs.pop("device", None)
        return Pretending(torch.tensor(*args, **kwargs), place or CPU)


@contextmanager
def pretending(*modules: nn.Module) -> Iterator[Callable[..., Any]]:
    """Let devices be what tensors say, for these modules and all that is made meanwhile.

    Yields:
        A function that puts a nest of tensors on a device.
    """
    with torch.no_grad(), _Made(), _Everywhere():
        for module in modules:
            for part in module.modules():
                for kept in (part._parameters, part._buffers):
                    for name, tensor in kept.items():
                        if tensor is not None:
                            kept[name] = Pretending(tensor, CPU, tensor.requires_grad)
                            kept[name]._is_param = isinstance(tensor, nn.Parameter)
        yield lambda nest, place=CPU: tree_map(lambda x: Pretending(x, place) if isinstance(x, Tensor) else x, nest)


def honest(nest: Any) -> Any:
    """The nest with ordinary tensors."""
    return tree_map(lambda x: x.own if isinstance(x, Pretending) else x, nest)
