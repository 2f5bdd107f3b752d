"""Replayed steps: the same numbers as without graphs, and what is recorded, kept, freed and given up.

A stand-in takes the place of CUDA's graphs: to record is to note the function, to replay is to run it on what lies in
its buffers by then and to write the result into its output.
"""

import logging
import warnings
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from ideoflow.engine import Denoiser, Engine, graphs
from ideoflow.engine.denoiser import SCHEDULES
from ideoflow.model import Context
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
    """What the stand-in notes; `fails` is raised by captures, each of which takes `bytes`, of `room` that there are."""
    notes = SimpleNamespace(captures=0, replays=0, warm_ups=0, fails=None, bytes=1, room=1000, most=0)

    class StandIn:
        def __init__(self, device):
            pass

        @staticmethod
        def runs_on(device):
            return True

        @staticmethod
        def room(device):
            return notes.room

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
            self.run, self.output = run, torch.full_like(run(), torch.nan)
            pool.bytes += notes.bytes
            pool.graphs.add(self)
            notes.most = max(notes.most, len(pool.graphs))

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
def denoiser(transformers):
    """An ordinary one."""
    return Denoiser(*transformers, cuda_graphs=False)


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


def test_told_not_to_nothing_is_recorded(denoiser, make_request, graph):
    finish(denoiser, [make_request(1)])

    assert graph.captures == graph.warm_ups == 0


def test_on_a_cpu_nothing_is_recorded(transformers, denoiser, make_request):
    recording = Denoiser(*transformers, cuda_graphs=True)

    assert_equal(finish(recording, [make_request(1)]), finish(denoiser, [make_request(1)]))
    assert kept(recording) == [0, 0]


def test_layouts_that_take_turns_are_each_recorded_once(denoiser, transformers, make_request, graph):
    """As when a call is split over several passes: they come again after each other."""
    engine = Engine(Denoiser(*transformers, cuda_graphs=True))
    shapes = [dict(text_tokens=5 + pair, grid=(2, 3 + pair)) for pair in range(3) for _ in range(2)]
    requests, same = ([make_request(seed, **shape) for seed, shape in enumerate(shapes)] for _ in range(2))
    for _ in range(12):
        for pair in range(0, 6, 2):
            engine.advance(requests[pair : pair + 2])
    for pair in range(0, 6, 2):
        finish(denoiser, same[pair : pair + 2])

    assert (graph.captures, graph.replays) == (3 * 2, 3 * 2 * 10)
    assert_equal([request.latents for request in requests], [request.latents for request in same])


def test_requests_of_one_layout_share_a_graph(recording, denoiser, make_request, graph):
    """The next ones are replayed from their first step on, and one that comes back has its own captions again."""
    first, other = make_request(1), make_request(2)
    for _ in range(3):
        recording.step([first])
    assert (graph.captures, graph.replays) == (2, 2)
    for _ in range(4):
        recording.step([other])
        recording.step([first])
    assert (graph.captures, graph.replays) == (2, 2 + 4 * 2 * 2)
    ordinary = [make_request(1), make_request(2)]
    for request, steps in zip(ordinary, (7, 4), strict=True):
        for _ in range(steps):
            denoiser.step([request])
    assert_equal([one.latents for one in (first, other)], [one.latents for one in ordinary])


def test_a_replay_of_the_same_contexts_copies_and_packs_none(recording, make_request, graph, monkeypatch):
    requests = [make_request(1), make_request(2)]
    for _ in range(3):
        recording.step(requests)
    monkeypatch.setattr(Context, "cat", lambda *_: pytest.fail("packed"))
    monkeypatch.setattr(graphs, "_tensors", lambda *_: pytest.fail("copied"))

    recording.step(requests)


SHAPES = [(5, (2, 3)), (6, (2, 3)), (5, (3, 2)), (1, (2, 2))]
PASSES = st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=3, unique=True), min_size=4, max_size=14)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(passes=PASSES, kept=st.integers(1, 3), choice=st.sampled_from(["auto", True]))
def test_any_sequence_of_layouts_is_computed_as_without_graphs(
    transformers, make_request, graph, monkeypatch, passes, kept, choice
):
    """Requests of four shapes, two of each, in passes of any of them, with room for few graphs."""
    monkeypatch.setattr(graphs, "KEPT", kept)
    graph.most = 0

    def run(denoiser):
        made = [make_request(seed, *SHAPES[seed % 4], steps=len(passes)) for seed in range(8)]
        for members in passes:
            denoiser.step([made[number] for number in members])
        return [request.latents for request in made]

    recording = Denoiser(*transformers, cuda_graphs=choice)
    assert_equal(run(recording), run(Denoiser(*transformers, cuda_graphs=False)))
    assert graph.most <= kept


