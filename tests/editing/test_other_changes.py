"""Redrawing, outpainting, variations and edits by caption, on pictures of the bundled model's world."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ideoflow.editing import CaptionEdit, Variation, outpainted, redrawn
from ideoflow.editing.caption_edit import ByDifference
from ideoflow.editing.change import noised
from ideoflow.editing.variation import mixed
from tests.editing.conftest import CALL, QUICK

YELLOW, BLUE, RED = (0xFD, 0xD8, 0x35), (0x1E, 0x60, 0xE5), (0xE5, 0x39, 0x35)
SQUARE = {"type": "obj", "bbox": [150, 150, 450, 450], "desc": "a blue square"}
CIRCLE = {"type": "obj", "bbox": [550, 550, 900, 900], "desc": "a red circle"}


def caption(*elements):
    return {"compositional_deconstruction": {"background": "plain yellow", "elements": list(elements)}}


@pytest.fixture(scope="module")
def image():
    """A blue square above a red one, as if somebody had drawn it."""
    pixels = np.full((96, 96, 3), YELLOW, np.uint8)
    pixels[15:43, 15:43] = BLUE
    pixels[53:86, 53:86] = RED
    return Image.fromarray(pixels)


def near(pixels, colour):
    return float(np.median(np.abs(np.asarray(pixels, int) - colour).max(-1)))


def same(one, other):
    return (np.asarray(one) == np.asarray(other)).all(-1)


# Redrawing


def test_a_removed_element_leaves_its_background_and_the_rest_alone(pipe, image, seeded):
    found = pipe.redraw(image, caption(SQUARE, CIRCLE), caption(CIRCLE), generator=seeded(), **CALL).images[0]

    assert near(np.asarray(found)[15:43, 15:43], YELLOW) < 40
    assert same(found, image)[53:, 53:].all()


def test_a_moved_element_is_gone_from_its_old_box_and_in_its_new_one(pipe, image, seeded):
    moved = {**SQUARE, "bbox": [150, 600, 450, 900]}
    found = np.asarray(
        pipe.redraw(image, caption(SQUARE, CIRCLE), caption(moved, CIRCLE), generator=seeded(), **CALL).images[0]
    )

    assert near(found[17:40, 62:84], BLUE) < 60 and near(found[15:43, 15:43], YELLOW) < 40


def test_only_the_boxes_and_their_margin_change(image):
    change = redrawn(image, caption(SQUARE), caption({**SQUARE, "bbox": [150, 600, 450, 900]}), margin=3)
    rows, cols = np.nonzero(change.mask.numpy())

    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (11, 46, 11, 89)
    assert change.settings == {"boxes": [[150, 150, 450, 450], [150, 600, 450, 900]]}
    assert not change.mask[:, 48:54].any()


def test_redrawing_asks_for_captions_of_which_it_can_tell_the_difference(pipe, image):
    with pytest.raises(ValueError, match="say the same"):
        pipe.redraw(image, caption(SQUARE), caption(SQUARE), **CALL)


# Outpainting


def test_a_picture_lies_whole_in_a_larger_one(pipe, image, seeded):
    moved = [{**SQUARE, "bbox": [150, 267, 450, 467]}, {**CIRCLE, "bbox": [550, 533, 900, 767]}]
    found = pipe.outpaint(image, (144, 96), caption(*moved), generator=seeded(), **CALL).images[0]

    assert found.size == (144, 96)
    assert same(found.crop((24, 0, 120, 96)), image).all()
    assert near(np.asarray(found)[:, :20], YELLOW) < 40 and near(np.asarray(found)[:, 124:], YELLOW) < 40


def test_the_place_of_the_old_picture_is_the_middle_or_what_is_said():
    old = Image.new("RGB", (4, 2), "red")

    assert outpainted(old, (8, 6)).mask[2:4, 2:6].sum() == 0 == outpainted(old, (8, 6), (0, 4)).mask[4:, :4].sum()
    assert outpainted(old, (8, 6)).mask.sum() == 40
    assert outpainted(old, (8, 6), (0, 4)).settings == {"place": [0, 4], "of": [4, 2], "canvas": [8, 6]}


@pytest.mark.parametrize(
    ("size", "place", "error"),
    [
        ((3, 6), None, ValueError),
        ((4, 2), None, ValueError),
        ((8, 6), (5, 0), ValueError),
        ((8, 6), (0, -1), ValueError),
        ((8.5, 6), None, TypeError),
        (8, None, TypeError),
        ((8, 6), 3, TypeError),
    ],
)
def test_sizes_and_places_that_do_not_hold_the_picture_are_refused(size, place, error):
    with pytest.raises(error, match=r"size|place|picture of 4 x 2"):
        outpainted(Image.new("RGB", (4, 2)), size, place)


# Variations


def test_a_variation_lies_between_two_seeds_pictures(pipe, plain, picture, seeded):
    one = picture(3)
    made = {
        amount: pipe.vary(one.caption, (96, 96), 9, amount, generator=seeded(2), **QUICK).images[0]
        for amount in (0.0, 0.1, 1.0)
    }
    own, other = (plain(one.caption, size=(96, 96), generator=seeded(seed), **QUICK).images[0] for seed in (2, 9))

    def gap(a, b):
        return np.abs(np.asarray(a, int) - np.asarray(b, int))

    assert gap(made[0.0], own).max() <= 1 and gap(made[1.0], other).max() <= 1
    assert 0 < gap(made[0.1], own).mean() < gap(other, own).mean()


@pytest.mark.parametrize("amount", [0.0, 0.05, 0.3, 0.5, 0.9, 1.0])
def test_mixed_noise_is_as_strong_as_noise(seeded, amount):
    one, other = (torch.randn(400, 16, generator=seeded(seed)) for seed in (1, 2))
    noise = mixed(one, other, amount)

    assert float(noise.std()) == pytest.approx(1, abs=0.03)
    assert torch.equal(mixed(one, one, amount), one) or torch.allclose(mixed(one, one, amount), one)
    if amount in (0.0, 1.0):
        assert torch.equal(noise, other if amount else one)


@pytest.mark.parametrize(("seed", "amount"), [(-1, 0.5), (2**64, 0.5), (1, 1.5), (1, float("nan"))])
def test_variations_that_cannot_be_are_refused(seed, amount):
    with pytest.raises(ValueError, match="variation"):
        Variation(seed, (96, 96), amount)


# Edits by caption


def test_a_caption_that_stays_the_same_would_keep_the_picture(pipe, picture, seeded, monkeypatch):
    """Equal captions and guidance: the two velocities are one, and what comes back is the picture, encoded."""
    monkeypatch.setattr(CaptionEdit, "check", lambda *_: None)  # which refuses them
    one = picture(3)
    change = CaptionEdit(one.image, one.caption, 0.8, guidance_before=CALL["guidance_scale"])
    (request,) = pipe.make_edits(change, one.caption, generator=seeded(), **CALL)
    known = request.edit.guide.known
    pipe.engine().complete([request])

    assert torch.allclose(request.latents, known, atol=1e-3)


def test_a_new_colour_comes_and_the_rest_stays(pipe, image, seeded):
    after = caption({**SQUARE, "desc": "a green square"}, {**CIRCLE, "desc": "a red square"})
    before = caption(SQUARE, {**CIRCLE, "desc": "a red square"})
    found = np.asarray(
        pipe.edit_caption(image, before, after, generator=seeded(), **{**CALL, "guidance_scale": 3.0}).images[0]
    )

    assert near(found[20:38, 20:38], (0x43, 0xA0, 0x47)) < 70
    assert near(found[60:80, 60:80], RED) < 40 and near(found[:, 45:50], YELLOW) < 30


def test_the_edit_moves_by_the_difference_of_the_two_steps(seeded):
    known, noise, moved, source = (torch.randn(6, 4, generator=seeded(seed)) for seed in range(4))
    guide = ByDifference(known, noise, (0.9, 0.5, 0.0))

    latents, noisy = guide(0, moved, source)
    last, clean = guide(1, moved, source)

    assert torch.allclose(latents - noisy, moved - source, atol=1e-6)
    assert float((noisy - noised(known, torch.zeros_like(known), 0.5)).std()) == pytest.approx(0.5, rel=0.4)
    assert torch.equal(clean, known) and torch.allclose(last, known + moved - source)
    assert torch.equal(guide(0, moved, None)[0], moved)


def test_the_last_steps_may_be_the_new_captions_alone(pipe, picture, seeded):
    one = picture(3)
    change = CaptionEdit(one.image, one.caption, 1.0, refine=0.25)
    (request,) = pipe.make_edits(change, picture(4).caption, generator=seeded(), **CALL)

    assert (request.steps, request.edit.source.steps) == (12, 9)
    (alone,) = pipe.make_edits(CaptionEdit(one.image, one.caption, 1.0, 1.0), picture(4).caption, **CALL)
    assert alone.edit.source is None


def test_the_file_says_the_old_caption_and_both_strengths(pipe, picture, seeded):
    one = picture(3)
    change = CaptionEdit(one.image, one.caption, 0.7, 0.1, 1.5)
    (request,) = pipe.make_edits(change, picture(4).caption, generator=seeded(), **CALL)
    edit = request.settings["edit"]

    assert json.loads(edit["before"]) == one.caption and json.loads(request.settings["caption"]) == picture(4).caption
    assert (edit["strength"], edit["refine"], edit["guidance_before"]) == (0.7, 0.1, 1.5)


@pytest.mark.parametrize("after", [caption(SQUARE), json.dumps(caption(SQUARE)), [caption(SQUARE)]])
def test_captions_that_say_the_same_change_nothing_and_are_refused(pipe, image, after):
    with pytest.raises(ValueError, match="`before` and the caption of what the picture becomes say the same"):
        pipe.edit_caption(image, caption(SQUARE), after, **QUICK)
    with pytest.raises(ValueError, match="say the same: nothing is to change"):
        pipe.make_edits(CaptionEdit(image, caption(SQUARE)), after, **QUICK)


def test_a_picture_has_one_old_caption(image):
    assert CaptionEdit(image, [caption(SQUARE)]).before == caption(SQUARE)
    for before, shown in (([caption(SQUARE)] * 2, "a list of 2"), (None, "a NoneType"), (5, "a int")):
        with pytest.raises(TypeError, match=f"`before` is {shown}: give the caption of the one picture"):
            CaptionEdit(image, before)


@pytest.mark.parametrize("size", [(96, 96), (64, 64), (200, 50)])
def test_outpainting_to_no_larger_size_is_refused_by_its_size(image, size):
    with pytest.raises(ValueError, match=f"`size` is {size[0]} x {size[1]}, and the picture has 96 x 96"):
        outpainted(image, size)
