"""Calls in several threads: each call's state is its own, and so is each picture."""

import copy
import gc
import random
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ideoflow import Ideogram4Pipeline

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*outside what the weights were trained on"),
    pytest.mark.filterwarnings("ignore::ideoflow.captions.CaptionWarning"),
]

SIZES = [(32, 32), (48, 32)]
SCALES = [None, 0.0, 0.5, 1.0, 2.0]
THREADS = 8


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def add_lora(pipe, projection=True):
    generator = seeded(11)
    names = ["layers.0.attention.to_q", "layers.1.feed_forward.w1", "layers.1.adaln_modulation"]
    lora = {}
    for name in names + ["llm_cond_proj"] * projection:
        rows, columns = pipe.transformer.get_submodule(name).weight.shape
        lora[f"transformer.{name}.lora_A.weight"] = torch.randn(4, columns, generator=generator) / columns**0.5
        lora[f"transformer.{name}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) / 2
    pipe.load_lora_weights(lora, adapter_name="style")
    pipe.set_adapters("style", 0.7)


def strengths(pipe):
    return [dict(part.scaling) for part in pipe.transformer.modules() if "base_layer" in part._modules]


class Job:
    """One call, and what a callback of it sees and does."""

    def __init__(self, number, scales=SCALES):
        draw = random.Random(number)
        self.caption = draw.choice(["a", "b c", "d e f"])
        self.steps = draw.choice([2, 3, 4])
        self.scale = draw.choice(scales)
        self.size = draw.choice(SIZES)
        self.seed = number % 7
        self.guidance = draw.choice([1.0, 3.0, 5.0])
        self.stop = draw.choice([None, None, 0, 1])  # after this step
        self.fail = draw.random() < 0.15  # in its last step

    @property
    def outcome(self):
        """All that the picture depends on."""
        steps = self.steps if self.stop is None else self.stop + 1
        return self.caption, self.steps, steps, self.scale, self.size, self.seed, self.guidance

    def run(self, pipe, quiet=False):
        kwargs = None if self.scale is None else {"scale": self.scale}
        seen = []

        def callback(own, i, t, tensors):
            seen.append((i, own.num_timesteps, own.guidance_scale, own.attention_kwargs, own.interrupt))
            if i == self.stop:
                own._interrupt = True
                seen.append(own.interrupt)
            elif self.fail and not quiet and i == self.steps - 1:
                raise RuntimeError("a callback that fails")
            return tensors

        latents = pipe(
            self.caption,
            size=self.size,
            num_inference_steps=self.steps,
            guidance_schedule=None,
            guidance_scale=self.guidance,
            attention_kwargs=kwargs,
            generator=seeded(self.seed),
            callback_on_step_end=callback,
            output_type="latent",
        ).images
        last = self.steps if self.stop is None else self.stop + 1
        expected = [(i, self.steps, self.guidance, kwargs, False) for i in range(last)]
        assert seen == expected + [True] * (self.stop is not None)
        return latents


def run_all(pipe, jobs):
    """Run jobs in threads at once and compare each picture with the one of its own call, run alone."""
    alone, expected = {}, []
    for job in jobs:
        if job.outcome not in alone:
            alone[job.outcome] = job.run(pipe, quiet=True)
        expected.append(alone[job.outcome])
    before = strengths(pipe), pipe.interrupt  # of the last call in this thread

    def attempt(job):
        try:
            return job.run(pipe)
        except RuntimeError as error:
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        drawn = list(pool.map(attempt, jobs))

    for job, own, picture in zip(jobs, drawn, expected, strict=True):
        if isinstance(own, Exception):
            assert job.fail and job.stop is None and "a callback that fails" in str(own)
        else:
            assert not (job.fail and job.stop is None)
            assert (own - picture).abs().max() <= 1e-5 * picture.abs().max(), job.outcome
    assert (strengths(pipe), pipe.interrupt) == before
    return drawn


def test_calls_in_eight_threads_each_draw_their_own(pipeline):
    add_lora(pipeline)

    drawn = run_all(pipeline, [Job(number) for number in range(32)])

    assert any(isinstance(own, Exception) for own in drawn)


@pytest.mark.long
def test_five_hundred_calls_in_eight_threads_each_draw_their_own(pipeline):
    add_lora(pipeline)

    run_all(pipeline, [Job(number) for number in range(500)])


def test_calls_without_adapters_run_beside_each_other(pipeline):
    """Two calls that each wait for the other's callback come through."""
    meet = threading.Barrier(2, timeout=60)

    def call(seed):
        return pipeline(
            "a", size=(32, 32), num_inference_steps=2, guidance_schedule=(3.0, 3.0), generator=seeded(seed),
            callback_on_step_end=lambda pipe, i, t, tensors: (meet.wait(), tensors)[1], output_type="latent",
        ).images  # fmt: skip

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(call, [1, 2])

    assert not torch.equal(first, second)


def test_an_interrupt_stops_the_call_whose_callback_sets_it_alone(pipeline):
    meet, steps = threading.Barrier(2, timeout=60), {True: [], False: []}

    def call(stops):
        def callback(pipe, i, t, tensors):
            steps[stops].append((i, pipe.interrupt))
            if i == 0:
                meet.wait()
                if stops:
                    pipe._interrupt = True
                meet.wait()
            return tensors

        pipeline("a", size=(32, 32), num_inference_steps=4, guidance_schedule=(3.0,) * 4, callback_on_step_end=callback)
        return pipeline.interrupt, pipeline.num_timesteps

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(call, [True, False])) == [(True, 4), (False, 4)]

    assert steps == {True: [(0, False)], False: [(i, False) for i in range(4)]}
    assert not pipeline.interrupt and pipeline.num_timesteps == 0  # no call has been made in this thread