def draw_in_turn(recording, make_request, shapes, times):
    """Steps of a request of each shape: of the first so many, then of the next."""
    for seed, shape in enumerate(shapes):
        request = make_request(seed, *shape, guidance=1.0)
        for _ in range(times):
            recording.step([request])


def test_so_many_graphs_are_kept_and_the_least_recent_go(recording, make_request, graph, monkeypatch):
    monkeypatch.setattr(graphs, "KEPT", 2)
    draw_in_turn(recording, make_request, [(5, (2, 3)), (6, (2, 3)), (7, (2, 3))], 2)
    assert kept(recording)[0] == 2 and graph.captures == 3

    recording.step([make_request(3, 7, (2, 3), guidance=1.0)])
    recording.step([make_request(4, 6, (2, 3), guidance=1.0)])
    assert (graph.captures, graph.replays) == (3, 2)
    recording.step([make_request(5, 5, (2, 3), guidance=1.0)])
    assert (graph.captures, graph.replays) == (3, 2)


def test_layouts_that_take_turns_in_too_little_room_are_recorded_ever_less(recording, make_request, graph, monkeypatch):
    """A recording waits for the device: one that is let go before it was worth it must come twice as often."""
    monkeypatch.setattr(graphs, "KEPT", 1)
    pair = [make_request(seed, *SHAPES[seed], steps=64, guidance=1.0) for seed in range(2)]
    for _ in range(64):
        for request in pair:
            recording.step([request])

    assert graph.captures <= 2 * 6


def test_layouts_that_come_once_are_never_recorded(recording, make_request, graph):
    waiting = [make_request(seed) for seed in range(5)]
    active = []
    while waiting:
        active.append(waiting.pop())
        recording.step(active)

    assert graph.captures == 0


def test_what_is_known_of_layouts_has_a_bound(recording, make_request, graph, monkeypatch):
    monkeypatch.setattr(graphs, "KNOWN", 3)
    draw_in_turn(recording, make_request, [(text, (2, 3)) for text in range(1, 9)], 1)

    assert len(recording._graphs()[0]._store._sets) == 3


# By themselves where they pay


@pytest.fixture
def automatic(transformers, graph):
    return Denoiser(*transformers)


def test_small_streams_are_recorded_unasked(automatic, denoiser, make_request, graph):
    assert_equal(finish(automatic, [make_request(1)]), finish(denoiser, [make_request(1)]))
    assert (graph.captures, graph.replays) == (2, 2 * 10)


def test_large_ones_only_if_insisted_on(transformers, make_request, graph, monkeypatch):
    """A branch of 11 tokens is too large, the other of 6 is not."""
    monkeypatch.setattr(graphs, "AUTO_TOKENS", 10)
    for choice, captures in (("auto", [0, 1]), (True, [1, 1])):
        chosen, request = Denoiser(*transformers, cuda_graphs=choice), make_request(1)
        for _ in range(3):
            chosen.step([request])
        assert kept(chosen) == captures


def test_large_streams_cost_no_look_at_the_model(automatic, make_request, graph, monkeypatch):
    monkeypatch.setattr(graphs, "AUTO_TOKENS", 1)
    monkeypatch.setattr(graphs, "_state_of", lambda *_: pytest.fail("looked"))

    automatic.step([make_request(1)])


@pytest.mark.parametrize("room", [0, 1, 2, 3, 5])
def test_graphs_take_a_share_of_the_memory_that_is_free(automatic, denoiser, make_request, graph, room):
    """Each takes a byte here: those that do not fit are let go, the least recent first, and pictures stay."""
    graph.room = room
    requests, same = ([make_request(seed, 5 + seed, guidance=1.0) for seed in range(4)] for _ in range(2))
    for request, other in zip(requests, same, strict=True):
        for _ in range(4):
            before = graph.replays
            automatic.step([request])
            denoiser.step([other])
            assert len(automatic._graphs()[0]._store.pool.graphs) <= room
        assert graph.replays - before == bool(room)  # those that came before have made room
    assert_equal([one.latents for one in requests], [one.latents for one in same])


def test_a_graph_that_is_too_large_alone_is_recorded_once(automatic, make_request, graph):
    graph.bytes, graph.room = 5, 4
    finish(automatic, [make_request(1, guidance=1.0)])

    assert graph.captures == 1 and kept(automatic) == [0, 0]


def test_insisted_on_they_take_what_they_need(recording, make_request, graph):
    graph.bytes, graph.room = 5, 4
    finish(recording, [make_request(1)])

    assert kept(recording) == [1, 1]


