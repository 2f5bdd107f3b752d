"""A pipeline's folder: what its index names is there, nothing is fetched or run unasked, and errors say what to do."""

from __future__ import annotations

import json
import shutil
import socket
import time
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file

from ideoflow import Ideogram4Pipeline, Ideogram4Transformer2DModel, sketch
from ideoflow.checkpoints import CheckpointError, hub
from ideoflow.checkpoints.hub import check_id, find_lora
from ideoflow.pipeline.autoencoder import Autoencoder
from ideoflow.pipeline.qwen3_vl import Qwen3VLModel

from .forms import original_weights, write
from .test_components import draw

COMPONENTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "unconditional_transformer", "vae")


@pytest.fixture
def folder(tmp_path) -> Path:
    """The bundled model's folder, to be changed."""
    return Path(shutil.copytree(sketch.path(), tmp_path / "model"))


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return draw(sketch.load())


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def change_index(folder: Path, **entries: object) -> None:
    file = folder / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_that_the_index_names_is_missing(folder, name):
    shutil.rmtree(folder / name)
    with pytest.raises(CheckpointError, match=rf"{folder / name} is missing: .*model_index\.json names this component"):
        Ideogram4Pipeline.from_pretrained(folder)


@pytest.mark.parametrize("name", ["text_encoder", "transformer", "unconditional_transformer", "vae"])
def test_a_component_without_weights_or_configuration(folder, name):
    for file in list((folder / name).glob("*.safetensors")):
        file.unlink()
    with pytest.raises(OSError, match=rf"{folder / name}.*holds no weights") as error:
        Ideogram4Pipeline.from_pretrained(folder)
    assert isinstance(error.value, CheckpointError)
    shutil.copytree(sketch.path() / name, folder / name, dirs_exist_ok=True)
    (folder / name / "config.json").unlink()
    with pytest.raises(CheckpointError, match=str(folder / name)):
        Ideogram4Pipeline.from_pretrained(folder)


def test_the_index_may_say_that_there_is_no_unconditional_transformer(folder):
    shutil.rmtree(folder / "unconditional_transformer")
    change_index(folder, unconditional_transformer=[None, None])
    pipe = Ideogram4Pipeline.from_pretrained(folder)
    assert pipe.unconditional_transformer is None
    with pytest.raises(ValueError, match="has no `unconditional_transformer`, which guidance needs"):
        draw(pipe)


@pytest.mark.parametrize("name", ["scheduler", "text_encoder", "tokenizer", "transformer", "vae"])
def test_the_index_must_name_what_the_pipeline_needs(folder, name):
    change_index(folder, **{name: [None, None]})
    with pytest.raises(CheckpointError, match=f"names no '{name}', which the pipeline needs"):
        Ideogram4Pipeline.from_pretrained(folder)


def test_components_that_are_given_need_not_be_there(folder, picture):
    pipe = sketch.load()
    for name in COMPONENTS:
        shutil.rmtree(folder / name)
    again = Ideogram4Pipeline.from_pretrained(folder, **{name: getattr(pipe, name) for name in COMPONENTS})
    assert np.array_equal(draw(again), picture)


@pytest.mark.parametrize("index", [False, True], ids=["without an index", "with an index"])
@pytest.mark.parametrize("inside", [False, True], ids=["in the folder", "in transformer/"])
def test_a_folder_with_a_transformer_alone(tmp_path, picture, index, inside):
    """As distilled models are published. Everything else comes from another folder, as for files."""
    alone = tmp_path / "alone"
    shutil.copytree(sketch.path() / "transformer", alone / "transformer" if inside else alone)
    with pytest.raises(CheckpointError, match=r"holds a transformer alone: .*config=.*--base"):
        Ideogram4Pipeline.from_pretrained(alone)
    if index:
        shutil.copy(sketch.path() / "model_index.json", alone)
        change_index(alone, unconditional_transformer=[None, None])

    for load in (Ideogram4Pipeline.from_pretrained, Ideogram4Pipeline.from_single_file):
        pipe = load(alone, config=sketch.path())

        if index:
            assert pipe.unconditional_transformer is None
            pipe.unconditional_transformer = sketch.load().unconditional_transformer
        assert np.array_equal(draw(pipe), picture)


def test_a_folder_with_both_transformers_alone(tmp_path, picture):
    for branch in ("transformer", "unconditional_transformer"):
        shutil.copytree(sketch.path() / branch, tmp_path / "both" / branch)
    rest = Path(shutil.copytree(sketch.path(), tmp_path / "rest"))
    for file in (rest / "unconditional_transformer").iterdir():
        file.unlink()  # is not looked into
    pipe = Ideogram4Pipeline.from_pretrained(tmp_path / "both", config=rest)
    assert np.array_equal(draw(pipe), picture)


