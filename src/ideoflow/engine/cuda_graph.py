"""One CUDA graph and the memory it shares, recorded so that nothing stays behind in torch where it is broken off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from weakref import WeakSet

import torch
from torch import Tensor

SHARE = 4  # graphs may hold one part in so many of the memory that is free

_broken: list[torch.cuda.CUDAGraph] = []  # torch's allocators may still ask them which stream they record


class Pool:
    """The memory that graphs share, and the stream that they are recorded on.

    Attributes:
        graphs: Those that live.
        bytes: What the memory has grown by while they were recorded; it comes back when none of them lives.
    """

    def __init__(self) -> None:
        self.graphs: WeakSet[CudaGraph] = WeakSet()
        self.bytes = 0
        self._handle: torch.cuda._POOL_HANDLE | None = None
        self._stream: torch.cuda.Stream | None = None

    def stream(self, device: torch.device) -> torch.cuda.Stream:
        """For recording alone, and of another priority than all others: torch lends a stream to many."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(device, priority=-1)
        return self._stream

    def handle(self) -> torch.cuda._POOL_HANDLE:
        """Torch's name of the memory; a new one where no graph lives, since torch takes it back with the last."""
        if self._handle is None or not self.graphs:
            self._handle, self.bytes = torch.cuda.graph_pool_handle(), 0
            # cuBLAS keeps a workspace for each stream. Graphs need theirs in their own memory: any other may be given
            # to somebody else while they write there. So does torch's compiler before it records.
            torch._C._cuda_clearCublasWorkspaces()
        return self._handle

    def let_go(self) -> None:
        """Give the memory back to the device, once no graph lives."""
        if self.graphs:
            return
        self.bytes = 0
        if self._handle is not None:
            self._handle = None
            torch._C._cuda_clearCublasWorkspaces()  # the one of the graphs' stream lies there
            torch.cuda.empty_cache()


class CudaGraph:
    """The kernels that a function launches. `run` must read and write the same memory each time, and never wait.

    Nor may it draw random numbers: it is refused then, as what waits is.
    """

    def __init__(self, device: torch.device) -> None:
        self.output: Tensor  # once captured; every replay writes it anew
        self._device = device
        self._graph = torch.cuda.CUDAGraph()

    @staticmethod
    def runs_on(device: torch.device) -> bool:
        """Whether there are graphs there."""
        return device.type == "cuda"

    @staticmethod
    def room(device: torch.device) -> int:
        """Bytes that graphs may hold: a share of what is free, or is held by torch and not in use."""
        free, _ = torch.cuda.mem_get_info(device)
        return (free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)) // SHARE

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
        """Record `run`, which computes nothing yet. Waits for the device.

        Raises:
            Exception: what `run` or torch raised; nothing else has changed then.
        """
        device, handle = self._device, pool.handle()
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()  # as torch does before it records: what is held more afterwards is the graph's
        before = torch.cuda.memory_reserved(device)
        # Torch does not go back to the current stream where the capture cannot be ended. What other threads ask of the
        # device meanwhile is no part of it.
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
            try:
                with ExitStack() as recording:
                    with _generator_apart(device):
                        recording.enter_context(
                            torch.cuda.graph(
                                self._graph, pool=handle, stream=pool.stream(device), capture_error_mode="thread_local"
                            )
                        )
                    self.output = run()
            except BaseException:
                _end(self._graph, device, handle)
                raise
        pool.bytes += max(0, torch.cuda.memory_reserved(device) - before)
        pool.graphs.add(self)

    def replay(self) -> None:
        """Launch the kernels on the current stream."""
        self._graph.replay()


@cache
def _warm_up_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # one for all, since cuBLAS keeps a workspace for each


@contextmanager
def _generator_apart(device: torch.device) -> Iterator[None]:
    """While a recording begins, torch's generator of the device has a copy of its state.

    Up to torch 2.11 the beginning marks that state as being recorded, and the end alone takes the mark away: one that
    fails leaves a generator that draws nothing any more. So it is the copy that is marked.
    """
    generator = torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    own = generator.graphsafe_get_state()
    generator.graphsafe_set_state(generator.clone_state())
    try:
        yield
    finally:
        generator.graphsafe_set_state(own)


def _end(graph: torch.cuda.CUDAGraph, device: torch.device, handle: torch.cuda._POOL_HANDLE) -> None:
    """Do what torch leaves undone where a recording is broken off.

    Its allocator goes on recording into the graphs' memory, gives none of it back, and asks the graph about every
    stream, gone or not.
    """
    try:
        graph.pool()
    except RuntimeError:  # it was not ended
        index = torch.cuda.current_device() if device.index is None else device.index
        with suppress(RuntimeError):  # it may have been, as far as the allocator is concerned
            torch._C._cuda_endAllocateToPool(index, handle)
            torch._C._cuda_releasePool(index, handle)
        _broken.append(graph)
    graph.reset()
