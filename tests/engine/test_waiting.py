"""An engine that waits for requests in a thread of its own, and requests with deadlines and adapters of their own."""

import threading
import time

import pytest
import torch

from tests.pipeline.test_threads import add_lora

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*outside what the weights were trained on"),
    pytest.mark.filterwarnings("ignore::ideoflow.captions.CaptionWarning"),
]


def requests_of(pipeline, caption="a", seed=0, steps=3, **options):
    return pipeline.make_requests(
        caption,
        size=(32, 32),
        num_inference_steps=steps,
        guidance_scale=3.0,
        guidance_schedule=None,
        generator=torch.Generator().manual_seed(seed),
        **options,
    )


@pytest.fixture
def running(pipeline):
    """An engine that runs in a thread, the events it told, and what ends it."""
    engine, events = pipeline.engine(), []

    def run():
        events.extend(engine.run(wait=True))

    thread = threading.Thread(target=run)
    thread.start()
    yield engine, events, thread
    engine.close()
    thread.join()


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_it_waits_for_requests_and_takes_those_that_come_later(pipeline, running):
    engine, events, thread = running
    for seed in (0, 1):
        (request,) = requests_of(pipeline, seed=seed, defer=True)
        engine.add(request)
        until(lambda request=request: request.status == "done")
        until(lambda: engine.idle)
        assert thread.is_alive()
    engine.close()
    thread.join(60)
    assert not thread.is_alive()
    told = [event.kind for event in events]
    assert told == ["queued", "started", "step", "step", "step", "finished"] * 2


def test_closing_lets_the_requests_that_are_there_end(pipeline):
    engine = pipeline.engine()
    for request in requests_of(pipeline, num_images_per_prompt=2):
        engine.add(request)
    engine.close()
    assert [event.kind for event in engine.run(wait=True)].count("finished") == 2


def test_a_cancelled_request_is_told_of_where_nothing_else_is_to_be_done(pipeline, running):
    engine, events, _ = running
    (request,) = requests_of(pipeline, steps=200)
    engine.add(request)
    until(lambda: request.step > 2)
    assert engine.cancel(request)
    until(lambda: events and events[-1].kind == "cancelled")
    assert request.step < 200


def test_a_request_past_its_deadline_fails_and_the_others_go_on(pipeline):
    engine = pipeline.engine()
    (late,) = requests_of(pipeline, steps=50, deadline=time.monotonic() + 3600)
    (other,) = requests_of(pipeline, steps=4)
    engine.add(late)
    engine.add(other)
    late.on_step = lambda request: setattr(request, "deadline", time.monotonic()) if request.step == 2 else None
    events = list(engine.run())
    assert (late.status, late.step, other.status) == ("failed", 2, "done")
    (failed,) = [event for event in events if event.kind == "failed"]
    assert isinstance(failed.error, TimeoutError) and "after 2 of 50 steps" in str(failed.error)


def test_a_deadline_that_is_no_time_is_refused(pipeline):
    with pytest.raises(ValueError, match="`deadline` is nan"):
        requests_of(pipeline, deadline=float("nan"))


def test_requests_of_several_adapters_in_one_engine_are_each_as_if_alone(pipeline):
    add_lora(pipeline)
    pipeline.transformer.load_lora_adapter(
        {
            "layers.0.feed_forward.w2.lora_A.weight": torch.randn(2, pipeline.transformer.config.intermediate_size),
            "layers.0.feed_forward.w2.lora_B.weight": torch.randn(pipeline.transformer.hidden_size, 2),
        },
        prefix=None,
        adapter_name="other",
    )
    pipeline.set_adapters("style", 0.7)
    sets = [None, {}, {"style": 1.0}, {"style": 0.4, "other": 2.0}, {"other": 0.5}, {"style": 1.0}]
    alone = []
    for number, chosen in enumerate(sets):
        if chosen is not None:
            pipeline.set_adapters(list(chosen), list(chosen.values())) if chosen else pipeline.disable_lora()
        (request,) = requests_of(pipeline, "b c", number)
        pipeline.engine().complete([request])
        alone.append(request.latents)
        pipeline.enable_lora()
        pipeline.set_adapters("style", 0.7)
    passes = []
    engine = pipeline.engine()
    compute = engine.denoiser.compute
    engine.denoiser.compute = lambda requests: passes.append(list(requests)) or compute(requests)
    together = [
        requests_of(pipeline, "b c", number, defer=number % 2 == 0, adapters=chosen)[0]
        for number, chosen in enumerate(sets)
    ]
    engine.complete(together)
    for number, request in enumerate(together):
        torch.testing.assert_close(request.latents, alone[number], rtol=1e-4, atol=1e-4)
    assert len({tuple(latents.flatten().tolist()) for latents in alone}) == len(sets)
    assert any(together[2] in one and together[5] in one for one in passes)  # one set shares a pass
    assert all(len({request.adapters for request in one}) == 1 for one in passes)
    assert pipeline.get_active_adapters() == ["style"]  # as it was before
    (after,) = requests_of(pipeline, "b c", 0)
    pipeline.engine().complete([after])
    torch.testing.assert_close(after.latents, alone[0], rtol=1e-4, atol=1e-4)


def test_the_settings_of_a_picture_name_its_own_adapters(pipeline, tmp_path):
    add_lora(pipeline)
    (request,) = requests_of(pipeline, adapters={"style": 0.25})
    assert "loaded from no file" in request.settings["unrepeatable"] or request.settings["loras"] == []
    (plain,) = requests_of(pipeline, adapters={})
    assert plain.settings["loras"] == []


def test_adapters_that_are_not_there_are_refused_with_those_that_are(pipeline):
    with pytest.raises(ValueError, match=r"'style'.*it has none"):
        requests_of(pipeline, adapters={"style": 1})
    add_lora(pipeline)
    with pytest.raises(ValueError, match=r"`adapters` names 'stile'.*it has 'style'"):
        requests_of(pipeline, adapters={"stile": 1})
    with pytest.raises(ValueError, match=r"adapters\['style'\].*nan"):
        requests_of(pipeline, adapters={"style": float("nan")})
    pipeline.fuse_lora()
    with pytest.raises(RuntimeError, match="fused"):
        requests_of(pipeline, adapters={})


def test_a_step_of_several_sets_at_once_is_refused(pipeline):
    add_lora(pipeline)
    one, other = requests_of(pipeline, adapters={"style": 1})[0], requests_of(pipeline, adapters={})[0]
    with pytest.raises(ValueError, match="different adapters"):
        pipeline.engine().denoiser.compute([one, other])