def test_an_interrupt_from_outside_of_all_callbacks_stops_all_calls_under_way(pipeline):
    """As a button in another thread does."""
    other = copy.copy(pipeline)
    begun, stopped, steps = threading.Barrier(3, timeout=60), threading.Event(), []

    def call(pipe):
        def callback(pipe, i, t, tensors):
            steps.append(i)
            begun.wait()
            stopped.wait(60)
            return tensors

        pipe("a", size=(32, 32), num_inference_steps=3, guidance_schedule=(3.0,) * 3, callback_on_step_end=callback)

    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(call, pipeline) for _ in range(2)]
        begun.wait()
        other._interrupt = False  # of another pipeline: means nothing to these
        pipeline._interrupt = True
        stopped.set()
        for one in calls:
            one.result()

    assert steps == [0, 0]


def test_a_call_that_fails_leaves_nothing_behind(pipeline):
    def fail(pipe, i, t, tensors):
        pipe._interrupt = True
        raise RuntimeError("on purpose")

    call = dict(size=(32, 32), num_inference_steps=2, guidance_schedule=(3.0, 3.0), output_type="latent")
    expected = pipeline("a", generator=seeded(), **call).images
    with pytest.raises(RuntimeError, match="on purpose"):
        pipeline("a", callback_on_step_end=fail, **call)
    with pytest.raises(ValueError, match="`prompt` is missing"):
        pipeline(None, **call)

    assert len(pipeline._calls) == 0
    assert torch.equal(pipeline("a", generator=seeded(), **call).images, expected)


def test_calls_keep_no_pipeline_alive(pipeline):
    import weakref

    twin = Ideogram4Pipeline(**pipeline.components)
    twin("a", size=(32, 32), num_inference_steps=1, guidance_schedule=(1.0,), output_type="latent")
    gone = weakref.ref(twin)
    del twin
    gc.collect()

    assert gone() is None


def test_engines_in_threads_each_weigh_the_adapters_their_own_way(pipeline):
    """Two engines and a call share one transformer; their scales stay theirs."""
    add_lora(pipeline)
    call = dict(size=(48, 32), num_inference_steps=3, guidance_schedule=(3.0,) * 3)

    def by_engine(scale):
        kwargs = {"scale": scale}
        requests = pipeline.make_requests(
            ["a", "b"], generator=[seeded(1), seeded(2)], attention_kwargs=kwargs, defer=True, **call
        )
        pipeline.engine(kwargs).complete(requests)
        return torch.stack([request.latents for request in requests])

    def by_call(scale):
        return pipeline(
            ["a", "b"],
            generator=[seeded(1), seeded(2)],
            attention_kwargs={"scale": scale},
            output_type="latent",
            **call,
        ).images

    ways = [(by_engine, 0.25), (by_engine, 1.5), (by_call, 0.5), (by_call, 1.0)] * 3
    alone = [way(scale) for way, scale in ways[:4]]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda way: way[0](way[1]), ways))

    for i, own in enumerate(together):
        assert (own - alone[i % 4]).abs().max() <= 1e-5 * own.abs().max()


