"""`save_pretrained`: what it writes opens again and draws the same, or it refuses before it writes anything."""

from __future__ import annotations

import inspect
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor
from torchao.quantization import Int8WeightOnlyConfig
from transformers import BitsAndBytesConfig

from ideoflow import Caption, Ideogram4Pipeline, Ideogram4Transformer2DModel, sketch
from ideoflow.checkpoints import CheckpointError
from ideoflow.pipeline.qwen3_vl import Qwen3VLModel
from tests.thinned import thinned

from .forms import float8_rows, original_config, original_weights, write, write_config
from .forms_low_bit import four_bits, write_gguf
from .lora_files import peer_tensors

CAPTION = Caption.parse(Path(__file__).parents[2] / "examples" / "captions" / "heart.json").line()
BRANCHES = ("transformer", "unconditional_transformer")
FILE = "diffusion_pytorch_model.safetensors"


def latents(pipe: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    call = dict(height=96, width=96, num_inference_steps=1, guidance_schedule=(3.0,), output_type="latent")
    return pipe(CAPTION, generator=torch.Generator().manual_seed(3), max_sequence_length=224, **call).images.float()


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def stored(branch: str) -> dict[str, Tensor]:
    return load_file(sketch.path() / branch / FILE)


# Every form of a component


def original_form(folder: Path) -> Ideogram4Pipeline:
    shutil.copytree(sketch.path(), folder)
    for branch in BRANCHES:
        config = json.loads((folder / branch / "config.json").read_text())
        (folder / branch / FILE).unlink()
        write(folder / branch / "model.safetensors", original_weights(stored(branch)))
        write_config(folder / branch, original_config(config))
    return Ideogram4Pipeline.from_pretrained(folder)


def of_file(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], Ideogram4Pipeline]:
    def load(folder: Path) -> Ideogram4Pipeline:
        file = write(folder / "stored.safetensors", change(stored("transformer")))
        return Ideogram4Pipeline.from_single_file(file, config=sketch.path())

    return load


def of_gguf(folder: Path) -> Ideogram4Pipeline:
    folder.mkdir()
    file = write_gguf(folder / "stored.gguf", stored("transformer"))
    return Ideogram4Pipeline.from_single_file(file, config=sketch.path())


def changed(change: Callable[[Ideogram4Pipeline], Any], dtype: torch.dtype = torch.float32) -> Any:
    def load(folder: Path) -> Ideogram4Pipeline:
        pipe = sketch.load(dtype)
        change(pipe)
        return pipe

    return load


def text_encoder_in_four_bits(folder: Path) -> Ideogram4Pipeline:
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    encoder = Qwen3VLModel.from_pretrained(sketch.path() / "text_encoder", quantization_config=config)
    return Ideogram4Pipeline.from_pretrained(sketch.path(), text_encoder=encoder)


def of_torchao(folder: Path) -> Ideogram4Pipeline:
    config = diffusers.TorchAoConfig(Int8WeightOnlyConfig())
    transformer = Ideogram4Transformer2DModel.from_pretrained(sketch.path() / "transformer", quantization_config=config)
    return Ideogram4Pipeline.from_pretrained(sketch.path(), transformer=transformer)


def read_in_four_bits(folder: Path) -> Ideogram4Pipeline:
    text_encoder_in_four_bits(folder).save_pretrained(folder)
    return Ideogram4Pipeline.from_pretrained(folder)


def text_encoder_in_float8(folder: Path) -> Ideogram4Pipeline:
    shutil.copytree(sketch.path(), folder)
    file = folder / "text_encoder" / "model.safetensors"
    write(file, float8_rows(load_file(file), lambda name: "_proj." in name and "visual" not in name))
    return Ideogram4Pipeline.from_pretrained(folder)


def fused(pipe: Ideogram4Pipeline, unload: bool = True) -> None:
    pipe.load_lora_weights(peer_tensors(), adapter_name="style")
    pipe.fuse_lora()
    if unload:
        pipe.unload_lora_weights()


