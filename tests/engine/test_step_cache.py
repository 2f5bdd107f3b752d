"""Steps that are not computed: what follows from those that are, who passes by, and that company never matters."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ideoflow.engine import Denoiser, Edit, Engine, StepCache
from ideoflow.engine.request import Request
from ideoflow.engine.step_cache import Velocities, extrapolated

STEPS = 12
SOME = StepCache.of_steps(STEPS, [0, 1, 2, 4, 7, 9, 11])
CACHES = {
    "some steps": SOME,
    "another": StepCache.of_steps(STEPS, [0, 3, 6, 9], order=0),
    "guidance every third": StepCache.of_steps(STEPS, range(STEPS)).guided_every(3),
    "both": StepCache.of_steps(STEPS, [0, 1, 2, 4, 6, 8, 10, 11], order=2).guided_every(2),
    "none": None,
}


def finish(denoiser, request):
    Engine(denoiser).complete([request])
    return request.latents


def assert_same(ours, theirs, bound=1e-5):
    assert ((ours - theirs).abs().max() / theirs.abs().max()).item() <= bound


@pytest.fixture
def computed(transformers):
    """The requests' tokens that each transformer saw, pass by pass: [conditional passes, unconditional passes]."""
    passes, handles = ([], []), []
    for transformer, seen in zip(transformers, passes, strict=True):
        hook = transformer.layers[0].register_forward_pre_hook(lambda _, args, seen=seen: seen.append(len(args[0])))
        handles.append(hook)
    yield passes
    for handle in handles:
        handle.remove()


# What is extrapolated


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_an_order_is_exact_on_polynomials_of_its_degree_and_not_of_the_next(order):
    levels = [0.95, 0.8, 0.55, 0.5]
    factors = torch.randn(order + 2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(order))

    def polynomial(level, degree):
        return sum(factor * level**power for power, factor in enumerate(factors[: degree + 1]))

    for degree, exact in ((order, True), (order + 1, False)):
        points = [(level, polynomial(level, degree)) for level in levels]
        found = extrapolated(points, 0.3, order)
        assert torch.allclose(found, polynomial(0.3, degree), atol=1e-9) == exact


def test_fewer_points_than_the_order_asks_for_are_all_taken():
    one = torch.tensor([3.0])
    assert extrapolated([(0.9, one)], 0.5, 3) == one
    assert extrapolated([(0.9, one), (0.7, torch.tensor([5.0]))], 0.5, 3).item() == pytest.approx(7.0)


def test_a_velocity_points_to_the_extrapolated_picture_from_where_the_latents_are():
    clean, latents = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 0.25])
    kept = Velocities(clean=((0.8, clean),))

    velocity, after = kept.step(0, 0.5, latents, 1.0, None, None)

    assert torch.allclose(latents + 0.5 * velocity, clean)
    assert after == kept


def test_what_guidance_adds_is_kept_apart_so_that_another_guidance_finds_it():
    latents, conditional, unconditional = torch.zeros(2), torch.tensor([1.0, 2.0]), torch.tensor([0.5, 4.0])
    _, kept = Velocities().step(1, 0.8, latents, 7.0, conditional, unconditional)

    velocity, _ = kept.step(1, 0.8, latents, 3.0, None, None)

    assert torch.allclose(velocity, 3 * conditional - 2 * unconditional, atol=1e-6)


def test_a_later_point_at_one_level_takes_the_place_of_the_first():
    _, kept = Velocities().step(1, 0.8, torch.zeros(1), 1.0, torch.ones(1), None)
    _, kept = kept.step(1, 0.8, torch.zeros(1), 1.0, torch.full((1,), 2.0), None)
    assert kept.clean == ((0.8, torch.tensor([1.6])),)


# Which steps are computed


def test_all_steps_computed_are_the_picture_without_a_cache_to_the_last_bit(denoiser, make_request):
    guidance = (7.0,) * 10 + (3.0, 1.0)
    plain = finish(denoiser, make_request(1, guidance=guidance))
    full = finish(denoiser, make_request(1, guidance=guidance, cache=StepCache.of_steps(STEPS, range(STEPS))))
    assert torch.equal(plain, full)


def test_only_the_steps_that_are_named_reach_the_transformers(denoiser, make_request, computed):
    finish(denoiser, make_request(1, cache=CACHES["both"]))
    assert [len(passes) for passes in computed] == [8, 4]


def test_a_picture_of_fewer_computed_steps_differs(denoiser, make_request):
    plain = finish(denoiser, make_request(1))
    for name in ("some steps", "guidance every third"):
        assert not torch.equal(plain, finish(denoiser, make_request(1, cache=CACHES[name])))


