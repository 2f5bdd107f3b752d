"""Steps by CUDA graphs: recorded when a layout comes again, then replayed for all requests of that layout."""

from __future__ import annotations

import logging
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, partial
from itertools import chain
from typing import Any, Literal, TypeAlias
from weakref import WeakKeyDictionary, ref

import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from torch import Tensor, nn

from ..model import Context, Modulation
from ..ops.hooks import is_hooked, modules_within, offload_hooks
from ..packing import Layout
from .cuda_graph import CudaGraph, Pool
from .out_of_memory import out_of_memory

Choice: TypeAlias = bool | Literal["auto"]

KEPT = 16  # graphs of both branches; they share one memory for what is computed in between
KNOWN = 256  # layouts of which it is remembered how often they came
# Tokens of a branch's stream up to which "auto" records. On an H100 graphs make a step of 1,224 tokens (512 pixels, a
# caption of 200 tokens) 22% shorter and one of 4,596 2%: there kernels take longer than Python takes to launch them.
AUTO_TOKENS = 3072

PLAIN_PACKAGES = ("builtins", "ideoflow", "torch", "diffusers", "bitsandbytes", "torchao")

logger = logging.getLogger(__name__)
_failed: WeakKeyDictionary[nn.Module, Hashable] = WeakKeyDictionary()  # the state in which a recording was broken off


def check_choice(cuda_graphs: Any) -> Choice:
    """The value, if it says whether to use CUDA graphs.

    Raises:
        ValueError: if it is none of True, False and "auto".
    """
    if cuda_graphs is True or cuda_graphs is False or (isinstance(cuda_graphs, str) and cuda_graphs == "auto"):
        return cuda_graphs  # type: ignore[return-value]
    raise ValueError(f'`cuda_graphs` is {cuda_graphs!r}: give "auto", True or False.')


@dataclass(frozen=True)
class Inputs:
    """What a step gives the transformer beside the context, as `velocity` takes it.

    Attributes:
        latents: (image_tokens, in_channels).
        times: (segments,).
        modulation: rows for these times, if they are known.
    """

    latents: Tensor
    times: Tensor
    modulation: Modulation | None

    def clone(self) -> Inputs:
        """The same in memory of its own."""
        known = self.modulation
        modulation = None if known is None else Modulation(known.blocks.clone(), known.final.clone())
        return Inputs(self.latents.clone(), self.times.clone(), modulation)

    def copy_(self, other: Inputs) -> None:
        """Take the values of `other`."""
        for own, given in zip(self._tensors(), other._tensors(), strict=True):
            own.copy_(given)

    def _tensors(self) -> list[Tensor]:
        known = self.modulation
        return [self.latents, self.times] + ([] if known is None else [known.blocks, known.final])


Velocity = Callable[[Inputs, Context], Tensor]  # (image_tokens, in_channels)


@dataclass
class _Set:
    """A layout that came, and, once it has come often enough, the graph of its velocity and all that this reads."""

    came: int = 0
    wanted: int = 1  # times that it comes before it is recorded; twice as many after each graph that was let go
    graph: CudaGraph | None = None
    inputs: Inputs | None = None
    packed: Context | None = None
    contexts: list[ref[Context]] = field(default_factory=list)  # whose values lie in `packed`

    def forget(self) -> None:
        """Let the graph go, and all that it reads."""
        self.graph, self.inputs, self.packed, self.contexts, self.came = None, None, None, [], 0

    def holds(self, contexts: Sequence[Context]) -> bool:
        """Whether these are the contexts whose values are here."""
        return len(contexts) == len(self.contexts) and all(
            known() is given for known, given in zip(self.contexts, contexts, strict=True)
        )

    def replay(self, inputs: Inputs, contexts: Sequence[Context], pack: Callable[[], Context]) -> Tensor:
        assert self.inputs is not None and self.packed is not None and self.graph is not None
        if not self.holds(contexts):
            self.contexts = []  # in case it is broken off in the middle
            for own, given in zip(_tensors(self.packed), _tensors(pack()), strict=True):
                own.copy_(given)
            self.contexts = [ref(context) for context in contexts]
        self.inputs.copy_(inputs)
        self.graph.replay()
        return self.graph.output.clone()  # the next replay of any that shares its memory writes there