def test_config_is_for_folders_with_a_transformer_alone(folder):
    with pytest.raises(CheckpointError, match=r"holds no transformer alone, which `config` is for"):
        Ideogram4Pipeline.from_pretrained(folder, config=sketch.path())


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("sketchh", "Did you mean sketch"),
        ("sketch", ""),
        ("modle", "Did you mean model"),
        ("nothing-like-it", ""),
        ("models/ideogram4-nf", "Did you mean models/ideogram4-nf4"),
        ("a/b/c", ""),
        ("./x", ""),
        ("~/no such folder", ""),
        ("", ""),
    ],
)
def test_what_is_no_hub_id_is_never_looked_for_there(tmp_path, monkeypatch, no_network, name, near):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "models" / "ideogram4-nf4").mkdir(parents=True)
    for load in (
        Ideogram4Pipeline.from_pretrained,
        Ideogram4Transformer2DModel.from_pretrained,
        Qwen3VLModel.from_pretrained,
        Autoencoder.from_pretrained,
        lambda name: Ideogram4Pipeline.from_single_file(weights_file(), config=name),
    ):
        if name or load is Ideogram4Pipeline.from_pretrained:
            with pytest.raises(
                CheckpointError, match="there is no such folder here, and a hub id has the form"
            ) as error:
                load(name)
            assert near in str(error.value) and ("Did you mean" in str(error.value)) == bool(near)


def test_a_hub_id_beside_a_folder_of_another_model_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ideogram-ai" / "ideogram-4-nf4").mkdir(parents=True)
    check_id("ideogram-ai/ideogram-4-fp8")
    check_id("ideogram-ai/ideogram-4-nf4-diffusers")


def weights_file() -> Path:
    return sketch.path() / "transformer" / "diffusion_pytorch_model.safetensors"


def test_a_pipeline_from_a_hub_cache_without_a_network(hub_cache, no_network, picture):
    options = dict(cache_dir=hub_cache, local_files_only=True)

    pipe = Ideogram4Pipeline.from_pretrained("someone/sketch", **options)

    assert np.array_equal(draw(pipe), picture) and pipe.config._name_or_path == "someone/sketch"
    with pytest.raises(CheckpointError, match="as a hub id it cannot be fetched"):
        Ideogram4Pipeline.from_pretrained("someone/else", **options)
    (part,) = hub_cache.glob("*/snapshots/*/unconditional_transformer")
    shutil.rmtree(part)
    with pytest.raises(CheckpointError, match="unconditional_transformer is missing"):
        Ideogram4Pipeline.from_pretrained("someone/sketch", **options)


LOADS = {
    "lora": lambda pipe, name: pipe.load_lora_weights(name),
    "lora's file": lambda pipe, name: pipe.load_lora_weights(name, weight_name="a.safetensors"),
    "pipeline": lambda _, name: Ideogram4Pipeline.from_pretrained(name),
    "transformer": lambda _, name: Ideogram4Transformer2DModel.from_pretrained(name),
    "address": lambda _, name: Ideogram4Transformer2DModel.from_single_file(
        f"https://huggingface.co/{name}/blob/main/a.safetensors"
    ),
}


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_without_a_connection_what_was_asked_for_is_named(loaded_pipeline, monkeypatch, tmp_path, load):
    failure = type("ConnectError", (Exception,), {"__module__": "httpx2"})  # of no kind that huggingface_hub exports

    def unreachable(*_, **__):
        raise failure("[Errno -2] Name or service not known")

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    monkeypatch.setattr(Ideogram4Pipeline, "download", unreachable)
    monkeypatch.setattr(hub, "hf_hub_download", unreachable)
    with pytest.raises(CheckpointError, match=r"someone/style.*cannot be fetched \(ConnectError: .*not known\)"):
        load(loaded_pipeline, "someone/style")


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_a_way_to_the_hub_that_is_closed_is_not_waited_for(loaded_pipeline, monkeypatch, tmp_path, load):
    def closed(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    def wait(seconds):
        raise AssertionError(f"waits for {seconds} s to try again")

    monkeypatch.setattr(socket, "getaddrinfo", closed)
    monkeypatch.setattr(time, "sleep", wait)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"someone/style.*cannot be fetched"):
        load(loaded_pipeline, "someone/style")


@pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "heart.safetensors"])
@pytest.mark.parametrize("weight_name", [None, "its name"])
def test_an_adapter_from_a_hub_cache_without_a_connection(hub_cache, no_network, monkeypatch, name, weight_name):
    (snapshot,) = hub_cache.glob("*/snapshots/*")
    shutil.rmtree(snapshot)
    snapshot.mkdir()
    (snapshot / name).write_bytes(b"")

    def closed(*_, **__):
        raise ConnectionError("[Errno 111] Connection refused")

    monkeypatch.setattr(HfApi, "model_info", closed)
    options = {"cache_dir": str(hub_cache)}
    assert find_lora("someone/sketch", weight_name and name, None, options) == snapshot / name
    assert find_lora("someone/sketch", weight_name and name, None, options | {"local_files_only": True}).name == name
    with pytest.raises(CheckpointError, match=r"cannot be fetched .*Connection refused"):
        find_lora("someone/else", weight_name and name, None, options)


@pytest.mark.parametrize("argument", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("given", ["bfloat16", "bf16", "auto", {"transformer": torch.float16, "default": "float32"}])
def test_a_dtype_that_is_none_is_refused_where_diffusers_takes_float32(argument, given):
    with pytest.raises(ValueError, match=rf"`{argument}` is .*: give torch.float32, torch.bfloat16 or torch.float16"):
        Ideogram4Pipeline.from_pretrained(sketch.path(), **{argument: given})


def test_the_command_lines_name_of_the_bundled_model_is_answered_with_pythons(no_network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"sketch: .*Only the command line .*`ideoflow.sketch.path\(\)`") as error:
        Ideogram4Pipeline.from_pretrained("sketch")
    assert "Did you mean" not in str(error.value)


def test_a_file_is_not_a_folder():
    with pytest.raises(CheckpointError, match=r"is a file: load it with `from_single_file\(file, config=...\)`"):
        Ideogram4Pipeline.from_pretrained(weights_file())


def test_a_folder_without_a_tokenizer_says_so(folder):
    (folder / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=rf"{folder / 'tokenizer'} holds no tokenizer: it must have") as error:
        Ideogram4Pipeline.from_pretrained(folder)
    assert "trust_remote_code" not in str(error.value)
    shutil.copytree(sketch.path() / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    (folder / "tokenizer" / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match=rf"{folder / 'tokenizer'} holds no chat template"):
        Ideogram4Pipeline.from_pretrained(folder)


@pytest.mark.parametrize("name", ["text_encoder", "transformer", "unconditional_transformer", "vae"])
def test_nothing_is_unpickled(folder, name, monkeypatch):
    """Weights in a pickle are named, with what to do; torch's own reader of pickles is never asked."""

    def refuse(*args, **kwargs):
        raise AssertionError("something was unpickled")

    file = next((folder / name).glob("*.safetensors"))
    stem = "pytorch_model" if name == "text_encoder" else "diffusion_pytorch_model"
    torch.save(load_file(file), folder / name / f"{stem}.bin")
    file.unlink()
    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(CheckpointError, match=rf"{stem}\.bin is .*can run code .*Convert it to safetensors"):
        Ideogram4Pipeline.from_pretrained(folder)


def test_a_pickle_beside_safetensors_is_left_alone(folder, picture):
    for name in ("text_encoder", "vae"):
        (folder / name / "pytorch_model.bin").write_bytes(b"\x80\x02...")
    assert np.array_equal(draw(Ideogram4Pipeline.from_pretrained(folder)), picture)


@pytest.mark.parametrize(
    "option", [{"trust_remote_code": True}, {"custom_pipeline": "someone/code"}, {"use_safetensors": False}]
)
def test_arguments_that_would_run_code_are_refused(option):
    with pytest.raises(ValueError, match=rf"`{next(iter(option))}`"):
        Ideogram4Pipeline.from_pretrained(sketch.path(), **option)


CODE = """
import pathlib
pathlib.Path(__file__).with_name("it ran").touch()
class Mine: ...
"""


@pytest.mark.parametrize("name", COMPONENTS)
def test_code_that_comes_with_a_model_is_never_run(folder, name, monkeypatch):
    (folder / name / "mine.py").write_text(CODE)
    (folder / "mine.py").write_text(CODE)
    monkeypatch.syspath_prepend(folder)
    change_index(folder, **{name: ["mine", "Mine"]})
    with pytest.raises(CheckpointError, match="code that is no part of diffusers or transformers and is never run"):
        Ideogram4Pipeline.from_pretrained(folder)
    change_index(folder, **{name: ["diffusers", "Mine"]})
    with pytest.raises(CheckpointError, match=name):
        Ideogram4Pipeline.from_pretrained(folder)
    change_index(folder, _class_name=["mine", "Mine"])
    with pytest.raises(CheckpointError, match="whose code comes with its files is never run"):
        Ideogram4Pipeline.from_pretrained(folder)
    assert not list(folder.rglob("it ran"))


def test_code_that_a_configuration_names_is_never_run(folder):
    for name in ("tokenizer/tokenizer_config.json", "text_encoder/config.json"):
        (folder / name).with_name("mine.py").write_text(CODE)
        file = folder / name
        auto = {"AutoTokenizer": ["mine.Mine", None], "AutoModel": "mine.Mine", "AutoConfig": "mine.Mine"}
        file.write_text(json.dumps({**json.loads(file.read_text()), "auto_map": auto}))
    change_index(folder, tokenizer=["transformers", "AutoTokenizer"])
    with pytest.raises(CheckpointError, match=r"tokenizer"):
        Ideogram4Pipeline.from_pretrained(folder)
    shutil.copytree(sketch.path() / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    change_index(folder, tokenizer=["transformers", "TokenizersBackend"])
    Ideogram4Pipeline.from_pretrained(folder)
    assert not list(folder.rglob("it ran"))


def test_another_pipelines_folder_is_told(folder):
    change_index(folder, vae=["diffusers", "AutoencoderKL"])
    with pytest.raises(CheckpointError, match=r"'vae' is a diffusers\.AutoencoderKL, and this pipeline's is a"):
        Ideogram4Pipeline.from_pretrained(folder)


def test_a_variant_of_some_components_is_loaded_where_it_is_asked_for(folder, picture):
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file), file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    file.unlink()
    assert np.array_equal(draw(Ideogram4Pipeline.from_pretrained(folder, variant="fp16")), picture)
    with pytest.raises(OSError, match="pass variant='fp16'"):
        Ideogram4Pipeline.from_pretrained(folder)


def test_the_peer_reads_what_ours_wrote_after_each_way_of_loading(folder, tmp_path):
    """Whatever loaded it, the index names the classes by which other readers know them."""
    ours = Ideogram4Pipeline.from_pretrained(folder)
    ours.save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    before = json.loads((folder / "model_index.json").read_text())
    assert {key: index[key] for key in before} == before
    peer = diffusers.Ideogram4Pipeline.from_pretrained(tmp_path / "saved")
    for name in ("text_encoder", "transformer", "unconditional_transformer", "vae"):
        stored = load_file(next((sketch.path() / name).glob("*.safetensors")))
        found = getattr(peer, name).state_dict()
        assert all(torch.equal(found[key], tensor.float()) for key, tensor in stored.items())


def test_the_original_forms_file_in_a_folder_of_its_own(tmp_path, picture):
    """Its configuration comes from the folder that everything else comes from."""
    weights = original_weights(load_file(weights_file()))
    write(tmp_path / "alone" / "model.safetensors", weights)
    pipe = Ideogram4Pipeline.from_pretrained(tmp_path / "alone", config=sketch.path())
    assert np.abs(draw(pipe) - picture).max() <= 1


def test_the_index_of_a_whole_folder_is_not_taken_for_a_transformers_alone(folder):
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(CheckpointError, match=r"names no 'scheduler'.*give one") as error:
        Ideogram4Pipeline.from_pretrained(folder)
    assert "alone" not in str(error.value)


@pytest.mark.parametrize("limits", [[256], [1, 2, 3], [512, 256], [0, 256]])
def test_the_limits_of_sides_in_an_index_are_two(folder, limits):
    file = folder / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "side_limits": limits}))
    with pytest.raises(CheckpointError, match=r"'side_limits' is .*the smallest and the largest"):
        Ideogram4Pipeline.from_pretrained(folder)


@pytest.mark.parametrize(("name", "says"), [("dtpye", "did you mean `dtype`"), ("watermarker", "leave it out")])
def test_an_argument_that_there_is_none_of_is_refused_by_name(name, says):
    for load in (Ideogram4Pipeline.from_pretrained, Ideogram4Pipeline.from_single_file):
        with pytest.raises(TypeError, match=f"no argument `{name}`: {says}"):
            load(sketch.path(), **{name: torch.float16})


def test_a_component_that_there_is_none_of_may_be_left_out(folder):
    assert Ideogram4Pipeline.from_pretrained(folder, safety_checker=None, low_cpu_mem_usage=False)