def test_repeating_a_velocity_is_one_longer_step(denoiser, make_request):
    cached = finish(denoiser, make_request(1, cache=StepCache.of_steps(STEPS, [0, 2, 4, 7], order=0)))
    plain = make_request(1)
    fewer = Request(
        conditional=plain.conditional, unconditional=plain.unconditional, latents=plain.latents, grid=plain.grid,
        sigmas=plain.sigmas[[0, 2, 4, 7, STEPS]], guidance=(7.0,) * 4,
    )  # fmt: skip
    assert_same(cached, finish(denoiser, fewer), 1e-4)


def test_tokens_are_those_of_what_is_computed(make_request):
    request = make_request(1, text_tokens=5, grid=(2, 3), cache=CACHES["both"])
    tokens = [request.tokens_of(step) for step in range(STEPS)]
    assert tokens == [17, 11, 17, 0, 11, 0, 17, 0, 11, 0, 17, 11]


def test_a_request_that_begins_in_the_middle_computes_what_it_lacks(denoiser, make_request, computed):
    request = make_request(1, step=5, cache=StepCache.of_steps(STEPS, [0, 11]))
    assert request.tokens == 17
    finish(denoiser, request)
    assert [len(passes) for passes in computed] == [2, 2]


def test_the_first_guided_step_computes_both_branches(denoiser, make_request, computed):
    guidance = (1.0,) * 5 + (4.0,) * 7
    finish(denoiser, make_request(1, guidance=guidance, cache=StepCache.of_steps(STEPS, [0, 1])))
    assert [len(passes) for passes in computed] == [3, 1]


def test_what_is_kept_goes_with_the_last_step(denoiser, make_request):
    request = make_request(1, cache=SOME)
    finish(denoiser, request)
    assert request.kept == Velocities()


@pytest.mark.parametrize("wrong", [StepCache.of_steps(11, [0]), "fast"])
def test_a_cache_of_other_steps_is_refused(make_request, wrong):
    with pytest.raises(ValueError, match="give a StepCache of 12 steps"):
        make_request(1, cache=wrong)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: StepCache((True,), (True, True)), "as many"),
        (lambda: StepCache((), ()), "one at least"),
        (lambda: StepCache((True,), (True,), order=4), "from 0 to 3"),
        (lambda: StepCache.of_steps(4, [0, 4]), "from 0 to 3"),
        (lambda: StepCache.of_steps(4, [0]).guided_every(0), "`guidance_every` is 0"),
    ],
)
def test_caches_that_cannot_be_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


# Company


@pytest.mark.parametrize("policy", ["fair", "fifo", "priority"])
@pytest.mark.parametrize("budget", [{}, {"max_tokens": 40}, {"max_requests": 1}])
def test_a_packed_mix_is_each_alone(denoiser, make_request, policy, budget):
    made = [
        lambda number=number, cache=cache: make_request(number, 3 + number, (2, 2 + number), cache=cache)
        for number, cache in enumerate(CACHES.values())
    ]
    alone = [finish(denoiser, make()) for make in made]

    engine, requests = Engine(denoiser, policy=policy, **budget), [make() for make in made]
    for request in requests:  # they come one by one
        engine.add(request)
        engine.step()
    list(engine.run())

    for request, latents in zip(requests, alone, strict=True):
        assert_same(request.latents, latents)


def test_those_that_compute_share_a_pass_and_those_that_do_not_wait_for_none(denoiser, make_request, computed):
    engine = Engine(denoiser)
    cached, full = (engine.add(make_request(seed, 5, (2, 3), cache=cache)) for seed, cache in ((1, SOME), (2, None)))

    while not cached.finished:
        engine.step()

    assert full.step == 7  # as many as the other has computed
    assert computed[0] == [22] * 7 and computed[1] == [12] * 7


def test_steps_that_are_not_computed_count_no_tokens_and_no_turn(denoiser, make_request):
    engine = Engine(denoiser, policy="fair")
    counted = []
    ran = engine._scheduler.ran
    engine._scheduler.ran = lambda jobs, tokens: (counted.append(list(tokens)), ran(jobs, tokens))
    engine.complete([make_request(1, 5, (2, 3), cache=SOME)])
    assert counted == [[17]] * 7


def test_every_step_is_told_and_called_back(engine, make_request):
    called = []
    engine.add(make_request(1, cache=SOME, on_step=lambda own: called.append(own.step)))
    steps = [event.step for event in engine.run() if event.kind == "step"]
    assert steps == called == list(range(1, STEPS + 1))


