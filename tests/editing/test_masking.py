"""Masks: which polarity they have is said, what they leave alone is exact, and how soft edges become latents."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from scipy import ndimage

from ideoflow.editing.depth import deepest_of_part, depth, middle
from ideoflow.editing.masking import box_mask, feathered, from_text, open_mask, to_text, token_mask
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


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=2, max_size=4), st.integers(0, 30))
def test_the_middle_of_every_part_shows_whole_however_wide_the_others_are(sizes, feather):
    mask = torch.zeros(24, 26 * len(sizes))
    parts = [
        (slice(2, 2 + rows), slice(26 * place + 2, 26 * place + 2 + cols)) for place, (rows, cols) in enumerate(sizes)
    ]
    for part in parts:
        mask[part] = 1
    shown = feathered(mask, feather)

    for part, (rows, cols) in zip(parts, sizes, strict=True):
        assert shown[part].max() == 1 and shown[part][rows // 2, cols // 2] == 1


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_the_middle_line_of_every_arm_shows_whole_and_fades_to_its_sides(data):
    """A wide part with an arm on each side, as of a lollipop: straight ones, whose middles are known."""
    feather = data.draw(st.integers(0, 24))
    mask = np.zeros((160, 160), np.float32)
    mask[50:110, 50:110] = 1
    shape = st.tuples(st.integers(1, 12), st.integers(1, 50), st.integers(50, 98))
    arms = [data.draw(shape) for _ in range(4)]
    for turn, (wide, long, place) in enumerate(arms):
        np.rot90(mask, turn)[place : place + wide, 110 : 110 + long] = 1
    shown = feathered(torch.from_numpy(mask), feather).numpy()

    assert (shown[mask == 0] == 0).all() and (shown[mask == 1] > 0).all() and shown.max() == 1
    for turn, (wide, long, place) in enumerate(arms):
        arm = np.rot90(shown, turn)[place : place + wide, 110 : 110 + long]
        half = min((wide + 1) // 2, feather + 1)
        near = max(0, -(-(feather + 1 - 4 * half) // 3) + 1)  # the wide part, where the arm may be a roughness of it
        across = np.array([[min(row + 1, wide - row, half) / half] for row in range(wide)])
        assert np.allclose(arm[:, near : max(near, long - half)], across)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.lists(st.sampled_from([-1, 0, 1]), min_size=30, max_size=90), st.integers(0, 40))
def test_a_stroke_of_a_brush_shows_along_its_middle(radius, turns, feather):
    """Its width varies by a pixel where it bends, so that the middle is not sharp."""
    mask = torch.zeros(220, len(turns) + 50)
    path = [(110 + sum(turns[:step]), 40 + step) for step in range(len(turns))]
    for row, column in path:
        mask[row - radius + 1 : row + radius, column - radius + 1 : column + radius] = 1
    mask[:, :40] = 1  # and it begins at a wide part
    shown = feathered(mask, feather)

    clear = slice(max(radius, (feather + 1 - 4 * radius) // 3 + 1), len(path) - radius)
    assert all(shown[place] >= 0.5 for place in path[clear])


def test_a_rough_edge_fades_in_as_a_smooth_one():
    mask = torch.zeros(60, 60)
    mask[20:, :] = 1
    smooth = feathered(mask, 8)
    mask[19, 7:50:5] = 1
    rough = feathered(mask, 8)

    assert (rough[19] <= 1 / 9 + 1e-6).all() and (rough - smooth).abs().max() <= 1 / 9 + 1e-6


@settings(deadline=None, max_examples=60)
@given(MASKS, st.integers(1, 12))
def test_middles_are_where_depth_grows_nowhere_by_more_than_three_quarters_of_the_way(values, most):
    deep = depth(values > 0, most)
    places = np.stack(np.indices(deep.shape), -1).reshape(-1, 2)
    way = np.abs(places[:, None] - places[None]).max(-1)
    grows = deep.reshape(-1)[None] - deep.reshape(-1)[:, None] > 0.75 * way

    assert (middle(deep).reshape(-1) == (~grows.any(1) & (values.reshape(-1) > 0))).all()


def test_a_soft_mask_fades_in_from_where_it_is_sure_and_not_from_its_faint_rim():
    """As of a mask that was saved as JPEG: specks of 2 % around it, which join it to another part."""
    mask = torch.full((40, 60), 0.02)
    mask[10:30, 10:30] = 1
    mask[10:30, 40:44] = 1
    shown = feathered(mask, 8)

    assert shown[20, 20] == 1 and shown[20, 41] > 0.9
    assert shown[20, 10] < 0.3 and shown[5, 5] < 0.05


@settings(deadline=None, max_examples=100)
@given(MASKS, st.integers(1, 50))
def test_depths_are_those_of_scipy(values, most):
    inside = values > 0
    padded = np.pad(inside, most, constant_values=True)
    padded[0, 0] = False  # scipy has no distance without an outside; this one is too far to count
    expected = ndimage.distance_transform_cdt(padded, metric="chessboard")[most:-most, most:-most].clip(max=most)
    labels, count = ndimage.label(inside, np.ones((3, 3)))
    deepest = ndimage.maximum(expected, labels, np.arange(1, count + 1))

    deep = depth(inside, most)
    assert (deep == expected).all()
    assert (deepest_of_part(inside, deep) == np.concatenate(([0], deepest))[labels]).all()


def test_masks_of_zeros_and_ones_are_refused_where_255_would_be_white():
    values = np.eye(4, dtype=np.uint8)
    for mask in (values, torch.from_numpy(values), grey(values)):
        with pytest.raises(ImageError, match=r"`mask_image` has no values but 0 and 1.*by 255"):
            open_mask(mask, (4, 4))
    for mask in (values * 255, values > 0, values.astype(np.float32), torch.from_numpy(values)[None, None].float()):
        assert torch.equal(open_mask(mask, (4, 4)), torch.eye(4))


def test_masks_of_16_bits_that_use_8_of_them_are_refused():
    for values in (np.eye(4, dtype=np.uint16), np.eye(4, dtype=np.int32)):
        with pytest.raises(ImageError, match=r"`mask_image` is a picture of 16 bits.* save it with 8 bits"):
            open_mask(Image.fromarray(values * 255), (4, 4))
    assert torch.equal(open_mask(Image.fromarray(np.eye(4, dtype=np.uint16) * 65535), (4, 4)), torch.eye(4))


@settings(deadline=None)
@given(st.data())
def test_boxes_are_thousandths_y_first(data):
    height, width = data.draw(st.integers(10, 200)), data.draw(st.integers(10, 200))
    top, bottom = sorted(data.draw(st.lists(st.integers(0, 1000), min_size=2, max_size=2, unique=True)))
    left, right = sorted(data.draw(st.lists(st.integers(0, 1000), min_size=2, max_size=2, unique=True)))

    assume(bottom > 1 or right > 1)
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


@pytest.mark.parametrize("box", [[0.1, 0.1, 0.5, 0.5], [0, 0, 1, 1], [False, False, True, True], [0, 0, 400, True]])
def test_boxes_of_shares_and_of_booleans_are_refused(box):
    for boxes in (box, [[0, 0, 500, 500], box]):
        with pytest.raises(ValueError, match=r"thousandths of the sides, from 0 to 1000, not in shares|`mask_image`"):
            box_mask(boxes, (100, 100))


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
