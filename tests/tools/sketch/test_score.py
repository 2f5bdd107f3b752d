"""The score: full marks for the truth, and marks lost for exactly what is wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from ideoflow.sketch.scene import COLOURS, Background, Element, Sample
from ideoflow.sketch.wording import line
from ideoflow.sketch.world import APART
from tools.sketch.score import held_out, judge, score

TRUTH = Sample(
    128,
    96,
    Background("solid", ("yellow",)),
    (Element((100, 50, 500, 450), "red", "circle"), Element((500, 550, 900, 950), "blue", "square")),
    {},
)


def changed(**fields) -> Image.Image:
    return replace(TRUTH, **fields).image


def test_the_truth_gets_full_marks():
    for truth in held_out(40):
        judged = judge(truth.image, truth)
        assert judged.background
        assert all(o > 0.7 for o in judged.overlaps)


def test_a_slightly_soft_picture_still_counts():
    judged = judge(TRUTH.image.filter(ImageFilter.GaussianBlur(1.0)), TRUTH)
    assert judged.background and min(judged.overlaps) > 0.7


def test_a_wrong_background_is_wrong_and_nothing_else_is():
    judged = judge(changed(background=Background("solid", ("green",))), TRUTH)
    assert not judged.background and min(judged.overlaps) > 0.9


def test_a_wrong_colour_costs_its_element():
    moved = (replace(TRUTH.elements[0], colour="purple"), TRUTH.elements[1])
    judged = judge(changed(elements=moved), TRUTH)
    assert judged.background and judged.overlaps[0] < 0.05 and judged.overlaps[1] > 0.9


def test_a_wrong_place_costs_its_element():
    moved = (TRUTH.elements[0], replace(TRUTH.elements[1], box=(500, 250, 900, 650)))
    judged = judge(changed(elements=moved), TRUTH)
    assert judged.overlaps[0] > 0.9 and 0.05 < judged.overlaps[1] < 0.5


def test_swapped_colours_cost_both():
    swapped = (replace(TRUTH.elements[0], colour="blue"), replace(TRUTH.elements[1], colour="red"))
    assert max(judge(changed(elements=swapped), TRUTH).overlaps) < 0.05


def test_a_missing_and_a_second_copy_cost():
    assert judge(changed(elements=TRUTH.elements[:1]), TRUTH).overlaps[1] == 0
    twice = (*TRUTH.elements, Element((50, 500, 450, 900), "red", "circle"))
    assert judge(changed(elements=twice), TRUTH).overlaps[0] < 0.6


def test_noise_gets_no_marks():
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    judged = judge(Image.fromarray(noise), TRUTH)
    assert not judged.background and max(judged.overlaps) < 0.2


def test_named_colours_are_further_apart_than_the_score_is_forgiving():
    values = [np.array([int(h[i : i + 2], 16) for i in (1, 3, 5)]) for h in COLOURS.values()]
    apart = min(np.linalg.norm(a - b) for i, a in enumerate(values) for b in values[:i])
    assert apart > 64 and APART > 64


def test_rates_and_intervals_over_a_batch_of_pictures():
    samples = held_out(30)
    by_caption = {line(s.caption): s for s in samples}

    def draw(captions, sizes, seeds):
        assert len(captions) == len(sizes) == len(set(seeds)) <= 8
        pictures = [by_caption[c].image for c in captions]
        # every third picture is drawn as its negative
        return [Image.eval(p, lambda v: 255 - v) if s % 3 == 0 else p for p, s in zip(pictures, seeds, strict=True)]

    result = score(draw, samples, line, batch=8)
    rate, low, high = result.background
    assert result.pictures == 30 and rate == pytest.approx(20 / 30) and 0.45 < low < rate < high < 0.85
    assert 0.5 < result.shapes_overlap < 0.8
    assert 0.4 < result.elements_in_place[0] < 0.9 and 0.4 < result.words_read[0] < 0.9
    assert 0.4 < result.shapes_in_place[0] < 0.9 and 0 < result.unseen_pairs_in_place[0] <= 1
    assert any("66.7%" in text for text in result.lines())


WORD = Sample(
    128, 96, Background("solid", ("yellow",)), (Element((300, 100, 700, 900), "purple", word="K4E", font="sans"),), {}
)


def reads(word: str, **fields) -> bool:
    drawn = replace(WORD, elements=(replace(WORD.elements[0], word=word, **fields),)).image
    return judge(drawn.filter(ImageFilter.GaussianBlur(1.0)), WORD).read[0]


def test_a_word_is_read_only_if_every_letter_is_right():
    assert reads("K4E") and reads("K4E", font="sans", colour="blue")
    assert not any(reads(word) for word in ("K4F", "X4E", "KAE", "4KE", "K4", "K4EE"))
    assert not judge(replace(WORD, elements=()).image, WORD).read[0]


def test_held_out_words_are_read_from_the_truth():
    judged = [(judge(s.image, s).read, s.elements) for s in held_out(60)]
    assert all(r == bool(e.word) for read, elements in judged for r, e in zip(read, elements, strict=True))


def test_a_picture_of_another_size_is_refused():
    with pytest.raises(ValueError, match="`drawn`"):
        judge(TRUTH.image.resize((96, 96)), TRUTH)