def test_what_forbids_graphs_is_no_matter_for_a_warning_unless_they_were_insisted_on(own, make_request, graph, caplog):
    hook(own[0])
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings():
        warnings.simplefilter("error")
        finish(Denoiser(*own), [make_request(1)])
    assert caplog.text.count("CUDA graphs are not used: hooks are on the model") == 1
    with pytest.warns(RuntimeWarning, match="CUDA graphs are not used: hooks are on the model") as told:
        finish(Denoiser(*own, cuda_graphs=True), [make_request(1)])
    assert len(told) == 1


def test_what_could_not_be_recorded_is_told_once_and_not_tried_again(own, make_request, graph):
    """Not by the next engine either, which a pipeline makes for each call, until the model has changed."""
    graph.fails = RuntimeError("operation not permitted when stream is capturing")
    with pytest.warns(RuntimeWarning, match="recording one failed with RuntimeError: operation not permitted"):
        finish(Denoiser(*own), [make_request(1)])
    assert graph.warm_ups == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        finish(Denoiser(*own), [make_request(1)])
    assert graph.warm_ups == 2
    graph.fails = None
    for transformer in own:
        transformer.input_proj.weight = torch.nn.Parameter(transformer.input_proj.weight * 1.5)
    finish(Denoiser(*own), [make_request(1)])
    assert graph.captures == 2


class Watching(Ideogram4AttnProcessor):
    """Somebody's own, which counts its calls."""

    calls = 0

    def __call__(self, *arguments, **options):
        Watching.calls += 1
        return super().__call__(*arguments, **options)


def watch_attention(transformer):
    transformer.layers[1].attention.set_processor(Watching())


def watch_a_layer(transformer):
    part = transformer.layers[1].feed_forward
    part.__class__ = type("Watching", (type(part),), {"__module__": "somebody"})


@pytest.mark.parametrize("change", [watch_attention, watch_a_layer])
def test_what_may_want_to_see_each_call_is_called_unless_graphs_are_insisted_on(own, make_request, graph, change):
    change(own[0])
    for choice, recorded in (("auto", [0, 1]), (True, [1, 1])):
        chosen, request = Denoiser(*own, cuda_graphs=choice), make_request(1)
        Watching.calls = 0
        for _ in range(3):
            chosen.step([request])
        assert kept(chosen) == recorded
        if change is watch_attention and choice == "auto":
            assert Watching.calls == 3


@pytest.mark.filterwarnings("ignore:CUDA graphs are not used")
@pytest.mark.parametrize("choice", ["auto", True])
def test_operations_that_a_mode_looks_at_are_not_replayed(transformers, make_request, graph, choice):
    chosen, request = Denoiser(*transformers, cuda_graphs=choice), make_request(1)
    seen = []

    class Seeing(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            seen[-1] += 1
            return function(*arguments, **(options or {}))

    for _ in range(4):
        seen.append(0)
        with Seeing():
            chosen.step([request])

    assert graph.captures == 0 and seen[1] == seen[-1] > 0


@pytest.mark.parametrize("choice", [None, 1, 0, "on", "True", []])
def test_other_choices_are_refused(transformers, choice):
    with pytest.raises(ValueError, match=r'`cuda_graphs` is .*give "auto", True or False'):
        Denoiser(*transformers, cuda_graphs=choice)


# What holds for a model, and what does not


@torch.no_grad()
def steps_as_an_ordinary_one(own, make_request, change):
    """A denoiser that records, after steps before and after a change of a layer that are as one's without graphs."""
    recording, ordinary = Denoiser(*own, cuda_graphs=True), Denoiser(*own, cuda_graphs=False)
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


def compile_with_graphs(transformer):
    transformer.layers[1].compile(mode="reduce-overhead")


FORBIDDEN = [hook, offload, add_adapter, wait, compile_with_graphs]


@pytest.mark.filterwarnings("ignore:CUDA graphs are not used")
@pytest.mark.parametrize("change", FORBIDDEN)
def test_nothing_is_recorded_where_it_may_not_be(own, make_request, graph, change):
    recording, request = Denoiser(*own, cuda_graphs=True), make_request(1)
    for _ in range(3):
        recording.step([request])
    change(own[0])
    if change is not compile_with_graphs:  # that would compile
        for _ in range(3):
            recording.step([request])
    else:
        assert not recording._graphs()[0]._records(torch.device("cpu"), [request.conditional])

    assert kept(recording) == [0, 1]
    assert graph.captures == 2


def test_layers_that_wait_for_the_device_say_so():
    from ideoflow.ops.gguf_linear import GgufLinear

    assert GgufLinear.waits_for_device


@pytest.mark.filterwarnings("ignore:CUDA graphs are not used")
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
    """The budget is that of an engine without graphs, and memory that ran out says nothing of the model."""
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
