"""Conversions: bit-exact there and back, whole or not at all, whatever stops them."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from ideoflow import Ideogram4Pipeline, Ideogram4Transformer2DModel, sketch
from ideoflow.checkpoints import CheckpointError, open_checkpoint
from ideoflow.checkpoints import convert as module
from ideoflow.checkpoints.atomic_replace import in_place
from ideoflow.checkpoints.convert import convert
from ideoflow.checkpoints.write import DTYPES, Entry, bits, write_safetensors
from ideoflow.files import MACHINE

from .forms import (
    SMALL,
    float8_rows,
    float8_scaled,
    load_transformer,
    original_config,
    original_weights,
    random_model,
    write,
    write_config,
)


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(bits(a[name]), bits(b[name])) for name in a
    )


def all_of(folder: Path) -> dict[str, torch.Tensor]:
    files = [folder] if folder.is_file() else folder.glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


tensors = st.lists(st.tuples(st.sampled_from(list(DTYPES)), st.lists(st.integers(0, 5), max_size=3)), max_size=8)


@given(tensors, st.integers(0, 2**31))
@settings(deadline=None, max_examples=60)
def test_the_writer_writes_what_safetensors_reads(tmp_path_factory, shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for number, (dtype, shape) in enumerate(shapes):
        count = torch.Size(shape).numel() * dtype.itemsize
        top = 2 if dtype == torch.bool else 256
        raw = torch.randint(0, top, (count,), dtype=torch.uint8, generator=generator)
        made[f"tensor {number}é"] = raw.view(dtype).reshape(shape)
    entries = [Entry(name, t.dtype, tuple(t.shape), lambda t=t: t) for name, t in made.items()]
    path = tmp_path_factory.mktemp("written") / "x.safetensors"

    write_safetensors(path, entries, {"trigger": "sks"})

    assert same_bits(load_file(path), made)


def test_an_entry_that_is_not_what_it_said_is_refused(tmp_path):
    entry = Entry("x", torch.float32, (2,), lambda: torch.randn(3))
    with pytest.raises(CheckpointError, match=r"'x' came out as torch\.float32 \[3\]"):
        write_safetensors(tmp_path / "x", [entry])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard", [10**9, 20_000])
def test_original_to_diffusers_to_original_is_bit_exact(tmp_path, dtype, shard):
    model = random_model(5, dtype)
    stored = original_weights(model.state_dict())
    write(tmp_path / "a" / "model.safetensors", stored)
    write_config(tmp_path / "a", original_config(model.config))

    convert(tmp_path / "a", tmp_path / "b", "diffusers", max_shard_bytes=shard)
    convert(tmp_path / "b", tmp_path / "c", "original", max_shard_bytes=shard)

    assert same_bits(all_of(tmp_path / "b"), model.state_dict())
    assert same_bits(all_of(tmp_path / "c"), stored)
    assert (len(list((tmp_path / "b").glob("*.safetensors"))) > 1) == (shard < 10**9)
    configs = [json.loads((tmp_path / one / "config.json").read_text()) for one in "ac"]
    assert configs[0] == configs[1]
    peer = diffusers.Ideogram4Transformer2DModel.from_pretrained(tmp_path / "b", torch_dtype=dtype)
    assert same_bits(dict(peer.state_dict()), model.state_dict())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_a_single_file_carries_its_configuration(tmp_path):
    model = random_model(6)
    model.save_pretrained(tmp_path / "a")
    write_config(tmp_path, {**SMALL, "num_layers": 7})  # of something else

    convert(tmp_path / "a", tmp_path / "b.safetensors", "original")
    convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors", "diffusers")

    assert same_bits(all_of(tmp_path / "c.safetensors"), model.state_dict())
    loaded = Ideogram4Transformer2DModel.from_single_file(tmp_path / "c.safetensors")
    assert loaded.config.attention_head_dim == 16


@pytest.mark.parametrize("naming", ["diffusers", "original"])
def test_to_float8_and_back(tmp_path, naming):
    """The published fp8 form: rows rounded as they are elsewhere, and kept bit for bit when converted again."""
    weights = random_model(7, torch.bfloat16).state_dict()
    weights = weights if naming == "diffusers" else original_weights(weights)
    write(tmp_path / "a" / "model.safetensors", weights)
    write_config(tmp_path / "a", SMALL)
    wanted = float8_rows(weights, lambda name: "adaln" not in name and name.startswith("layers."))

    convert(tmp_path / "a", tmp_path / "b", "fp8")
    convert(tmp_path / "b", tmp_path / "c", "fp8")

    written = all_of(tmp_path / "b")
    assert same_bits(written, wanted) and same_bits(all_of(tmp_path / "c"), wanted)
    convert(tmp_path / "b", tmp_path / "d", "diffusers", dtype=torch.float32)
    expanded = load_transformer(open_checkpoint(tmp_path / "b"), dequantize=True)
    assert same_bits(all_of(tmp_path / "d"), dict(expanded.state_dict()))


def test_comfyui_files_keep_their_bits_in_float8(tmp_path):
    stored = float8_scaled(original_weights(random_model(8).state_dict()), old=True)
    write(tmp_path / "a" / "x.safetensors", stored, "model.diffusion_model.")
    write_config(tmp_path / "a", SMALL)

    convert(tmp_path / "a", tmp_path / "b", "fp8")

    written = all_of(tmp_path / "b")
    for name, tensor in stored.items():
        if tensor.dtype == torch.float8_e4m3fn and tensor.numel() and "adaln" not in name:
            assert torch.equal(bits(written[name]), bits(tensor))
            scale = stored[name.replace("weight", "scale_weight")]
            assert torch.equal(written[name.replace("weight", "weight_scale")], scale.expand(len(tensor)))


def test_a_pipelines_folder_is_converted_whole(tmp_path):
    source = shutil.copytree(sketch.path(), tmp_path / "a")
    (source / "notes.txt").write_text("mine")
    (source / "transformer" / "licence.txt").write_text("kept")

    convert(source, tmp_path / "b", "original")
    convert(tmp_path / "b", tmp_path / "c", "diffusers")

    def names(folder):
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}

    assert names(tmp_path / "c") == names(source)
    for file in source.rglob("*.safetensors"):
        assert same_bits(load_file(file), load_file(tmp_path / "c" / file.relative_to(source)))
    assert (tmp_path / "c" / "notes.txt").read_text() == "mine"
    assert "emb_dim" in json.loads((tmp_path / "b" / "transformer" / "config.json").read_text())
    Ideogram4Pipeline.from_pretrained(tmp_path / "b")
    diffusers.Ideogram4Pipeline.from_pretrained(tmp_path / "c")


def test_the_old_word_for_the_form_of_diffusers_is_told_the_new_one(tmp_path):
    random_model(9).save_pretrained(tmp_path / "a")
    with pytest.warns(FutureWarning, match="'peer' is called 'diffusers' now"):
        convert(tmp_path / "a", tmp_path / "b", "peer")
    assert open_checkpoint(tmp_path / "b").form == "diffusers"


def test_what_is_in_the_way_is_said_and_nothing_is_left(tmp_path):
    random_model(9).save_pretrained(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "file").write_text("x")
    for source, destination, to, message in (
        ("a", "b", "diffusers", r"b exists: name another destination, or allow it to be replaced \(--overwrite\)"),
        ("a", "a", "diffusers", "lie in one another"),
        ("a", "a/inside", "diffusers", "lie in one another"),
        ("none", "c", "diffusers", "no such file or folder"),
        ("a", "c", "gguf", "`to` is 'gguf': choose one of diffusers, original, fp8"),
        ("a", "file/c", "diffusers", "cannot be written"),
    ):
        with pytest.raises(CheckpointError, match=message):
            convert(tmp_path / source, tmp_path / destination, to)
    with pytest.raises(CheckpointError, match="is a pipeline"):
        convert(sketch.path(), tmp_path / "c.safetensors", "diffusers")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "file"]


def test_a_source_with_bad_values_is_refused_and_the_old_result_stays(tmp_path):
    model = random_model(10)
    model.save_pretrained(tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b", "original")
    before = all_of(tmp_path / "b")
    model.layers[1].feed_forward.w2.weight.data[3, 5] = torch.nan
    model.save_pretrained(tmp_path / "a")

    with pytest.raises(CheckpointError, match=r"layers\.1\.feed_forward\.w2\.weight' holds values that are not finite"):
        convert(tmp_path / "a", tmp_path / "b", "original", overwrite=True)

    assert same_bits(all_of(tmp_path / "b"), before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_said(tmp_path):
    with (
        pytest.raises(CheckpointError, match="cannot be written: No space left on device"),
        in_place(tmp_path / "x.safetensors", overwrite=False) as temporary,
    ):
        temporary.symlink_to("/dev/full")
        write_safetensors(temporary, [Entry("x", torch.float32, (2**16,), lambda: torch.randn(2**16))])
    assert not list(tmp_path.iterdir())


def test_a_folder_whose_replacing_was_cut_short_comes_back(tmp_path):
    """Killed between the two renames, by a process that is gone."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    old = tmp_path / f".b.{gone.pid}-0-{MACHINE}.replaced"
    old.mkdir()
    (old / "config.json").write_text("kept")
    (tmp_path / f".b.{gone.pid}-0-{MACHINE}.partial").mkdir()
    with pytest.raises(RuntimeError), in_place(tmp_path / "b", overwrite=True):
        raise RuntimeError
    assert (tmp_path / "b" / "config.json").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


