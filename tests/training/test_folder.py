"""A folder as people have them: where captions are found, why other files are left out, and what is never opened."""

from __future__ import annotations

import io
import json
import os
import struct
import unicodedata
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ideoflow.captions import Caption
from ideoflow.images import open_image
from ideoflow.training import dataset
from ideoflow.training.folder import ENDINGS, UNREAD
from ideoflow.training.image_reading import ImageError, _bits, read

scan = partial(dataset.scan, wrap=False)  # plain text is compared as it stands in its file

DATA = {
    "compositional_deconstruction": {
        "background": "plain yellow",
        "elements": [{"type": "obj", "bbox": [100, 100, 500, 500], "desc": "a red circle"}],
    }
}
CAPTION = json.dumps(DATA).encode()
LINE = Caption.parse(DATA).line()
METADATA = json.dumps({"id": 7, "url": "https://example.com/both.png", "width": 70, "license": "by"}).encode()


def picture(kind: str = "PNG", size: tuple[int, int] = (70, 50), **options) -> bytes:
    """A smooth picture without two equal corners."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    pixels = np.stack([255 * x / size[0], 255 * y / size[1], 80 + 100 * x * y / x.size], -1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def reasons(remarks) -> dict[str, str]:
    return {remark.name: remark.text for remark in remarks}


BESIDE: dict[str, tuple[dict[str, bytes], str, str]] = {
    # what: (files beside cat.png, the caption that is trained on, what the notes say)
    "text": ({"cat.txt": b"a cat"}, "a cat", ""),
    "text with its picture's ending": ({"cat.png.txt": b"a cat"}, "a cat", ""),
    "caption": ({"cat.caption": b"a cat"}, "a cat", ""),
    "upper case": ({"cat.TXT": b"a cat"}, "a cat", ""),
    "upper case JSON": ({"cat.Json": CAPTION}, LINE, ""),
    "JSON with its picture's ending": ({"cat.png.json": CAPTION}, LINE, ""),
    "JSON in a caption file": ({"cat.caption": CAPTION}, LINE, ""),
    "JSON before text": ({"cat.json": CAPTION, "cat.txt": b"a cat"}, LINE, "its .txt file is not read"),
    "a downloader's metadata": ({"cat.json": METADATA, "cat.txt": b"a cat"}, "a cat", ".json file is no caption"),
    "metadata and a later caption": ({"cat.json": METADATA, "cat.png.json": CAPTION}, LINE, "is no caption"),
    "broken JSON": ({"cat.json": b"{not JSON", "cat.txt": b"a cat"}, "a cat", ".json file is no caption"),
    "empty JSON": ({"cat.json": b"", "cat.txt": b"a cat"}, "a cat", ".json file is no caption"),
    "a list": ({"cat.json": b"[1]", "cat.caption": b"a cat"}, "a cat", ".json file is no caption"),
    "a number of many digits": ({"cat.json": b"1" * 4301, "cat.txt": b"a cat"}, "a cat", "is no caption"),
    "empty text": ({"cat.txt": b" ", "cat.caption": b"a cat"}, "a cat", ".txt file is no caption"),
    "not UTF-8": ({"cat.txt": b"\xff\xfe", "cat.png.txt": b"a cat"}, "a cat", ".txt file is no caption"),
}


@pytest.mark.parametrize("what", BESIDE)
def test_the_first_file_beside_a_picture_that_is_a_caption_is_its_caption(tmp_path, what):
    files, caption, note = BESIDE[what]
    survey = scan(fill(tmp_path, {"cat.png": picture()} | files))
    assert [example.caption for example in survey.examples] == [caption]
    said = [remark.text for remark in survey.notes if "plain text" not in remark.text]
    assert len(said) == bool(note) and all(note in text for text in said)
    assert note in survey.report()


def test_metadata_of_a_downloader_alone_is_no_caption(tmp_path):
    survey = scan(fill(tmp_path, {"cat.png": picture(), "cat.json": METADATA}))
    assert not survey.examples
    assert "its caption cat.json is no caption" in survey.skipped[0].text
    assert "compositional_deconstruction" in survey.skipped[0].text


@pytest.mark.parametrize("ending", ENDINGS)
def test_pictures_of_every_ending_are_read_in_upper_case_too(tmp_path, ending):
    kind = Image.registered_extensions()[ending]
    shown = picture(kind) if kind != "ICO" else picture(kind, (64, 64), sizes=[(64, 64)])
    survey = scan(fill(tmp_path, {f"a{ending}": shown, f"B{ending.upper()}": shown, "a.txt": b"a", "B.txt": b"b"}))
    assert [example.name for example in survey.examples] == [f"B{ending.upper()}", f"a{ending}"], survey.report()
    plain = np.asarray(read(picture(size=(64, 64) if kind == "ICO" else (70, 50)), 10**6)).astype(int)
    assert np.abs(np.asarray(survey.examples[0].open()).astype(int) - plain).mean() < 30


def test_every_other_file_has_a_reason(tmp_path):
    others = {
        "README.md": "neither a picture nor a caption",
        "Thumbs.db": "neither a picture nor a caption",
        "noending": "neither a picture nor a caption",
        "orphan.txt": "no picture has this name",
        "orphan.png.json": "no picture has this name",
        "metadata.csv": "list captions in metadata.jsonl",
        "sub/metadata.jsonl": "at the top of the folder",
        "Metadata.JSONL": "by this very name",
    }
    unread = {f"a{ending}": f"of the kind {kind}" for ending, kind in UNREAD.items()} | {"b.HEIC": "of the kind HEIC"}
    files = {name: b"x" for name in (*others, *unread)} | {"cat.png": picture(), "cat.txt": b"a cat", ".hidden": b""}
    survey = scan(fill(tmp_path, files))
    assert [example.name for example in survey.examples] == ["cat.png"]
    for found, expected in ((survey.ignored, others), (survey.skipped, unread)):
        assert reasons(found).keys() == expected.keys()
        assert all(expected[name] in text for name, text in reasons(found).items())
    lines = survey.report().splitlines()
    assert "ignored 3 files (README.md, Thumbs.db, noending): it is neither a picture nor a caption" in lines
    assert sum(line.startswith("skipped") for line in lines) == len(unread)


def test_lines_of_a_list_end_at_line_feeds_alone(tmp_path):
    captions = {"a.png": "one\u2028two", "b.png": "three\x85four\x0c\x1d", "c.png": "five\u2029"}
    lines = [json.dumps({"file_name": name, "text": text}, ensure_ascii=False) for name, text in captions.items()]
    listed = "\r\n".join(lines).encode()
    assert b"\\u" not in listed.replace(b"\\u001d", b"")
    survey = scan(fill(tmp_path, dict.fromkeys(captions, picture()) | {"metadata.jsonl": b"\xef\xbb\xbf" + listed}))
    assert {e.name: e.caption for e in survey.examples} == {n: " ".join(t.split()) for n, t in captions.items()}
    assert not survey.skipped


def test_a_list_names_its_pictures_as_programs_do(tmp_path):
    composed = unicodedata.normalize("NFC", "café.png")
    entries = [
        {"image_path": "a.png", "text": "a"},
        {"image": "sub\\b.png", "caption": "b"},
        {"file": "./sub/c.png", "prompt": "c"},
        {"filename": str(tmp_path / "d.png"), "description": "d"},
        {"path": composed, "text": "e"},
        {"file_name": "x\\y.png", "text": "f"},
    ]
    names = ["a.png", "sub/b.png", "sub/c.png", "d.png", unicodedata.normalize("NFD", composed), "x\\y.png"]
    listed = "\n".join(map(json.dumps, entries)).encode()
    survey = scan(fill(tmp_path, dict.fromkeys(names, picture()) | {"metadata.jsonl": listed}))
    assert {e.name: e.caption for e in survey.examples} == dict(zip(names, "abcdef", strict=True)), survey.report()


def test_broken_lines_of_a_list_are_named_and_the_others_are_read(tmp_path):
    broken = {
        b'{"file_name": "b.png", "text": "\xff"}': "not UTF-8",
        b'{"file_name": "b.png", "text": ' + b"1" * 4301 + b"}": "too long",
        b'{"a":' * 9000 + b"1" + b"}" * 9000: "nested too deeply",
        b'["b.png", "b"]': "has no `file_name` (nor image_path",
        b'{"file_name": 7, "text": "b"}': "has no `file_name`",
        b'{"file_name": "C:\\\\b.png", "text": "b"}': "outside",
        b'{"file_name": "..\\\\b.png", "text": "b"}': "outside",
        b'{"file_name": "/etc/passwd", "text": "b"}': "outside",
    }
    good = b'{"file_name": "a.png", "text": "a"}'
    survey = scan(fill(tmp_path, {"a.png": picture(), "metadata.jsonl": b"\n".join([*broken, good])}))
    assert [e.caption for e in survey.examples] == ["a"]
    assert len(survey.skipped) == len(broken)
    for number, reason in enumerate(broken.values(), 1):
        assert reason in reasons(survey.skipped)[f"metadata.jsonl, line {number}"]


def test_a_picture_in_the_list_says_that_the_file_beside_it_is_not_read(tmp_path):
    listed = b'{"file_name": "a.png", "text": "listed"}'
    survey = scan(fill(tmp_path, {"a.png": picture(), "a.txt": b"beside", "metadata.jsonl": listed}))
    assert [e.caption for e in survey.examples] == ["listed"]
    assert any("what is beside it is not read" in note.text for note in survey.notes)


def test_half_a_character_in_a_caption_is_named(tmp_path):
    listed = b'{"file_name": "a.png", "text": "a \\ud800 cat"}'
    survey = scan(fill(tmp_path, {"a.png": picture(), "metadata.jsonl": listed}))
    assert not survey.examples and "surrogate" in reasons(survey.skipped)["a.png"]


@pytest.fixture
def linked(tmp_path) -> Path:
    """A folder with links to inside and outside."""
    outside = {"secret.txt": b"a secret", "far.png": picture(), "far.txt": b"far", "more/deep.png": picture(),
               "more/deep.txt": b"deep"}  # fmt: skip
    fill(tmp_path / "outside", outside)
    data = fill(tmp_path / "data", {"a.png": picture(), "b.png": picture(), "near.txt": b"near"})
    (data / "a.txt").symlink_to(data / "near.txt")
    (data / "b.txt").symlink_to("../outside/secret.txt")
    (data / "far.png").symlink_to(tmp_path / "outside" / "far.png")
    (data / "far.txt").write_bytes(b"far")
    (data / "more").symlink_to(tmp_path / "outside" / "more")
    return data


def test_links_out_of_the_folder_are_named_and_not_followed(linked):
    survey = scan(linked)
    assert [(e.name, e.caption) for e in survey.examples] == [("a.png", "near")]
    named = reasons(survey.skipped)
    assert named.keys() == {"b.png", "b.txt", "far.png", "more"}
    assert "no caption" in named.pop("b.png")
    assert all("out of the folder" in text and "`follow_links`" in text for text in named.values())
    assert "secret" not in survey.report().replace("secret.txt", "")


def test_links_out_of_the_folder_are_followed_where_that_is_wanted(linked):
    survey = scan(linked, follow_links=True)
    found = {e.name: e.caption for e in survey.examples}
    assert found == {"a.png": "near", "b.png": "a secret", "far.png": "far", "more/deep.png": "deep"}


def test_a_list_that_is_a_link_out_of_the_folder_is_not_read(tmp_path):
    fill(tmp_path, {"list": b'{"file_name": "a.png", "text": "a"}', "data/a.png": picture()})
    (tmp_path / "data" / "metadata.jsonl").symlink_to(tmp_path / "list")
    survey = scan(tmp_path / "data")
    assert not survey.examples and "out of the folder" in reasons(survey.skipped)["metadata.jsonl"]


def test_what_is_no_regular_file_is_never_opened_and_what_is_huge_never_read(tmp_path):
    names = ("pipe", "zero", "huge", "huge-caption", "good")
    fill(tmp_path, {f"{name}.png": picture() for name in names} | {"good.txt": b"good"})
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    for name in ("huge.png", "huge-caption.txt"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(64 * 2**30)
    fill(tmp_path, {"huge.txt": b"huge", "null.txt": b"x", "pipe-picture.txt": b"x"})
    (tmp_path / "null.png").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe-picture.png")
    survey = scan(tmp_path, follow_links=True)
    assert [e.name for e in survey.examples] == ["good.png"]
    expected = {
        "pipe.png": "pipe.txt is no regular file",
        "zero.png": "zero.txt is no regular file",
        "huge.png": "64 GiB, where 2 GiB",
        "huge-caption.png": "huge-caption.txt has 64 GiB, where 4 MiB",
        "null.png": "no regular file",
        "pipe-picture.png": "no regular file",
    }
    named = reasons(survey.skipped)
    assert named.keys() == expected.keys()
    for name, text in expected.items():
        assert text in named[name], name


@pytest.mark.parametrize("kind", ["pipe", "huge"])
def test_a_list_that_is_a_pipe_or_huge_is_named(tmp_path, kind):
    fill(tmp_path, {"a.png": picture(), "a.txt": b"a"})
    listed = tmp_path / "metadata.jsonl"
    if kind == "pipe":
        os.mkfifo(listed)
    else:
        listed.touch()
        os.truncate(listed, 64 * 2**30)
    survey = scan(tmp_path)
    assert [e.caption for e in survey.examples] == ["a"]
    assert "cannot be read" in reasons(survey.skipped)["metadata.jsonl"]


def test_names_that_are_not_utf8_are_named_and_left_out(tmp_path):
    fill(tmp_path, {"good.png": picture(), "good.txt": b"good"})
    for name in (b"caf\xe9.png", b"caf\xe9.txt", b"b\xff/x.png"):
        path = os.fsencode(tmp_path) + b"/" + name
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(picture())
    survey = scan(tmp_path)
    assert [e.name for e in survey.examples] == ["good.png"]
    assert sum("not UTF-8: rename it" in text for text in reasons(survey.skipped).values()) == 3
    assert "caf\\udce9.png" in survey.report().encode().decode()


def test_names_that_would_write_on_the_terminal_are_shown_escaped(tmp_path):
    name = "a\x1b[31m\nskipped nothing.png"
    survey = scan(fill(tmp_path, {name: picture(), name + ".md": b""}))
    lines = survey.report().split("\n")
    assert len(lines) == 3 and "\x1b" not in survey.report()
    assert "skipped a\\x1b[31m\\nskipped nothing.png: has no caption" in lines[1]


def test_postscript_that_is_called_png_starts_no_other_program(tmp_path, monkeypatch):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("gs", "gswin64c", "gswin32c"):
        (tools / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 70 50\n%%EndComments\nshowpage\n%%EOF\n"
    files = {f"{name}.{end}": eps for name, end in (("a", "png"), ("b", "jpg"), ("c", "tif"))}
    files |= {"a.txt": b"a", "b.txt": b"b", "c.txt": b"c"}
    survey = scan(fill(tmp_path / "data", files))
    assert not survey.examples and len(survey.skipped) == 3
    assert all("save it as PNG" in text for text in reasons(survey.skipped).values())
    assert not (tmp_path / "started").exists()


def png16(colours: int) -> bytes:
    """A 16-bit PNG of one of the format's colour types."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colours]
    values = np.linspace(0, 65535, 50 * 70 * channels).reshape(50, -1).astype(">u2")

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.tobytes() for row in values)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 70, 50, 16, colours, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff16() -> bytes:
    """A TIFF of three 16-bit channels, not packed."""
    pixels = np.linspace(0, 65535, 50 * 70 * 3).astype("<u2").tobytes()
    entries = [(256, 3, 70), (257, 3, 50), (258, 3, 122), (259, 3, 1), (262, 3, 2), (273, 4, 128), (277, 3, 3),
               (278, 3, 50), (279, 4, len(pixels))]  # fmt: skip
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    for tag, kind, value in entries:
        head += struct.pack("<HHII", tag, kind, 3 if tag == 258 else 1, value)
    return head + struct.pack("<I", 0) + struct.pack("<HHH", 16, 16, 16) + pixels


