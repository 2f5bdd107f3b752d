"""The sketch world: a function of split, seed and index; captions in the schema, truth where the caption says."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ideoflow.captions import Caption
from ideoflow.sketch.masks import FONTS, OUTLINED, SHAPES, shape_mask, word_mask
from ideoflow.sketch.scene import COLOURS, Background, Element, Sample, rgb
from ideoflow.sketch.world import GRID, LETTERS, held_out_pair, held_out_word, sample

indices = st.integers(-(10**9), 10**9)
splits = st.sampled_from(["train", "held_out"])


def test_another_process_draws_the_same_picture():
    code = (
        "from ideoflow.sketch.world import sample; import hashlib, json; s = sample(7, split='held_out');"
        "print(hashlib.sha256(s.image.tobytes() + json.dumps(s.caption).encode()).hexdigest())"
    )
    digests = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(digests) == 1


def test_index_split_and_seed_each_give_another_picture():
    captions = [sample(3), sample(4), sample(3, split="held_out"), sample(3, seed=1)]
    assert len({json.dumps(s.caption) for s in captions}) == 4


@settings(max_examples=60, deadline=None)
@given(indices, splits)
def test_every_caption_keeps_the_schema(index, split):
    assert Caption.parse(sample(index, split=split).caption).check() == []


@settings(max_examples=60, deadline=None)
@given(indices, splits)
def test_caption_names_each_element_with_its_box_and_colour(index, split):
    drawn = sample(index, split=split)
    listed = drawn.caption["compositional_deconstruction"]["elements"]
    assert len(listed) == len(drawn.elements) >= 1
    for entry, element in zip(listed, drawn.elements, strict=True):
        assert entry["bbox"] == list(element.box)
        if element.exact:
            assert entry["color_palette"] == [element.colour]
        else:
            assert element.colour in entry["desc"]
        assert entry.get("text") == element.word
        assert ("outline" in entry["desc"] or "hollow" in entry["desc"] or " line" in entry["desc"]) == element.outline
        assert element.word or element.shape in entry["desc"]


@settings(max_examples=60, deadline=None)
@given(indices, splits)
def test_each_element_is_seen_in_its_box_in_its_colour(index, split):
    drawn = sample(index, split=split)
    pixels = np.asarray(drawn.image).astype(int)
    assert pixels.shape == (drawn.height, drawn.width, 3)
    for element, mask in zip(drawn.elements, drawn.masks(), strict=True):
        top, left, bottom, right = element.pixel_box(drawn.width, drawn.height)
        outside = mask.copy()
        outside[top:bottom, left:right] = False
        assert mask.any() and not outside.any()
        solid = mask & (element.coverage(drawn.width, drawn.height) == 1)
        assert (abs(pixels[solid] - rgb(element.colour)) <= 1).mean() > 0.95


@settings(max_examples=60, deadline=None)
@given(indices, splits)
def test_background_is_seen_where_no_element_is(index, split):
    drawn = sample(index, split=split)
    behind = drawn.background_mask()
    ground = drawn.background.render(drawn.width, drawn.height)
    assert abs(np.asarray(drawn.image)[behind] - ground[behind]).max(initial=0) <= 3  # 1% coverage of 255


@settings(max_examples=100, deadline=None)
@given(indices, splits)
def test_boxes_lie_on_the_grid_and_colours_never_repeat(index, split):
    drawn = sample(index, split=split)
    for element in drawn.elements:
        top, left, bottom, right = element.box
        assert 0 <= top < bottom <= 1000 and 0 <= left < right <= 1000
        assert all(edge % GRID == 0 for edge in element.box)
    colours = [*drawn.background.colours, *(e.colour for e in drawn.elements)]
    assert len(set(colours)) == len(colours)
    pairs = [(rgb(a), rgb(b)) for i, a in enumerate(colours) for b in colours[:i] if len(drawn.background.colours) < 2]
    assert all(math.dist(a, b) >= 89 for a, b in pairs)


def test_the_world_is_as_various_as_it_says():
    drawn = [sample(i) for i in range(600)]
    elements = [e for s in drawn for e in s.elements]
    assert {len(s.elements) for s in drawn} == {1, 2, 3, 4}
    assert {s.background.kind for s in drawn} == {"solid", "gradient", "stripes"}
    assert {e.shape for e in elements if e.shape} == set(SHAPES)
    assert {e.shape for e in elements if e.outline} == set(OUTLINED)
    assert {len(e.word) for e in elements if e.word} == {1, 2, 3, 4, 5}
    assert {e.font for e in elements} == set(FONTS) and {c for e in elements for c in e.word or ""} == set(LETTERS)
    assert {e.colour for e in elements} > set(COLOURS) and 0.1 < np.mean([e.exact for e in elements]) < 0.3
    keys = [s.caption.keys() for s in drawn]
    assert 0.2 < np.mean(["high_level_description" in k for k in keys]) < 0.5
    assert 0.05 < np.mean(["style_description" in k for k in keys]) < 0.3


@settings(max_examples=200, deadline=None)
@given(indices)
def test_training_never_shows_what_is_held_out(index):
    for element in sample(index).elements:
        if element.word:
            assert not held_out_word(element.word)
        else:
            assert not held_out_pair(element.colour, element.shape)


def test_held_out_pictures_show_what_training_never_does():
    elements = [e for i in range(200) for e in sample(i, split="held_out").elements]
    assert any(e.shape and held_out_pair(e.colour, e.shape) for e in elements)
    assert all(held_out_word(e.word) for e in elements if e.word)
    assert any(held_out_pair(c, s) for c in COLOURS for s in SHAPES)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [(40, 40), (64, 24), (9, 31)])
def test_each_shape_fills_its_box_and_is_itself(shape, size):
    mask = shape_mask(shape, *size)
    assert mask.shape == size[::-1] and mask.min() >= 0 and mask.max() == pytest.approx(1, abs=0.01)
    seen = mask > 0.25
    assert seen.any(0).mean() > 0.85 and seen.any(1).mean() > 0.85
    others = [shape_mask(other, *size) for other in SHAPES if other != shape]
    assert all(abs(mask - other).mean() > 0.03 for other in others)


@pytest.mark.parametrize("shape", OUTLINED)
def test_an_outline_follows_its_shape_from_within(shape):
    filled, outline = shape_mask(shape, 50, 40), shape_mask(shape, 50, 40, outline=True)
    assert (outline <= filled + 0.05).all()
    assert 0.2 < outline.sum() / filled.sum() < 0.9
    assert outline[18:22, 24:26].max() == 0 or shape in ("heart", "half circle", "triangle")
    edge = (filled > 0.9) & (shape_mask(shape, 50, 40) < 1)
    assert not edge.any() or outline[edge].min() > 0.5


@pytest.mark.parametrize("font", FONTS)
def test_every_letter_has_its_cell_and_looks_like_no_other(font):
    masks = {letter: word_mask(f"{letter}H", font, 48, 30)[:, :24] for letter in LETTERS}
    alike = [(a, b) for a in LETTERS for b in LETTERS if a < b and abs(masks[a] - masks[b]).mean() < 0.02]
    assert not alike
    element = Element((100, 200, 500, 800), "red", word="ABC", font=font)
    assert [letter for letter, _ in element.letters()] == ["A", "B", "C"]
    assert [box for _, box in element.letters()] == [(100, 200, 500, 400), (100, 400, 500, 600), (100, 600, 500, 800)]


@pytest.mark.parametrize("font", FONTS)
def test_words_fill_their_box_and_differ(font):
    masks = {word: word_mask(word, font, 60, 30) for word in ("A", "B", "AB", "17")}
    for mask in masks.values():
        seen = mask > 0.1
        assert mask.shape == (30, 60)
        assert seen[:2].any() and seen[-2:].any() and seen[:, :20].any() and seen[:, -20:].any()
    assert abs(masks["A"] - masks["B"]).mean() > 0.05


def test_elements_listed_later_lie_in_front():
    under, over = Element((0, 0, 800, 800), "red", "square"), Element((400, 400, 1000, 1000), "blue", "square")
    drawn = Sample(100, 100, Background("solid", ("white",)), (under, over), {})
    first, second = drawn.masks()
    assert not (first & second).any()
    assert tuple(np.asarray(drawn.image)[60, 60]) == rgb("blue")
    assert first.sum() == 80 * 80 - 40 * 40


@pytest.mark.parametrize(
    ("background", "place", "colour"),
    [
        (Background("gradient", ("red", "blue"), "vertical"), (0, 50), "red"),
        (Background("gradient", ("red", "blue"), "vertical"), (99, 50), "blue"),
        (Background("gradient", ("red", "blue"), "horizontal"), (50, 99), "blue"),
        (Background("stripes", ("red", "blue"), "vertical"), (99, 0), "red"),
        (Background("stripes", ("red", "blue"), "vertical"), (0, 99), "blue"),
        (Background("stripes", ("red", "blue"), "horizontal"), (99, 0), "blue"),
    ],
)
def test_backgrounds_run_the_way_their_caption_says(background, place, colour):
    assert np.allclose(background.render(100, 100)[place], rgb(colour), atol=2)


def test_sizes_are_drawn_or_given():
    assert len({(s.width, s.height) for s in map(sample, range(200))}) > 10
    assert (sample(5, size=(144, 96)).width, sample(5, size=(144, 96)).height) == (144, 96)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"`size`.*multiples of 16"):
        sample(0, size=(100, 96))
    with pytest.raises(ValueError, match=r"`split`.*'held_out'"):
        sample(0, split="test")
    with pytest.raises(ValueError, match=r"`shape`.*circle"):
        shape_mask("blob", 10, 10)
    with pytest.raises(ValueError, match=r"`shape`.*outline"):
        shape_mask("star", 10, 10, outline=True)
