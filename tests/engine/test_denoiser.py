"""The denoiser: what a step computes, that company does not matter, and what is never computed twice."""

import random

import pytest
import torch

from ideoflow.engine import Denoiser

SAMPLES = [
    dict(seed=1, text_tokens=5, grid=(2, 3)),
    dict(seed=2, text_tokens=17, grid=(4, 4)),
    dict(seed=3, text_tokens=5, grid=(3, 2), guidance=4.0),
    dict(seed=4, text_tokens=1, grid=(1, 6), guidance=(7.0,) * 11 + (1.0,)),
    dict(seed=5, text_tokens=9, grid=(2, 1), guidance=1.0),
]


def finish(denoiser, requests):
    active = requests
    while active := [request for request in active if not request.finished]:
        denoiser.step(active)
    return [request.latents for request in requests]


def relative(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def count_tokens(module):
    """Rows that enter `module`, one entry a call, and the hook's handle."""
    calls = []
    return calls, module.register_forward_pre_hook(lambda _, args: calls.append(args[0].shape[0]))


@pytest.fixture
def alone(denoiser, make_request):
    return [finish(denoiser, [make_request(**sample)])[0] for sample in SAMPLES]


def test_a_step_is_guided_euler_in_float32(denoiser, make_request, transformers):
    request = make_request(1, guidance=7.0)
    before, time = request.latents, 1 - request.sigmas[:1]
    with torch.no_grad():
        conditional, unconditional = (
            transformer.velocity(before, time, context)
            for transformer, context in zip(transformers, (request.conditional, request.unconditional), strict=True)
        )

    denoiser.step([request])

    velocity = 7.0 * conditional - 6.0 * unconditional
    expected = before + (request.sigmas[0] - request.sigmas[1]) * velocity
    assert relative(request.latents, expected) <= 1e-5
    assert request.latents.dtype == torch.float32
    assert (request.step, request.status) == (1, "running")


@pytest.mark.parametrize("order", range(4))
def test_latents_after_twelve_guided_steps_do_not_depend_on_company_or_order(denoiser, make_request, alone, order):
    places = list(range(len(SAMPLES)))
    random.Random(order).shuffle(places)

    packed = finish(denoiser, [make_request(**SAMPLES[i]) for i in places])

    for place, latents in zip(places, packed, strict=True):
        assert relative(latents, alone[place]) <= 1e-5


def test_requests_at_different_steps_share_a_stream(denoiser, make_request, alone):
    """They join one by one and leave when they are done, as in a server."""
    waiting = [make_request(**sample) for sample in SAMPLES]
    requests, active = list(waiting), []
    while waiting or active:
        if waiting:
            active.append(waiting.pop())
        denoiser.step(active)
        active = [request for request in active if request.status != "done"]

    for request, expected in zip(requests, alone, strict=True):
        assert relative(request.latents, expected) <= 1e-5


def test_each_branch_sees_exactly_its_tokens_in_one_stream(denoiser, make_request, transformers):
    requests = [make_request(1, 5, (2, 3)), make_request(2, 17, (4, 4))]
    counts = [count_tokens(transformer.layers[0].feed_forward.w1) for transformer in transformers]

    denoiser.step(requests)

    for _, handle in counts:
        handle.remove()
    assert counts[0][0] == [5 + 6 + 17 + 16]
    assert counts[1][0] == [6 + 16]


def test_unguided_steps_leave_the_unconditional_branch_out(denoiser, make_request, transformers):
    calls, handle = count_tokens(transformers[1].layers[0].feed_forward.w1)

    finish(
        denoiser, [make_request(1, guidance=(7.0, 1.0, 3.0)), make_request(2, grid=(1, 1), guidance=(1.0, 1.0, 2.0))]
    )

    handle.remove()
    assert calls == [6, 6 + 1]


def test_guidance_one_is_the_conditional_velocity(denoiser, make_request, transformers):
    with_branch, without = make_request(1, guidance=1.0), make_request(1, guidance=1.0)

    unguided = Denoiser(transformers[0], None)

    assert torch.equal(finish(denoiser, [with_branch])[0], finish(unguided, [without])[0])
    assert unguided.prepare_unconditional((2, 3)) is None


def test_streams_are_packed_once_while_the_set_stays(denoiser, make_request, monkeypatch):
    from ideoflow.model import Context

    packed, plain = [], Context.cat
    monkeypatch.setattr(Context, "cat", lambda contexts: (packed.append(len(contexts)), plain(contexts))[1])

    finish(denoiser, [make_request(1, steps=3), make_request(2, steps=5)])

    assert packed == [2, 2, 1, 1]  # both branches when it starts, both when one leaves


def test_equal_lengths_lie_side_by_side(denoiser, make_request, transformers, monkeypatch):
    seen, plain = [], type(transformers[0]).velocity

    def velocity(self, latents, times, context, **kwargs):
        seen.append(context.layout.lengths)
        return plain(self, latents, times, context, **kwargs)

    monkeypatch.setattr(type(transformers[0]), "velocity", velocity)

    denoiser.step([make_request(1, 5, (2, 3)), make_request(2, 9, (4, 4)), make_request(3, 3, (2, 4))])

    assert seen == [(11, 11, 25), (6, 8, 16)]


def test_no_requests_are_no_work(denoiser):
    denoiser.step([])


def test_a_request_takes_one_step_at_a_time(denoiser, make_request):
    request = make_request(1, steps=1)
    with pytest.raises(ValueError, match="twice"):
        denoiser.step([request, request])
    denoiser.step([request])
    with pytest.raises(ValueError, match="has taken all its 1 steps"):
        denoiser.step([request])


def test_a_guided_request_needs_the_unconditional_transformer(make_request, transformers):
    with pytest.raises(ValueError, match=r"is guided .7.0., but there is no `unconditional_transformer`"):
        Denoiser(transformers[0], None).step([make_request(1)])


def test_half_precision_transformers_leave_latents_in_float32(make_request, transformers):
    from copy import deepcopy

    denoiser = Denoiser(*(deepcopy(transformer).to(torch.bfloat16) for transformer in transformers))
    exact, request = make_request(1, guidance=1.0), make_request(1, guidance=1.0)
    request.conditional = denoiser.prepare_conditional(
        torch.randn(5, 13 * 32, generator=torch.Generator().manual_seed(1)), (2, 3)
    )

    rough = finish(denoiser, [request])[0]

    assert rough.dtype == torch.float32
    assert 0 < relative(rough, finish(Denoiser(*transformers), [exact])[0]) < 0.1


def test_a_request_without_contexts_is_refused(denoiser, make_request):
    request = make_request(1)
    request.prepare, request.conditional = (lambda: None), None

    with pytest.raises(ValueError, match="is not prepared"):
        denoiser.step([request])


def test_a_step_that_fails_moves_no_request(denoiser, make_request, transformers, monkeypatch):
    requests = [make_request(1), make_request(2)]
    before = [request.latents for request in requests]

    def fail(*args, **kwargs):
        raise RuntimeError("the second branch broke")

    monkeypatch.setattr(transformers[1], "velocity", fail)
    with pytest.raises(RuntimeError, match="the second branch broke"):
        denoiser.step(requests)

    assert [request.step for request in requests] == [0, 0]
    assert all(request.latents is latents for request, latents in zip(requests, before, strict=True))


def test_the_estimate_is_where_the_velocity_points(denoiser, make_request):
    """A single step along it from any noise level lands on it."""
    request = make_request(1)
    assert request.estimate is request.latents
    sigma, before = request.sigmas[0], request.latents
    denoiser.step([request])

    torch.testing.assert_close(request.estimate, before + sigma * request.velocity)


def test_projected_text_makes_the_same_context(denoiser):
    features = torch.randn(7, 13 * 32)
    whole = denoiser.prepare_conditional(features, (2, 3))
    parts = denoiser.prepare_projected(denoiser.project_text(features), (2, 3))

    assert torch.equal(whole.text, parts.text) and torch.equal(whole.cos, parts.cos)


def times_run(transformers):
    """Of each branch, that times were embedded: a list that grows. A hook would have them embedded at each step."""
    calls = []
    for number, transformer in enumerate(transformers):

        def conditioning(*args, number=number, embed=transformer._conditioning):
            calls.append(number)
            return embed(*args)

        transformer._conditioning = conditioning
    return calls


@pytest.fixture
def own(transformers):
    """Copies of the transformers, to hook and change."""
    from copy import deepcopy

    return deepcopy(transformers)


def test_times_are_embedded_once_for_a_schedule(own, make_request):
    denoiser, calls = Denoiser(*own), times_run(own)
    finish(denoiser, [make_request(1), make_request(2)])  # of equal size, and so of one schedule

    assert calls == [0, 1]


def test_schedules_that_are_too_many_to_keep_go_step_by_step(own, make_request, alone, denoiser):
    from ideoflow.engine.denoiser import SCHEDULES

    fresh, calls = Denoiser(*own), times_run(own)
    requests = [make_request(i, steps=2 + i) for i in range(SCHEDULES + 1)]
    fresh.step(requests)
    fresh.step(requests)
    assert calls == [0, 1] * 2

    several = [make_request(i, steps=2 + i) for i in range(SCHEDULES + 1)]
    expected = [finish(denoiser, [make_request(i, steps=2 + i)])[0] for i in range(SCHEDULES + 1)]
    for latents, wanted in zip(finish(fresh, several), expected, strict=True):
        assert relative(latents, wanted) <= 1e-5


def test_schedules_follow_the_weights(own, make_request):
    denoiser, calls = Denoiser(*own), times_run(own)
    denoiser.step([make_request(1)])
    with torch.no_grad():
        own[0].layers[0].adaln_modulation.weight.mul_(1.5)
    changed, fresh = make_request(1), make_request(1)
    denoiser.step([changed])
    Denoiser(*own).step([fresh])

    assert calls[:3] == [0, 1, 0] and torch.equal(changed.latents, fresh.latents)


def test_offloaded_blocks_are_not_called_beside_their_hooks(own, make_request):
    """A hook on a block stands for one that brings its weights when the block is called."""
    denoiser, calls = Denoiser(*own), times_run(own)
    own[0].layers[1]._hf_hook = object()
    request = make_request(1)
    denoiser.step([request])
    denoiser.step([request])

    assert calls == [0, 1, 0]  # the conditional branch at each step, the other once
