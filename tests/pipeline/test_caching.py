"""Caches of a call: in words, by name, by diffusers' configurations, by the model's switch; what is refused."""

import json

import pytest
import torch
from diffusers.hooks import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)

from ideoflow import Ideogram4Pipeline, sketch
from ideoflow.engine import StepCache
from ideoflow.pictures import read_settings, save_image
from ideoflow.pipeline import CacheCalibration, keep_calibrations
from ideoflow.pipeline.cache_calibration import calibrations_in
from ideoflow.pipeline.caching import in_words, step_cache
from ideoflow.sketch.world import sample


@pytest.fixture(scope="module")
def pipe():
    made = sketch.load()
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def drawn(pipe):
    """A function that makes a small picture's request; equal arguments make equal ones."""

    def draw(**options):
        held = sample(3, split="held_out", size=(96, 96))
        defaults = {"size": (96, 96), "preset": "default", "guidance_scale": 2.0}
        seed = torch.Generator().manual_seed(3)
        (request,) = pipe.make_requests(held.caption, generator=seed, **{**defaults, **options})
        return request

    return draw


def refuse():
    raise ValueError("nothing is calibrated")


def computed(given, steps=20, **options):
    cache = step_cache(given, steps, refuse, **options)
    return [step for step in range(steps) if cache.conditional[step]]


# What each form asks for


def test_words_name_steps_or_an_interval():
    assert computed("steps=0,3,7 order=2") == [0, 3, 7]
    assert computed("interval=4 before=2 after=18") == [0, 1, 3, 7, 11, 15, 18, 19]
    cache = step_cache("interval=2 before=3 guidance_every=2 order=0", 8, refuse)
    assert cache == StepCache.of_steps(8, [0, 1, 2, 4, 6], guidance=[0, 2, 6], order=0)
    assert step_cache("off", 20, refuse) is step_cache(None, 20, refuse) is None
    assert step_cache(None, 4, refuse, 2) == StepCache.of_steps(4, range(4), guidance=[0, 2])


@pytest.mark.parametrize(
    "words",
    ["", "Fast", "interval=0", "interval=2 steps=1", "steps=", "steps=1;2", "order=1", "interval=2 interval=3",
     "interval=2 order=4", "interval=2 guidance=1", "steps=0 unknown=1", "interval=٣", "1,2,3"],
)  # fmt: skip
def test_other_words_are_refused_with_those_there_are(words):
    with pytest.raises(ValueError, match=r"`cache` is .*give 'fast', 'faster', 'off', \"interval=2 before=3 order=1\""):
        step_cache(words, 20, refuse)


@pytest.mark.parametrize(("interval", "before", "after"), [(5, 3, None), (2, 0, 16), (3, 4, 30), (1, 3, None)])
def test_taylor_seer_computes_the_steps_that_diffusers_would(interval, before, after):
    from diffusers.hooks.hooks import CacheContext, StateManager
    from diffusers.hooks.taylorseer_cache import TaylorSeerCacheHook, TaylorSeerState

    states = StateManager(TaylorSeerState, (), {"max_order": 1})
    states.set_context(CacheContext(name="a picture"))
    hook = TaylorSeerCacheHook(interval, before, torch.float32, states, after)
    theirs = [step for step in range(20) if hook._measure_should_compute()[0]]

    config = TaylorSeerCacheConfig(interval, before, after, max_order=2, use_lite_mode=True)
    # The first step has nothing to go on from: diffusers' hook would fail there.
    assert computed(config) == sorted({0, *theirs})
    assert step_cache(config, 20, refuse).order == 2


@pytest.mark.parametrize(("threshold", "most", "retention"), [(0.06, 3, 0.2), (0.2, 2, 0.0), (0.5, 9, 0.1)])
def test_mag_cache_computes_the_steps_that_diffusers_would(threshold, most, retention):
    from diffusers import FluxTransformer2DModel  # noqa: F401 (its blocks register what the hooks read)
    from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
    from diffusers.hooks.mag_cache import apply_mag_cache

    class Block(torch.nn.Module):
        def forward(self, hidden_states):
            calls.append(len(done))
            return hidden_states + 1

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.transformer_blocks = torch.nn.ModuleList([Block(), Block()])

        def forward(self, hidden_states):
            for block in self.transformer_blocks:
                hidden_states = block(hidden_states)
            return hidden_states

    TransformerBlockRegistry.register(Block, TransformerBlockMetadata(return_hidden_states_index=0))
    calls, done = [], []
    ratios = [1.0, *(1 + 0.09 * ((step * 7) % 5 - 2) / 2 for step in range(1, 20))]
    config = MagCacheConfig(threshold, most, retention, 20, ratios)
    model = Model()
    apply_mag_cache(model, config)
    for _ in range(20):
        model(torch.ones(1, 2, 3))
        done.append(None)

    assert computed(config) == sorted(set(calls))
    with pytest.raises(ValueError, match="`num_inference_steps=20`, and the pictures have 12 steps"):
        computed(config, 12)