def grey16(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.linspace(0, 65535, 3500).reshape(50, 70).astype(np.uint16)).save(buffer, kind)
    return buffer.getvalue()


DEEP = {
    "PNG grey": (png16(0), "16 bits"),
    "PNG colours": (png16(2), "16 bits"),
    "PNG grey and transparency": (png16(4), "16 bits"),
    "PNG colours and transparency": (png16(6), "16 bits"),
    "TIFF colours": (tiff16(), "16 bits"),
    "TIFF grey": (grey16("TIFF"), "16 bits"),
    "PPM colours": (b"P6 70 50 65535\n" + np.linspace(0, 65535, 10500).astype(">u2").tobytes(), "16 bits"),
    "PGM grey": (grey16("PPM"), "16 bits"),
    "JPEG 2000 grey": (grey16("JPEG2000"), "16 bits"),
}


@pytest.mark.parametrize("what", DEEP)
def test_pictures_of_more_than_8_bits_are_refused_or_converted_where_that_is_wanted(what):
    data, message = DEEP[what]
    with pytest.raises(ImageError, match=f"has {message} a channel.*or set `convert`"):
        read(data, 10**6)
    drawn = np.asarray(read(data, 10**6, convert=True)).astype(int)
    ramp = 255 * np.linspace(0, 1, 48)[:, None, None]
    if "transparency" not in what:
        assert np.abs(drawn - ramp).max() < 12  # from black at the top to white at the bottom


