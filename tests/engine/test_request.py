"""A request: its state, its time, and parts that do not fit."""

from dataclasses import fields, replace

import pytest
import torch

from ideoflow.engine import Request


def parts_of(request):
    return {field.name: getattr(request, field.name) for field in fields(request) if field.init}


def test_status_follows_the_steps(denoiser, make_request):
    request = make_request(1, steps=2)
    states = [request.status]
    for _ in range(2):
        denoiser.step([request])
        states.append(request.status)

    assert states == ["waiting", "running", "done"]


def test_time_is_one_minus_sigma_in_float32(denoiser, make_request):
    request = make_request(1, steps=4)
    for i in range(4):
        assert request.time == 1 - request.sigmas[i] and request.time.dtype == torch.float32
        denoiser.step([request])


def test_times_of_the_callers_own_rounding_are_taken(make_request):
    times = torch.linspace(0, 0.9, 12)

    assert make_request(1, times=times).time == times[0]


def test_latents_are_kept_in_float32(make_request):
    parts = parts_of(make_request(1))

    assert Request(**{**parts, "latents": parts["latents"].bfloat16()}).latents.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": (3, 3)}, r"grid of \(3, 3\) needs contexts of one segment with 9 image tokens"),
        ({"latents": torch.zeros(5, 16)}, r"`latents` has shape \(5, 16\)"),
        ({"sigmas": torch.zeros(12)}, "12 steps of `guidance` need 13 `sigmas`, got 12"),
        ({"unconditional": None}, "needs the `unconditional` context"),
    ],
)
def test_parts_that_do_not_fit_are_named(make_request, changes, message):
    parts = parts_of(make_request(1, id="seven"))
    with pytest.raises(ValueError, match=f"Request seven: .*{message}"):
        Request(**{**parts, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": -1}, "`step` is -1: give a whole number from 0"),
        ({"step": 13}, "`step` is 13, but it has 12 steps"),
        ({"step": 1.0}, r"`step` is 1\.0"),
        ({"times": torch.zeros(13)}, r"`times` has shape \(13,\): give one for each of 12 steps"),
        ({"times": [0.0] * 12}, "`times` is a list: give a tensor"),
        ({"sigmas": [0.0] * 13}, "`sigmas` is a list: give a tensor"),
        ({"latents": None}, "`latents` is a NoneType: give a tensor"),
        ({"grid": (-2, -3)}, "`grid` is -2: give a whole number from 1"),
        ({"grid": (2.0, 3.0)}, r"`grid` is 2\.0"),
        ({"grid": (6,)}, r"`grid` is \(6,\): give \(rows, cols\)"),
        ({"guidance": (float("nan"),) * 12}, "`guidance` is .*: give finite numbers"),
        ({"guidance": 7.0}, r"`guidance` is 7\.0: give a sequence"),
        ({"prepare": 5}, "`prepare` is 5: give a function"),
        ({"on_step": "x"}, "`on_step` is 'x': give a function"),
    ],
)
def test_parts_of_another_type_or_out_of_range_are_named(make_request, changes, message):
    request = make_request(1)
    with pytest.raises((TypeError, ValueError), match=message):
        replace(request, **changes)