class Store:
    """The graphs of one denoiser, of both branches, and the layouts that came: the latest last.

    Args:
        limit: Hold no more memory than a share of what is free.
    """

    def __init__(self, limit: bool) -> None:
        self.pool = Pool()
        self.limit = limit
        self._sets: OrderedDict[tuple[int, Hashable], _Set] = OrderedDict()

    def find(self, branch: Graphs, layout: Hashable) -> _Set:
        """What is known of a layout, which is the latest now."""
        key = (id(branch), layout)
        found = self._sets.setdefault(key, _Set())
        self._sets.move_to_end(key)
        while len(self._sets) > KNOWN:
            self._sets.popitem(last=False)
        return found

    def make_room(self, device: torch.device) -> None:
        """Let the least recent graphs go before another is recorded: it computes in their memory."""
        held = [one for one in self._sets.values() if one.graph is not None]
        too_many = len(held) - KEPT + 1
        if self.limit and held and self.pool.bytes > CudaGraph.room(device):
            too_many = len(held)  # they share it: it comes back with the last
        for one in held[: max(0, too_many)]:
            one.forget()
            one.wanted *= 2  # those that take turns in too little room are soon computed without
        if 0 < len(held) <= too_many:
            self.pool.let_go()

    def fits(self, device: torch.device) -> bool:
        """Whether what is held is within the limit."""
        return not self.limit or self.pool.bytes <= CudaGraph.room(device)

    def count(self, branch: Graphs) -> int:
        """Number of graphs of a branch."""
        return sum(key[0] == id(branch) and one.graph is not None for key, one in self._sets.items())

    def free(self, branch: Graphs) -> None:
        """Forget all that is known of a branch."""
        had = self.count(branch)
        for key in [key for key in self._sets if key[0] == id(branch)]:
            del self._sets[key]
        if had:
            self.pool.let_go()


class Graphs:
    """Velocities of one transformer, by graphs where the same layout comes again.

    The first time a layout is computed as without graphs, the second time it is recorded besides, later it is replayed:
    the same kernels on the same numbers. Where nothing may be recorded all is computed as without graphs: on other
    devices, under autocast, adapters and hooks, of which offloading is one.

    Args:
        transformer: The model that computes the velocities.
        store: Where all graphs of a denoiser are.
        insisted: Record streams of all sizes, and warn where none may be recorded; else only where it pays, in silence.
    """

    def __init__(self, transformer: nn.Module, store: Store, insisted: bool = True) -> None:
        self._transformer = transformer
        self._store = store
        self._insisted = insisted
        self._state: Hashable | None = None
        self._reason: str | None = None  # why nothing could be recorded at the last step
        self._given_up = False

    def __len__(self) -> int:
        return self._store.count(self)

    def velocity(
        self, compute: Velocity, inputs: Inputs, contexts: Sequence[Context], pack: Callable[[], Context]
    ) -> Tensor:
        """What `compute` gives for these inputs, in memory that is the caller's.

        Args:
            compute: Must not wait for the device.
            inputs: What the step gives the transformer beside the context.
            contexts: Those that are packed, in their order.
            pack: Makes one stream of them, which a replay of the same contexts does without.
        """
        if not self._records(inputs.latents.device, contexts):
            return compute(inputs, pack())
        known = self._store.find(self, _layout_of(inputs, contexts))
        if known.graph is not None:
            return known.replay(inputs, contexts, pack)
        known.came += 1
        if known.came <= known.wanted:
            return compute(inputs, pack())
        return self._record(known, compute, inputs, contexts, pack())

    def free(self) -> None:
        """Free all graphs."""
        self._store.free(self)

    def give_up(self, why: str) -> None:
        """Free all graphs and record no more, with a warning."""
        self.free()
        self._given_up = True
        warnings.warn(f"CUDA graphs are not used any more: {why}", RuntimeWarning, stacklevel=2)

    def _records(self, device: torch.device, contexts: Sequence[Context]) -> bool:
        """Whether graphs may be used now. Those that cannot be used again are freed."""
        if self._given_up or not CudaGraph.runs_on(device):
            return False
        if not self._insisted and sum(context.layout.tokens for context in contexts) > AUTO_TOKENS:
            return False
        found = _state_of(self._transformer, device, self._insisted)
        state, reason = (None, found) if isinstance(found, str) else (found, None)
        if state != self._state:
            self.free()
            self._state = state
        if state is not None and not self._insisted and _failed.get(self._transformer) == state:
            reason = "recording one has failed before"
        if reason is not None and reason != self._reason:
            if self._insisted:
                warnings.warn(f"CUDA graphs are not used: {reason}.", RuntimeWarning, stacklevel=2)
            else:
                logger.debug("CUDA graphs are not used: %s.", reason)
        self._reason = reason
        return reason is None

    def _record(
        self, known: _Set, compute: Velocity, inputs: Inputs, contexts: Sequence[Context], packed: Context
    ) -> Tensor:
        """The velocity, and a graph of it for the next time."""
        device = inputs.latents.device
        self._store.make_room(device)
        own, kept = inputs.clone(), _in_memory_of_its_own(packed)
        run = partial(compute, own, kept)
        graph = CudaGraph(device)
        handled = sys.exception()  # by the caller
        velocity = graph.warm_up(run)  # this step's own: what it raises has nothing to do with graphs
        try:
            graph.capture(run, self._store.pool)
        except Exception as error:
            if not out_of_memory(error) and self._state is not None:
                _failed[self._transformer] = self._state
            self.give_up(f"recording one failed with {_cause(error, handled)}")
            return velocity
        if not self._store.fits(device):
            logger.debug("A CUDA graph is let go: graphs would hold more than a share of the memory that is free.")
            alone = len(self._store.pool.graphs) == 1
            known.wanted = sys.maxsize if alone else known.wanted * 2
            del graph, run, own, kept
            self._store.make_room(device)
            self._store.pool.let_go()
            return velocity
        known.graph, known.inputs, known.packed = graph, own, kept
        known.contexts = [ref(context) for context in contexts]
        return velocity