def test_other_depths_are_named():
    avif = bytearray(picture("AVIF"))
    avif[avif.index(b"av1C") + 6] |= 0x40  # as one of 10 bits says it, which nothing here can write
    assert _bits(open_image(picture("AVIF")), bytes(avif)) == 10
    buffer = io.BytesIO()
    Image.fromarray(np.linspace(0, 2**30, 3500).reshape(50, 70).astype(np.int32)).save(buffer, "TIFF")
    for convert in (False, True):
        with pytest.raises(
            ImageError, match=r"32 bits a channel: save it as 8-bit RGB, so that you see what is trained\.$"
        ):
            read(buffer.getvalue(), 10**6, convert=convert)
    for kind in ("PNG", "TIFF", "PPM", "JPEG2000", "AVIF", "WEBP", "TGA"):
        assert read(picture(kind), 10**6).size == (64, 48)


KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "ICO", "AVIF", "JPEG2000")
WHOLE = [*(picture(kind, (40, 32)) for kind in KINDS), png16(2), tiff16()]
CHANGE = st.tuples(st.integers(0, 2**32), st.binary(max_size=4))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(WHOLE), st.lists(CHANGE, min_size=1, max_size=6), st.floats(0, 1), st.booleans())
def test_a_damaged_picture_is_read_or_refused_in_one_sentence(data, changes, kept, convert):
    damaged = bytearray(data[: max(1, round(len(data) * max(kept, 0.3)))])
    for place, new in changes:
        place %= min(len(damaged), 400)  # mostly in the headers
        damaged[place : place + len(new)] = new
    try:
        image = read(bytes(damaged), 256 * 256, convert=convert)
    except ImageError as error:
        assert str(error).endswith(".") and "\n" not in str(error)
    else:
        assert image.mode == "RGB" and image.width % 16 == image.height % 16 == 0


