"""Picture files: settings kept in every format and read back, hostile files, and writing whole without overwriting."""

import json
import multiprocessing
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import ideoflow
from ideoflow import pictures
from ideoflow.pictures import read_settings, save_image
from ideoflow.provenance import from_text, to_text

SETTINGS = {
    "caption": '{"a":"Größe 写 \U0001f3a8"}',
    "seed": 2**63 + 5,
    "width": 48,
    "height": 32,
    "model": "sketch",
    "model_digest": "sampled:12",
    "base": None,
    "base_digest": None,
    "loras": [{"path": "/x/a.safetensors", "scale": 0.5, "digest": "sha256:34"}],
    "dtype": "float32",
    "device": "cpu",
    "preset": "V4_TURBO_12",
    "steps": 3,
    "guidance": 3.0,
    "quantize": None,
    "together": 2,
    "unrepeatable": None,
}
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def picture(colour: str = "red", made_with: object = SETTINGS) -> Image.Image:
    image = Image.linear_gradient("L").resize((48, 32)).convert("RGB")
    image.paste(Image.new("RGB", (10, 10), colour), (0, 0))
    if made_with is not None:
        image.info["ideoflow"] = made_with if isinstance(made_with, str) else to_text(made_with)
    return image


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_gives_back_the_settings_that_the_picture_carried(tmp_path: Path, suffix: str):
    found = read_settings(ideoflow.save_image(picture(), tmp_path / f"a{suffix}"))
    assert {key: found[key] for key in SETTINGS} == SETTINGS
    assert found["ideoflow"] == ideoflow.__version__


@pytest.mark.parametrize("given", [[], None, "picture.png"])
def test_what_is_no_picture_is_not_saved(tmp_path, given):
    with pytest.raises(TypeError, match=r"`image` is a .*: give one picture, such as `images\[0\]`"):
        save_image(given, tmp_path / "a.png")
    assert not any(tmp_path.iterdir())


def test_the_settings_of_a_png_are_json_under_the_key_ideoflow_in_unicode(tmp_path: Path):
    path = save_image(picture(), tmp_path / "a.png")
    with Image.open(path) as image:
        assert json.loads(image.text["ideoflow"])["caption"] == SETTINGS["caption"]
    assert "Größe 写".encode() in path.read_bytes()


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_png_and_webp_keep_every_pixel(tmp_path: Path, suffix: str):
    with Image.open(save_image(picture(), tmp_path / f"a{suffix}")) as image:
        assert image.convert("RGB").tobytes() == picture().tobytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_without_settings_says_so(tmp_path: Path, suffix: str):
    for path in (
        save_image(picture(), tmp_path / f"a{suffix}", settings=False),
        save_image(picture(made_with=None), tmp_path / f"b{suffix}"),
    ):
        with pytest.raises(ValueError, match=rf"{path.name} carries no ideoflow settings"):
            read_settings(path)


def test_another_programs_comment_is_not_taken_for_settings(tmp_path: Path):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0a red heart, steps: 20"
    picture().save(tmp_path / "a.jpg", exif=exif)
    with pytest.raises(ValueError, match=r"a\.jpg carries no ideoflow settings"):
        read_settings(tmp_path / "a.jpg")


def test_settings_too_long_for_a_jpeg_are_refused_and_go_into_a_webp(tmp_path: Path):
    long = picture(made_with=SETTINGS | {"caption": "x" * 70_000})
    with pytest.raises(ValueError, match="too long for a JPEG"):
        save_image(long, tmp_path / "a.jpg")
    assert not (tmp_path / "a.jpg").exists()
    assert len(read_settings(save_image(long, tmp_path / "a.webp"))["caption"]) == 70_000


def test_a_file_type_that_is_not_written_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"a\.gif: pictures are written as \.png, \.jpg"):
        save_image(picture(), tmp_path / "a.gif")


# Hostile files


