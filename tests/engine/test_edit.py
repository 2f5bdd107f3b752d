"""Requests that change a picture: a guide after each Euler step, rounds, a source stepped along, and what finishes."""

from dataclasses import replace

import pytest
import torch

from ideoflow.engine import Edit, Engine

OTHERS = [dict(seed=2, text_tokens=17, grid=(4, 4)), dict(seed=5, text_tokens=9, grid=(2, 1), guidance=1.0)]


def unchanged(step, latents, of_source):
    return latents, of_source


def halved(step, latents, of_source):
    return latents / 2 + step, of_source


def difference(step, latents, of_source):
    return (latents, None) if of_source is None else (latents - of_source, of_source / (1 + step))


def finish(denoiser, *requests):
    Engine(denoiser).complete(requests)
    return requests[0].latents


def relative(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.fixture
def paired(make_request):
    """A function that makes a request with a source of so many steps."""

    def make(source_steps=12, **options):
        source = make_request(7, text_tokens=3, guidance=(1.0,) * source_steps)
        return make_request(1, edit=Edit(difference, source=source), **options)

    return make


def test_a_guide_that_changes_nothing_changes_nothing(denoiser, make_request):
    assert torch.equal(finish(denoiser, make_request(1, edit=Edit(unchanged))), finish(denoiser, make_request(1)))


def test_a_guide_is_given_each_step_and_what_eulers_rule_gives_for_it(denoiser, make_request):
    seen = []

    def guide(step, latents, of_source):
        seen.append((step, latents))
        return torch.zeros_like(latents), of_source

    plain, request = make_request(1), make_request(1, edit=Edit(guide))
    denoiser.step([plain])
    denoiser.step([request])

    assert [step for step, _ in seen] == [0]
    assert torch.equal(seen[0][1], plain.latents)
    assert torch.equal(request.latents, torch.zeros_like(plain.latents))


def test_the_estimate_is_what_the_step_saw_before_its_guide(denoiser, make_request):
    plain, request = make_request(1), make_request(1, edit=Edit(halved))
    denoiser.step([plain])
    denoiser.step([request])

    assert relative(request.estimate, plain.estimate) <= 1e-6


def test_a_step_that_ends_lower_than_the_next_begins_is_brought_there_by_the_guide(denoiser, make_request):
    """Twice the first step, the second time from where the first began."""
    begins = []

    def back(step, latents, of_source):
        begins.append(latents)
        return (start, of_source) if step == 0 else (latents, of_source)

    plain = make_request(1, steps=2)
    start, (first, second, last) = plain.latents, plain.sigmas
    request = replace(
        make_request(1, steps=3),
        sigmas=torch.stack([first, first, second, last]),
        edit=Edit(back, ends=torch.stack([second, second, last])),
    )

    finish(denoiser, request)

    assert torch.equal(begins[0], begins[1])
    assert relative(request.latents, finish(denoiser, plain)) <= 1e-6


def test_a_source_is_stepped_along_and_the_guide_is_given_both(denoiser, make_request, paired):
    request, alone, source = paired(), make_request(1), make_request(7, text_tokens=3, guidance=(1.0,) * 12)

    denoiser.step([request])
    denoiser.step([alone, source])

    assert request.edit.source.step == request.step == 1
    assert relative(request.latents, alone.latents - source.latents) <= 1e-5
    assert relative(request.edit.source.latents, source.latents) <= 1e-5


def test_a_source_of_fewer_steps_takes_no_part_in_the_last_ones(denoiser, paired):
    request = paired(source_steps=5)
    both, alone = 5 + 6 + 6 + 3 + 6, 5 + 6 + 6

    assert [request.tokens_of(step) for step in range(12)] == [both] * 5 + [alone] * 7
    finish(denoiser, request)
    assert request.edit.source.status == "done" and request.status == "done"


def test_a_source_is_a_request_with_contexts_of_its_own(denoiser, transformers, paired):
    counted = []
    handle = (
        transformers[0]
        .layers[0]
        .feed_forward.w1.register_forward_pre_hook(lambda _, args: counted.append(args[0].shape[0]))
    )
    denoiser.step([paired()])
    handle.remove()

    assert counted == [5 + 6 + 3 + 6]


@pytest.mark.parametrize(("budget", "policy"), [(None, "fifo"), (30, "fair")])
def test_edits_do_not_depend_on_company(denoiser, make_request, paired, budget, policy):
    made = [lambda: paired(), lambda: paired(5), lambda: make_request(1, edit=Edit(halved))]
    made += [lambda sample=sample: make_request(**sample) for sample in OTHERS]
    alone = [finish(denoiser, make()) for make in made]

    together = [make() for make in made]
    Engine(denoiser, max_tokens=budget, policy=policy).complete(together)

    for request, latents in zip(together, alone, strict=True):
        assert relative(request.latents, latents) <= 1e-5


def test_a_step_that_is_computed_and_not_taken_is_computed_again_with_the_same_bits(denoiser, paired):
    request = paired()
    first, second = denoiser.compute([request]), denoiser.compute([request])

    assert request.step == request.edit.source.step == 0
    pairs = (first[request], second[request]), (first[request].source, second[request].source)
    for one, other in pairs:
        assert torch.equal(one.velocity, other.velocity) and torch.equal(one.latents, other.latents)


def test_contexts_of_a_source_are_made_at_the_first_step_and_let_go_at_the_end(denoiser, make_request, paired):
    expected = finish(denoiser, paired())
    request = paired()
    source, made = request.edit.source, []
    contexts = source.conditional, source.unconditional

    def prepare():
        made.append(request.step)
        return contexts

    source.conditional = source.unconditional = None
    source.prepare = prepare
    engine = Engine(denoiser)
    engine.add(request)
    assert made == []
    list(engine.run())

    assert made == [0] and source.conditional is None
    assert torch.equal(request.latents, expected)


def test_a_source_that_cannot_be_made_fails_its_request_alone(denoiser, make_request, paired):
    request, other = paired(), make_request(**OTHERS[0])
    request.edit.source.conditional = None

    def prepare():
        raise ValueError("no such caption")

    request.edit.source.prepare = prepare
    engine = Engine(denoiser)
    engine.add(request), engine.add(other)
    list(engine.run())

    assert request.status == "failed" and str(request.error) == "no such caption"
    assert other.status == "done"


def test_a_guide_that_fails_fails_its_request_alone(denoiser, make_request):
    def guide(step, latents, of_source):
        raise RuntimeError("no way")

    request, other = make_request(1, edit=Edit(guide)), make_request(**OTHERS[0])
    expected = finish(denoiser, make_request(**OTHERS[0]))
    engine = Engine(denoiser)
    engine.add(request), engine.add(other)
    list(engine.run())

    assert request.status == "failed" and str(request.error) == "no way"
    assert relative(other.latents, expected) <= 1e-5


def starting_at(latents, calls=None, fails=0):
    """What gives a request the latents that it starts from, at the second call where the first fails."""

    def start(request):
        calls.append(request.step)
        if len(calls) <= fails:
            raise torch.OutOfMemoryError("no memory for the picture")
        request.latents = latents

    calls = [] if calls is None else calls
    return start


@pytest.mark.parametrize("fails", [0, 1])
def test_what_a_request_starts_from_is_made_once_before_its_first_step(denoiser, make_request, fails):
    """Or again, where memory ran out."""
    latents, calls = make_request(9).latents, []
    request = make_request(1, edit=Edit(start=starting_at(latents, calls, fails)))
    expected = finish(denoiser, replace(make_request(1), latents=latents))
    found = finish(denoiser, request)

    assert torch.equal(found, expected) and calls == [0] * (1 + fails)


def test_a_request_that_cannot_start_fails_alone_and_one_that_is_cancelled_does_not_start(denoiser, make_request):
    calls = []
    request = make_request(1, edit=Edit(start=starting_at(None, [], 2)))
    cancelled = make_request(1, edit=Edit(start=starting_at(make_request(9).latents, calls)))
    other = make_request(**OTHERS[0])
    engine = Engine(denoiser)
    for one in (request, cancelled, other):
        engine.add(one)
    engine.cancel(cancelled)
    list(engine.run())

    assert request.status == "failed" and "no memory for the picture" in str(request.error)
    assert other.status == "done" and not calls


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (lambda make: Edit(guide=3), TypeError, "`edit.guide` is 3"),
        (lambda make: Edit(finish="png"), TypeError, "`edit.finish` is 'png'"),
        (lambda make: Edit(start=torch.zeros(3)), TypeError, "`edit.start` is tensor"),
        (lambda make: Edit(unchanged, ends=torch.zeros(3)), ValueError, "give one for each of 12 steps"),
        (lambda make: Edit(source=make(7)), ValueError, "a source needs a `guide`"),
        (lambda make: Edit(unchanged, source=make(7, grid=(3, 3))), ValueError, r"its source 12 on \(3, 3\)"),
        (lambda make: Edit(unchanged, source=make(7, steps=13)), ValueError, "its source 13 on"),
    ],
)
def test_edits_that_cannot_be_are_refused(make_request, edit, error, message):
    with pytest.raises(error, match=message):
        make_request(1, edit=edit(make_request))


def test_a_source_that_needs_a_branch_that_is_missing_is_refused(transformers, make_request):
    from ideoflow.engine import Denoiser

    source = make_request(7, guidance=3.0)
    request = make_request(1, guidance=1.0, edit=Edit(difference, source=source))

    with pytest.raises(ValueError, match="there is no `unconditional_transformer`"):
        Engine(Denoiser(transformers[0], None)).add(request)