def test_a_scale_of_zero_gives_the_adapters_back_their_strength(pipeline):
    add_lora(pipeline)
    before = strengths(pipeline)
    call = dict(size=(32, 32), num_inference_steps=1, guidance_schedule=(3.0,), output_type="latent")
    adapted = pipeline("a", generator=seeded(), **call).images

    for scale in (0.0, 0.3, 1e-3):
        pipeline("a", attention_kwargs={"scale": scale}, **call)

    assert strengths(pipeline) == before
    assert torch.equal(pipeline("a", generator=seeded(), **call).images, adapted)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("load_lora_weights", ({},)),
        ("unload_lora_weights", ()),
        ("set_adapters", ("style", 0.1)),
        ("delete_adapters", ("style",)),
        ("enable_lora", ()),
        ("disable_lora", ()),
        ("fuse_lora", ()),
        ("unfuse_lora", ()),
    ],
)
def test_adapters_cannot_be_changed_while_another_thread_draws(pipeline, method, arguments):
    drawing, tried = threading.Event(), threading.Event()

    def wait(pipe, i, t, tensors):
        drawing.set()
        tried.wait(60)
        return tensors

    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(
            pipeline, "a", size=(32, 32), num_inference_steps=1, guidance_schedule=(3.0,), callback_on_step_end=wait
        )
        drawing.wait(60)
        try:
            with pytest.raises(RuntimeError, match=f"`{method}` would change pictures that another thread is drawing"):
                getattr(pipeline, method)(*arguments)
        finally:
            tried.set()
        call.result()


def test_a_call_that_begins_while_adapters_are_loaded_has_all_of_them(pipeline, monkeypatch):
    call = dict(size=(32, 32), num_inference_steps=2, guidance_schedule=(3.0, 3.0), output_type="latent")
    loading, begun = threading.Event(), threading.Event()
    inject = pipeline.transformer.load_lora_adapter

    def slowly(*arguments, **options):
        loading.set()
        begun.wait(1)  # the call would have begun by then
        inject(*arguments, **options)

    monkeypatch.setattr(pipeline.transformer, "load_lora_adapter", slowly)
    with ThreadPoolExecutor(2) as pool:
        loads = pool.submit(add_lora, pipeline, projection=False)
        loading.wait(60)
        drawn = pool.submit(
            lambda: pipeline("a", generator=seeded(), callback_on_step_end=lambda *_: begun.set(), **call).images
        )
        loads.result(), drawn.result()
    pipeline.set_adapters("style", 1.0)
    whole = pipeline("a", generator=seeded(), **call).images
    pipeline.set_adapters("style", 0.7)
    weighed = pipeline("a", generator=seeded(), **call).images

    assert min((drawn.result() - one).abs().max() for one in (whole, weighed)) <= 1e-5 * whole.abs().max()


def test_a_scale_without_adapters_is_said_to_change_nothing(pipeline):
    call = dict(size=(32, 32), num_inference_steps=1, guidance_schedule=(3.0,), output_type="latent")
    with pytest.warns(UserWarning, match=r"scale 0.5.*none is loaded: it changes nothing"):
        pipeline("a", attention_kwargs={"scale": 0.5}, **call)
    add_lora(pipeline)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*changes nothing")
        pipeline("a", attention_kwargs={"scale": 0.5}, **call)


def test_a_callback_may_weigh_adapters_for_the_steps_that_follow(pipeline):
    add_lora(pipeline, projection=False)
    call = dict(size=(32, 32), num_inference_steps=2, guidance_schedule=(3.0, 3.0), output_type="latent")
    plain = pipeline("a", generator=seeded(), **call).images

    def weigh(pipe, i, t, tensors):
        pipe.set_adapters("style", 0.1)
        return tensors

    changed = pipeline("a", generator=seeded(), callback_on_step_end=weigh, **call).images

    assert (changed - plain).abs().max() > 1e-3 * plain.abs().max()


def test_calls_of_an_offloaded_pipeline_take_turns(pipeline):
    call = dict(size=(32, 32), num_inference_steps=2, guidance_schedule=(3.0, 3.0), output_type="latent")
    expected = [pipeline("a", generator=seeded(seed), **call).images for seed in range(6)]
    pipeline.enable_model_cpu_offload(device="cpu")
    inside, most = [], []

    def watch(pipe, i, t, tensors):
        if i == 0:
            inside.append(threading.get_ident())
        most.append(len(inside))
        if i == 1:
            inside.remove(threading.get_ident())
        return tensors

    def draw(seed):
        return pipeline("a", generator=seeded(seed), callback_on_step_end=watch, **call).images

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(draw, range(6)))

    assert set(most) == {1}
    for own, alone in zip(together, expected, strict=True):
        assert (own - alone).abs().max() <= 1e-5 * alone.abs().max()


def test_a_copy_has_calls_of_its_own(pipeline):
    twin = copy.copy(pipeline)
    with pipeline._calls.begin(None) as call:
        twin._interrupt = True

        assert not call.interrupted and twin._calls is not pipeline._calls