FOREIGN = {
    "a folder of notes": ["README.md", "LICENSE"],
    "a run": ["settings.json", "step-100/adapter.safetensors"],
    "adapters": ["heart.safetensors", "star.safetensors"],
    "a checkpoint and something else": ["config.json", "model.safetensors", "results/table.csv"],
    "a name with an escape": ["config.json", "model.safetensors", "\x1b[2J.txt"],
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("single", [False, True])
def test_a_folder_that_holds_something_else_is_not_replaced(tmp_path, kind, single):
    random_model(13).save_pretrained(tmp_path / "a")
    destination = tmp_path / ("b.safetensors" if single else "b")
    for name in FOREIGN[kind]:
        (destination / name).parent.mkdir(parents=True, exist_ok=True)
        (destination / name).write_text("mine")
    with pytest.raises(CheckpointError, match="holds more than a checkpoint") as error:
        convert(tmp_path / "a", destination, "original", overwrite=True)
    assert "\x1b" not in str(error.value)
    assert {str(path.relative_to(destination)) for path in destination.rglob("*") if path.is_file()} == {*FOREIGN[kind]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", destination.name]


def test_folders_that_models_come_in_are_replaced(tmp_path):
    """A saved pipeline, one of ours, the bundled model with its notes, shards, an empty folder."""
    convert(sketch.path(), tmp_path / "b", "diffusers")
    convert(sketch.path(), tmp_path / "b", "original", overwrite=True, max_shard_bytes=2**20)
    convert(sketch.path(), tmp_path / "b", "diffusers", overwrite=True)
    sketch.load().save_pretrained(tmp_path / "c")
    (tmp_path / "d").mkdir()
    for name in ("c", "d"):
        convert(sketch.path(), tmp_path / name, "diffusers", overwrite=True)
        assert (tmp_path / name / "model_index.json").is_file()


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize(("overwrite", "there"), [(False, False), (True, False), (True, True)])
def test_what_appears_meanwhile_is_kept(tmp_path, monkeypatch, single, overwrite, there):
    """Another conversion to the same place: the first to end wins, the other says so."""
    random_model(14).save_pretrained(tmp_path / "a")
    random_model(15).save_pretrained(tmp_path / "other")
    destination = tmp_path / ("b.safetensors" if single else "b")
    if there:
        convert(tmp_path / "other", destination, "diffusers")
    compare = module._compare

    def slow(*arguments: Any) -> None:
        monkeypatch.setattr(module, "_compare", compare)
        convert(tmp_path / "other", destination, "original", overwrite=overwrite)
        compare(*arguments)

    monkeypatch.setattr(module, "_compare", slow)
    with pytest.raises(CheckpointError, match="written by somebody else meanwhile" if overwrite else "b.* exists"):
        convert(tmp_path / "a", destination, "original", overwrite=overwrite)
    expected = all_of(tmp_path / "other")
    convert(destination, tmp_path / "back", "diffusers")
    assert same_bits(all_of(tmp_path / "back"), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["a", "other", "back", destination.name])


KILLED = """
import sys
from pathlib import Path
from ideoflow.checkpoints import convert as module
from ideoflow.checkpoints.convert import convert
print("ready", flush=True)
convert(Path(sys.argv[1]), Path(sys.argv[2]), "original", overwrite=True)
print("done", flush=True)
"""


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.long)])
def test_a_killed_conversion_leaves_all_or_nothing(tmp_path, warm, kills):
    """Killed at random moments of its duration: the destination is absent or whole, and the next run succeeds."""
    model = random_model(11, num_layers=24)
    model.save_pretrained(tmp_path / "a")
    wanted = original_weights(model.state_dict())
    script = tmp_path / "script.py"
    script.write_text(KILLED)

    def start() -> subprocess.Popen:
        command = [*warm, script, str(tmp_path / "a"), str(tmp_path / "b")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout.readline() == "ready\n"
        return process

    begun = time.perf_counter()
    process = start()
    begun = time.perf_counter()
    assert process.stdout.read() == "done\n"
    duration = time.perf_counter() - begun
    moments = random.Random(0)
    stopped = 0
    for number in range(kills):
        if number % 2:
            shutil.rmtree(tmp_path / "b", ignore_errors=True)
        process = start()
        time.sleep(moments.uniform(0, duration))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        stopped += process.returncode == -signal.SIGKILL
        if (tmp_path / "b").exists():
            assert same_bits(all_of(tmp_path / "b"), wanted) and (tmp_path / "b" / "config.json").is_file()
    assert stopped >= kills // 2  # else the moments were too late to mean anything
    convert(tmp_path / "a", tmp_path / "b", "original", overwrite=True)
    assert same_bits(all_of(tmp_path / "b"), wanted)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "script.py"]