@pytest.mark.parametrize(
    ("config", "error", "match"),
    [
        (TaylorSeerCacheConfig(), ValueError, "that is `use_lite_mode=True`"),
        (TaylorSeerCacheConfig(use_lite_mode=True, cache_identifiers=["x"]), ValueError, "without `skip_predict"),
        (TaylorSeerCacheConfig(use_lite_mode=True, max_order=4), ValueError, "`max_order` is 4: .* from 0 to 3"),
        (TaylorSeerCacheConfig(0, use_lite_mode=True), ValueError, "`cache_interval` is 0"),
        (MagCacheConfig(calibrate=True), ValueError, "`pipe.calibrate_cache` does that here"),
        (FirstBlockCacheConfig(threshold=-1), ValueError, "`threshold` is -1"),
        (FasterCacheConfig(), TypeError, "is diffusers' FasterCacheConfig: give 'fast'"),
        (PyramidAttentionBroadcastConfig(2), TypeError, "one of diffusers' TaylorSeerCacheConfig, MagCacheConfig"),
        (3, TypeError, "`cache` is 3"),
    ],
)
def test_configurations_that_cannot_be_honoured_are_refused_by_calls_and_by_the_switch(pipe, config, error, match):
    with pytest.raises(error, match=f"(?i){match}"):
        pipe("x", size=(96, 96), cache=config)
    with pytest.raises(error, match=f"(?i){match}"):
        pipe.transformer.enable_cache(config)
    assert not pipe.transformer.is_cache_enabled


@pytest.mark.parametrize("options", [{"cache": StepCache.of_steps(12, [0])}, {"cache": "steps=0,20"}])
def test_caches_of_other_steps_are_refused(drawn, options):
    with pytest.raises(ValueError, match=r"of 12 steps, and the pictures have 20|from 0 to 19"):
        drawn(**options)


@pytest.mark.parametrize("every", [0, 1.5, True])
def test_guidance_is_computed_every_whole_number_of_steps(drawn, every):
    with pytest.raises((TypeError, ValueError), match="`guidance_every` is"):
        drawn(guidance_every=every)


# Names, for which the model is calibrated


@pytest.mark.parametrize(("name", "factor"), [("fast", 1.8), ("faster", 2.5)])
def test_a_name_computes_so_many_times_fewer_tokens(drawn, name, factor):
    request, full = drawn(cache=name), drawn()
    tokens = [sum(one.tokens_of(step) for step in range(20)) for one in (full, request)]
    assert tokens[0] / tokens[1] >= factor


def test_presets_of_a_name_are_the_default_with_that_cache(drawn):
    assert drawn(preset="fast", guidance_scale=None).guidance == drawn(guidance_scale=None).guidance
    assert drawn(preset="fast").cache == drawn(cache="fast").cache
    assert drawn(preset="faster", cache="off").cache is None
    assert drawn(preset="faster", cache="fast").cache == drawn(cache="fast").cache


def test_steps_that_were_not_calibrated_are_refused_with_those_that_were(drawn):
    with pytest.raises(ValueError, match=r"for 17 steps \(mu 0, std 1.75\); there are those for 20 steps .*calibrate"):
        drawn(cache="fast", num_inference_steps=17)


def test_a_model_that_was_never_calibrated_says_what_to_do(tiny_folder):
    with pytest.raises(ValueError, match=r'there is none\. `pipe.calibrate_cache` makes one, or .*"interval=2"'):
        Ideogram4Pipeline.from_pretrained(tiny_folder).make_requests("x", size=(32, 32), cache="fast", preset="default")


def test_calibrating_draws_in_full_and_the_folder_keeps_what_it_found(pipe, tmp_path):
    own = Ideogram4Pipeline.from_pipe(pipe)
    caption = sample(1, size=(96, 96)).caption
    options = {"size": (96, 96), "preset": "turbo", "num_inference_steps": 6, "guidance_scale": 2.0}
    made = own.calibrate_cache([caption] * 2, generator=torch.Generator().manual_seed(1), **options)

    assert made.kind == (6, 0.5, 1.75) and made.pictures == 2 and len(made.mag_ratios) == 6
    products = torch.tensor(made.products, dtype=torch.float64)
    assert torch.allclose(products, products.T) and torch.linalg.eigvalsh(products).min() > -1e-6
    (request,) = own.make_requests(caption, cache="faster", **options)
    assert sum(request.cache.conditional) == 2
    keep_calibrations(tmp_path, own.cache_calibrations)
    assert calibrations_in(tmp_path) == own.cache_calibrations
    assert (6, 0.5, 1.75) not in pipe.cache_calibrations  # another pipeline's


