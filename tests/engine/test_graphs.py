"""Replayed steps: the same numbers as without graphs, and what is recorded, kept, freed and given up.

A stand-in takes the place of CUDA's graphs: to record is to note the function, to replay is to run it on what lies in
its buffers by then and to write the result into its output.
"""

import gc
import logging
import warnings
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName

from ideoflow.engine import Denoiser, Engine, graphs
from ideoflow.engine.denoiser import SCHEDULES
from ideoflow.model.attention import Ideogram4AttnProcessor

SAMPLES = [
    dict(seed=1, text_tokens=5, grid=(2, 3)),
    dict(seed=2, text_tokens=17, grid=(4, 4), steps=9),
    dict(seed=3, text_tokens=5, grid=(3, 2), guidance=4.0),
    dict(seed=4, text_tokens=1, grid=(1, 6), guidance=(1.0,) * 3 + (7.0,) * 5 + (1.0,) * 4),
    dict(seed=5, text_tokens=9, grid=(2, 1), guidance=1.0),
]
MEMORY = torch.OutOfMemoryError("CUDA out of memory")


@pytest.fixture
def graph(monkeypatch):
    """What the stand-in notes: captures, replays, living graphs; `fails` is raised by captures."""
    notes = SimpleNamespace(captures=0, replays=0, warm_ups=0, fails=None, shared=[])

    class StandIn:
        def __init__(self, device):
            pass

        @staticmethod
        def runs_on(device):
            return True

        def warm_up(self, run):
            notes.warm_ups += 1
            return run()

        def capture(self, run, pool):
            if notes.fails is not None:
                try:
                    raise notes.fails
                finally:
                    raise RuntimeError("ending the capture failed too")
            notes.captures += 1
            notes.shared.append(pool.handle())
            self.handle = pool.handle() or (0, notes.captures)
            self.run, self.output = run, torch.full_like(run(), torch.nan)

        def replay(self):
            notes.replays += 1
            self.output.copy_(self.run())

    monkeypatch.setattr(graphs, "CudaGraph", StandIn)
    return notes


@pytest.fixture
def own(transformers):
    """Copies of the transformers, to hook and change."""
    return deepcopy(transformers)


@pytest.fixture
def recording(transformers, graph):
    return Denoiser(*transformers, cuda_graphs=True)


def kept(denoiser):
    return [len(graphs) for graphs in denoiser._graphs()]  # of each branch


def finish(denoiser, requests):
    """Latents and velocities after each step of each request, as they are: nothing may write into them later."""
    seen = []
    while active := [request for request in requests if not request.finished]:
        denoiser.step(active)
        seen += [tensor for request in active for tensor in (request.latents, request.velocity)]
    return seen


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("count", range(1, len(SAMPLES) + 1))
def test_replayed_steps_are_the_ordinary_ones_bit_for_bit(denoiser, recording, make_request, graph, count):
    ordinary = finish(denoiser, [make_request(**sample) for sample in SAMPLES[:count]])
    replayed = finish(recording, [make_request(**sample) for sample in SAMPLES[:count]])

    assert_equal(replayed, ordinary)
    assert graph.replays > 0


def test_the_second_step_is_recorded_and_later_ones_are_replayed(recording, make_request, graph):
    requests = [make_request(1), make_request(2)]

    recording.step(requests)
    assert (graph.captures, graph.warm_ups) == (0, 0)
    recording.step(requests)
    assert (graph.captures, graph.warm_ups, graph.replays) == (2, 2, 0)  # of both branches
    recording.step(requests)
    assert (graph.captures, graph.warm_ups, graph.replays) == (2, 2, 2)


def test_the_transformers_are_not_called_to_replay(own, make_request, graph, monkeypatch):
    recording, request = Denoiser(*own, cuda_graphs=True), make_request(1)
    recording.step([request])
    recording.step([request])
    plain, calls = type(own[0]).velocity, []
    monkeypatch.setattr(graphs, "partial", lambda *_: pytest.fail("recorded again"))
    monkeypatch.setattr(type(own[0]), "velocity", lambda *a, **k: (calls.append(1), plain(*a, **k))[1])

    recording.step([request])

    assert len(calls) == graph.replays == 2  # by the stand-in alone


def test_without_the_switch_nothing_is_recorded(denoiser, make_request, graph):
    finish(denoiser, [make_request(1)])

    assert graph.captures == graph.warm_ups == 0


def test_on_a_cpu_nothing_is_recorded(transformers, denoiser, make_request):
    recording = Denoiser(*transformers, cuda_graphs=True)

    assert_equal(finish(recording, [make_request(1)]), finish(denoiser, [make_request(1)]))
    assert kept(recording) == [0, 0]