def test_a_step_that_is_computed_twice_gives_the_same(denoiser, make_request):
    request = make_request(1, cache=SOME)
    for _ in range(STEPS):
        first, second = (denoiser.compute([request])[request] for _ in range(2))
        assert torch.equal(first.latents, second.latents)
        request.take(first)
    assert torch.equal(request.latents, finish(denoiser, make_request(1, cache=SOME)))


def test_latents_that_a_callback_has_changed_are_gone_on_from(denoiser, make_request):
    def push(request):
        if request.step == 4:  # the one before a step that is left out
            request.latents = request.latents + 0.5

    request = make_request(1, cache=StepCache.of_steps(STEPS, [0, 1, 2, 3], order=0), on_step=push)
    full = make_request(1, cache=StepCache.of_steps(STEPS, [0, 1, 2, 3], order=0))
    # All later steps go to the picture that step 3 pointed to, wherever they come from.
    assert_same(finish(denoiser, request), finish(denoiser, full))


def test_a_cancelled_request_leaves_the_others_what_they_are(denoiser, make_request):
    alone = finish(denoiser, make_request(2, cache=SOME))
    engine = Engine(denoiser)
    gone = engine.add(make_request(1, cache=CACHES["another"]))
    kept = engine.add(make_request(2, cache=SOME))
    for _ in range(4):
        engine.step()
    engine.cancel(gone)
    list(engine.run())
    assert_same(kept.latents, alone)


def test_an_edit_and_its_source_each_have_their_own(denoiser, make_request):
    def halved(step, latents, of_source):
        return (latents if of_source is None else 0.5 * (latents + of_source)), of_source

    def paired(cache, source_cache):
        source = make_request(2, cache=source_cache)
        return make_request(1, cache=cache, edit=Edit(halved, source=source))

    every = StepCache.of_steps(STEPS, range(STEPS))
    assert torch.equal(finish(denoiser, paired(None, None)), finish(denoiser, paired(every, every)))
    request = paired(SOME, SOME)
    assert [request.tokens_of(step) == 0 for step in range(STEPS)] == [not own for own in SOME.conditional]
    finish(denoiser, request)
    assert request.edit.source.step == STEPS


def test_a_model_without_an_unconditional_branch_leaves_out_steps_too(transformers, make_request):
    denoiser = Denoiser(transformers[0], None)
    request = make_request(1, guidance=1.0, steps=STEPS, cache=SOME)
    assert sum(request.tokens_of(step) for step in range(STEPS)) == 7 * 11
    assert torch.isfinite(finish(denoiser, request)).all()


# Any schedule


@st.composite
def schedules(draw):
    steps = draw(st.integers(1, 7))
    flags = st.lists(st.booleans(), min_size=steps, max_size=steps).map(tuple)
    guidance = draw(st.lists(st.sampled_from([1.0, 3.0]), min_size=steps, max_size=steps).map(tuple))
    return guidance, StepCache(draw(flags), draw(flags), draw(st.integers(0, 3)))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schedules(), schedules())
def test_any_two_schedules_share_their_passes_and_are_what_they_are_alone(denoiser, make_request, one, other):
    made = [
        lambda seed=seed, own=own: make_request(seed, grid=(2, 1 + seed), guidance=own[0], cache=own[1])
        for seed, own in enumerate((one, other))
    ]
    alone = [make() for make in made]
    predicted = [[request.tokens_of(step) for step in range(request.steps)] for request in alone]
    spent = []
    for request, tokens in zip(alone, predicted, strict=True):
        while not request.finished:
            spent.append(request.tokens == tokens[request.step])
            denoiser.step([request])
    assert all(spent)

    together = [make() for make in made]
    Engine(denoiser).complete(together)
    for packed, request in zip(together, alone, strict=True):
        assert torch.isfinite(request.latents).all()
        assert (packed.latents - request.latents).abs().max() <= 1e-4 * (1 + request.latents.abs().max())


def test_a_part_of_the_steps_keeps_the_schedule_and_computes_its_first_two():
    cache = StepCache.of_steps(8, [0, 1, 4, 7], guidance=[0, 4])
    part = cache.at(range(2, 8))
    assert part.conditional == (True, True, True, False, False, True)
    assert part.unconditional == (True, True, True, False, False, False)
    assert cache.at(range(8)) == cache
    assert cache.at([0, 0, 1, 1, 2, 2]).conditional == (True, True, True, True, False, False)