FORMS: dict[str, Callable[[Path], Ideogram4Pipeline]] = {
    "float32": changed(lambda pipe: None),
    "bfloat16": changed(lambda pipe: None, torch.bfloat16),
    "original names": original_form,
    "nf4": of_file(lambda weights: four_bits(weights)),
    "torchao": of_torchao,
    "text encoder in nf4": text_encoder_in_four_bits,
    "text encoder read in nf4": read_in_four_bits,
    "adapters merged and unloaded": changed(fused),
    "projections fused": changed(lambda pipe: pipe.fuse_projections()),
    "torch.compile's wrapper": changed(lambda pipe: setattr(pipe, "transformer", torch.compile(pipe.transformer))),
    "layerwise casting": changed(
        lambda pipe: pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    ),
}
NEED_A_GPU_THERE = () if torch.cuda.is_available() else ("nf4",)  # diffusers' loader
OURS_ALONE = {
    "fp8": changed(lambda pipe: pipe.quantize("fp8")),
    "text encoder in fp8": text_encoder_in_float8,
    "a file in fp8": of_file(lambda weights: float8_rows(weights, lambda name: name.startswith("layers."))),
}
KEPT = [
    "float32",
    "bfloat16",
    "nf4",
    "text encoder in nf4",
    "adapters merged and unloaded",
    "fp8",
    "text encoder in fp8",
]
REFUSED: dict[str, tuple[Callable[[Path], Ideogram4Pipeline], str]] = {
    "int8": (changed(lambda pipe: pipe.quantize("int8")), "int8 weights.*before `quantize`"),
    "GGUF": (of_gguf, "GGUF's blocks.*`dequantize=True`"),
    "adapters": (
        changed(lambda pipe: pipe.load_lora_weights(peer_tensors(), adapter_name="style")),
        r"adapters on its layers \(style\).*`fuse_lora\(\)` and then `unload_lora_weights\(\)`",
    ),
    "adapters merged": (changed(lambda pipe: fused(pipe, unload=False)), r"`transformer` has adapters.*style"),
    "adapters of the text encoder": (
        changed(lambda pipe: pipe.text_encoder.add_adapter(LoraConfig(target_modules=["q_proj"]))),
        "`text_encoder` has adapters",
    ),
    "offloaded": (
        changed(lambda pipe: cpu_offload(pipe.transformer, torch.device("cpu"))),
        r"not in memory, such as .*`remove_all_hooks\(\)`",
    ),
}


@pytest.mark.parametrize("form", thinned([*FORMS, *OURS_ALONE], KEPT))
def test_every_form_opens_again_and_draws_the_same(tmp_path, form):
    pipe = {**FORMS, **OURS_ALONE}[form](tmp_path / "source")
    pipe.save_pretrained(tmp_path / "saved")
    pipe.transformer = getattr(pipe.transformer, "_orig_mod", pipe.transformer)
    expected, dtype = latents(pipe), pipe.text_encoder.dtype

    again = latents(Ideogram4Pipeline.from_pretrained(tmp_path / "saved", dtype=dtype))

    assert (again - expected).abs().max() <= 1e-5 * expected.abs().max()
    refused = "no `quant_method`" if form in OURS_ALONE else "No GPU found" if form in NEED_A_GPU_THERE else None
    if refused:
        with pytest.raises((ValueError, RuntimeError), match=refused):
            diffusers.Ideogram4Pipeline.from_pretrained(tmp_path / "saved", dtype=dtype)
        return
    theirs = latents(diffusers.Ideogram4Pipeline.from_pretrained(tmp_path / "saved", dtype=dtype))
    assert (theirs - expected).abs().max() <= (5e-2 if dtype == torch.bfloat16 else 1e-4) * expected.abs().max()


@pytest.mark.parametrize("form", REFUSED)
def test_what_could_not_be_opened_is_refused_before_anything_is_written(tmp_path, form):
    make, message = REFUSED[form]
    pipe = make(tmp_path / "source")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match=message):
        pipe.save_pretrained(tmp_path / "saved" / "deep")
    if "text encoder" not in form:
        with pytest.raises(CheckpointError, match=message):
            pipe.transformer.save_pretrained(tmp_path / "saved")
    assert sorted(tmp_path.rglob("*")) == before


def test_pickles_are_not_written(tmp_path):
    pipe = sketch.load()
    for one in (pipe, pipe.transformer):
        with pytest.raises(CheckpointError, match=r"`safe_serialization` is False.*opens none"):
            one.save_pretrained(tmp_path / "saved", safe_serialization=False)
        with pytest.raises(CheckpointError, match="`use_flashpack`"):
            one.save_pretrained(tmp_path / "saved", use_flashpack=True)
    assert not list(tmp_path.iterdir())


def test_offloading_is_undone_by_removing_the_hooks(tmp_path):
    pipe = sketch.load()
    cpu_offload(pipe.transformer, torch.device("cpu"))
    pipe.remove_all_hooks()
    pipe.save_pretrained(tmp_path / "saved")
    again = load_file(tmp_path / "saved" / "transformer" / FILE)
    assert all(torch.equal(again[name], tensor.float()) for name, tensor in stored("transformer").items())


def test_the_signature_is_that_of_the_peer():
    """Names, kinds and defaults; ours has no other arguments here."""
    for ours, theirs in (
        (Ideogram4Pipeline, diffusers.Ideogram4Pipeline),
        (Ideogram4Transformer2DModel, diffusers.Ideogram4Transformer2DModel),
    ):
        found, expected = (
            [(p.name, p.kind, p.default) for p in inspect.signature(one.save_pretrained).parameters.values()]
            for one in (ours, theirs)
        )
        assert found == expected


# Where it is written


@pytest.fixture(scope="module")
def pipe() -> Ideogram4Pipeline:
    return sketch.load()


def test_a_folder_that_is_there_keeps_what_is_not_the_models(tmp_path, pipe):
    folder = tmp_path / "saved"
    (folder / "transformer").mkdir(parents=True)
    mine = {"notes.txt": b"mine", "transformer/mine.safetensors": b"also mine", "vae.txt": b"mine too"}
    for name, content in mine.items():
        (folder / name).write_bytes(content)
    (folder / "transformer" / FILE).write_bytes(b"older")
    pipe.save_pretrained(folder)
    found = files(folder)
    assert {name: found[name] for name in mine} == mine
    pipe.save_pretrained(tmp_path / "apart")
    assert {name: content for name, content in found.items() if name not in mine} == files(tmp_path / "apart")
    assert Ideogram4Pipeline.from_pretrained(folder) is not None


