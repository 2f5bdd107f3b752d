"""Broken and hostile files: one clear error each, no crash, no hang, and nothing wrong loaded in silence."""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ideoflow.checkpoints import CheckpointError, open_checkpoint

from .forms import (
    SMALL,
    float8_rows,
    float8_scaled,
    load_transformer,
    original_weights,
    random_model,
    write,
    write_config,
    write_shards,
)

SECONDS = 20  # that no file may take


@contextmanager
def limited() -> Iterator[None]:
    def late(*_):
        raise AssertionError("the file took too long")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


FORMS: dict[str, Callable] = {
    "diffusers": lambda weights: weights,
    "original": original_weights,
    "fp8": float8_rows,
    "comfy": lambda weights: float8_scaled(original_weights(weights), old=True),
}


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> dict[str, Path]:
    """A folder with a whole checkpoint of each form."""
    weights = random_model(21, torch.float32).state_dict()
    folders = {}
    for form, change in FORMS.items():
        folder = tmp_path_factory.mktemp(form)
        write(folder / "model.safetensors", change(weights), metadata={"format": "pt", "note": "of no meaning"})
        write_config(folder, SMALL)
        folders[form] = folder
    return folders


@pytest.fixture(scope="module")
def loaded(intact) -> dict[str, dict[str, torch.Tensor]]:
    return {form: state(folder) for form, folder in intact.items()}


def state(path: Path) -> dict[str, torch.Tensor]:
    return dict(load_transformer(open_checkpoint(path)).state_dict())


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name].float(), b[name].float()) for name in a
    )


class Tally:
    """Loads files that should be refused, and counts."""

    def __init__(self, folder: Path, wanted: dict[str, torch.Tensor]) -> None:
        self.folder, self.wanted = folder, wanted
        self.file = folder / "model.safetensors"
        self.refused = self.harmless = 0
        write_config(folder, SMALL)

    def load(self, what: object, data: bytes | None = None, names: str | None = "model.safetensors") -> str:
        """The error of a file; an empty string where it loads and is the intact model."""
        if data is not None:
            self.file.write_bytes(data)
        with limited():
            try:
                found = state(self.folder)
            except CheckpointError as error:
                self.refused += 1
                assert names is None or names in str(error) or str(self.folder) in str(error), (what, error)
                assert len(str(error)) < 2500, what
                return str(error)
        assert same(found, self.wanted), f"{what}: loaded in silence, and other weights"
        self.harmless += 1
        return ""


def parts(path: Path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: object, body: bytes, raw: bytes | None = None) -> bytes:
    text = json.dumps(header).encode() if raw is None else raw
    return struct.pack("<Q", len(text)) + text + body