def _cause(error: BaseException, handled: BaseException | None) -> str:
    """The first error since `handled`: where one breaks a recording, ending it raises another."""
    while error.__context__ is not None and error.__context__ is not handled:
        error = error.__context__
    return f"{type(error).__name__}: {error}"


def _layout_of(inputs: Inputs, contexts: Sequence[Context]) -> Hashable:
    """All that a graph holds for beside the values of tensors."""
    return (
        inputs.latents.dtype,
        inputs.times.dtype,
        inputs.modulation is None,
        tuple(
            (one.layout.lengths, one.layout.image_lengths, one.text.shape, one.text.dtype, one.cos.dtype)
            for one in contexts
        ),
    )


_INDICES = tuple(one.name for one in fields(Layout) if one.name not in ("lengths", "image_lengths"))


def _in_memory_of_its_own(context: Context) -> Context:
    layout = context.layout
    own = replace(layout, **{name: getattr(layout, name).clone() for name in _INDICES})
    return Context(own, context.text.clone(), context.cos.clone(), context.sin.clone())


def _tensors(context: Context) -> list[Tensor]:
    """All that a step reads of a context."""
    layout = context.layout
    return [
        context.text,
        context.cos,
        context.sin,
        *(getattr(layout, name) for name in _INDICES),
        layout.image_bounds.cu_queries,
        layout.image_segment,
        layout.order,
    ]


@cache
def _may_look_on(kind: Any) -> bool:
    """Whether a class may do more, when it is called, than compute: those of these packages do not."""
    return kind.__module__.partition(".")[0] not in PLAIN_PACKAGES


def _state_of(transformer: nn.Module, device: torch.device, insisted: bool) -> tuple[Hashable, ...] | str:
    """What a graph holds for: where weights lie, and how attention is computed. Weights may change where they lie.

    Returns:
        Why nothing may be recorded, where nothing may: hooks want to see each call, the scale of adapters changes
        without a trace, autocast keeps copies of weights for a while, and some weights have no address.
    """
    if getattr(transformer, "peft_config", None):
        return "the model has adapters, whose strength may change from call to call"
    if torch.is_autocast_enabled(device.type):
        return "autocast keeps copies of weights"
    if torch._C._len_torch_dispatch_stack():
        return "a dispatch mode wants to see each operation"
    state: list[Hashable] = [torch.is_inference_mode_enabled(), _AttentionBackendRegistry.get_active_backend()[0]]
    for part in modules_within(transformer):
        if (
            is_hooked(part)
            or "_hf_hook" in part.__dict__
            or ("_diffusers_hook" in part.__dict__ and offload_hooks(part))
        ):
            return "hooks are on the model, to offload it or to see its layers called"
        if "lora_A" in part._modules:
            return "layers have adapters, whose strength may change from call to call"
        if getattr(type(part), "waits_for_device", False):
            return f"{type(part).__name__} waits for the device"
        if part.__dict__.get("records_cuda_graphs", False):
            return "the blocks are compiled in a mode that records CUDA graphs of its own"
        for tensor in chain(part._parameters.values(), part._buffers.values()):
            if tensor is None:
                continue
            try:
                state.append((tensor.data_ptr(), tensor.dtype))
            except RuntimeError:
                return "weights have no address"
        processor = part.__dict__.get("processor")
        kinds: list[Any] = [type(part), type(processor)]
        if not insisted and any(map(_may_look_on, kinds)):
            return "somebody's own layers or attention processors may want to see each call"
        if processor is not None:
            state += [processor, getattr(processor, "_attention_backend", None)]
    return tuple(state)
