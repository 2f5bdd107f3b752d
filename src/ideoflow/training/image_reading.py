"""One picture from a file as training needs it: RGB, upright, sides multiples of 16 within a pixel budget."""

from __future__ import annotations

import math

from PIL import Image, ImageOps

from ..images import MOST_PIXELS, ImageError, flattened, open_image, plain_errors, upright
from ..sizes import UNIT

SMALLEST = UNIT  # pixels of the shorter side that can be used at all
MOST_BYTES = 2 * 2**30  # of a file: that of a 16-bit picture, not packed, of as many pixels as are read
WIDEST = 6.0  # longer over shorter side that the model knows

PLAIN = ("1", "L", "P", "RGB", "LA", "PA", "RGBA", "La", "RGBa")  # 8 bits or fewer of grey, a palette or RGB
CONVERTIBLE = ("CMYK", "YCbCr", "LAB", "HSV", "I;16", "I;16B", "I;16L", "I;16N", "I")


def target_size(width: int, height: int, pixels: int) -> tuple[int, int]:
    """The size of at most `pixels` pixels, sides multiples of 16, that is nearest to the picture's shape and size.

    Nothing is made larger than its nearest multiple of 16.

    Raises:
        ValueError: a budget that does not hold one token.
    """
    if pixels < UNIT**2:
        raise ValueError(f"`pixels` is {pixels}; it is at least {UNIT**2}, one token.")
    scale = min(1.0, math.sqrt(pixels / (width * height)))
    wide, tall = width * scale / UNIT, height * scale / UNIT
    options = [
        (w, h)
        for w in {max(1, math.floor(wide)), max(1, math.ceil(wide))}
        for h in {max(1, math.floor(tall)), max(1, math.ceil(tall))}
        if w * h * UNIT**2 <= pixels
    ]
    if not options:  # one side is a single token: the other takes what is left
        most = pixels // UNIT**2
        options = [(min(most, max(1, round(wide))), 1) if wide > tall else (1, min(most, max(1, round(tall))))]
    w, h = min(options, key=lambda o: (abs(math.log(o[0] / wide)) + abs(math.log(o[1] / tall)), o))
    return w * UNIT, h * UNIT


def read(data: bytes, pixels: int, crop: bool = False, convert: bool = False) -> Image.Image:
    """Read, check, turn upright, flatten and resize a picture.

    Transparency is laid on white; of an animation the first picture is taken.

    Args:
        data: The bytes of its file.
        pixels: Budget, as in `target_size`.
        crop: Cut the longer side to the target's proportions instead of stretching the picture by a few pixels.
        convert: Take pictures of other colour models or up to 16 bits too, plainly converted to 8-bit RGB.

    Returns:
        An RGB picture of `target_size`.

    Raises:
        ImageError: the picture cannot be used; nothing else is raised for a bad file.
    """
    with plain_errors():
        image = open_image(data)
        _check(image, data, convert)
        image.load()
        return _resize(flattened(upright(image)), pixels, crop)


def _check(image: Image.Image, data: bytes, convert: bool) -> None:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise ImageError(_too_many_pixels())
    if min(width, height) < SMALLEST:
        raise ImageError(f"has {width} x {height} pixels: the shorter side needs at least {SMALLEST}.")
    if max(width, height) > WIDEST * min(width, height):
        raise ImageError(f"has {width} x {height} pixels: the sides may differ by a factor of {WIDEST:g} at most.")
    bits = _bits(image, data)
    if bits <= 8 and image.mode in PLAIN:
        return
    if convert and bits <= 16 and image.mode in (*CONVERTIBLE, *PLAIN):
        return
    what = f"{bits} bits a channel" if bits > 8 and image.mode != "F" else f"the colour model {image.mode}"
    advice = "" if image.mode == "F" or bits > 16 else ", or set `convert` to have it done plainly"
    raise ImageError(f"has {what}: save it as 8-bit RGB, so that you see what is trained{advice}.")


def _bits(image: Image.Image, data: bytes) -> int:
    """Bits of a channel in the file, which Pillow cuts to 8 without a word where the picture has colours."""
    kind, bits = image.format, 16 if image.mode.startswith("I") else 8
    if kind == "TIFF":
        given = getattr(image, "tag_v2", {}).get(258, bits)  # BitsPerSample
        bits = max(given) if isinstance(given, tuple) else given
    elif kind == "PNG":
        bits = data[24]  # of the chunk IHDR, which comes first
    elif kind == "PPM" and isinstance(largest := getattr(image, "tile", [])[0].args[-1], int):
        bits = max(bits, largest.bit_length())
    elif kind == "JPEG2000" and (start := data.find(b"\xff\x4f\xff\x51")) >= 0:
        bits = 1 + (data[start + 42] & 0x7F)  # of the first component in the marker SIZ
    elif kind == "AVIF" and (start := data.find(b"av1C")) >= 0:
        bits = 10 if data[start + 6] & 0x40 else 8  # of the configuration of AV1: 10 or 12
    return bits


def _resize(image: Image.Image, pixels: int, crop: bool) -> Image.Image:
    size = target_size(*image.size, pixels)
    if crop:
        return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _too_many_pixels() -> str:
    return f"unpacks to more than {MOST_PIXELS // 10**6} million pixels: make it smaller."
