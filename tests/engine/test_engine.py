"""The engine: who runs when, what it tells, and that what befalls one request never shows in another."""

import logging
import threading
from dataclasses import replace

import pytest
import torch

from ideoflow.engine import Denoiser, Engine

SAMPLES = [
    dict(seed=1, text_tokens=5, grid=(2, 3)),
    dict(seed=2, text_tokens=17, grid=(4, 4), guidance=4.0),
    dict(seed=3, text_tokens=1, grid=(1, 6), guidance=(7.0,) * 5 + (1.0,)),
    dict(seed=4, text_tokens=9, grid=(2, 1), guidance=1.0),
    dict(seed=5, text_tokens=5, grid=(5, 4), steps=4),
]


def kinds(events, request=None):
    return [event.kind for event in events if request is None or event.request is request]


def assert_same(ours, theirs, bound=1e-5):
    assert ((ours - theirs).abs().max() / theirs.abs().max()).item() <= bound


@pytest.fixture
def alone(denoiser, make_request):
    """Latents of each sample, made by itself."""
    latents = []
    for sample in SAMPLES:
        request = make_request(**sample)
        Engine(denoiser).complete([request])
        latents.append(request.latents)
    return latents


def test_a_request_is_queued_started_stepped_and_finished(engine, make_request):
    request = engine.add(make_request(1, steps=3))

    events = list(engine.run())

    assert kinds(events) == ["queued", "started", "step", "step", "step", "finished"]
    assert [event.step for event in events] == [0, 0, 1, 2, 3, 3]
    assert all(event.request is request for event in events) and engine.idle


@pytest.mark.parametrize("policy", ["fair", "fifo", "priority"])
@pytest.mark.parametrize("budget", [{}, {"max_tokens": 40}, {"max_tokens": 1}, {"max_requests": 2}])
def test_latents_do_not_depend_on_company_budget_or_policy(denoiser, make_request, alone, policy, budget):
    engine = Engine(denoiser, policy=policy, **budget)
    requests = [make_request(**sample) for sample in SAMPLES]
    for request in requests:  # they come one by one
        engine.add(request)
        engine.step()
    list(engine.run())

    assert [request.status for request in requests] == ["done"] * len(requests)
    for request, latents in zip(requests, alone, strict=True):
        assert_same(request.latents, latents)


def test_passes_stay_within_the_budget_and_a_larger_request_runs_alone(denoiser, make_request, transformers):
    passes = []
    handles = [
        transformer.layers[0].feed_forward.w1.register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
        for transformer in transformers
    ]
    engine = Engine(denoiser, max_tokens=40)
    small = [make_request(seed, 5, (2, 3)) for seed in range(4)]  # 5 + 2 * 6 = 17 tokens each
    large = make_request(9, 20, (5, 4))  # 60
    engine.complete([*small, large])

    for handle in handles:
        handle.remove()
    steps = list(zip(passes[::2], passes[1::2], strict=True))  # conditional and unconditional
    assert {sum(step) for step in steps} == {34, 60}
    assert (40, 20) in steps and steps.count((40, 20)) == 12


def test_what_can_never_fit_is_refused_with_its_sizes(denoiser, make_request):
    engine = Engine(denoiser, max_request_tokens=30)
    engine.add(make_request(1, 5, (2, 3)))

    with pytest.raises(ValueError, match=r"has 49 tokens \(17 of text and 4 x 4 of image .*`max_request_tokens` is 30"):
        engine.add(make_request(2, 17, (4, 4), id="large"))
    assert len(engine.requests) == 1


def test_a_guided_request_is_refused_without_its_branch(transformers, make_request):
    engine = Engine(Denoiser(transformers[0], None))
    with pytest.raises(ValueError, match="there is no `unconditional_transformer`"):
        engine.add(make_request(1))
    with pytest.raises(ValueError, match="is guided"):
        engine.add(make_request(1, guidance=(1.0, 1.0, 3.0)))
    engine.complete([make_request(1, guidance=1.0)])


def test_a_request_is_added_once(engine, make_request):
    request = engine.add(make_request(1, steps=1))
    with pytest.raises(ValueError, match="added already"):
        engine.add(request)
    list(engine.run())
    with pytest.raises(ValueError, match="is done: make a new one"):
        engine.add(request)


