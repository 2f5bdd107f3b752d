"""What a source holds: every kind of picture and caption people have, and a name and a reason for every broken one."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ideoflow.captions import Caption
from ideoflow.training.dataset import scan
from ideoflow.training.image_reading import ImageError, read, target_size

CAPTION = {
    "compositional_deconstruction": {
        "background": "plain yellow",
        "elements": [{"type": "obj", "bbox": [100, 100, 500, 500], "desc": "a red circle"}],
    }
}


def photo(width: int = 70, height: int = 50, mode: str = "RGB") -> Image.Image:
    """A smooth picture without two equal corners."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([255 * x / width, 255 * y / height, 80 + 100 * x * y / width / height], -1).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def sixteen_bits() -> Image.Image:
    return Image.fromarray(np.arange(70 * 50, dtype=np.uint16).reshape(50, 70) * 18)


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it has 30,000 x 30,000 pixels."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0" * 100)) + chunk(b"IEND", b"")
    )


# name -> (what the file holds, what the report says)
BROKEN_IMAGES: dict[str, tuple[bytes, str]] = {
    "zero-bytes.png": (b"", "zero bytes"),
    "truncated.png": (encoded(photo())[:-400], "cut off|damaged"),
    "truncated.jpg": (encoded(photo(200, 200), "JPEG")[:1500], "cut off|damaged"),
    "header-only.png": (encoded(photo())[:40], "cut off|damaged|not a picture"),
    "flipped-bytes.png": (encoded(photo())[:200] + b"\x00" * 40 + encoded(photo())[240:], "cut off|damaged"),
    "text.png": (b"this is no picture", "not a picture"),
    "html.jpg": (b"<html><body>404</body></html>", "not a picture"),
    "cmyk.jpg": (encoded(photo(mode="CMYK"), "JPEG"), "colour model CMYK"),
    "sixteen-bits.png": (encoded(sixteen_bits()), "16 bits a channel"),
    "floats.tiff": (encoded(photo(mode="L").convert("F"), "TIFF"), "colour model F"),
    "lab.tiff": (encoded(Image.merge("LAB", photo().split()), "TIFF"), "colour model LAB"),
    "one-pixel.png": (encoded(photo(1, 1)), "1 x 1 pixels"),
    "thin.png": (encoded(photo(20_000, 10)), "20000 x 10 pixels"),
    "wide.png": (encoded(photo(700, 100)), "factor of 6"),
    "bomb.png": (bomb(), "million pixels"),
}
BROKEN_CAPTIONS: dict[str, tuple[str, bytes, str]] = {
    "empty-text": (".txt", b"", "is empty"),
    "blank-text": (".txt", b" \n\t ", "is empty"),
    "empty-json": (".json", b"", "is empty"),
    "empty-object": (".json", b"{}", "is empty"),
    "not-json": (".json", b'{"compositional_deconstruction": ', "no JSON"),
    "list": (".json", b"[1, 2]", "JSON list"),
    "number": (".json", b"7", "not JSON but plain text"),
    "latin-1": (".txt", "ein grüner Kreis".encode("latin-1"), "not UTF-8"),
    "utf-16": (".json", json.dumps(CAPTION).encode("utf-16"), "not UTF-8"),
    "deep": (".json", b'{"a":' * 5000 + b"1" + b"}" * 5000, "nested too deeply"),
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two good pictures and every broken one."""
    for name in ("good-1", "good-2"):
        photo().save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.json").write_text(json.dumps(CAPTION))
    for name, (data, _) in BROKEN_IMAGES.items():
        (tmp_path / name).write_bytes(data)
        (tmp_path / name).with_suffix(".txt").write_text("a red circle")
    for name, (ending, data, _) in BROKEN_CAPTIONS.items():
        photo().save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}{ending}").write_bytes(data)
    photo().save(tmp_path / "no-caption.png")
    (tmp_path / "loop-a.png").symlink_to(tmp_path / "loop-b.png")
    (tmp_path / "loop-b.png").symlink_to(tmp_path / "loop-a.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "up").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    return tmp_path


def test_everything_broken_is_named_with_its_reason_and_nothing_of_it_is_trained_on(folder):
    survey = scan(folder)
    assert [example.name for example in survey.examples] == ["good-1.png", "good-2.png"]
    reasons = {remark.name: remark.text for remark in survey.skipped}
    expected = {name: reason for name, (_, reason) in BROKEN_IMAGES.items()}
    expected |= {f"{name}.png": reason for name, (_, _, reason) in BROKEN_CAPTIONS.items()}
    expected |= {
        "no-caption.png": "no caption",
        "loop-a.png": "leads nowhere",
        "loop-b.png": "leads nowhere",
        "gone.png": "leads nowhere",
        "folder.png": "is a folder",
        "pipe.png": "no regular file",
        "inner/up": "already looked at",
    }
    assert len(expected) >= 30
    assert reasons.keys() == expected.keys()
    for name, reason in expected.items():
        assert any(part in reasons[name] for part in reason.split("|")), (name, reasons[name])
        assert name in survey.report() and reasons[name] in survey.report()
    assert survey.report().startswith(f"{folder}: 2 examples, {len(expected)} skipped")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_unreadable_files_are_named(tmp_path):
    photo().save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a photo")
    (tmp_path / "a.png").chmod(0)
    assert "Permission denied" in scan(tmp_path).skipped[0].text


def test_a_file_that_cannot_be_read_is_named(folder, monkeypatch):
    kept = os.open

    def refuse(path, *rest, **named):
        if Path(path).name == "good-1.png":
            raise PermissionError(13, "Permission denied", str(path))
        return kept(path, *rest, **named)

    monkeypatch.setattr(os, "open", refuse)
    survey = scan(folder)
    assert [e.name for e in survey.examples] == ["good-2.png"]
    assert any(r.name == "good-1.png" and "Permission denied" in r.text for r in survey.skipped)


def test_pictures_of_every_usual_kind_come_out_as_they_look(tmp_path):
    plain = np.asarray(read(encoded(photo(64, 48)), 10**6)).astype(int)
    turned = photo(64, 48).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    half = photo(64, 48).convert("RGBA")
    half.putalpha(128)
    transparent = Image.new("P", (64, 48), 1)
    transparent.putpalette([0, 0, 0, 10, 20, 30])
    files = {
        "rgb.png": encoded(photo(64, 48)),
        "turned.png": encoded(turned, exif=exif),
        "webp.webp": encoded(photo(64, 48), "WEBP", lossless=True),
        "bmp.bmp": encoded(photo(64, 48), "BMP"),
    }
    for name, data in files.items():
        assert np.abs(np.asarray(read(data, 10**6)).astype(int) - plain).max() <= 1, name
    assert np.abs(np.asarray(read(encoded(half), 10**6)) - (plain * 128 + 255 * 127) / 255).max() <= 1
    assert np.asarray(read(encoded(transparent, transparency=1), 10**6)).min() == 255
    for mode in ("L", "LA", "1", "P"):
        drawn = read(encoded(photo(64, 48, "L").convert(mode)), 10**6)
        assert drawn.mode == "RGB" and drawn.size == (64, 48)
    animated = encoded(photo(64, 48), "GIF", save_all=True, append_images=[Image.new("RGB", (64, 48))])
    assert np.abs(np.asarray(read(animated, 10**6)).astype(int) - plain).mean() < 20
    (tmp_path / "a.jpg").write_bytes(encoded(photo(64, 48), "JPEG", quality=95))
    assert np.abs(np.asarray(read((tmp_path / "a.jpg").read_bytes(), 10**6)).astype(int) - plain).mean() < 4


def test_other_colour_models_are_converted_where_that_is_wanted():
    deep = np.asarray(read(encoded(sixteen_bits()), 10**6, convert=True)).astype(int)
    expected = np.asarray(sixteen_bits().resize((64, 48), Image.Resampling.NEAREST)) / 257
    assert np.abs(deep[..., 0].mean() - expected.mean()) < 3 and (deep[..., 0] == deep[..., 2]).all()
    assert read(encoded(photo(mode="CMYK"), "JPEG"), 10**6, convert=True).mode == "RGB"
    with pytest.raises(ImageError, match="colour model F"):
        read(encoded(photo(mode="L").convert("F"), "TIFF"), 10**6, convert=True)


@given(st.integers(16, 3000), st.integers(16, 3000), st.integers(256, 4_000_000))
def test_sizes_fit_the_budget_and_the_shape(width, height, pixels):
    w, h = target_size(width, height, pixels)
    assert w % 16 == h % 16 == 0 and min(w, h) >= 16 and w * h <= pixels
    assert w <= width + 15 and h <= height + 15
    if pixels >= 256 * 256 and max(width, height) <= 4 * min(width, height):
        # No more than a token off the ideal on either side.
        scale = min(1.0, (pixels / (width * height)) ** 0.5)
        assert abs(w - width * scale) <= 16 and abs(h - height * scale) <= 16


def test_pictures_are_stretched_a_little_or_cut_when_asked():
    drawn = encoded(photo(100, 70))
    stretched, cut = np.asarray(read(drawn, 10**6)), np.asarray(read(drawn, 10**6, crop=True))
    assert stretched.shape == cut.shape == (64, 96, 3)
    corners = np.asarray(photo(100, 70)).astype(int)
    assert np.abs(stretched[0, 0] - corners[0, 0]).max() <= 3 and np.abs(stretched[-1, -1] - corners[-1, -1]).max() <= 3
    assert cut[..., 1].max() < stretched[..., 1].max()  # rows at the bottom are gone


def test_a_picture_is_opened_as_it_was_surveyed(tmp_path):
    photo(100, 70).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a smooth\nphoto ")
    (example,) = scan(tmp_path, pixels=64 * 64).examples
    assert (
        example.caption == Caption.from_text("a smooth photo").line()
        and example.size == (80, 48) == example.open().size
    )


def test_captions_are_repaired_and_what_stays_wrong_is_noted(tmp_path):
    crooked = {
        "compositional_deconstruction": {
            "elements": [
                {"desc": "a red circle", "type": "obj", "bbox": [900, 800, 0, 100], "color_palette": ["#e33"]}
            ],
            "background": "plain yellow",
        },
        "mood": "calm",
    }
    for name, caption in {"crooked": crooked, "right": CAPTION}.items():
        photo().save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.json").write_text(json.dumps(caption), encoding="utf-8-sig")
    survey = scan(tmp_path)
    first, second = survey.examples
    assert '"type":"obj","bbox":[0,100,900,800]' in first.caption and "#EE3333" in first.caption
    assert second.caption == Caption.parse(CAPTION).line()
    notes = [note.text for note in survey.notes]
    assert {note.name for note in survey.notes} == {"crooked.png"}
    assert any("repaired" in note for note in notes) and any("mood" in note for note in notes)


def test_metadata_lists_captions_and_its_wrong_lines_are_named(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/b.png", "c.png", "d.png"):
        photo().save(tmp_path / name)
    (tmp_path / "d.txt").write_text("from beside")
    lines = [
        json.dumps({"file_name": "a.png", "text": "plain words"}),
        json.dumps({"file_name": "sub/b.png", "caption": CAPTION}),
        json.dumps({"file_name": "c.png"}),
        json.dumps({"file_name": "a.png", "text": "again"}),
        json.dumps({"file_name": "missing.png", "text": "x"}),
        json.dumps({"file_name": "../outside.png", "text": "x"}),
        json.dumps({"text": "x"}),
        "{not json",
        "",
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    survey = scan(tmp_path)
    captions = {e.name: e.caption for e in survey.examples}
    assert captions == {
        "a.png": Caption.from_text("plain words").line(),
        "sub/b.png": Caption.parse(CAPTION).line(),
        "d.png": Caption.from_text("from beside").line(),
    }
    reasons = {remark.name: remark.text for remark in survey.skipped}
    for name, reason in {
        "c.png": "empty caption",
        "metadata.jsonl, line 4": "second time",
        "missing.png": "no such image",
        "metadata.jsonl, line 6": "outside",
        "metadata.jsonl, line 7": "file_name",
        "metadata.jsonl, line 8": "not JSON",
    }.items():
        assert reason in reasons.pop(name)
    assert not reasons
    assert "note on 2 examples (a.png, d.png): the caption is plain text" in survey.report()


def test_datasets_are_read_like_folders(tmp_path):
    datasets = pytest.importorskip("datasets")
    cells = [encoded(photo()), encoded(photo())[:-300], encoded(photo(90, 60)), None]
    data = datasets.Dataset.from_dict(
        {
            "image": [None if c is None else {"bytes": c, "path": None} for c in cells],
            "text": ["one", "two", "", "four"],
        }
    ).cast_column("image", datasets.Image())
    for source in (data, tmp_path / "saved"):
        if source is not data:
            data.save_to_disk(source)
        survey = scan(source)
        assert [(e.name, e.caption) for e in survey.examples] == [("row 0", Caption.from_text("one").line())]
        assert survey.examples[0].open().size == (64, 48)
        assert [r.name for r in survey.skipped] == ["row 1", "row 2", "row 3"]
    with pytest.raises(ValueError, match=r"`caption_column` is 'words'.*image, text"):
        scan(data, caption_column="words")


def test_progress_is_told_and_a_source_that_is_not_there_is_named(folder):
    seen = []
    scan(folder, on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == len(seen) > 20
    with pytest.raises(ValueError, match="no-such-folder"):
        scan(folder / "no-such-folder")