def test_weights_of_an_earlier_save_do_not_stay_beside_the_new_ones(tmp_path, pipe):
    """In shards before and whole now: readers would follow the old index. Another variant is left alone."""
    pipe.save_pretrained(tmp_path, max_shard_size="1MB")
    pipe.transformer.save_pretrained(tmp_path / "transformer", variant="fp16", max_shard_size="1MB")
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 4
    pipe.save_pretrained(tmp_path)
    left = [file.name for file in (tmp_path / "transformer").iterdir()]
    assert FILE in left and "config.json" in left and "diffusion_pytorch_model.safetensors.index.json" not in left
    assert {name.split(".")[1][:4] for name in left if name.startswith("diffusion") and name != FILE} <= {
        "fp16",
        "safe",
    }
    assert "diffusion_pytorch_model.safetensors.index.fp16.json" in left
    for variant in (None, "fp16"):
        again = Ideogram4Transformer2DModel.from_pretrained(tmp_path / "transformer", variant=variant)
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), pipe.transformer.parameters(), strict=True))


def test_a_pipeline_is_saved_over_the_folder_it_came_from(tmp_path):
    """Its weights are mapped from these files, and some are only read when it is saved."""
    shutil.copytree(sketch.path(), tmp_path / "model")
    before = files(tmp_path / "model")
    pipe = Ideogram4Pipeline.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    expected = latents(pipe)
    for _ in range(2):
        pipe.save_pretrained(tmp_path / "model")
    assert torch.equal(latents(pipe), expected)
    assert torch.equal(latents(Ideogram4Pipeline.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)), expected)
    assert files(tmp_path / "model").keys() == before.keys()


@pytest.mark.parametrize("place", [".", "inside/..", "link"])
def test_the_working_directory_and_links_stay_what_they_are(tmp_path, monkeypatch, pipe, place):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link").symlink_to(tmp_path / "there", target_is_directory=True)
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    pipe.transformer.save_pretrained(place)
    folder = tmp_path / ("there" if place == "link" else "here")
    assert Path("link").is_symlink() and os.path.samefile(".", tmp_path / "here")
    assert {file.name for file in folder.iterdir()} - {"link"} == {"config.json", FILE}


def test_a_pipeline_of_a_relative_path_is_saved_from_elsewhere(tmp_path, monkeypatch):
    shutil.copytree(sketch.path(), tmp_path / "model")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    pipe = Ideogram4Pipeline.from_pretrained("model")
    monkeypatch.chdir("elsewhere")
    pipe.save_pretrained("saved")
    assert Ideogram4Pipeline.from_pretrained("saved") is not None
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"is not there any more.*put it back"):
        pipe.save_pretrained("again")
    assert sorted(os.listdir()) == ["saved"]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a full disk: writing more into a file fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    "size", [100, 3_000_000, 8_000_000]
)  # fails in the first file, in the second model, in the last
@pytest.mark.parametrize("there", [False, True])
def test_a_full_disk_leaves_things_as_they_were(tmp_path, pipe, size, there):
    if there:
        pipe.transformer.save_pretrained(tmp_path / "saved")
        (tmp_path / "saved" / "notes.txt").write_text("mine")
    before = files(tmp_path)
    with (
        files_of_at_most(size),
        pytest.raises(CheckpointError, match=r"saved cannot be written: .*Nothing was changed\."),
    ):
        pipe.save_pretrained(tmp_path / "saved")
    assert files(tmp_path) == before and (there or not any(tmp_path.iterdir()))


def test_places_that_cannot_be_written_are_named_before_anything_is_done(tmp_path, pipe):
    (tmp_path / "file").write_text("a file")
    (tmp_path / "saved" / "model_index.json").mkdir(parents=True)
    (tmp_path / "saved" / "model_index.json" / "mine").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "deep", Path("/proc/ideoflow"), tmp_path / "saved"):
        with pytest.raises(CheckpointError, match=f"{place} cannot be written"):
            pipe.save_pretrained(place)
    assert files(tmp_path) == {"file": b"a file", "saved/model_index.json/mine": b"mine"}


def test_a_folder_that_appears_meanwhile_is_kept(tmp_path, pipe, monkeypatch):
    save = type(pipe.scheduler).save_pretrained

    def slow(self: Any, folder: str, **options: Any) -> None:
        save(self, folder, **options)
        (tmp_path / "saved").mkdir()
        (tmp_path / "saved" / "other").write_text("another's")

    monkeypatch.setattr(type(pipe.scheduler), "save_pretrained", slow)
    with pytest.raises(CheckpointError, match="exists already"):
        pipe.save_pretrained(tmp_path / "saved")
    assert files(tmp_path) == {"saved/other": b"another's"} and os.listdir(tmp_path) == ["saved"]