def test_settings_of_before_digests_are_read(tmp_path: Path):
    old = {key: value for key, value in SETTINGS.items() if "digest" not in key and key != "unrepeatable"}
    old["loras"] = [{"path": "lora", "scale": 0.5}]
    found = read_settings(save_image(picture(made_with=json.dumps(old)), tmp_path / "a.png"))
    assert found["model_digest"] is None and found["loras"] == [{"path": "lora", "scale": 0.5, "digest": None}]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("caption", 3),
        ("seed", "1"),
        ("seed", True),
        ("width", float("inf")),
        ("model", ["sketch"]),
        ("model_digest", 3),
        ("loras", [{"path": 3}]),
        ("loras", [{"path": "a", "scale": float("nan")}]),
        ("loras", ["a"]),
        ("loras", {}),
        ("dtype", "load"),
        ("preset", []),
        ("steps", "3"),
        ("steps", 2.5),
        ("guidance", [1]),
        ("guidance", float("nan")),
        ("quantize", "nf4"),
        ("together", "x"),
        ("torch", 2),
    ],
)
def test_settings_of_a_wrong_kind_are_refused_by_name(tmp_path: Path, key: str, value: object):
    path = save_image(picture(made_with=json.dumps(SETTINGS | {key: value})), tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png carries ideoflow settings that cannot be read"):
        read_settings(path)


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "[]",
        "{}",
        "null",
        "1" * 5000,
        '{"seed": ' + "9" * 5000 + "}",
        '{"caption": "x", "loras": [{"path": 1}]}',
        "[" * 100_000,
    ],
    ids=lambda text: text[:20],
)
def test_text_that_is_no_settings_is_refused(text: str):
    with pytest.raises(ValueError):  # and nothing else
        from_text(text)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*SETTINGS, "ideoflow", "torch"]), ANY, max_size=6))