def test_sets_that_take_turns_are_each_recorded_once(denoiser, transformers, make_request, graph):
    """As when a call is split over several passes: they come again after each other."""
    engine = Engine(Denoiser(*transformers, cuda_graphs=True))
    requests = [make_request(**SAMPLES[0] | {"seed": seed}) for seed in range(6)]
    same = [make_request(**SAMPLES[0] | {"seed": seed}) for seed in range(6)]
    for _ in range(12):
        for pair in range(0, 6, 2):
            engine.advance(requests[pair : pair + 2])
    for pair in range(0, 6, 2):
        finish(denoiser, same[pair : pair + 2])

    assert (graph.captures, graph.replays) == (3 * 2, 3 * 2 * 10)
    assert_equal([request.latents for request in requests], [request.latents for request in same])


def test_so_many_sets_are_kept_and_the_least_recent_go(recording, make_request, graph):
    requests = [make_request(seed, guidance=1.0) for seed in range(graphs.KEPT + 1)]
    for request in requests:
        recording.step([request])
        recording.step([request])
    assert kept(recording)[0] == graphs.KEPT

    recording.step([requests[-1]])
    assert graph.replays == 1
    recording.step([requests[0]])
    assert (graph.replays, graph.captures) == (1, graphs.KEPT + 1)  # as if it had never come


def test_sets_that_come_once_are_never_recorded(recording, make_request, graph):
    waiting = [make_request(seed) for seed in range(5)]
    active = []
    while waiting:
        active.append(waiting.pop())
        recording.step(active)

    assert graph.captures == 0


def test_graphs_go_with_the_contexts_of_their_requests(recording, make_request, graph):
    first, other = make_request(1), make_request(2)
    for _ in range(2):
        recording.step([first])
    assert kept(recording) == [1, 1]
    del first
    gc.collect()

    for _ in range(2):  # the last set's contexts are held until another comes
        recording.step([other])

    assert kept(recording) == [1, 1]


def test_graphs_share_memory_with_those_that_live(recording, make_request, graph):
    first, other = make_request(1), make_request(2)
    for request in (first, other):
        recording.step([request])
        recording.step([request])
    assert graph.shared[0] is None and all(handle == (0, 1) for handle in graph.shared[1:])

    with pytest.warns(RuntimeWarning, match="not used any more: for a test"):
        recording.give_up_graphs("for a test")
    gc.collect()
    assert recording._conditional.graphs._pool.handle() is None


@torch.no_grad()
def steps_as_an_ordinary_one(own, make_request, change):
    """A denoiser that records, after steps before and after a change of a layer that are as one's without graphs."""
    recording, ordinary = Denoiser(*own, cuda_graphs=True), Denoiser(*own)
    request, same = make_request(1), make_request(1)
    for number in range(5):
        if number == 4:
            change(own[0].layers[0].feed_forward.w1)
        recording.step([request])
        ordinary.step([same])
    assert torch.equal(request.latents, same.latents)
    return recording


def test_weights_that_change_in_place_need_no_new_graph(own, make_request, graph):
    recording = steps_as_an_ordinary_one(own, make_request, lambda layer: layer.weight.mul_(1.5))

    assert graph.captures == 2 and kept(recording) == [1, 1]


def test_weights_that_are_replaced_need_a_new_one(own, make_request, graph):
    def replace(layer):
        layer.weight = torch.nn.Parameter(layer.weight * 1.5)

    recording = steps_as_an_ordinary_one(own, make_request, replace)

    assert kept(recording) == [0, 1]


def choose_kernel(transformer):
    transformer.layers[1].attention.processor._attention_backend = AttentionBackendName._NATIVE_MATH


def replace_processor(transformer):
    transformer.layers[1].attention.set_processor(Ideogram4AttnProcessor())


@pytest.mark.parametrize("change", [choose_kernel, replace_processor])
def test_another_way_of_attention_needs_a_new_one(own, make_request, graph, change):
    recording, request = Denoiser(*own, cuda_graphs=True), make_request(1)
    for _ in range(3):
        recording.step([request])
    change(own[0])
    recording.step([request])

    assert kept(recording) == [0, 1]


def hook(transformer):
    transformer.layers[1].register_forward_hook(lambda *_: None)


def offload(transformer):
    transformer.layers[1]._hf_hook = object()


def add_adapter(transformer):
    from peft import LoraConfig

    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))


def wait(transformer):
    transformer.layers[1].feed_forward.__class__ = type(
        "Waiting", (type(transformer.layers[1].feed_forward),), {"waits_for_device": True}
    )


