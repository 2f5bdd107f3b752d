"""What recording leaves in torch (generator, allocator, streams) where it ends and where it is broken off.

In the place of CUDA stands what `fake_cuda.py` knows of torch's own code, as it is up to torch 2.11 and later.
"""

import gc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ideoflow.engine import cuda_graph
from ideoflow.engine.cuda_graph import CudaGraph, Pool

from .fake_cuda import FakeCuda, state_of

DEVICE = torch.device("cuda", 0)


@pytest.fixture(params=[True, False], ids=["torch 2.11", "torch 2.13"])
def cuda(request, monkeypatch):
    made = FakeCuda(marks_generators=request.param)
    made.install(monkeypatch)
    monkeypatch.setattr(cuda_graph, "_broken", [])
    return made


def recorded(cuda, pool, bytes=8, fails=None):
    """A graph of a step, or None where it could not be recorded."""

    def step():
        cuda.launch(bytes, wait=fails == "waits")
        if fails == "raises":
            raise ValueError("of its own")
        if fails == "draws":
            cuda.generator.draw()
        return torch.ones(1)

    graph = CudaGraph(DEVICE)
    try:
        graph.capture(step, pool)
    except (RuntimeError, ValueError):
        return None
    return graph


@pytest.mark.parametrize("fails", ["waits", "raises"])
def test_a_recording_that_is_broken_off_leaves_nothing(cuda, fails):
    pool, before = Pool(), state_of(cuda)
    assert recorded(cuda, pool, fails=fails) is None

    gc.collect()
    assert state_of(cuda) == before
    assert cuda.generator.draw() == 4  # as if nothing had been recorded
    assert pool.bytes == 0 and not pool.graphs
    pool.let_go()
    torch.cuda.empty_cache()
    assert cuda.segments == {} and torch.cuda.memory_reserved() == 60


def test_it_leaves_graphs_that_live_as_they_are(cuda):
    pool = Pool()
    graph = recorded(cuda, pool)
    before = state_of(cuda)
    assert recorded(cuda, pool, fails="waits") is None

    assert state_of(cuda) == before and cuda.users == {graph._graph.handle: 1}
    graph.replay()
    assert recorded(cuda, pool) is not None


def test_another_threads_noise_is_drawn_during_a_recording(cuda):
    drawn = []

    def step():
        drawn.append(cuda.generator.draw(on_another_stream=True))
        return torch.ones(1)

    CudaGraph(DEVICE).capture(step, Pool())

    assert drawn == [4] and cuda.generator.draw() == 8


def test_a_step_that_draws_noise_is_refused_where_it_would_be_recorded_wrongly(cuda):
    graph = recorded(cuda, Pool(), fails="draws")

    assert (graph is None) == cuda.marks_generators  # later torch records it right
    assert cuda.generator.draw() == 4


def test_graphs_share_one_memory_which_comes_back_with_the_last(cuda):
    pool = Pool()
    graphs = [recorded(cuda, pool, bytes) for bytes in (8, 6, 20)]
    assert len({graph._graph.handle for graph in graphs}) == 1
    assert pool.bytes == 20
    graphs.pop()
    pool.let_go()
    assert pool.bytes == 20 and sum(cuda.segments.values()) == 20
    graphs.clear()
    pool.let_go()
    assert pool.bytes == 0 and cuda.segments == {}  # the products' workspace too


def test_a_memory_that_was_given_back_is_followed_by_another(cuda):
    """Whether it was let go here, or torch took it back when the last graph went with its layout."""
    pool, seen = Pool(), []
    for let_go in (True, False, True):
        graph = recorded(cuda, pool)
        seen.append(graph._graph.handle)
        assert cuda.workspaces[pool.stream(DEVICE)] == graph._graph.handle  # in no memory of others
        del graph
        if let_go:
            pool.let_go()
    assert len(set(seen)) == 3


def test_room_is_a_share_of_what_nobody_uses(cuda):
    cuda.free, cuda.unused = 1000, 40
    assert CudaGraph.room(DEVICE) == 1040 // cuda_graph.SHARE
    graph = recorded(cuda, Pool(), 400)  # recording empties the cache; what graphs hold themselves counts as free
    assert CudaGraph.room(DEVICE) == 1400 // cuda_graph.SHARE and graph is not None


ACTIONS = st.sampled_from(["record", "waits", "raises", "drop", "let go", "draw"])


@pytest.mark.parametrize("marks", [True, False])
@settings(max_examples=60, deadline=None)
@given(actions=st.lists(st.tuples(ACTIONS, st.integers(0, 1), st.integers(1, 40)), max_size=25))
def test_whatever_comes_after_each_other_no_trace_is_left(marks, actions):
    """Two denoisers' graphs are recorded, broken off and let go in any order, between draws of noise."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        cuda = FakeCuda(marks)
        cuda.install(monkeypatch)
        monkeypatch.setattr(cuda_graph, "_broken", [])
        own, draws = cuda.generator.state, 0
        pools, graphs = [Pool(), Pool()], [[], []]
        for action, which, bytes in actions:
            if action == "draw":
                draws += 1
                cuda.generator.draw()
            elif action == "drop":
                del graphs[which][:1]
            elif action == "let go":
                graphs[which].clear()
                pools[which].let_go()
            else:
                made = recorded(cuda, pools[which], bytes, None if action == "record" else action)
                assert (made is None) == (action != "record")
                graphs[which] += [] if made is None else [made]
                del made
            assert cuda.underway == [] and cuda.stream == "current"
            assert cuda.generator.state is own and not own.recorded and own.offset == 4 * draws
            assert sum(cuda.users.values()) == sum(map(len, graphs))
            for own_graphs in graphs:
                list(map(CudaGraph.replay, own_graphs))
        for own_graphs, pool in zip(graphs, pools, strict=True):
            own_graphs.clear()
            pool.let_go()
        torch.cuda.empty_cache()
        assert cuda.segments == {}
