"""The keyboard's interrupt: real signals, at every line of the engine and in the middle of what it calls."""

import contextlib
import functools
import linecache
import signal
import sys
import threading

import pytest

from ideoflow.engine import Engine, decoder
from ideoflow.engine import engine as engine_module
from ideoflow.engine import uninterrupted as uninterrupted_module
from ideoflow.engine.uninterrupted import uninterrupted

FILES = {module.__file__ for module in (decoder, engine_module, uninterrupted_module)}


@pytest.fixture(autouse=True)
def python_handler():
    """Python's own handler, whatever runs the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def transformers(transformers):
    """Of one layer, as some tests run hundreds of times."""
    return [type(one)(**{**one.config, "num_layers": 1}).eval() for one in transformers]


def interrupt():
    signal.raise_signal(signal.SIGINT)


def at_line(number, work):
    """Let `work` be interrupted at a line of the engine, the number-th that is run; whether there was one."""
    lines = 0

    def trace(frame, what, _):
        if frame.f_code.co_filename not in FILES:
            return None
        last = 0

        def trace_line(frame, what, _):
            nonlocal lines, last
            # A tracer could raise at the end of a `with` before its lock is let go, where Python looks for no signal.
            line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
            leaves = line.startswith("with ") and frame.f_lineno < last
            last = frame.f_lineno
            if what == "line" and not leaves:
                lines += 1
                if lines == number:
                    interrupt()
            return trace_line

        return trace_line

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return lines >= number


def stories(events, requests):
    return [[(event.kind, event.step) for event in events if event.request is request] for request in requests]


@pytest.fixture
def play(denoiser, make_request):
    """A function that serves two requests, interrupted at a line: events, latents and pictures, and if it was."""

    def serve(number, stepwise):
        engine = Engine(denoiser, decode=lambda request, latents: latents + 1)
        requests = [make_request(seed, steps=steps) for seed, steps in ((1, 1), (2, 2))]
        contexts = requests[1].conditional, requests[1].unconditional
        requests[1].prepare, requests[1].conditional = (lambda: contexts), None
        for request in requests:
            engine.add(request)
        events, reached = [], True

        def work():
            if stepwise:
                while not engine.idle:
                    events.extend(engine.step())  # in one line, as what is taken is the caller's
            else:
                for event in engine.run():
                    events.append(event)

        try:
            reached = at_line(number, work)
        except KeyboardInterrupt:
            work()
        return stories(events, requests), [request.latents for request in requests], reached, engine.idle

    return serve


@pytest.mark.slow
@pytest.mark.parametrize("stepwise", [pytest.param(False, marks=pytest.mark.long), True])
def test_an_interrupt_at_any_line_loses_and_repeats_nothing(play, stepwise):
    expected, latents, reached, _ = play(0, stepwise)
    assert [[kind for kind, _ in story] for story in expected] == [
        ["queued", "started", *["step"] * steps, "finished"] for steps in (1, 2)
    ]
    number = 0
    while reached:
        number += 1
        told, ours, reached, idle = play(number, stepwise)
        assert told == expected and idle, f"line event {number}"
        for own, other in zip(ours, latents, strict=True):
            assert (own - other).abs().max() <= 1e-5 * other.abs().max()
    assert number > 150


@pytest.mark.parametrize("name", ["add", "cancel"])
def test_adding_and_cancelling_are_whole_or_have_not_begun(denoiser, make_request, name):
    for number in range(1, 60):
        engine, requests = Engine(denoiser), [make_request(1), make_request(2)]
        engine.add(requests[1])
        work = engine.add if name == "add" else engine.cancel
        with contextlib.suppress(KeyboardInterrupt):
            at_line(number, functools.partial(work, requests[name == "cancel"]))
        told = stories(engine._events, requests)
        for request, story in zip(requests, told, strict=True):
            assert (request in engine.requests) == ([kind for kind, _ in story] == ["queued"])
            assert (request.status == "cancelled") == (("cancelled", 0) in story)


def test_complete_adds_all_or_none_when_it_is_interrupted(engine, make_request):
    requests, add = [make_request(1), make_request(2)], engine.add
    engine.add = lambda request: (add(request), interrupt())
    with pytest.raises(KeyboardInterrupt):
        engine.complete(requests)

    assert set(engine.requests) == set(requests)


def test_a_pass_is_interrupted_at_once_and_not_taken_twice(denoiser, make_request, transformers):
    passes = []

    def hook(module, args):
        passes.append(len(args[0]))
        if len(passes) == 2:
            interrupt()
            pytest.fail("the pass went on")

    engine, request = Engine(denoiser), make_request(1, steps=3)
    engine.add(request)
    handle = transformers[0].layers[0].feed_forward.w1.register_forward_pre_hook(hook)
    with pytest.raises(KeyboardInterrupt):
        list(engine.run())
    assert request.step == 1
    list(engine.run())
    handle.remove()

    assert len(passes) == 4 and request.status == "done"


def test_a_step_that_is_broken_off_changes_no_request(denoiser, make_request, transformers, monkeypatch):
    """Though the passes of some are through, where a pass had to be taken in halves."""
    passes, plain = [], type(transformers[0]).velocity

    def velocity(self, latents, times, context, **kwargs):
        passes.append(len(times))
        if len(times) == 2 and len(passes) < 5:
            raise RuntimeError("not together")
        if len(passes) == 5:
            interrupt()
        return plain(self, latents, times, context, **kwargs)

    monkeypatch.setattr(type(transformers[0]), "velocity", velocity)
    engine, requests = Engine(denoiser), [make_request(seed, steps=2) for seed in (1, 2)]
    before = [request.latents for request in requests]
    for request in requests:
        engine.add(request)
    with pytest.raises(KeyboardInterrupt):
        list(engine.run())

    assert passes == [2, 1, 1, 1, 1]  # together, then both branches of each
    assert [request.step for request in requests] == [0, 0]
    assert all(request.latents is latents for request, latents in zip(requests, before, strict=True))
    list(engine.run())
    assert {request.status for request in requests} == {"done"}


def test_each_callback_is_called_once_a_step_though_one_is_interrupted(denoiser, make_request):
    calls = []

    def on_step(request):
        calls.append((request, request.step))
        request.latents = request.latents * 1.1
        if len(calls) == 3:
            interrupt()

    def serve(interrupted):
        calls.clear()
        calls.extend([] if interrupted else [None] * 3)
        engine, requests = Engine(denoiser), [make_request(seed, steps=3, on_step=on_step) for seed in (1, 2, 3)]
        for request in requests:
            engine.add(request)
        if interrupted:
            with pytest.raises(KeyboardInterrupt):
                list(engine.run())
        list(engine.run())
        assert sorted((requests.index(call[0]), call[1]) for call in calls if call) == [
            (i, step) for i in range(3) for step in (1, 2, 3)
        ]
        return [request.latents for request in requests]

    for own, other in zip(serve(True), serve(False), strict=True):
        assert (own - other).abs().max() <= 1e-5 * other.abs().max()


def test_what_is_cancelled_after_an_interrupt_takes_no_further_step(engine, make_request):
    def on_step(request):
        interrupt()

    one, other = make_request(1, steps=3, on_step=on_step), make_request(2, steps=3)
    engine.add(one), engine.add(other)
    events = []
    with pytest.raises(KeyboardInterrupt):
        events.extend(engine.run())
    engine.cancel(one)
    engine.cancel(other)
    events = list(engine.run())

    assert [event.kind for event in events if event.kind in ("step", "cancelled")] == ["cancelled"] * 2 and engine.idle


def test_an_engine_can_be_stepped_from_another_thread(engine, make_request):
    request = make_request(1, steps=2)
    thread = threading.Thread(target=engine.complete, args=([request],))
    thread.start()
    thread.join()

    assert request.status == "done"


# The block that holds it back


def test_an_interrupt_comes_after_the_block():
    done = []
    with pytest.raises(KeyboardInterrupt), uninterrupted(), uninterrupted():
        interrupt()
        done.append("within")
    assert done == ["within"]


def test_an_interrupt_comes_after_a_block_that_raises():
    with pytest.raises(KeyboardInterrupt) as caught, uninterrupted():
        interrupt()
        raise ValueError("of the block")
    assert str(caught.value.__context__) == "of the block"


def test_a_handler_that_does_not_raise_is_called_each_time():
    seen = []
    signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    with uninterrupted():
        interrupt()
        interrupt()
        assert seen == []
    assert seen == [signal.SIGINT] * 2
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_nothing_is_done_where_interrupts_are_ignored_or_do_not_come():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with uninterrupted():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.signal(signal.SIGINT, signal.default_int_handler)
    seen = []

    def work():
        with uninterrupted():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