# Failures


def test_latents_that_are_not_finite_fail_their_request_alone(engine, make_request, alone):
    requests = [make_request(**sample) for sample in SAMPLES]
    requests[1].latents[0, 0] = float("nan")
    for request in requests:
        engine.add(request)

    events = list(engine.run())

    assert kinds(events, requests[1]) == ["queued", "started", "failed"]
    assert isinstance(requests[1].error, FloatingPointError) and requests[1].status == "failed"
    for i in (0, 2, 3, 4):
        assert_same(requests[i].latents, alone[i])


def test_a_bad_callback_fails_its_request_alone(engine, make_request):
    def bad(request):
        if request.step == 2:
            raise KeyError("no such thing")

    good, broken = make_request(1, steps=3), make_request(2, steps=3, on_step=bad)
    engine.add(good), engine.add(broken)
    events = list(engine.run())

    assert kinds(events, broken) == ["queued", "started", "step", "failed"]
    assert events[-1].kind == "finished" and isinstance(broken.error, KeyError)


def test_a_callback_may_change_latents(engine, make_request):
    def fade(request):
        request.latents = request.latents * 0

    request = make_request(1, steps=1, on_step=fade)
    engine.complete([request])

    assert not request.latents.any()


def test_a_request_that_breaks_the_pass_fails_alone(engine, make_request, breaks, alone):
    requests = [make_request(**sample) for sample in SAMPLES]
    breaks(RuntimeError("bad tokens"), lambda lengths: 17 + 16 in lengths)
    for request in requests:
        engine.add(request)

    events = list(engine.run())

    assert [event.request for event in events if event.kind == "failed"] == [requests[1]]
    assert str(requests[1].error) == "bad tokens"
    for i in (0, 2, 3, 4):
        assert_same(requests[i].latents, alone[i])


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate")],
)
def test_the_budget_is_halved_when_memory_runs_out(engine, make_request, breaks, alone, caplog, error):
    requests = [make_request(**sample) for sample in SAMPLES]
    breaks(error, lambda lengths: sum(lengths) > 40)
    with caplog.at_level(logging.WARNING):
        engine.complete(requests)

    assert engine.max_tokens is not None and engine.max_tokens <= 80
    assert "Out of memory in a pass of 5 requests" in caplog.text and "from now on a pass has at most" in caplog.text
    for request, latents in zip(requests, alone, strict=True):
        assert_same(request.latents, latents)


def test_a_request_that_memory_cannot_hold_fails_alone(engine, make_request, breaks):
    breaks(torch.OutOfMemoryError("CUDA out of memory"), lambda lengths: max(lengths) > 30)
    small, large = make_request(1, 5, (2, 3)), make_request(2, 17, (4, 4))
    engine.add(small), engine.add(large)
    list(engine.run())

    assert (small.status, large.status) == ("done", "failed")


def test_complete_raises_what_a_request_failed_from(engine, make_request):
    bad = make_request(1, id="bad")
    bad.latents[0, 0] = float("inf")
    with pytest.raises(FloatingPointError, match="Request bad: its latents are not finite"):
        engine.complete([bad])


def test_advance_takes_one_step_of_each_whatever_the_budget(denoiser, make_request):
    requests, called = [make_request(**sample) for sample in SAMPLES], []
    requests[1].on_step = called.append
    requests[2].latents[0] = float("nan")
    engine = Engine(denoiser, max_tokens=20)

    failures = engine.advance(requests)

    assert [request.step for request in requests] == [1] * len(requests) and called == [requests[1]]
    assert list(failures) == [requests[2]] and isinstance(failures[requests[2]], FloatingPointError)
    assert engine.idle and engine.step() == []


def test_advance_makes_contexts_that_are_late_and_tells_of_what_was_added_alone(denoiser, make_request):
    engine, calls = Engine(denoiser), []
    added, late = engine.add(make_request(1, steps=2)), deferred(make_request, denoiser, calls, seed=2, steps=1)

    assert engine.advance([added, late]) == {} and calls
    assert late.status == "done" and late.conditional is None

    events = list(engine.run())
    assert kinds(events) == ["queued", "started", "step", "step", "finished"] and added.status == "done"


# Contexts made late


