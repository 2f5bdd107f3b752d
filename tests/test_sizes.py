"""Sizes that cannot be drawn are refused with the nearest that can."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ideoflow.sizes import LARGEST_SIDE, misfit, sizes_of

sides = st.one_of(st.integers(-5, 300), st.integers(LARGEST_SIDE - 20, 10**12))


@given(sides, sides, st.sampled_from([16, 32]))
def test_the_nearest_sizes_can_be_drawn_and_no_nearer_ones_are_left_out(width, height, unit):
    told = misfit(width, height, unit)
    assert (told is None) == all(unit <= side <= LARGEST_SIDE and side % unit == 0 for side in (width, height))
    for pair in re.findall(r"(\d+)x(\d+)", told or ""):
        nearest = tuple(map(int, pair))
        assert misfit(*nearest, unit) is None
        inside = [min(max(side, unit), LARGEST_SIDE) for side in (width, height)]
        assert all(abs(near - side) < unit for near, side in zip(nearest, inside, strict=True))


def test_a_call_names_the_nearest_sizes():
    told = r"are 100 and 128: .* multiple of 16.* The nearest sizes are 96x128 and 112x128\."
    with pytest.raises(ValueError, match=told):
        sizes_of((100, 128), 2048, 2048, 1, 16, None)
    with pytest.raises(ValueError, match="The nearest size is 16384x16384"):
        sizes_of((10**9, 10**9), 2048, 2048, 1, 16, None)


@pytest.mark.parametrize("limits", [(96, 192), (512, 1024), (4096, 8192)])
def test_the_default_of_a_call_is_refused_where_the_weights_were_trained_on_other_sizes(limits):
    told = rf"`size` is not given.*sides of {limits[0]} to {limits[1]}.*`size=\({limits[1]}, {limits[1]}\)`"
    with pytest.raises(ValueError, match=told):
        sizes_of(None, 2048, 2048, 1, 16, limits)
    with pytest.warns(UserWarning, match="outside what the weights were trained on"):
        assert sizes_of((2048, 2048), 2048, 2048, 1, 16, limits) == [(2048, 2048)]


@pytest.mark.parametrize("limits", [None, (256, 4096)])
def test_the_default_of_a_call_is_drawn_where_the_weights_know_it(limits):
    assert sizes_of(None, 2048, 2048, 2, 16, limits) == [(2048, 2048)] * 2
