"""Pictures to change: whatever is given is an upright RGB picture on whole tokens, or one clear error."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ideoflow.editing.canvas import digest, lay_out, open_picture, pixels_of
from ideoflow.editing.masking import open_mask
from ideoflow.images import ImageError

SIDES = st.integers(1, 90)


def noise(width, height, mode="RGB", seed=0):
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(values[..., 0] if channels == 1 else values, mode)


def file_of(image, form="PNG", **options):
    encoded = io.BytesIO()
    image.save(encoded, form, **options)
    return encoded.getvalue()


@settings(deadline=None)
@given(SIDES, SIDES, st.sampled_from(["pad", "crop", "stretch"]))
def test_a_canvas_has_whole_tokens_and_gives_back_the_picture(width, height, fit):
    image = noise(width, height)
    canvas = lay_out(image, fit, 16)

    assert all(side % 16 == 0 and side > 0 for side in canvas.picture.size)
    given_back = canvas.cut(pixels_of(canvas.picture))
    if fit == "pad":
        assert torch.equal(given_back, pixels_of(image))
    if fit == "stretch":
        assert given_back.shape[1:] == canvas.picture.size[::-1]
        assert all(
            abs(side - own) <= 8 or side == 16 for side, own in zip(canvas.picture.size, image.size, strict=True)
        )
    if fit == "crop":
        left, top, right, bottom = canvas.window
        assert torch.equal(given_back, pixels_of(image)[:, top:bottom, left:right])
        assert right - left > width - 16 and bottom - top > height - 16


@settings(deadline=None)
@given(SIDES, SIDES, st.sampled_from(["pad", "crop", "stretch"]), st.integers(1, 5), st.integers(1, 5))
def test_a_canvas_of_a_given_size_has_it(width, height, fit, across, down):
    canvas = lay_out(noise(width, height), fit, 16, size=(16 * across, 16 * down))

    assert canvas.picture.size == (16 * across, 16 * down)
    assert canvas.cut(pixels_of(canvas.picture)).shape == (3, 16 * down, 16 * across)


@settings(deadline=None)
@given(SIDES, SIDES)
def test_a_layer_is_laid_where_the_picture_is_and_cut_out_of_it_again(width, height):
    image = noise(width, height)
    canvas = lay_out(image, "pad", 16)
    layer = pixels_of(image)

    laid = canvas.lay(layer)

    assert torch.equal(canvas.cut_window(laid), layer)
    assert (laid == 0).sum() == laid.numel() - layer.numel()


def test_edges_are_continued_around_a_padded_picture():
    canvas = lay_out(noise(20, 10), "pad", 16)
    pixels = np.asarray(canvas.picture)

    assert canvas.picture.size == (32, 16)
    assert (pixels[:10, 20:] == pixels[:10, 19:20]).all() and (pixels[10:, :] == pixels[9:10, :]).all()


@settings(deadline=None)
@given(SIDES, SIDES, SIDES, SIDES)
def test_what_a_padded_canvas_shows_is_told_in_the_pictures_pixels(width, height, right, down):
    canvas = lay_out(noise(width, height), "pad", 16)
    left, top, end, bottom = canvas.seen

    assert (left, top) == (0, 0) and (end, bottom) == canvas.picture.size


def test_a_picture_larger_than_the_weights_know_is_shown_smaller():
    canvas = lay_out(noise(400, 200), "pad", 16, most=100)

    assert canvas.picture.size == (112, 64) and canvas.inner == (0, 0, 100, 50)
    assert canvas.window == (0, 0, 400, 200)


def test_pixels_come_back_to_the_last_bit():
    image = noise(64, 48)
    again = ((pixels_of(image) / 2 + 0.5) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()

    assert (again == np.asarray(image)).all()


def test_a_picture_is_held_upright_and_laid_on_white():
    sideways = Image.new("RGB", (4, 2), "red")
    tagged = Image.Exif()
    tagged[0x0112] = 6
    assert open_picture(file_of(sideways, "JPEG", exif=tagged)).size == (2, 4)
    assert open_picture(Image.new("RGBA", (1, 1), (0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)


def test_a_digest_is_of_pixels_not_of_files(tmp_path):
    image = noise(9, 7)
    image.save(tmp_path / "a.png"), image.save(tmp_path / "a.bmp")

    assert digest(open_picture(tmp_path / "a.png")) == digest(open_picture(tmp_path / "a.bmp")) == digest(image)
    assert digest(image) != digest(noise(9, 7, seed=1)) != digest(noise(7, 9))


@pytest.mark.parametrize(
    "source",
    [
        np.zeros((4, 5), np.uint8),
        np.zeros((4, 5, 1), bool),
        np.full((4, 5, 4), 0.5, np.float32),
        torch.full((3, 4, 5), 0.5),
        torch.full((1, 3, 4, 5), 0.5, dtype=torch.bfloat16),
        torch.zeros(3, 4, 5, dtype=torch.uint8),
        file_of(noise(5, 4)),
        io.BytesIO(file_of(noise(5, 4))),
        np.zeros((1, 4, 5, 3), np.uint8),
        Image.new("RGBA", (5, 4)).convert("RGBa"),
        Image.new("LA", (5, 4)).convert("La"),
        Image.fromarray(np.full((4, 5), 40_000, np.uint16)),
    ],
)
def test_arrays_tensors_and_bytes_are_pictures(source):
    assert open_picture(source).size == (5, 4)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (None, TypeError, "`image` is a NoneType: give a picture"),
        (3, TypeError, "`image` is a int"),
        (b"", ImageError, "`image` is empty"),
        (b"words", ImageError, "not a picture of a kind that is read"),
        (np.zeros((2, 2, 7), np.uint8), ImageError, "1, 3 or 4 channels"),
        (np.zeros((2, 2, 3), np.int64), ImageError, "give bytes"),
        (np.full((2, 2, 3), 2.0), ImageError, "outside of 0 to 1"),
        (np.full((2, 2, 3), np.nan), ImageError, "outside of 0 to 1"),
        (np.zeros((0, 2, 3), np.uint8), ImageError, "has no pixels"),
        (torch.zeros(2, 3, 4, 4), ImageError, "tensor of shape"),
        (Image.new("F", (2, 2)), ImageError, "floating-point numbers"),
        (Image.new("I", (2, 2), 70_000), ImageError, "more than 16 bits"),
        (Image.new("I", (2, 2), 255), ImageError, "16 bits or more whose values end at 255.*save it with 8 bits"),
        (file_of(Image.fromarray(np.full((4, 4), 9, np.uint16))), ImageError, "16 bits or more whose values end at 9"),
        (np.eye(4, dtype=np.uint8), ImageError, "`image` has no values but 0 and 1.*multiply it by 255"),
        (torch.ones(3, 4, 4, dtype=torch.uint8), ImageError, "`image` has no values but 0 and 1"),
        ("https://example.com/a.png", ImageError, "`image` https://example.com/a.png is an address, and nothing is"),
        ("no-such-file.png", OSError, "no-such-file"),
    ],
)
def test_what_is_no_picture_is_one_clear_error(source, error, message):
    with pytest.raises(error, match=message):
        open_picture(source)


def bomb(width, height):
    """A PNG of a few hundred bytes that says it has so many pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def hostile(index):
    """One of any number of pictures, most of them as somebody's program has written them, some of them as none has."""
    draw = random.Random(index)
    width, height = draw.choice([(1, 1), (1, 40), (33, 2), (17, 31), (64, 64), (100, 75)])
    kind = draw.choice(["mode", "16-bit", "animated", "cut", "flipped", "bomb", "jpeg", "palette", "array"])
    if kind == "mode":
        mode = draw.choice(["1", "L", "P", "RGB", "LA", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "F", "I"])
        return Image.new(mode, (width, height))
    if kind == "16-bit":
        return file_of(Image.fromarray(np.full((height, width), draw.randrange(2**16), np.uint16)))
    if kind == "animated":
        frames = [noise(width, height, seed=seed) for seed in range(3)]
        return file_of(frames[0], draw.choice(["GIF", "PNG", "WEBP"]), save_all=True, append_images=frames[1:])
    if kind == "bomb":
        return bomb(draw.choice([20_000, 60_000, 2**31 - 1]), draw.choice([20_000, 100_000]))
    if kind == "jpeg":
        return file_of(noise(width, height, draw.choice(["L", "RGB", "CMYK"]), seed=index), "JPEG")
    if kind == "palette":
        return file_of(noise(width, height).quantize(5), draw.choice(["GIF", "PNG"]), transparency=draw.randrange(5))
    if kind == "array":
        shape = draw.choice([(height, width), (height, width, 2), (width,), (height, width, 3), (0, 0, 3)])
        return np.random.default_rng(index).random(shape) * draw.choice([1, 1, 300])
    data = bytearray(file_of(noise(width, height, seed=index), draw.choice(["PNG", "JPEG", "WEBP", "TIFF", "BMP"])))
    if kind == "cut":
        return bytes(data[: draw.randrange(len(data))])
    for _ in range(draw.randrange(1, 9)):
        data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data)


@pytest.mark.parametrize("index", range(300))
def test_hostile_pictures_and_masks_are_pictures_or_one_clear_error(index):
    for opened in (open_picture, lambda source: open_mask(source, (64, 64)),
                   lambda source: open_mask(source, (64, 64), "transparent")):  # fmt: skip
        try:
            found = opened(hostile(index))
        except ImageError as error:
            assert "`" in str(error) and "\n" not in str(error)
        else:
            if isinstance(found, Image.Image):
                assert found.mode == "RGB" and lay_out(found, "pad", 16, most=192).picture.width % 16 == 0
            else:
                assert found.shape == (64, 64) and found.min() >= 0 and 0 < found.max() <= 1
