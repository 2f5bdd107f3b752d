"""Inpainting: outside of the mask every pixel is the input's, inside it is what the caption says."""

import base64
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ideoflow import pictures
from ideoflow.editing import Inpaint, inpainting
from ideoflow.editing.canvas import digest
from ideoflow.editing.change import noised, started
from ideoflow.editing.inpainting import around
from ideoflow.editing.masking import feathered
from ideoflow.provenance import from_text
from tests.editing.conftest import CALL, QUICK

BOX = [100, 100, 600, 600]


def inpaint(pipe, one, mask=BOX, caption=None, **more):
    return pipe(caption or one.caption, image=one.image, mask_image=mask, **{**QUICK, **more}).images[0]


def same(one, other):
    return (np.asarray(one) == np.asarray(other)).all(-1)


SIZES = [(96, 96), (97, 101), (112, 80), (300, 200)]
OPTIONS: list[dict] = [{}, {"harmonise": 1}, {"padding_mask_crop": 10}, {"strength": 0.5}]


@pytest.mark.parametrize(
    ("size", "options"),
    [
        pytest.param(size, options, marks=[] if row == column else [pytest.mark.long])
        for row, size in enumerate(SIZES)
        for column, options in enumerate(OPTIONS)
    ],
)
def test_pixels_outside_of_the_mask_are_the_inputs_to_the_last_bit(pipe, picture, seeded, size, options):
    image = picture(11).image.resize(size)
    change = Inpaint(image, BOX)
    found = pipe(picture(12).caption, image=image, mask_image=BOX, generator=seeded(), **{**QUICK, **options}).images[0]

    outside = change.mask.numpy() == 0
    assert found.size == size
    assert same(found, image)[outside].all() and not same(found, image)[~outside].all()


def test_the_caption_is_drawn_within_the_mask(pipe, picture, seeded):
    """A plain yellow picture becomes one with a blue square in the middle of the mask."""
    caption = {
        "compositional_deconstruction": {
            "background": "plain yellow",
            "elements": [{"type": "obj", "bbox": [200, 200, 600, 600], "desc": "a blue square"}],
        }
    }
    image = Image.new("RGB", (96, 96), "#FDD835")
    found = pipe(caption, image=image, mask_image=[100, 100, 700, 700], generator=seeded(), **CALL).images[0]

    pixels = np.asarray(found, int)
    assert np.abs(pixels[26:50, 26:50] - (0x1E, 0x60, 0xE5)).mean() < 40
    assert same(found, image)[70:].all()


def test_latents_outside_follow_the_picture_at_every_step(pipe, picture, seeded):
    one = picture(11)
    (fresh,) = pipe.make_requests(one.caption, size=(96, 96), generator=seeded(), **CALL)
    (request,) = pipe.make_edits(Inpaint(one.image, BOX), one.caption, generator=seeded(), **CALL)
    guide, engine = request.edit.guide, pipe.engine()
    outside = guide.mask == 0
    assert outside.any() and not outside.all()
    while not request.finished:
        expected = noised(guide.known, fresh.latents, float(request.sigmas[request.step]))
        assert torch.equal(request.latents[outside], expected[outside])
        engine.advance([request])
    assert torch.equal(request.latents[outside], guide.known[outside])


def test_a_grey_mask_lets_its_place_change_in_the_last_steps_alone(pipe, picture, seeded):
    one = picture(11)
    mask = torch.full((96, 96), 0.25)
    mask[:, 48:] = 1
    (request,) = pipe.make_edits(Inpaint(one.image, mask), one.caption, generator=seeded(), **CALL)
    guide, engine = request.edit.guide, pipe.engine()
    weak = (guide.mask > 0) & (guide.mask < 1)
    bound = []
    while not request.finished:
        engine.advance([request])
        known = noised(guide.known, guide.noise, float(request.sigmas[request.step]))
        bound.append(torch.equal(request.latents[weak], known[weak]))

    assert bound == [True] * 8 + [False] * 4  # three of twelve steps are theirs, and the state that these begin with


def test_rounds_take_every_step_but_the_last_again_from_where_it_began(pipe, picture, seeded):
    one = picture(11)
    made = [
        pipe.make_edits(Inpaint(one.image, BOX, harmonise=rounds), one.caption, generator=seeded(), **CALL)[0]
        for rounds in (0, 2)
    ]
    plain, request = made

    assert request.steps == 11 * 3 + 1
    assert torch.equal(request.sigmas[:-2:3], plain.sigmas[:-2]) and torch.equal(
        request.sigmas[1:-2:3], plain.sigmas[:-2]
    )
    assert torch.equal(request.edit.ends[::3][:11], plain.sigmas[1:-1])
    guide, clean = request.edit.guide, torch.zeros_like(plain.latents)
    raised, _ = guide(0, clean, None)
    inside = guide.mask == 1
    assert float(raised[inside].std()) == pytest.approx(float(request.sigmas[1]), rel=0.1)


def test_rounds_do_the_same_again(pipe, picture, seeded):
    one, other = (inpaint(pipe, picture(11), generator=seeded(4), harmonise=1) for _ in range(2))

    assert same(one, other).all()


def test_masks_and_prompts_of_different_pictures_share_a_call(pipe, picture, seeded):
    some = [picture(11), picture(12, (128, 96)), picture(13)]
    masks = [BOX, [0, 0, 300, 1000], Image.new("L", (96, 96), 255)]
    together = pipe(
        [one.caption for one in some], image=[one.image for one in some], mask_image=masks,
        generator=[seeded(seed) for seed in range(3)], **QUICK,
    ).images  # fmt: skip
    for seed, (one, mask, image) in enumerate(zip(some, masks, together, strict=True)):
        alone = inpaint(pipe, one, mask, generator=seeded(seed))
        assert np.abs(np.asarray(alone, int) - np.asarray(image, int)).max() <= 1