@pytest.mark.parametrize("change", [hook, offload, add_adapter, wait])
def test_nothing_is_recorded_where_it_may_not_be(own, make_request, graph, change):
    recording, request = Denoiser(*own, cuda_graphs=True), make_request(1)
    for _ in range(3):
        recording.step([request])
    change(own[0])
    for _ in range(3):
        recording.step([request])

    assert kept(recording) == [0, 1]
    assert graph.captures == 2


def test_layers_that_wait_for_the_device_say_so():
    from ideoflow.ops.gguf_linear import GgufLinear

    assert GgufLinear.waits_for_device


def test_nothing_is_recorded_under_autocast(recording, make_request, graph):
    request = make_request(1)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            recording.step([request])

    assert graph.captures == 0


def test_a_step_in_inference_mode_does_not_spoil_later_ones(recording, denoiser, make_request, graph):
    request, same = make_request(1), make_request(1)
    for step in range(6):
        with torch.inference_mode(step < 3):
            recording.step([request])
            denoiser.step([same])
    assert torch.equal(request.latents, same.latents)


def test_times_that_are_not_known_ahead_are_read_anew(recording, denoiser, make_request, graph):
    def several():
        return [make_request(i, steps=4 + i) for i in range(SCHEDULES + 1)]

    assert_equal(finish(recording, several()), finish(denoiser, several()))
    assert graph.replays > 0


def test_a_recording_that_fails_is_told_once_and_steps_go_on(recording, denoiser, make_request, graph):
    graph.fails = RuntimeError("operation not permitted when stream is capturing")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            raise KeyError("nothing to do with it")
        except KeyError:
            ours = finish(recording, [make_request(1), make_request(2)])

    assert_equal(ours, finish(denoiser, [make_request(1), make_request(2)]))
    assert graph.warm_ups == 2  # once in each branch
    assert [str(one.message) for one in told] == [
        "CUDA graphs are not used any more: recording one failed with RuntimeError: operation not permitted when stream"
        " is capturing"
    ] * 2


def test_memory_that_runs_out_while_recording_fails_no_request(recording, make_request, graph, caplog):
    graph.fails = MEMORY
    engine, request = Engine(recording), make_request(1)
    with pytest.warns(RuntimeWarning, match="failed with OutOfMemoryError: CUDA out of memory"):
        engine.complete([request])

    assert request.status == "done" and engine.max_tokens is None


def test_graphs_give_way_where_memory_runs_out(recording, denoiser, make_request, graph, breaks):
    """The budget is that of an engine without graphs."""
    engine, small, large = Engine(recording), make_request(1), make_request(2, 17, (4, 4))
    same = make_request(2, 17, (4, 4))
    finish(denoiser, [same])
    for _ in range(3):
        engine.advance([small])
    breaks(MEMORY, lambda lengths: max(lengths) > 30 and any(kept(recording)))
    with pytest.warns(RuntimeWarning, match="not used any more: memory ran out"):
        assert engine.advance([large]) == {}
    engine.complete([large])

    assert engine.max_tokens is None and kept(recording) == [0, 0]
    assert torch.equal(large.latents, same.latents)


def test_without_graphs_to_free_memory_that_runs_out_halves_the_budget(recording, make_request, graph, breaks, caplog):
    breaks(MEMORY, lambda lengths: sum(lengths) > 30)
    engine = Engine(recording)
    with caplog.at_level(logging.WARNING):
        engine.complete([make_request(1), make_request(2, 17, (3, 4)), make_request(3)])

    assert engine.max_tokens is not None and "Out of memory in a pass of 3 requests" in caplog.text


def test_graphs_give_way_to_decoding(recording, make_request, graph):
    def decode(request, latents):
        if any(kept(recording)):
            raise MEMORY
        return latents

    engine, request = Engine(recording, decode=decode), make_request(1)
    engine.add(request)
    with pytest.warns(RuntimeWarning, match="memory ran out"):
        events = list(engine.run())

    assert events[-1].kind == "finished"


def test_an_engines_requests_come_and_go(denoiser, transformers, make_request, graph):
    def run(denoiser):
        engine, waiting = Engine(denoiser, max_requests=3), [make_request(**sample) for sample in SAMPLES]
        requests, steps = list(waiting), 0
        while waiting or not engine.idle:
            if waiting and steps % 4 == 0:
                engine.add(waiting.pop())
            engine.step()
            steps += 1
        return [request.latents for request in requests]

    assert_equal(run(Denoiser(*transformers, cuda_graphs=True)), run(denoiser))
    assert graph.replays > 10
