"""Pictures from outside: an explicit list of formats, and one clear error for whatever is wrong."""

import io
import os
import random
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ideoflow.images import FORMATS, ImageError, open_image, plain_errors

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\n0 0 40 40 rectfill\nshowpage\n%%EOF\n"


def encoded(kind: str, **options: object) -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind, **options)
    return data.getvalue()


def load(data: bytes) -> Image.Image:
    with plain_errors():
        image = open_image(data)
        image.load()
        return image


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "AVIF", "JPEG2000"])
def test_pictures_are_opened_by_what_they_hold(kind, tmp_path):
    path = tmp_path / "picture.of.any.name"
    path.write_bytes(encoded(kind))
    image = open_image(path)
    assert kind in FORMATS and image.format == kind and image.size == (40, 24)


def test_postscript_is_no_picture_and_starts_no_program(monkeypatch):
    def start(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(ImageError, match="not a picture of a kind that is read here"):
        load(POSTSCRIPT)


def test_a_pipe_is_no_file_of_a_picture(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="is no file of a picture"):
        open_image(tmp_path / "pipe.png")


def test_a_file_of_more_bytes_than_fit_into_memory_is_not_read(tmp_path):
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(64 * 2**30)  # takes no room on the disk
    with pytest.raises(ImageError, match="has more than 2 GB"):
        open_image(tmp_path / "a.png")


def test_an_empty_file_is_said(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(ImageError, match="is empty"):
        open_image(tmp_path / "a.png")


@settings(deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000"]), st.integers(0, 2**32))
def test_damaged_pictures_are_one_kind_of_error(kind, seed):
    chance = random.Random(seed)
    data = bytearray(encoded(kind))
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    try:
        load(bytes(data[: chance.choice([len(data), chance.randrange(len(data))])]))
    except ImageError as error:
        assert "\n" not in str(error)