NAMES = st.sampled_from(
    ["a.png", "a.txt", "a.json", "a.png.json", "b.caption", "metadata.jsonl", "c.PNG", "c.TXT", "d"]
)
CONTENTS = st.one_of(
    st.binary(max_size=40),
    st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from([picture(), CAPTION, METADATA, b"{}", b"[]", b'"a"', b'{"file_name": "a.png", "text": "x"}']),
    st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=2)
                 | st.dictionaries(st.sampled_from(["file_name", "text", "high_level_description", "style_description",
                 "compositional_deconstruction", "elements", "bbox"]), inner, max_size=3), max_leaves=8)
    .map(lambda data: json.dumps(data).encode()),
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(NAMES, CONTENTS, max_size=6))
def test_nothing_in_a_folder_ends_a_scan_and_no_file_goes_without_a_word(tmp_path_factory, files):
    folder = fill(tmp_path_factory.mktemp("folder"), files)
    survey = scan(folder)
    pictures = {name for name in files if name.lower().endswith(".png")}
    used, skipped = {e.name for e in survey.examples}, set(reasons(survey.skipped))
    assert used | (skipped & pictures) == pictures and not used & skipped
    assert all(example.caption.strip() and example.caption.encode() for example in survey.examples)
    assert survey.report().encode()
    beside = {name for name in files if Path(name).stem in {Path(p).stem for p in pictures} | pictures}
    assert {name for name in files if name != "metadata.jsonl"} - beside <= set(reasons(survey.ignored))
