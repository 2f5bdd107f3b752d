"""Torch's side of CUDA graphs without CUDA: what its generator, its allocator and cuBLAS note, as its C++ has it.

A recording may be broken off anywhere: then the end of it fails before the allocator and the generator are told, as in
`CUDAGraph::capture_end`. What is left behind shows as it does on a GPU.
"""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import torch


class State:
    """A `CUDAGeneratorState`."""

    def __init__(self, seed: int, offset: int) -> None:
        self.seed, self.offset, self.recorded = seed, offset, False


class Generator:
    """A `CUDAGeneratorImpl`."""

    def __init__(self, cuda: FakeCuda, state: State) -> None:
        self.cuda, self.state = cuda, state

    def graphsafe_get_state(self) -> Generator:
        return Generator(self.cuda, self.state)

    def graphsafe_set_state(self, other: Generator) -> None:
        self.state = other.state

    def clone_state(self) -> Generator:
        assert self.cuda.recording is None, "Cannot clone during capturing stage"
        return Generator(self.cuda, State(self.state.seed, self.state.offset))

    def draw(self, on_another_stream: bool = False) -> int:
        if self.cuda.recording is not None and not on_another_stream:
            if self.cuda.marks_generators and not self.state.recorded:
                raise RuntimeError("Attempt to increase offset for a CUDA generator not in capture mode.")
            return -1
        if self.state.recorded:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")
        self.state.offset += 4
        return self.state.offset


class FakeCuda:
    """Put in torch's place by `install`.

    Args:
        marks_generators: As up to torch 2.11, whose recordings mark the default generator's state.
    """

    def __init__(self, marks_generators: bool) -> None:
        self.marks_generators = marks_generators
        self.generator = Generator(self, State(7, 0))
        self.recording: Graph | None = None
        self.invalid = False  # the recording under way cannot be ended any more
        self.users: dict[tuple[int, int], int] = {}  # graphs of each pool
        self.underway: list[tuple[int, int]] = []  # pools that recordings allocate from
        self.segments: dict[tuple[int, int], int] = {}  # bytes of each pool
        self.workspaces: dict[str, tuple[int, int] | None] = {}  # of streams: the pool where each lies
        self.ordinary = 100  # bytes held beside pools, some of them unused
        self.unused = 40
        self.free = 1000
        self.stream = "current"
        self.handles = 0

    def install(self, monkeypatch) -> None:
        cuda = self
        names = {
            "CUDAGraph": lambda: Graph(cuda),
            "graph": lambda graph, **given: Recording(cuda, graph, **given),
            "graph_pool_handle": self.graph_pool_handle,
            "synchronize": lambda device=None: None,
            "empty_cache": self.empty_cache,
            "memory_reserved": lambda device=None: self.ordinary + sum(self.segments.values()),
            "memory_allocated": lambda device=None: self.ordinary - self.unused,
            "mem_get_info": lambda device=None: (self.free, 0),
            "device": lambda device: contextlib.nullcontext(),
            "stream": self.on,
            "Stream": lambda device=None, priority=0: f"stream of priority {priority}",
            "current_stream": lambda device=None: self.stream,
            "current_device": lambda: 0,
            "default_generators": [self.generator],
        }
        for name, value in names.items():
            monkeypatch.setattr(torch.cuda, name, value, raising=False)
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool", "_cuda_clearCublasWorkspaces"):
            monkeypatch.setattr(torch._C, name, getattr(self, name), raising=False)

    @contextlib.contextmanager
    def on(self, stream):
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    def graph_pool_handle(self):
        self.handles += 1
        return (0, self.handles)

    def begin(self, graph) -> None:
        pool = graph.handle
        assert pool not in self.users or self.users[pool] > 0, "the pool was given back"
        assert pool not in self.underway, "already recording to mempool_id"
        self.users[pool] = self.users.get(pool, 0) + 1
        self.segments.setdefault(pool, 0)
        self.underway.append(pool)

    def _cuda_endAllocateToPool(self, device, pool) -> None:
        if pool not in self.underway:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.underway.remove(pool)

    def _cuda_releasePool(self, device, pool) -> None:
        self.users[pool] -= 1
        assert self.users[pool] >= 0

    def _cuda_clearCublasWorkspaces(self) -> None:
        self.workspaces.clear()

    def empty_cache(self) -> None:
        if not self.underway:
            self.ordinary, self.unused = self.ordinary - self.unused, 0
        for pool in [pool for pool, users in self.users.items() if users == 0]:
            if pool in self.workspaces.values():
                self.segments[pool] = 32  # a block that somebody holds
            else:
                del self.users[pool], self.segments[pool]

    def launch(self, bytes: int, wait: bool = False) -> None:
        """A step on the current stream: products, and memory for them."""
        recording = self.recording
        self.workspaces.setdefault(self.stream, None if recording is None else recording.handle)
        if recording is not None:
            self.segments[recording.handle] = max(self.segments[recording.handle], bytes)
            if wait:
                self.invalid = True
                raise RuntimeError("CUDA error: operation not permitted when stream is capturing")


class Graph:
    """A `CUDAGraph`."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda, self.handle, self.ended, self.launches = cuda, None, False, 0

    def capture_begin(self, handle) -> None:
        self.handle = handle
        if self.cuda.marks_generators:
            self.state = self.cuda.generator.state
            self.state.recorded = True
        self.cuda.begin(self)
        self.cuda.recording = self

    def capture_end(self) -> None:
        cuda = self.cuda
        cuda.recording = None
        if cuda.invalid:
            cuda.invalid = False
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        cuda._cuda_endAllocateToPool(0, self.handle)
        if cuda.marks_generators:
            self.state.recorded = False
        self.ended = True

    def pool(self):
        if not self.ended:
            raise RuntimeError("Called CUDAGraph::pool() without a preceding successful capture.")
        return self.handle

    def replay(self) -> None:
        assert self.ended
        self.launches += 1

    def reset(self) -> None:
        if self.ended:
            self.cuda._cuda_releasePool(0, self.handle)
            self.ended = False

    def __del__(self) -> None:
        self.reset()


class Recording:
    """`torch.cuda.graph`, whose end leaves the stream as it is where the graph cannot be ended."""

    def __init__(self, cuda, graph, pool, stream, capture_error_mode) -> None:
        self.cuda, self.graph, self.handle, self.stream = cuda, graph, pool, stream

    def __enter__(self) -> None:
        self.cuda.empty_cache()
        self.before, self.cuda.stream = self.cuda.stream, self.stream
        self.graph.capture_begin(self.handle)

    def __exit__(self, *given) -> None:
        self.graph.capture_end()
        self.cuda.stream = self.before


def state_of(cuda: FakeCuda) -> SimpleNamespace:
    """What nothing of a recording may be left in."""
    return SimpleNamespace(
        stream=cuda.stream,
        underway=list(cuda.underway),
        pools={pool: users for pool, users in cuda.users.items() if users},
        generator=(cuda.generator.state, cuda.generator.state.recorded),
    )
