"""What a run is made of: a model in any form, and data of which one bad example ends nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ideoflow import sketch
from ideoflow.checkpoints.convert import convert
from ideoflow.sketch.world import sample
from ideoflow.training.dataset import scan
from ideoflow.training.encoding import MOST_TOKENS, too_long
from ideoflow.training.parallel import Group
from ideoflow.training.previews import Previews
from ideoflow.training.progress import Log
from ideoflow.training.run import load_pipeline, prepare, train
from ideoflow.training.settings import Settings
from ideoflow.training.watch import Watcher

ALONE = Group(0, 1, torch.device("cpu"))
FILE = "diffusion_pytorch_model.safetensors"


def settings(pictures: Path, out: Path, **options) -> Settings:
    defaults = dict(data=str(pictures), out=str(out), cache=str(pictures / ".cache"), device="cpu", steps=2, tokens=600,
                    rank=2, lr=1e-2, warmup=0)  # fmt: skip
    return Settings.read(**defaults | options)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """The bundled transformer as one file of several forms."""
    folder = tmp_path_factory.mktemp("files")
    transformer = sketch.path() / "transformer"
    made = {"peer": folder / "peer.safetensors", "original": folder / "original.safetensors",
            "fp8": folder / "fp8.safetensors"}  # fmt: skip
    for form, path in made.items():
        convert(transformer, path, form)  # type: ignore[arg-type]
    prefixed = {f"model.diffusion_model.{name}": t for name, t in load_file(made["original"]).items()}
    save_file(prefixed, folder / "comfy.safetensors")
    return made | {"comfy": folder / "comfy.safetensors", "alone": transformer}


@pytest.mark.parametrize("form", ["peer", "original", "comfy", "alone"])
def test_a_transformer_alone_with_a_base_trains_as_the_folder_that_it_is_from(pictures, tmp_path, files, form):
    whole, single = (
        train(settings(pictures, tmp_path / name, **model))[0]
        for name, model in (("folder", {}), ("file", {"model": str(files[form]), "base": "sketch"}))
    )
    one, other = load_file(whole), load_file(single)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_weights_in_few_bits_are_expanded_where_they_are_trained(pictures, files):
    options = dict(model=str(files["fp8"]), base=str(sketch.path()))
    kept = load_pipeline(settings(pictures, Path("x"), **options), ALONE).transformer
    expanded = load_pipeline(settings(pictures, Path("x"), method="full", **options), ALONE).transformer
    for transformer, few in ((kept, True), (expanded, False)):
        kinds = {type(part).__name__ for part in transformer.modules()}
        assert ("Float8Linear" in kinds) == few
    assert all(p.dtype == torch.float32 for p in expanded.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "sketch"}, "`base` goes with a file.*; the sketch model has everything"),
        ({"model": "FOLDER", "base": "sketch"}, "`base` goes with a file.*sketch has everything"),
        ({"model": "runs/nowhere.gguf"}, "`model` runs/nowhere.gguf: there is no such"),
        ({"model": "./nowhere.safetensors"}, "`model` ./nowhere.safetensors: there is no such"),
        ({"model": "nowhere.gguf", "base": "sketch"}, "`model` nowhere.gguf: there is no such"),
        ({"model": "/no/such/folder"}, "`model` /no/such/folder: there is no such"),
        ({"model": "sketchh"}, "`model` sketchh: there is no such"),
        ({"model": "FILE", "base": "./nowhere"}, "`base` ./nowhere: there is no such"),
    ],
)
def test_models_that_are_not_there_are_named_without_asking_the_hub(pictures, tmp_path, files, options, message):
    options = {k: {"FOLDER": str(sketch.path()), "FILE": str(files["peer"])}.get(v, v) for k, v in options.items()}
    with pytest.raises(ValueError, match=message):
        load_pipeline(settings(pictures, tmp_path, **options), ALONE)


def test_a_caption_of_too_many_tokens_is_left_out_and_named(pictures, tmp_path):
    tokenizer = sketch.load().tokenizer
    longest = "word " * 3000
    while too_long(tokenizer, longest):
        longest = longest[: -max(1, len(longest) // 50)]
    over = longest
    while too_long(tokenizer, over) is None:
        over += " word"
    assert f"tokens; the model reads {MOST_TOKENS:,} at most" in too_long(tokenizer, over)

    data = tmp_path / "data"
    shutil.copytree(pictures, data, ignore=shutil.ignore_patterns(".cache"))
    sample(9).image.save(data / "long.png")
    (data / "long.txt").write_text(over)
    trainer = prepare(settings(data, tmp_path / "run"), ALONE)
    assert "long.png" not in {s.name for s in trainer.samples} and len(trainer.samples) == 8


def test_bad_examples_of_every_kind_end_no_run(pictures, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(pictures, data, ignore=shutil.ignore_patterns(".cache"))
    good = (data / "0.png").read_bytes()
    captions = {
        "digits": b'{"high_level_description": ' + b"1" * 4301 + b"}",
        "latin": "caf\xe9".encode("latin-1"),
        "deep": b"[" * 5000,
        "number": b"7",
    }
    for name, caption in captions.items():
        (data / f"{name}.png").write_bytes(good)
        (data / f"{name}.json").write_bytes(caption)
    with (data / "sparse.png").open("wb") as file:
        file.truncate(64 * 2**30)
    (data / "sparse.txt").write_text("sparse")
    (data / "zero.png").symlink_to("/dev/zero")
    (data / "zero.txt").write_text("zero")
    trainer = prepare(settings(data, tmp_path / "run"), ALONE)
    assert [s.name for s in trainer.samples] == [f"{index}.png" for index in range(8)]


def test_a_picture_that_changes_after_it_was_looked_at_is_named(pictures, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(pictures, data, ignore=shutil.ignore_patterns(".cache"))
    examples = scan(data).examples
    (data / "3.png").write_bytes(b"no picture")
    (data / "4.png").unlink()
    sample(5).image.resize((160, 160)).save(data / "5.png")
    for index, reason in ((3, "not a picture"), (4, "No such file"), (5, "160 x 160 pixels")):
        with pytest.raises(ValueError, match=rf"^{index}\.png has changed since it was looked at: .*{reason}"):
            examples[index].open()


class Wanderer(Watcher):
    """One who changes the working directory whenever he is told of something."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_survey(self, survey) -> None:
        os.chdir(self.folder)

    def on_begin(self, run) -> None:
        os.chdir(self.folder)

    def on_step(self, run, step) -> None:
        os.chdir(self.folder)


def test_a_watcher_that_changes_directory_moves_no_file_of_the_run(pictures, tmp_path, monkeypatch):
    """Relative paths are of the directory that the run began in."""
    home, away = tmp_path / "home", tmp_path / "away"
    shutil.copytree(pictures, home / "pictures", ignore=shutil.ignore_patterns(".cache"))
    away.mkdir()
    monkeypatch.chdir(home)
    options = settings(Path("pictures"), Path("runs/mine"), cache="", save_every=1, preview_every=1,
                       preview_size="96x96", preview_steps=1, previews=["a cup"])  # fmt: skip
    written = train(options, watchers=[Wanderer(away), Log(Path("runs/mine").absolute()), Previews(options)])
    assert not list(away.iterdir())
    run = home / "runs" / "mine"
    assert written and all(path.is_relative_to(run) and path.exists() for path in written)
    for name in ("train.toml", "log.jsonl", "cache", "checkpoints/step-0000002", "previews/all.png"):
        assert (run / name).exists(), name
    monkeypatch.chdir(home)
    assert train(options.model_copy(), resume=True, watchers=[Wanderer(away)]) == written
    assert not list(away.iterdir())
