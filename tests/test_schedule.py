"""The schedule visits the same noise levels as the reference implementation, and training draws from the same law."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.ideogram4 import pipeline_ideogram4 as peer

from ideoflow.presets import PRESETS, Preset, find_preset
from ideoflow.schedule import (
    MAX_TIME,
    MIN_TIME,
    guidance_per_step,
    logit_normal_sigmas,
    sample_times,
)


@pytest.mark.parametrize("steps", [1, 2, 12, 20, 48, 100])
@pytest.mark.parametrize("size", [(96, 96), (512, 512), (2048, 1024), (2048, 2048)])
@pytest.mark.parametrize("law", [(0.0, 1.5), (0.5, 1.75), (-0.3, 1.0)])
def test_sigmas_equal_the_reference_schedulers_bit_for_bit(steps, size, law):
    width, height = size
    mu, std = law
    scheduler = FlowMatchEulerDiscreteScheduler()
    reference = peer._logit_normal_sigmas(steps, peer._resolution_aware_mu(height, width, mu), std=std)
    scheduler.set_timesteps(sigmas=reference.tolist())

    assert torch.equal(logit_normal_sigmas(steps, width, height, mu, std), scheduler.sigmas)


def test_sigmas_decrease_from_noise_to_zero():
    sigmas = logit_normal_sigmas(20, 1024, 768)

    assert sigmas.dtype == torch.float32
    assert (sigmas.diff() < 0).all()
    assert sigmas[0] == pytest.approx(1 - MIN_TIME) and sigmas[-1] == 0


def test_larger_pictures_spend_more_steps_on_noise():
    assert (logit_normal_sigmas(12, 2048, 2048)[1:-1] > logit_normal_sigmas(12, 256, 256)[1:-1]).all()


def test_training_times_follow_the_quantiles_of_the_sampling_schedule():
    times = sample_times(40_000, 1024 * 512, mu=0.2, std=1.5, generator=torch.Generator().manual_seed(3))
    levels = torch.linspace(0, 1, 9, dtype=torch.float64)[1:-1]

    quantiles = torch.quantile(1 - times.double(), levels).flip(0)

    torch.testing.assert_close(quantiles.float(), logit_normal_sigmas(8, 1024, 512, 0.2, 1.5)[1:-1], atol=0.01, rtol=0)


def test_training_times_take_each_pictures_own_size():
    pixels = torch.tensor([256**2] * 2000 + [2048**2] * 2000)

    times = sample_times(4000, pixels, generator=torch.Generator().manual_seed(0))

    assert times[:2000].mean() > times[2000:].mean() + 0.2
    assert times.dtype == torch.float32 and times.min() >= MIN_TIME and times.max() <= MAX_TIME


def test_training_times_are_a_function_of_the_generator():
    first, second = (sample_times(5, 512**2, generator=torch.Generator().manual_seed(7)) for _ in range(2))

    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("name", "steps", "polish", "mu", "std"),
    [("V4_QUALITY_48", 48, 3, 0.0, 1.5), ("V4_DEFAULT_20", 20, 2, 0.0, 1.75), ("V4_TURBO_12", 12, 1, 0.5, 1.75)],
)
def test_presets_are_the_published_ones(name, steps, polish, mu, std):
    assert PRESETS[name] == Preset(name, steps, (7.0,) * (steps - polish) + (3.0,) * polish, mu, std)


def test_presets_are_found_by_name_or_passed_as_they_are():
    own = Preset("own", 2, (2.0, 1.0), 0.0, 1.0)

    assert find_preset("V4_TURBO_12") is PRESETS["V4_TURBO_12"]
    assert find_preset(own) is own
    with pytest.raises(
        ValueError, match=r"'V5'.*V4_QUALITY_48 \(quality\), V4_DEFAULT_20 \(default\), V4_TURBO_12 \(turbo\)"
    ):
        find_preset("V5")


def test_guidance_is_one_scale_for_all_steps_or_one_value_a_step():
    assert guidance_per_step(3, scale=5) == (5.0, 5.0, 5.0)
    assert guidance_per_step(3, schedule=torch.tensor([7.0, 7.0, 3.0])) == (7.0, 7.0, 3.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 5.0, "schedule": (1.0, 2.0)}, "exactly one.*got both"),
        ({}, "exactly one.*got neither"),
        ({"schedule": (1.0, 2.0, 3.0)}, "`guidance_schedule` has 3 values for 2 steps"),
    ],
)
def test_ambiguous_guidance_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        guidance_per_step(2, **arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: logit_normal_sigmas(0, 512, 512), "`steps` is 0"),
        (lambda: logit_normal_sigmas(4, 512, 512, std=0.0), "`std` is 0.0"),
        (lambda: logit_normal_sigmas(4, 0, 512), "0 pixels"),
    ],
)
def test_impossible_schedules_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", ["turbo", "TURBO", "V4_TURBO_12", "v4_turbo_12"])
def test_presets_are_found_by_either_name_in_any_case(name):
    assert find_preset(name) is PRESETS["V4_TURBO_12"]


@pytest.mark.parametrize(
    ("name", "meant"), [("trubo", "V4_TURBO_12"), ("qualty", "V4_QUALITY_48"), ("V4_DEFAULT_12", "V4_DEFAULT_20")]
)
def test_a_slip_in_a_presets_name_is_answered_with_the_nearest(name, meant):
    asked = rf"`preset` '{name}' is unknown: .*V4_TURBO_12 \(turbo\).*Did you mean '{meant}'\?"
    with pytest.raises(ValueError, match=asked):
        find_preset(name)
    with pytest.raises(ValueError, match=r"or pass a Preset\.$"):
        find_preset("zzz")
    with pytest.raises(TypeError, match="give a name"):
        find_preset(12)