def deferred(make_request, denoiser, calls, **options):
    """A request that makes its contexts at its first step."""
    ready = make_request(**options)
    contexts = ready.conditional, ready.unconditional

    def prepare():
        calls.append(ready)
        return contexts

    ready.prepare, ready.conditional, ready.unconditional = prepare, None, None
    return ready


def test_contexts_are_made_at_the_first_step_and_let_go_at_the_end(denoiser, make_request, alone):
    calls = []
    engine = Engine(denoiser, max_requests=1, policy="fifo")
    requests = [deferred(make_request, denoiser, calls, **sample) for sample in SAMPLES[:2]]
    for request in requests:
        engine.add(request)
    engine.step()

    assert calls == requests[:1] and requests[1].conditional is None
    list(engine.run())
    assert calls == requests
    assert all(request.conditional is None for request in requests)
    for request, latents in zip(requests, alone, strict=False):
        assert_same(request.latents, latents)


def test_a_caption_that_cannot_be_encoded_fails_its_request_alone(engine, make_request, denoiser):
    def broken():
        raise ValueError("no such caption")

    bad, good = deferred(make_request, denoiser, [], seed=1), make_request(2)
    bad.prepare = broken
    engine.add(bad), engine.add(good)
    events = list(engine.run())

    assert kinds(events, bad) == ["queued", "failed"] and good.status == "done"


def test_contexts_of_another_grid_fail_their_request(engine, make_request, denoiser):
    bad = deferred(make_request, denoiser, [], seed=1)
    bad.prepare = lambda: (make_request(1, grid=(4, 4)).conditional, None)
    engine.add(bad)
    events = list(engine.run())

    assert kinds(events) == ["queued", "failed"] and "needs contexts of one segment with 6" in str(bad.error)


# Cancelling


def test_cancelled_requests_leave_at_once(engine, make_request):
    keep, drop = make_request(1, steps=4, id="keep"), make_request(2, steps=4, id="drop")
    engine.add(keep), engine.add(drop)
    engine.step()

    assert engine.cancel("drop") and not engine.cancel("drop") and not engine.cancel("nobody")
    events = list(engine.run())
    assert kinds(events, drop) == ["cancelled"] and drop.step == 1 and drop.status == "cancelled"
    assert keep.status == "done" and not engine.cancel(keep)


def test_a_request_may_be_cancelled_in_the_middle_of_a_step(engine, make_request):
    drop = make_request(2, steps=4)
    keep = make_request(1, steps=4, on_step=lambda request: engine.cancel(drop))
    engine.add(keep), engine.add(drop)
    events = list(engine.run())

    assert kinds(events, drop) == ["queued", "started", "cancelled"]
    assert kinds(events, keep)[-1] == "finished"


def test_a_waiting_request_is_cancelled_without_being_made(denoiser, make_request):
    calls = []
    engine = Engine(denoiser, max_requests=1, policy="fifo")
    first, second = make_request(1, steps=2), deferred(make_request, denoiser, calls, seed=2)
    engine.add(first), engine.add(second)
    engine.step()
    engine.cancel(second)
    events = list(engine.run())

    assert kinds(events, second) == ["cancelled"] and calls == []


# Events, pictures and previews


def test_no_event_is_lost_when_a_loop_is_left(engine, make_request):
    engine.add(make_request(1, steps=2)), engine.add(make_request(2, steps=2))
    seen = []
    while not engine.idle:
        for event in engine.run():
            seen.append(event)
            break

    assert sorted(kinds(seen)) == sorted(["queued", "started", "step", "step", "finished"] * 2)


def test_pictures_come_with_the_events_that_finish_and_previews_between(denoiser, make_request):
    seen = []

    def decode(request, latents):
        seen.append(request.step)
        return latents.mean()

    engine = Engine(denoiser, decode=decode, to_image=float, preview_every=2)
    request = engine.add(make_request(1, steps=5))
    events = list(engine.run())

    assert seen == [2, 4, 5]
    images = [event.image for event in events if event.image is not None]
    assert len(images) == 3 and images[-1] == float(request.latents.mean()) and events[-1].image == images[-1]