def test_whatever_stands_in_settings_is_read_or_refused(changes: dict):
    text = json.dumps(SETTINGS | changes)
    try:
        found = from_text(text)
    except ValueError as error:
        assert str(error).isprintable()
    else:
        assert isinstance(found["caption"], str) and all(isinstance(lora["path"], str) for lora in found["loras"])


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IEND", b"")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) (w) file closefile\nshowpage\n%%EOF\n"
HOSTILE = {
    "eps": EPS,
    "empty": b"",
    "text": b"hello",
    "bomb": png(100_000, 100_000, chunk(b"IDAT", zlib.compress(b"\0" * 1000))),
    "text bomb": png(4, 4, chunk(b"zTXt", b"ideoflow\0\0" + zlib.compress(b"a" * 2**27))),
    "many texts": png(4, 4, *[chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(b"a" * 2**20))] * 70),
    "broken chunk": png(4, 4, struct.pack(">I", 5) + b"iTXtxxxxx" + b"\0\0\0\0"),
    "no pixels": png(4, 4),
    "cut off": None,
    "webp header": b"RIFF\xff\xff\xff\xffWEBPVP8 ",
    "jpeg header": b"\xff\xd8\xff\xe1\x00\x10Exif\0\0II*\0\xff\xff\xff\xff",
    "tiff loop": b"II*\0\x08\0\0\0" + b"\x01\0" + b"\x69\x87\x04\0\x01\0\0\0\x08\0\0\0" + b"\x08\0\0\0",
    "svg": b"<svg onload='x'/>",
    "xbm": b"#define im_width 1\n#define im_height 1\nstatic char im_bits[] = {\n0x00};\n",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_one_clear_error_and_starts_no_other_program(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
):
    def started(*arguments: object, **options: object) -> None:
        raise AssertionError(f"another program was started: {arguments}")

    for name in ("Popen", "run", "call", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, name, started)
    monkeypatch.setattr(os, "system", started)
    whole = save_image(picture(), tmp_path / "whole.png").read_bytes()
    path = tmp_path / "a.png"
    path.write_bytes(HOSTILE[kind] if HOSTILE[kind] is not None else whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.png ") as raised:
        read_settings(path)
    assert "\n" not in str(raised.value)


def test_the_names_of_files_are_printable_in_errors(tmp_path: Path):
    path = tmp_path / "a\x1b[31m\nb.png"
    path.write_bytes(b"hello")
    with pytest.raises(ValueError) as raised:
        read_settings(path)
    assert "a\\x1b[31m\\nb.png" in str(raised.value)


def test_a_folder_and_a_pipe_are_no_pictures(tmp_path: Path):
    (tmp_path / "a.png").mkdir()
    os.mkfifo(tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        with pytest.raises(ValueError, match="is no file of a picture"):
            read_settings(tmp_path / name)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_mutated_files_are_read_or_refused(data: st.DataObject):
    suffix = data.draw(st.sampled_from([".png", ".jpg", ".webp"]))
    form = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}[suffix]
    encoded = bytearray(pictures.encode_image(picture(), form, to_text(SETTINGS)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(encoded) - 1))
        encoded[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    path = Path(f"/dev/shm/ideoflow-test-{os.getpid()}{suffix}")
    try:
        path.write_bytes(encoded)
        read_settings(path)
    except ValueError:
        pass
    finally:
        path.unlink()


# Writing


def test_existing_files_are_kept_and_new_ones_numbered(tmp_path: Path):
    paths = [save_image(picture(colour), tmp_path / "a.png", overwrite=False) for colour in ("red", "lime", "blue")]
    assert [path.name for path in paths] == ["a.png", "a-1.png", "a-2.png"]
    assert Image.open(paths[0]).getpixel((0, 0)) == (255, 0, 0)
    assert sorted(os.listdir(tmp_path)) == ["a-1.png", "a-2.png", "a.png"]


def test_overwrite_replaces_the_file(tmp_path: Path):
    save_image(picture("red"), tmp_path / "a.png")
    assert save_image(picture("blue"), tmp_path / "a.png") == tmp_path / "a.png"
    assert Image.open(tmp_path / "a.png").getpixel((0, 0)) == (0, 0, 255)
    assert os.listdir(tmp_path) == ["a.png"]


def test_missing_folders_are_made(tmp_path: Path):
    assert save_image(picture(), tmp_path / "x" / "y" / "a.png").exists()


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool):
    def broken(*paths: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", broken)
    monkeypatch.setattr(os, "link", broken)
    with pytest.raises(OSError, match=r"No space.*a\.png'"):
        save_image(picture(), tmp_path / "a.png", overwrite=overwrite)
    assert os.listdir(tmp_path) == []


def many(folder: Path, colour: str) -> None:
    for _ in range(20):
        save_image(picture(colour), folder / "a.png", overwrite=False)


def test_two_processes_that_write_one_name_lose_nothing(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=many, args=(tmp_path, colour)) for colour in ("red", "blue")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    names = sorted(os.listdir(tmp_path))
    assert len(names) == 40 and not any(name.startswith(".") for name in names)
    colours = [Image.open(tmp_path / name).getpixel((0, 0)) for name in names]
    assert colours.count((255, 0, 0)) == colours.count((0, 0, 255)) == 20


KILLED = """
import os, sys
from PIL import Image
from ideoflow import files, pictures
name, moment = sys.argv[1:]
original = getattr(os, name)
def dying(*arguments, **options):
    if moment == "after":
        original(*arguments, **options)
    os._exit(9)
setattr(os, name, dying)
pictures.save_image(Image.new("RGB", (48, 32), "red"), "a.png", overwrite=False)
"""


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("name", ["link", "fsync"])
def test_a_kill_leaves_a_whole_picture_or_none_and_what_is_left_is_cleaned_up(tmp_path: Path, name: str, moment: str):
    done = subprocess.run([sys.executable, "-c", KILLED, name, moment], cwd=tmp_path)
    assert done.returncode == 9
    for path in tmp_path.glob("*.png"):
        Image.open(path).load()
    save_image(picture(), tmp_path / "b.png", overwrite=False)  # another name, at once: the writer may still be alive
    hidden = [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    for path in hidden:
        os.utime(path, (time.time() - 2 * pictures.STALE,) * 2)
    save_image(picture(), tmp_path / "c.png", overwrite=False)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