def test_a_full_mask_at_full_strength_is_the_fresh_picture(pipe, plain, picture, seeded):
    one = picture(11)
    found = inpaint(pipe, one, Image.new("L", (96, 96), 255), generator=seeded(2))
    fresh = plain(one.caption, size=(96, 96), generator=seeded(2), **QUICK).images[0]

    assert np.abs(np.asarray(found, int) - np.asarray(fresh, int)).max() <= 1


@pytest.mark.parametrize("changes", ["black", "transparent"])
def test_masks_of_other_polarities_draw_the_same(pipe, picture, seeded, changes):
    one = picture(11)
    white = np.zeros((96, 96), np.uint8)
    white[10:60, 20:70] = 255
    if changes == "black":
        other = Image.fromarray(255 - white)
    else:
        other = Image.merge("RGBA", [*one.image.split(), Image.fromarray(255 - white)])

    assert same(
        inpaint(pipe, one, Image.fromarray(white), generator=seeded()),
        inpaint(pipe, one, other, mask_changes=changes, generator=seeded()),
    ).all()


def test_surroundings_alone_are_drawn_larger(pipe, picture, seeded):
    one = picture(11, (192, 192))
    (request,) = pipe.make_edits(
        Inpaint(one.image, [100, 100, 300, 300], padding=10), one.caption, generator=seeded(), **CALL
    )

    assert request.grid == (12, 12)
    assert request.edit.finish.canvas.window == (9, 9, 68, 68)


@settings(deadline=None)
@given(st.data())
def test_the_part_around_a_mask_holds_it_in_the_pictures_proportions(data):
    height, width = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 60))
    mask = torch.zeros(height, width)
    for _ in range(data.draw(st.integers(1, 3))):
        mask[data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))] = 1
    left, top, right, bottom = around(mask, data.draw(st.integers(0, 9)), (width, height))

    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    assert mask[top:bottom, left:right].sum() == mask.sum()
    assert abs((right - left) * height - (bottom - top) * width) <= max(width, height)


def test_a_masks_edge_fades_in(pipe, picture, seeded):
    image = Image.new("RGB", (96, 96), "white")
    caption = {"compositional_deconstruction": {"background": "plain black", "elements": []}}
    found = pipe(caption, image=image, mask_image=[0, 0, 1000, 500], feather=9, generator=seeded(), **CALL).images[0]
    line = np.asarray(found.convert("L"), int)[20:76].mean(0)

    assert line[48:].min() == 255 and line[:30].max() < 200
    assert (np.diff(line[36:49]) > -3).all() and np.diff(line[36:49]).max() < 60


def test_the_file_brings_along_all_that_makes_the_edit_again(pipe, picture, seeded, tmp_path):
    one = picture(11)
    found = inpaint(pipe, one, generator=seeded(8), feather=3, harmonise=1, strength=0.8)
    pictures.save_image(found, tmp_path / "edited.png")
    settings = pictures.read_settings(tmp_path / "edited.png")
    edit = settings["edit"]

    assert settings["unrepeatable"] is None and settings["seed"] == 8
    assert edit["image"] == digest(one.image) and edit["kind"] == "inpaint"
    mask = Image.open(io.BytesIO(base64.b64decode(edit["mask"])))
    again = inpaint(
        pipe, one, mask, settings["caption"], generator=seeded(settings["seed"]),
        **{name: edit[name] for name in ("feather", "harmonise", "strength", "fit")},
    )  # fmt: skip
    assert same(again, found).all()
    assert from_text(found.info["ideoflow"])["edit"] == edit


def test_a_request_that_starts_from_noise_alone_begins_with_the_pictures_surroundings(pipe, picture, seeded):
    one = picture(11)
    (fresh,) = pipe.make_requests(one.caption, size=(96, 96), generator=seeded(), **CALL)
    (request,) = pipe.make_edits(Inpaint(one.image, BOX), one.caption, generator=seeded(), **CALL)
    guide = request.edit.guide

    assert torch.equal(request.latents[guide.mask == 1], fresh.latents[guide.mask == 1])
    assert torch.equal(started(fresh, guide.known, 1.0).latents, fresh.latents)


def test_a_list_of_boxes_is_one_mask_and_lists_of_them_are_one_for_each_prompt(pipe, picture, seeded):
    one = picture(3)
    boxes = [[0, 0, 400, 400], [600, 600, 1000, 1000]]
    call = dict(image=one.image, **QUICK)
    with pytest.raises(ValueError, match=r"a list of 2 boxes for 2 prompts.*such as \[\[box\], \[box\]\]"):
        pipe([one.caption] * 2, mask_image=boxes, **call)
    both = pipe(one.caption, mask_image=boxes, generator=seeded(), **call).images
    each = pipe([one.caption] * 2, mask_image=[boxes[:1], boxes[1:]], **call).images

    changed = [(np.asarray(image) != np.asarray(one.image)).any(2) for image in (*both, *each)]
    assert [bool(seen[:38, :38].any()) for seen in changed] == [True, True, False]
    assert [bool(seen[58:, 58:].any()) for seen in changed] == [True, False, True]


def test_how_much_shows_is_computed_once_for_all_pictures_of_a_change(pipe, picture, monkeypatch):
    calls = []
    monkeypatch.setattr(inpainting, "feathered", lambda *given: calls.append(1) or feathered(*given))
    pipe.make_edits(Inpaint(picture(3).image, [0, 0, 400, 400]), picture(3).caption, num_images_per_prompt=3, **QUICK)

    assert len(calls) == 1