def test_previews_are_made_by_a_function_of_their_own_where_there_is_one(denoiser, make_request):
    made = []

    def preview(request, latents):
        made.append((request.step, torch.equal(latents, request.estimate)))
        return latents.sum()

    engine = Engine(denoiser, decode=lambda request, latents: latents.mean(), preview=preview, preview_every=2)
    request = engine.add(make_request(1, steps=5))
    images = [event.image for event in engine.run() if event.image is not None]

    assert made == [(2, True), (4, True)] and len(images) == 3
    assert images[-1] == request.latents.mean()


def test_previews_need_no_pictures(denoiser, make_request):
    engine = Engine(denoiser, preview=lambda request, latents: latents.sum(), to_image=float, preview_every=1)
    engine.add(make_request(1, steps=3))
    images = [event.image for event in engine.run()]

    assert [type(image) for image in images if image is not None] == [float, float] and images[-1] is None


def test_a_request_may_have_an_interval_of_its_own(denoiser, make_request):
    engine = Engine(denoiser, decode=lambda request, latents: latents, preview_every=3)
    wanted = {0: [], 1: [1, 2, 3, 4, 5], 2: [2, 4], None: [3]}
    requests = {engine.add(make_request(1, steps=6, preview_every=every)): steps for every, steps in wanted.items()}
    seen = {request: [] for request in requests}
    for event in engine.run():
        if event.kind == "step" and event.image is not None:
            seen[event.request].append(event.step)

    assert seen == requests


def test_a_request_for_previews_is_refused_where_there_are_none(engine, make_request):
    with pytest.raises(ValueError, match="has a `preview_every` of 2, and this engine makes no pictures"):
        engine.add(make_request(1, preview_every=2))
    engine.add(make_request(1, steps=1, preview_every=0))


def test_a_picture_that_cannot_be_decoded_fails_its_request_alone(denoiser, make_request):
    def decode(request, latents):
        if request.id == "bad":
            raise RuntimeError("no picture")
        return latents

    engine = Engine(denoiser, decode=decode)
    bad, good = engine.add(make_request(1, id="bad")), engine.add(make_request(2, id="good"))
    events = list(engine.run())

    assert kinds(events, bad)[-1] == "failed" and bad.status == "failed"
    assert kinds(events, good)[-1] == "finished"


def test_a_preview_that_fails_fails_its_request_alone(denoiser, make_request):
    def decode(request, latents):
        if request.step < request.steps and request.id == "bad":
            raise RuntimeError("no preview")
        return latents

    engine = Engine(denoiser, decode=decode, preview_every=1)
    bad, good = engine.add(make_request(1, id="bad")), engine.add(make_request(2, id="good"))
    list(engine.run())

    assert (bad.status, good.status) == ("failed", "done")


def test_events_print_as_one_line(engine, make_request):
    bad = make_request(1, steps=2, id="seven")
    engine.add(bad)
    lines = [str(event) for event in engine.run()]

    assert lines[:3] == ["Request seven: queued", "Request seven: started", "Request seven: step 1 of 2"]