def test_a_damaged_file_of_calibrations_is_named(tmp_path):
    for text in ("{", "[3]", json.dumps([{"steps": 2}])):
        (tmp_path / "step_cache.json").write_text(text)
        with pytest.raises(ValueError, match=r"step_cache.json holds no calibrations"):
            calibrations_in(tmp_path)


def test_the_schedule_of_a_calibration_is_the_best_of_all():
    from itertools import combinations

    generator = torch.Generator().manual_seed(5)
    path = torch.randn(7, 9, generator=generator, dtype=torch.float64).cumsum(0)
    sigmas = (1.0, 0.9, 0.7, 0.5, 0.35, 0.2, 0.1, 0.0)
    made = CacheCalibration(7, 0.0, 1.0, sigmas, tuple(map(tuple, (path @ path.T).tolist())), 1)

    def change(steps):
        total = 0.0
        for step in sorted(set(range(7)) - set(steps)):
            known = [one for one in steps if one < step][-2:]
            if len(known) == 1:
                guess = path[known[0]]
            else:
                along = (sigmas[step] - sigmas[known[0]]) / (sigmas[known[1]] - sigmas[known[0]])
                guess = along * path[known[1]] + (1 - along) * path[known[0]]
            total += (1 - sigmas[step + 1] / sigmas[step]) * (guess - path[step]).norm().item()
        return total

    for count in range(1, 8):
        found = [step for step, own in enumerate(made.computing(count).conditional) if own]
        best = min(change((0, *rest)) for rest in combinations(range(1, 7), count - 1))
        assert len(found) == count and change(found) == pytest.approx(best, abs=1e-9)


def test_first_block_cache_computes_where_the_estimate_has_moved_by_its_threshold(drawn):
    counts = [sum(drawn(cache=FirstBlockCacheConfig(threshold)).cache.conditional) for threshold in (0.0, 0.02, 0.2)]
    assert counts == sorted(counts, reverse=True) and counts[0] == 20 and counts[2] < 10
    assert drawn(cache=FirstBlockCacheConfig(0.05)).cache.order == 0


# The model's switch


def test_the_models_switch_holds_for_its_pictures_until_it_is_turned_off(pipe, drawn):
    config = TaylorSeerCacheConfig(3, max_order=1, use_lite_mode=True)
    with pipe.transformer.cache_context("cond"):
        pipe.transformer.enable_cache(config)
    try:
        assert pipe.transformer.is_cache_enabled
        assert drawn().cache == drawn(cache=config).cache
        assert drawn(cache="off").cache is None
        with pytest.raises(ValueError, match="A cache is enabled already"):
            pipe.transformer.enable_cache(config)
        pipe.unconditional_transformer.enable_cache(FirstBlockCacheConfig())
        with pytest.raises(ValueError, match="has another cache enabled than `transformer`"):
            drawn()
    finally:
        pipe.transformer.disable_cache()
        pipe.unconditional_transformer.disable_cache()
    assert not pipe.transformer.is_cache_enabled and drawn().cache is None


# Pictures


def picture(pipe, **options):
    held = sample(3, split="held_out", size=(96, 96))
    seed = torch.Generator().manual_seed(3)
    return pipe(held.caption, size=(96, 96), preset="default", guidance_scale=2.0, generator=seed, **options).images[0]


def test_a_picture_in_a_cache_is_near_the_full_one_and_says_how_to_make_it_again(pipe, tmp_path):
    import numpy as np

    full, fast = (np.asarray(picture(pipe, cache=cache), dtype=float) for cache in (None, "fast"))
    assert 0 < np.abs(full - fast).mean() < 2

    path = save_image(picture(pipe, cache="fast"), tmp_path / "fast.png")
    words = read_settings(path)["cache"]
    assert words.startswith("steps=0,1,2") and words.endswith("order=1")
    again = np.asarray(picture(pipe, cache=words), dtype=float)
    assert (again == fast).all()


def test_words_of_a_cache_are_read_as_that_cache():
    for cache in (StepCache.of_steps(6, [0, 2], order=0), StepCache.of_steps(6, range(6)).guided_every(2)):
        assert step_cache(in_words(cache), 6, refuse) == cache


def test_a_packed_mix_of_calls_is_each_alone_to_one_grey_level(pipe, drawn):
    import numpy as np

    options = (
        {"preset": "fast"},
        {"guidance_every": 3, "num_inference_steps": 8},
        {"cache": "interval=3 order=2", "guidance_interval": (0.2, 0.9), "num_inference_steps": 8},
        {"num_inference_steps": 8},
    )
    packed, alone = ([drawn(**own) for own in options] for _ in range(2))
    pipe.engine().complete(packed)
    for request in alone:
        pipe.engine().complete([request])
    for together, by_itself in zip(pipe.decode_requests(packed), pipe.decode_requests(alone), strict=True):
        gap = np.abs(np.asarray(together, dtype=int) - np.asarray(by_itself, dtype=int))
        assert gap.max() <= 1
