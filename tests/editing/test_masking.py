"""Masks: which polarity they have is said, what they leave alone is exact, and how soft edges become latents."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from ideoflow.editing.masking import box_mask, feathered, from_text, grown, open_mask, to_text, token_mask
from ideoflow.images import ImageError
from ideoflow.latents import unpatchify

MASKS = arrays.arrays(
    np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.sampled_from([0, 0, 128, 255])
).filter(np.any)


def grey(values):
    return Image.fromarray(np.asarray(values, np.uint8))


def size_of(values):
    return values.shape[1], values.shape[0]


@settings(deadline=None, max_examples=30)
@given(MASKS)
def test_white_changes(values):
    assert torch.equal(open_mask(grey(values), size_of(values)), torch.from_numpy(values / np.float32(255)))


@settings(deadline=None, max_examples=30)
@given(MASKS)
def test_black_changes_where_it_is_said(values):
    inverse = open_mask(grey(255 - values), size_of(values), "black")

    assert torch.allclose(inverse, open_mask(grey(values), size_of(values)), atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(MASKS)
def test_what_is_transparent_changes_where_it_is_said(values):
    clear = np.stack([values] * 3 + [255 - values], axis=-1)

    assert torch.allclose(
        open_mask(Image.fromarray(clear, "RGBA"), size_of(values), "transparent"),
        open_mask(grey(values), size_of(values)), atol=1e-6,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("mask", "changes", "message"),
    [
        (Image.new("RGBA", (4, 4), (255, 255, 255, 0)), "white", "is transparent in places"),
        (Image.new("L", (4, 4), 255), "transparent", "has no transparency"),
        (Image.new("L", (4, 4), 0), "white", "lets nothing change: make it white"),
        (Image.new("L", (4, 4), 255), "black", "lets nothing change: make it black"),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 255)), "transparent", "lets nothing change: make it transparent"),
        (Image.new("L", (4, 5), 255), "white", "has 4 x 5 pixels, and the picture 4 x 4"),
    ],
)
def test_masks_that_say_nothing_or_may_mean_either_are_refused(mask, changes, message):
    with pytest.raises(ImageError, match=message):
        open_mask(mask, (4, 4), changes)


def test_an_opaque_mask_with_alpha_is_read_by_its_brightness():
    assert open_mask(Image.new("RGBA", (2, 2), (255, 255, 255, 255)), (2, 2)).eq(1).all()


@settings(deadline=None, max_examples=30)
@given(MASKS, st.integers(0, 6))
def test_a_feather_shows_nothing_outside_and_all_in_the_middle(values, feather):
    mask = torch.from_numpy(values / np.float32(255))
    shown = feathered(mask, feather)

    assert (shown[mask == 0] == 0).all() and (shown[mask > 0] > 0).all()
    assert shown.max() == 1


def test_a_feather_rises_from_the_edge_and_not_from_the_pictures_own():
    mask = torch.zeros(20, 30)
    mask[:, 10:] = 1

    shown = feathered(mask, 4)

    assert torch.allclose(shown[7, 10:16], torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0, 1.0]))
    assert (shown[:, 15:] == 1).all()


def test_a_mask_is_grown_on_all_sides():
    mask = torch.zeros(9, 9)
    mask[4, 4] = 1

    assert grown(mask, 2).sum() == 25 and grown(mask, 0).sum() == 1


@settings(deadline=None)
@given(st.data())
def test_boxes_are_thousandths_y_first(data):
    height, width = data.draw(st.integers(10, 200)), data.draw(st.integers(10, 200))
    top, bottom = sorted(data.draw(st.lists(st.integers(0, 1000), min_size=2, max_size=2, unique=True)))
    left, right = sorted(data.draw(st.lists(st.integers(0, 1000), min_size=2, max_size=2, unique=True)))

    mask = box_mask([top, left, bottom, right], (width, height))

    rows, cols = mask.amax(1).nonzero().flatten(), mask.amax(0).nonzero().flatten()
    assert rows[0] <= top * height / 1000 and bottom * height / 1000 <= rows[-1] + 1
    assert cols[0] <= left * width / 1000 and right * width / 1000 <= cols[-1] + 1
    assert mask.sum() == len(rows) * len(cols)
    assert torch.equal(box_mask([[top, left, bottom, right]] * 2, (width, height)), mask)


def test_a_margin_grows_boxes():
    mask = box_mask([400, 400, 600, 600], (100, 100), margin=5)

    assert mask.sum() == 30 * 30 and mask[35, 35] == 1 and mask[34, 35] == 0


@pytest.mark.parametrize("boxes", [[], [[0, 0, 0, 5]], [[5, 5, 4, 9]], [[0, 0, 1001, 5]], [[0, 0, 5]]])
def test_boxes_that_are_none_are_refused(boxes):
    with pytest.raises(ValueError, match="`mask_image`"):
        box_mask(boxes, (10, 10))


def test_a_latent_pixel_changes_as_much_as_any_pixel_in_it():
    mask = torch.zeros(32, 48)
    mask[9, 30] = 0.5
    tokens = token_mask(mask, 8, 16)

    assert tokens.shape == (6, 16)
    cells = unpatchify(tokens[None], (2, 3))[0]  # (channels, rows, cols) of latent pixels
    expected = torch.zeros(4, 6)
    expected[1, 3] = 0.5
    assert all(torch.equal(channel, expected) for channel in cells)


@settings(deadline=None, max_examples=30)
@given(MASKS)
def test_a_mask_comes_back_from_its_text(values):
    mask = open_mask(grey(values), size_of(values))

    assert torch.equal(from_text(to_text(mask), size_of(values)), mask)


@pytest.mark.parametrize("text", ["no base64!", "aGVsbG8="])
def test_text_that_is_no_mask_is_refused(text):
    with pytest.raises(ImageError):
        from_text(text, (4, 4))