def test_requests_may_be_added_and_cancelled_from_other_threads(denoiser, make_request):
    engine = Engine(denoiser, max_requests=3)
    requests = [make_request(seed, steps=3, id=str(seed)) for seed in range(40)]

    def submit(part):
        for request in part:
            engine.add(request)
            if int(request.id) % 5 == 0:
                engine.cancel(request)

    threads = [threading.Thread(target=submit, args=(requests[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    events = []
    while any(thread.is_alive() for thread in threads) or not engine.idle:
        events += engine.step()
    for thread in threads:
        thread.join()
    events += list(engine.run())

    for request in requests:
        story = kinds(events, request)
        assert story[0] == "queued" and len(story) == len(set(story) - {"step"}) + story.count("step")
        assert story[-1] == ("cancelled" if int(request.id) % 5 == 0 else "finished")
        assert request.status == ("cancelled" if int(request.id) % 5 == 0 else "done")


def test_waiting_requests_are_listed_in_the_order_of_the_policy(denoiser, make_request):
    engine = Engine(denoiser, policy="priority")
    low, high = make_request(1, priority=0), make_request(2, priority=3)
    engine.add(low), engine.add(high)

    assert engine.requests == [high, low]


# What callers do that they should not, or rarely


def test_a_step_within_a_step_is_refused_and_fails_the_caller_alone(engine, make_request, alone):
    def nested(request):
        engine.step()

    good, bad = make_request(**SAMPLES[1]), make_request(1, on_step=nested, steps=3)
    engine.add(good), engine.add(bad)
    events = list(engine.run())

    assert bad.step == 1 and "a step is under way" in str(bad.error)
    assert kinds(events, good).count("step") == good.steps
    assert_same(good.latents, alone[1])


def test_a_second_thread_may_not_step(denoiser, make_request):
    inside, go_on, seen = threading.Event(), threading.Event(), []

    def wait(request):
        inside.set()
        go_on.wait(10)

    engine = Engine(denoiser)
    engine.add(make_request(1, steps=1, on_step=wait))
    thread = threading.Thread(target=lambda: seen.extend(engine.run()))
    thread.start()
    inside.wait(10)
    with pytest.raises(RuntimeError, match="call `step` and `run` from one thread"):
        engine.step()
    go_on.set()
    thread.join()

    assert kinds(seen)[-1] == "finished"


def test_callbacks_may_add_and_cancel(engine, make_request, alone):
    late = make_request(**SAMPLES[0])
    requests = [make_request(**sample) for sample in SAMPLES[1:3]]

    def meddle(request):
        if request.step == 2:
            engine.add(late)
        if request.step == 4:
            engine.cancel(requests[1])
            engine.cancel(request)

    requests[0].on_step = meddle
    for request in requests:
        engine.add(request)
    events = list(engine.run())

    assert [kinds(events, request)[-1] for request in (*requests, late)] == ["cancelled", "cancelled", "finished"]
    assert requests[0].step == 4 and kinds(events, requests[0]).count("step") == 3
    assert_same(late.latents, alone[0])


def test_events_may_add_and_cancel_and_nothing_follows_a_last_event(engine, make_request):
    first, second = engine.add(make_request(1, steps=3)), engine.add(make_request(2, steps=3))
    third, events = make_request(3, steps=2), []
    for event in engine.run():
        events.append(event)
        if event.request is first and event.kind == "step":
            assert engine.cancel(second) and engine.cancel(first)
            engine.add(third)

    assert kinds(events, first)[-1] == kinds(events, second)[-1] == "cancelled"
    assert kinds(events, third)[-1] == "finished"


def test_requests_may_come_after_a_run_has_ended(engine, make_request):
    engine.complete([make_request(1, steps=2)])
    late = engine.add(make_request(2, steps=2))

    assert not engine.idle and kinds(engine.run(), late) == ["queued", "started", "step", "step", "finished"]


def test_a_request_given_twice_at_once_is_refused_before_any_step(engine, make_request):
    request = make_request(1)
    with pytest.raises(ValueError, match="holds a request twice"):
        engine.advance([request, make_request(2), request])
    assert request.step == 0


@pytest.mark.parametrize("change", [lambda x: x[:-1], lambda x: x.T, lambda x: None, lambda x: x.tolist()])
def test_a_callback_that_leaves_latents_of_another_form_fails_its_request_alone(engine, make_request, alone, change):
    def spoil(request):
        request.latents = change(request.latents)

    good, bad = make_request(**SAMPLES[1]), make_request(1, on_step=spoil)
    engine.add(good), engine.add(bad)
    list(engine.run())

    assert bad.status == "failed" and "keep a tensor of shape (6, 16)" in str(bad.error)
    assert_same(good.latents, alone[1])


def test_a_callback_may_leave_latents_in_another_type(engine, make_request):
    def widen(request):
        request.latents = request.latents.double()

    plain, wide = make_request(1, steps=3), make_request(1, steps=3, on_step=widen)
    engine.complete([plain, wide])

    assert wide.latents.dtype == torch.float32
    assert_same(wide.latents, plain.latents)


@pytest.mark.parametrize("when", ["callback", "picture", "decoding", "caption"])
def test_an_interrupt_loses_nothing(denoiser, make_request, alone, when):
    """The keyboard's interrupt may come anywhere, and the loop may be taken up again."""
    broken = []

    def interrupt(*_):
        if not broken:
            broken.append(True)
            raise KeyboardInterrupt
        return None

    def decode(request, latents):
        if when == "decoding":
            interrupt()
        return latents

    def to_image(picture):
        if when == "picture":
            interrupt()
        return picture

    engine = Engine(denoiser, decode=decode, to_image=to_image)
    requests = [make_request(**sample) for sample in SAMPLES[:3]]
    if when == "callback":
        requests[1].on_step = interrupt
    if when == "caption":
        contexts = requests[1].conditional, requests[1].unconditional
        requests[1].prepare = lambda: interrupt() or contexts
        requests[1].conditional = requests[1].unconditional = None
    for request in requests:
        engine.add(request)
    events = []
    with pytest.raises(KeyboardInterrupt):
        for event in engine.run():
            events.append(event)
    events += engine.run()

    for request, latents in zip(requests, alone, strict=False):
        story = kinds(events, request)
        assert story == ["queued", "started", *["step"] * request.steps, "finished"]
        assert_same(request.latents, latents)


def test_cancelling_from_another_thread_leaves_the_pass_under_way_whole(denoiser, make_request, transformers):
    """A request that makes its own contexts keeps them until the pass ends; then they are let go."""
    calls, passes = [], []
    request = deferred(make_request, denoiser, calls, seed=1, steps=3)
    other, before = make_request(2, steps=3), request.latents
    engine = Engine(denoiser)
    engine.add(request), engine.add(other)

    def cancel(module, args):
        passes.append(len(args[0]))
        if len(passes) == 1:
            thread = threading.Thread(target=engine.cancel, args=(request,))
            thread.start()
            thread.join()

    handle = transformers[0].layers[0].feed_forward.w1.register_forward_pre_hook(cancel)
    events = list(engine.run())
    handle.remove()

    assert passes == [22, 11, 11]  # no pass is taken again
    assert request.step == 0 and request.latents is before  # what was given up is not written
    assert kinds(events, request) == ["queued", "started", "cancelled"] and request.conditional is None
    assert other.status == "done"


def test_a_caption_that_is_cancelled_while_it_is_encoded_is_let_go(denoiser, make_request):
    engine = Engine(denoiser)
    request = deferred(make_request, denoiser, [], seed=1)
    plain = request.prepare

    def prepare():
        engine.cancel(request)
        return plain()

    request.prepare = prepare
    engine.add(request)

    assert kinds(engine.run()) == ["queued", "cancelled"] and request.conditional is None


def test_large_requests_that_memory_cannot_hold_leave_the_budget_of_others(denoiser, make_request, breaks):
    breaks(torch.OutOfMemoryError("CUDA out of memory"), lambda lengths: max(lengths) > 30)
    engine = Engine(denoiser, max_tokens=40)
    for seed in range(4):
        engine.add(make_request(seed, 17, (4, 4)))  # 49 tokens in a step
    small = [engine.add(make_request(seed, 5, (2, 3))) for seed in range(2)]
    list(engine.run())

    assert engine.max_tokens == 40 and {request.status for request in small} == {"done"}


def test_complete_steps_the_others_to_their_end_before_it_raises(engine, make_request):
    bad, good = make_request(1, id="bad"), make_request(2)
    bad.latents[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="Request bad"):
        engine.complete([bad, good])
    assert good.status == "done" and engine.idle


@pytest.mark.parametrize("priority", ["high", None, float("nan"), float("inf"), 1j])
def test_a_priority_is_a_number(make_request, priority):
    with pytest.raises(ValueError, match=r"`priority` is .*: give a number"):
        make_request(1, priority=priority)


@pytest.mark.parametrize("priority", [0.5, True, -3])
def test_priorities_need_not_be_whole(denoiser, make_request, priority):
    engine = Engine(denoiser, policy="priority")
    low = engine.add(make_request(1, priority=-4))
    odd = engine.add(make_request(2, priority=priority))

    assert engine.requests == [odd, low]


def test_a_request_has_a_step(make_request):
    with pytest.raises(ValueError, match="`guidance` is empty"):
        replace(make_request(1), guidance=(), sigmas=torch.zeros(1))


def test_a_request_for_another_transformer_is_refused_with_its_sizes(engine, make_request):
    narrow = make_request(1)
    narrow.latents = narrow.latents[:, :8]
    with pytest.raises(ValueError, match="has 8 channels of latents, but the transformer takes 16"):
        engine.add(narrow)
    other = make_request(2)
    other.conditional = replace(other.conditional, text=other.conditional.text[:, :8])
    with pytest.raises(ValueError, match="has 8 channels of text"):
        engine.add(other)


def test_limits_that_cannot_be_are_refused(denoiser):
    with pytest.raises(ValueError, match="`max_request_tokens` is 0"):
        Engine(denoiser, max_request_tokens=0)
    with pytest.raises(ValueError, match="`preview_every` is 2"):
        Engine(denoiser, preview_every=2)
    with pytest.raises(ValueError, match="`preview_every` is -1"):
        Engine(denoiser, decode=lambda request, latents: latents, preview_every=-1)


@pytest.mark.parametrize("name", ["max_tokens", "max_requests", "max_request_tokens", "preview_every"])
@pytest.mark.parametrize("value", ["5", float("nan"), float("inf"), 2.5, True, [5]])
def test_limits_are_whole_numbers(denoiser, name, value):
    with pytest.raises(TypeError, match=f"`{name}` is .*: give a whole number from"):
        Engine(denoiser, decode=lambda request, latents: latents, **{name: value})


def test_what_is_no_function_is_refused(denoiser):
    with pytest.raises(TypeError, match="`decode` is 5: give a function"):
        Engine(denoiser, decode=5)
    with pytest.raises(TypeError, match="`to_image` is 'pil': give a function"):
        Engine(denoiser, to_image="pil")
    with pytest.raises(TypeError, match="`preview` is 'linear': give a function"):
        Engine(denoiser, preview="linear")


@pytest.mark.parametrize("value", ["x", None, 5, []])
def test_what_is_no_request_is_refused(engine, value):
    with pytest.raises(TypeError, match=r"`request` is a .*: give a Request"):
        engine.add(value)
    if not isinstance(value, str):
        with pytest.raises(TypeError, match="or the id of one"):
            engine.cancel(value)


def test_complete_adds_all_or_none(engine, make_request):
    good, done = make_request(1, steps=1), make_request(2, steps=1)
    engine.complete([done])
    for wrong, message in (([good, done], "is done"), ([good, good], "twice"), ([good, "x"], "give a Request")):
        with pytest.raises((TypeError, ValueError), match=message):
            engine.complete(wrong)
    with pytest.raises(TypeError, match="`requests` is a Request: give a list"):
        engine.complete(good)

    assert engine.idle and good.status == "waiting"
    engine.complete([good])
    assert good.status == "done"


def test_a_request_that_is_marked_as_cancelled_leaves(engine, make_request):
    """By the attribute, before its first step or in its callback; the loop must not wait for it."""
    before, within, other = (make_request(seed, steps=3) for seed in (1, 2, 3))
    within.on_step = lambda request: setattr(request, "cancelled", True)
    for request in (before, within, other):
        engine.add(request)
    before.cancelled = True
    events = []
    for event in engine.run():
        events.append(event)
        assert len(events) < 20

    assert kinds(events, before) == ["queued", "cancelled"]
    assert kinds(events, within) == ["queued", "started", "step", "cancelled"]
    assert other.status == "done"


def test_an_error_that_a_callback_sets_fails_the_request(engine, make_request):
    error = RuntimeError("mine")
    engine.add(make_request(1, steps=3, on_step=lambda request: setattr(request, "error", error)))

    events = list(engine.run())

    assert kinds(events) == ["queued", "started", "failed"] and events[-1].error is error


def test_latents_that_a_callback_leaves_keep_no_graph(engine, make_request):
    def scale(request):
        request.latents = request.latents * torch.ones((), requires_grad=True)

    request = make_request(1, steps=2, on_step=scale)
    engine.complete([request])

    assert not request.latents.requires_grad


def test_a_request_of_another_engine_is_refused(denoiser, make_request):
    one, other, request = Engine(denoiser), Engine(denoiser), make_request(1, steps=2)
    one.add(request)
    for refuse in (other.add, lambda request: other.complete([request])):
        with pytest.raises(ValueError, match="is in another engine"):
            refuse(request)
    assert other.idle
    one.cancel(request)
    with pytest.raises(ValueError, match="is cancelled: make a new one"):
        other.add(request)


def test_a_request_outlives_an_engine_that_is_given_up(denoiser, make_request):
    request = Engine(denoiser).add(make_request(1, steps=2))
    Engine(denoiser).complete([request])

    assert request.status == "done"