@pytest.mark.parametrize("form", FORMS)
def test_files_cut_off(intact, loaded, tmp_path, form):
    data = (intact[form] / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    moments = random.Random(form)
    places = {0, 1, 7, 8, 9, 8 + length // 2, 7 + length, 8 + length, 9 + length, len(data) - 1}
    places |= {moments.randrange(len(data)) for _ in range(20)}
    tally = Tally(tmp_path, loaded[form])
    for place in sorted(places):
        assert tally.load(place, data[:place])
    assert tally.load("longer", data + b"\0" * 8)
    assert tally.refused == len(places) + 1 and not tally.harmless


@pytest.mark.parametrize("form", FORMS)
def test_flipped_bits_of_the_header(intact, loaded, tmp_path, form):
    """Refused, or harmless: the model that loads is the intact one, to the last bit."""
    data = (intact[form] / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    moments = random.Random(form)
    tally = Tally(tmp_path, loaded[form])
    for _ in range(60):
        place = moments.randrange(8 + length)
        flipped = bytearray(data)
        flipped[place] ^= 1 << moments.randrange(8)
        tally.load(place, bytes(flipped))
    assert tally.refused + tally.harmless == 60 and tally.refused > 45


@pytest.mark.parametrize("length", [0, 1, 2, 2**16, 2**31, 2**32 + 1, 10**8 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1])
def test_lengths_of_the_header(intact, loaded, tmp_path, length):
    data = (intact["diffusers"] / "model.safetensors").read_bytes()
    tally = Tally(tmp_path, loaded["diffusers"])
    assert tally.load(length, struct.pack("<Q", length) + data[8:])
    own = struct.unpack("<Q", data[:8])[0]
    for near in (own - 1, own + 1, own + 8):
        assert tally.load(near, struct.pack("<Q", near) + data[8:])


def entry(header: dict, name: str, **changes: object) -> dict:
    return {**header, name: {**header[name], **changes}}


def hostile_headers(header: dict, size: int) -> Iterator[tuple[str, object]]:
    """Headers that say something else than the data is."""
    w1, norm = "layers.0.feed_forward.w1.weight", "layers.1.attention.norm_q.weight"
    start, stop = header[w1]["data_offsets"]
    rows, columns = header[w1]["shape"]
    for offsets in (
        [0, 0], [start, start], [start + 4, stop + 4], [start - 4, stop - 4], [stop, start], [-4, stop],
        [start, size * 2], [start, 2**63], [start, 2**64], [0, size], [start / 2, stop], ["0", "4"], [start],
        [start, stop, stop], None, {},
    ):  # fmt: skip
        yield f"offsets {offsets}", entry(header, w1, data_offsets=offsets)
    for dtype in ("F16", "F64", "I32", "U32", "BOOL", "F8_E4M3", "f32", "F33", "", None, 7):
        yield f"type {dtype}", entry(header, w1, dtype=dtype)
    for shape in (
        [columns, rows], [rows * columns], [], [rows, columns, 1], [1, rows, columns], [0, columns], [rows, -columns],
        [2**32, 2**32], [2**63, 2], [rows + 1, columns], "12", None, [rows, None], [rows, 1.5],
    ):  # fmt: skip
        yield f"shape {shape}", entry(header, w1, shape=shape)
    for key in ("dtype", "shape", "data_offsets"):
        yield f"no {key}", {**header, w1: {k: v for k, v in header[w1].items() if k != key}}
    for name in (w1, norm, "input_proj.bias", "embed_image_indicator.weight", "layers.1.adaln_modulation.bias"):
        yield f"without {name}", {k: v for k, v in header.items() if k != name}
        for new in (
            name + "x",
            name.upper(),
            "../" + name,
            name.replace("layers.", "layers.-"),
            "\0" + name,
            "x" * 5000,
        ):
            if new != name:
                yield f"{name} as {new[:40]}", {new if k == name else k: v for k, v in header.items()}
    yield "another layer", {k.replace("layers.1.", "layers.7."): v for k, v in header.items()}
    yield "a huge layer", {k.replace("layers.1.", "layers.99999999999999."): v for k, v in header.items()}
    yield (
        "swapped",
        {**header, w1: header["layers.0.feed_forward.w2.weight"], "layers.0.feed_forward.w2.weight": header[w1]},
    )
    yield "metadata of numbers", {**header, "__metadata__": {"a": 1}}
    yield "metadata as a list", {**header, "__metadata__": []}
    yield (
        "a bias too many",
        {**header, "layers.0.attention.to_q.bias": {"dtype": "F32", "shape": [0], "data_offsets": [size, size]}},
    )
    yield "a list", [header]
    yield "a string", "header"
    yield "nothing", {}


def test_headers_that_lie(intact, loaded, tmp_path):
    header, body = parts(intact["diffusers"] / "model.safetensors")
    tally = Tally(tmp_path, loaded["diffusers"])
    for what, changed in hostile_headers(header, len(body)):
        assert tally.load(what, joined(changed, body)), what
    assert tally.refused > 70 and not tally.harmless


def test_headers_that_are_no_json(intact, loaded, tmp_path):
    header, body = parts(intact["diffusers"] / "model.safetensors")
    text = json.dumps(header).encode()
    twice = text[:-1] + b', "input_proj.bias": ' + json.dumps(header["input_proj.weight"]).encode() + b"}"
    name = b'"input_proj.bias"'
    tally = Tally(tmp_path, loaded["diffusers"])
    for what, raw in {
        "deep": b'{"x":' * 100_000 + b"1" + b"}" * 100_000,
        "deep lists": b'{"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        "not utf-8": text.replace(name, b'"input_proj.\xff\xfe"'),
        "a lone surrogate": text.replace(name, b'"input_proj.\\ud800"'),
        "twice": twice,
        "nan": text.replace(b"[0, ", b"[NaN, ", 1),
        "a comment": b"/* */" + text,
        "zeros": b"\0" * 64,
        "no end": text[:-1],
    }.items():
        assert tally.load(what, joined(None, body, raw)), what


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_named(intact, loaded, tmp_path, form, value):
    weights = load_file(intact[form] / "model.safetensors")
    tally = Tally(tmp_path, loaded[form])
    chosen = [
        name
        for name in weights
        if name.startswith(("layers.1.", "input_proj", "final")) and weights[name].is_floating_point()
    ]
    for name in random.Random(str(value)).sample(chosen, 8):
        if weights[name].dtype == torch.float8_e4m3fn and value == value:
            continue  # the type has no infinities
        changed = weights[name].clone()
        flat = changed.float().flatten()
        flat[-1] = value
        save_file({**weights, name: flat.reshape(changed.shape).to(changed.dtype)}, tally.file)
        assert name in tally.load(name)


def test_scales_of_float8(intact, loaded, tmp_path):
    weights = load_file(intact["fp8"] / "model.safetensors")
    scale = "layers.0.attention.to_q.weight_scale"
    tally = Tally(tmp_path, loaded["fp8"])
    rows = len(weights[scale])
    for changed in (
        {k: v for k, v in weights.items() if k != scale},
        {**weights, scale: weights[scale][: rows // 2]},
        {**weights, scale: weights[scale].reshape(2, -1)},
        {**weights, scale: weights[scale].int()},
        {**weights, scale: weights[scale].double()},
        {**weights, "layers.0.attention.to_q.scale_weight": weights[scale].clone()},
        {("layers.0.attention.to_x.weight_scale" if k == scale else k): v for k, v in weights.items()},
        {**weights, "layers.0.attention.to_q.weight": torch.randint(0, 9, (rows, rows), dtype=torch.uint8)},
        {**weights, "layers.0.attention.to_q.weight.absmax": torch.randn(3)},
    ):
        save_file(changed, tally.file)
        assert "to_q" in (said := tally.load("scale")) or "to_x" in said
    assert tally.refused == 9


CONFIGS = [
    {**SMALL, key: value}
    for key in ("num_layers", "num_attention_heads", "attention_head_dim", "intermediate_size", "in_channels")
    for value in (0, -1, 10**9, 10**30, 1.5, "2", None, [2], True)
] + [
    {**SMALL, "mrope_section": value}
    for value in ([99, 99, 99], [1], "abc", None, [4, 2, -2], [4, 2, 10**12], [[4], 2, 2])
] + [
    {**SMALL, "rope_theta": value} for value in ("x", None, [], {})
] + [
    {**SMALL, "norm_eps": value} for value in ("x", [], {})
] + [
    {"emb_dim": value, "num_heads": heads} for value, heads in ((64, 0), (64, 5), ("64", 4), (None, 4), (10**30, 4))
] + [{}, {"a": 1}]  # fmt: skip


def test_configurations_that_do_not_fit(intact, loaded, tmp_path):
    tally = Tally(tmp_path, loaded["diffusers"])
    data = (intact["diffusers"] / "model.safetensors").read_bytes()
    for config in CONFIGS:
        write_config(tmp_path, config)
        assert tally.load(config, data), config
    for text in (
        "",
        "[]",
        "[" * 100_000,
        "null",
        "{",
        '"x"',
        "{" * 10,
        " " * 2**21,
        "\ud800".encode("utf-8", "surrogatepass"),
    ):
        (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        assert "config.json" in tally.load(text[:20], data)


def test_indexes_that_lead_elsewhere(intact, tmp_path, loaded):
    weights = load_file(intact["diffusers"] / "model.safetensors")
    write_config(tmp_path, SMALL)
    index = write_shards(tmp_path, weights)
    good = json.loads(index.read_text())["weight_map"]
    name = next(iter(good))
    (tmp_path / "folder.safetensors").mkdir()
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "self.safetensors").symlink_to("self.safetensors")
    outside = write(tmp_path.parent / "outside.safetensors", {name: weights[name]})
    for file in (
        "../outside.safetensors", str(outside), "folder.safetensors", "pipe.safetensors", "self.safetensors", "",
        ".", "..", "none.safetensors", "/dev/zero", "a/b.safetensors", "config.json", None, 3, ["x"],
        good[list(good)[-1]],
    ):  # fmt: skip
        index.write_text(json.dumps({"weight_map": {**good, name: file}}))
        with limited(), pytest.raises(CheckpointError, match=r"index|pipe|folder|self"):
            state(tmp_path)
            pytest.fail(f"{file!r} was followed")
    for text in ("", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 100_000, '{"weight_map": 3}'):
        index.write_text(text)
        with limited(), pytest.raises(CheckpointError, match="index"):
            state(tmp_path)
    index.write_text(json.dumps({"weight_map": good}))
    assert same(state(tmp_path), loaded["diffusers"])
    shard = tmp_path / good[name]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=shard.name):
        state(tmp_path)


def test_what_is_no_file_of_weights(tmp_path):
    write_config(tmp_path, SMALL)
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "self.safetensors").symlink_to("self.safetensors")
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "text.safetensors").write_text("Git LFS: version https://git-lfs")
    torch.save({"x": torch.randn(2)}, tmp_path / "zip.safetensors")
    torch.save({"x": torch.randn(2)}, tmp_path / "old.safetensors", _use_new_zipfile_serialization=False)
    for name, message in {
        "pipe.safetensors": "no file that can be opened",
        "folder.safetensors": "no weights",
        "self.safetensors": "no such file",
        "empty.safetensors": "0 bytes",
        "text.safetensors": "no whole safetensors file",
        "zip.safetensors": "such files can run code",
        "old.safetensors": "such files can run code",
        "none.safetensors": "no such file",
    }.items():
        with limited(), pytest.raises(CheckpointError, match=message):
            open_checkpoint(tmp_path / name)
    with limited(), pytest.raises(CheckpointError, match="no file that can be opened"):
        open_checkpoint("/dev/zero")


HOSTILE = """
import resource, struct, sys
from pathlib import Path
from ideoflow.checkpoints import CheckpointError, open_checkpoint
import ideoflow.checkpoints.load
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000, used + 200_000_000))
file = Path(sys.argv[1])
shape = b'{"x":{"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,4611686018427387904]}}'
for data in (
    struct.pack("<Q", 2**40) + b"{",
    struct.pack("<Q", 99_000_000) + b"{" + b" " * 1000,
    struct.pack("<Q", len(shape)) + shape,
    struct.pack("<Q", 2**63) + shape,
):
    file.write_bytes(data)
    try:
        open_checkpoint(file)
    except CheckpointError:
        continue
    raise SystemExit("not refused")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_hostile_headers_take_no_memory(tmp_path):
    done = subprocess.run([sys.executable, "-c", HOSTILE, tmp_path / "x.safetensors"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout
