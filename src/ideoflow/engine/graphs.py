"""CUDA graphs: the kernels of a step, recorded when the same contexts come again, then replayed in one launch."""

from __future__ import annotations

import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain
from weakref import WeakSet, ref

import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from torch import Tensor, nn

from ..model import Context, Modulation
from ..ops.hooks import is_hooked, modules_within, offload_hooks

KEPT = 8  # sets of contexts of each branch; their graphs share one memory for what is computed in between


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


class Pool:
    """The graphs of one denoiser, which share memory, and the stream that they are recorded on."""

    def __init__(self) -> None:
        self.graphs: WeakSet[CudaGraph] = WeakSet()
        self._stream: torch.cuda.Stream | None = None

    def stream(self, device: torch.device) -> torch.cuda.Stream:
        """For recording alone, and of another priority than all others: torch lends a stream to many.

        cuBLAS keeps a workspace for each stream. It must come from the memory of these graphs, and is let go with one.
        """
        if self._stream is None:
            self._stream = torch.cuda.Stream(device, priority=-1)
        return self._stream

    def handle(self) -> torch.cuda._POOL_HANDLE | None:
        """Torch's name of the memory; None while no graph holds it, since torch takes it back with the last one."""
        return next((graph.handle for graph in self.graphs), None)


class CudaGraph:
    """The kernels that a function launches. `run` must read and write the same memory each time, and never wait."""

    def __init__(self, device: torch.device) -> None:
        self.output: Tensor  # once captured; every replay writes it anew
        self._device = device
        self._graph = torch.cuda.CUDAGraph()

    @staticmethod
    def runs_on(device: torch.device) -> bool:
        """Whether there are graphs there."""
        return device.type == "cuda"

    @property
    def handle(self) -> torch.cuda._POOL_HANDLE:
        """Torch's name of the graph's memory."""
        return self._graph.pool()

    def warm_up(self, run: Callable[[], Tensor]) -> Tensor:
        """What `run` gives, computed on a side stream: libraries set themselves up where nothing is recorded yet."""
        current, side = torch.cuda.current_stream(self._device), _warm_up_stream(self._device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            result = run()
        current.wait_stream(side)
        result.record_stream(current)
        return result

    def capture(self, run: Callable[[], Tensor], pool: Pool) -> None:
        """Record `run`, which computes nothing yet. Waits for the device."""
        # Torch does not go back to the current stream where the capture cannot be ended. What other threads ask of the
        # device meanwhile is no part of it.
        with (
            torch.cuda.device(self._device),
            torch.cuda.stream(torch.cuda.current_stream(self._device)),
            torch.cuda.graph(
                self._graph,
                pool=pool.handle(),
                stream=pool.stream(self._device),
                capture_error_mode="thread_local",
            ),
        ):
            self.output = run()

    def replay(self) -> None:
        """Launch the kernels on the current stream."""
        self._graph.replay()


@cache
def _warm_up_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # one for all, since cuBLAS keeps a workspace for each


@dataclass
class _Set:
    """Contexts that came together, and, from the second time on, the graph of their velocity and all that it reads."""

    contexts: list[ref[Context]]
    inputs: Inputs | None = None
    packed: Context | None = None
    graph: CudaGraph | None = None

    @property
    def gone(self) -> bool:
        """Whether it cannot come again."""
        return any(context() is None for context in self.contexts)

    def replay(self, inputs: Inputs) -> Tensor:
        assert self.inputs is not None and self.graph is not None
        self.inputs.copy_(inputs)
        self.graph.replay()
        return self.graph.output.clone()  # the next replay of any that shares its memory writes there


class Graphs:
    """Velocities of one transformer, by graphs where the same contexts come again.

    The first time a set of contexts is computed as without graphs, the second time it is recorded besides, later it is
    replayed: the same kernels on the same numbers. Where nothing may be recorded all is computed as without graphs: on
    other devices, under autocast, adapters and hooks, of which offloading is one.

    Args:
        transformer: The model that computes the velocities.
        pool: The memory that all graphs of a denoiser share.
    """

    def __init__(self, transformer: nn.Module, pool: Pool) -> None:
        self._transformer = transformer
        self._pool = pool
        self._state: Hashable | None = None
        self._sets: OrderedDict[Hashable, _Set] = OrderedDict()  # the latest last
        self._given_up = False

    def __len__(self) -> int:
        return sum(one.graph is not None for one in self._sets.values())

    def velocity(self, compute: Velocity, inputs: Inputs, contexts: Sequence[Context], packed: Context) -> Tensor:
        """What `compute` gives for these inputs, in memory that is the caller's.

        Args:
            compute: Must not wait for the device.
            inputs: What the step gives the transformer beside the context.
            contexts: Those that are packed, in their order. What becomes of them decides how long a graph is kept.
            packed: One stream of them.
        """
        if not self._records(inputs.latents.device):
            return compute(inputs, packed)
        key = (tuple(id(context) for context in contexts), inputs.modulation is None)
        known = self._sets.pop(key, None)
        if known is None:
            velocity = compute(inputs, packed)
            known = _Set([ref(context) for context in contexts])
        elif known.graph is None:
            velocity = self._record(known, compute, inputs, packed)
        else:
            velocity = known.replay(inputs)
        self._sets[key] = known
        while len(self._sets) > KEPT:
            self._sets.popitem(last=False)
        return velocity

    def free(self) -> None:
        """Free all graphs."""
        self._sets.clear()

    def give_up(self, why: str) -> None:
        """Free all graphs and record no more, with a warning."""
        self.free()
        self._given_up = True
        warnings.warn(f"CUDA graphs are not used any more: {why}", RuntimeWarning, stacklevel=2)

    def _records(self, device: torch.device) -> bool:
        """Whether graphs may be used now. Those that cannot be used again are freed."""
        if self._given_up or not CudaGraph.runs_on(device):
            return False
        state = _state_of(self._transformer, device)
        if state != self._state:
            self.free()
            self._state = state
        for key in [key for key, one in self._sets.items() if one.gone]:
            del self._sets[key]
        return state is not None

    def _record(self, known: _Set, compute: Velocity, inputs: Inputs, packed: Context) -> Tensor:
        """The velocity, and a graph of it for the next time."""
        own = inputs.clone()
        kept = replace(packed)  # its tensors are read by each replay; a context itself may be what should go
        run = partial(compute, own, kept)
        graph = CudaGraph(inputs.latents.device)
        handled = sys.exception()  # by the caller
        velocity = graph.warm_up(run)  # this step's own: what it raises has nothing to do with graphs
        try:
            graph.capture(run, self._pool)
        except Exception as error:
            self.give_up(f"recording one failed with {_cause(error, handled)}")
        else:
            known.inputs, known.packed, known.graph = own, kept, graph
            self._pool.graphs.add(graph)
        return velocity


def _cause(error: BaseException, handled: BaseException | None) -> str:
    """The first error since `handled`: where one breaks a recording, ending it raises another."""
    while error.__context__ is not None and error.__context__ is not handled:
        error = error.__context__
    return f"{type(error).__name__}: {error}"


def _state_of(transformer: nn.Module, device: torch.device) -> Hashable | None:
    """What a graph holds for: where weights lie, and how attention is computed. Weights may change where they lie.

    Returns:
        None where nothing may be recorded: hooks want to see each call, the scale of adapters changes without a trace,
        autocast keeps copies of weights for a while, and some weights have no address.
    """
    if getattr(transformer, "peft_config", None) or torch.is_autocast_enabled(device.type):
        return None
    state: list[Hashable] = [torch.is_inference_mode_enabled(), _AttentionBackendRegistry.get_active_backend()[0]]
    for part in modules_within(transformer):
        if _wants_calls(part) or "lora_A" in part._modules or getattr(type(part), "waits_for_device", False):
            return None
        for tensor in chain(part._parameters.values(), part._buffers.values()):
            if tensor is None:
                continue
            try:
                state.append((tensor.data_ptr(), tensor.dtype))
            except RuntimeError:
                return None
        processor = part.__dict__.get("processor")
        if processor is not None:
            state += [processor, getattr(processor, "_attention_backend", None)]
    return tuple(state)


def _wants_calls(part: nn.Module) -> bool:
    return is_hooked(part) or bool(offload_hooks(part))
