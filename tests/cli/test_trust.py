"""Pictures made again from their files: the same where all is as it was, refused where a file asks for too much."""

import json
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from ideoflow import Ideogram4Pipeline, save_image, sketch
from ideoflow.cli import app, draw
from ideoflow.digests import digest_file, digest_model
from ideoflow.pictures import read_settings

CAPTION = '{"compositional_deconstruction":{"background":"plain red","elements":[]}}'
SMALL = ("--size", "96x96", "--steps", "1", "--seed", "5", "--device", "cpu")
BASE = {"caption": CAPTION, "seed": 5, "width": 96, "height": 96, "model": "sketch", "loras": [], "dtype": "float32"}
BASE |= {"device": "cpu", "preset": "V4_TURBO_12", "steps": 1, "guidance": 2.0}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be loaded, and no network be asked."""

    def loading(*arguments: object, **options: object) -> None:
        raise AssertionError("something was loaded")

    def reached(*arguments: object, **options: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(draw, "load", loading)
    monkeypatch.setattr(socket, "getaddrinfo", reached)
    monkeypatch.setattr(socket.socket, "connect", reached)


def run(*arguments: str | Path, fails: int = 0) -> Result:
    result = CliRunner().invoke(app, ["generate", *map(str, arguments)])
    assert result.exit_code == fails, (result.output, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def written(path: str, **changes: object) -> Path:
    image = Image.new("RGB", (96, 96))
    image.info["ideoflow"] = json.dumps(BASE | changes)
    return save_image(image, path)


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def make_lora(path: Path, seed: int = 0) -> Path:
    """An adapter of the bundled model that changes its pictures."""
    config = json.loads((sketch.path() / "transformer" / "config.json").read_text())
    width = config["attention_head_dim"] * config["num_attention_heads"]
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(config["num_layers"]):
        name = f"transformer.layers.{layer}.attention.to_q"
        tensors[f"{name}.lora_A.weight"] = torch.randn(4, width, generator=generator)
        tensors[f"{name}.lora_B.weight"] = torch.randn(width, 4, generator=generator)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


def test_a_picture_with_a_lora_is_made_again_from_another_folder_and_a_changed_lora_is_no_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make_lora(Path("loras/a.safetensors"))
    run(CAPTION, *SMALL, "--lora", "loras/a.safetensors:0.75", "--out", "a.png")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    refused = run("../a.png", "--out", "b.png", fails=2).stderr
    named = f"--lora {tmp_path / 'loras' / 'a.safetensors'}:0.75"
    assert f"../a.png says it was drawn with {named}." in refused and "--trust-settings" in refused
    run("../a.png", *named.split(), "--out", "b.png")
    run("../a.png", "--trust-settings", "--out", "c.png")
    assert Path("../a.png").read_bytes() == Path("b.png").read_bytes() == Path("c.png").read_bytes()

    make_lora(tmp_path / "loras" / "a.safetensors", seed=1)  # trained again
    assert "which has changed since: give --lora" in run("../a.png", "--trust-settings", fails=2).stderr
    warned = run("../a.png", *named.split(), "--out", "d.png").stderr
    assert "the --lora files are not those that ../a.png was drawn with, or have changed" in warned
    assert (pixels("d.png") != pixels("b.png")).any()
    shutil.rmtree(tmp_path / "loras")
    assert "which is missing here: name it with --lora" in run("../a.png", "--trust-settings", fails=2).stderr
    assert list(tmp_path.glob("outputs/**/*")) == []
    plain = run("../a.png", "--lora", "none", "--out", "e.png")
    assert "the --lora files are not those" in plain.stderr and (pixels("e.png") != pixels("b.png")).any()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "stranger/model"}, "--model stranger/model"),
        ({"model": "stranger/model", "model_digest": "commit:12"}, "--model stranger/model"),
        ({"model": "/etc/passwd"}, "--model /etc/passwd"),
        ({"model": "~/model"}, "--model"),
        ({"model": "https://host/a/b/resolve/main/x.safetensors"}, "--model https://host"),
        ({"model": "\\\\host\\share"}, "--model"),
        ({"model": "sketch/../../x"}, "--model sketch/../../x"),
        ({"model": ""}, "--model ''"),
        ({"base": "stranger/base"}, "--base stranger/base"),
        ({"loras": [{"path": "stranger/lora", "scale": 1}]}, "--lora stranger/lora:1"),
        ({"loras": [{"path": "lora", "scale": 1}]}, "--lora lora:1"),
        ({"loras": [{"path": "a; rm -rf ~", "scale": 0.5}]}, "--lora 'a; rm -rf ~:0.5'"),
        ({"loras": [{"path": "../a.safetensors", "scale": 1, "digest": "sha256:1"}]}, "--lora ../a.safetensors:1"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_a_file_opens_and_fetches_nothing_that_the_user_did_not_name(untouched, changes: dict, says: str):
    refused = run(written("a.png", **changes), fails=2).stderr
    assert says in refused and "--trust-settings" in refused
    assert list(Path().glob("outputs/**/*")) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"steps": 101}, "asks for 101 steps, and a file may ask for 1 to 100: give --steps"),
        ({"steps": 0}, "asks for 0 steps"),
        ({"steps": 10**30}, "give --steps"),
        ({"width": 2064}, "asks for 2064 x 96 pixels, and a file may ask for 2048 a side: give --size"),
        ({"height": 10**9}, "give --size"),
        ({"height": -16}, "give --size"),
        ({"seed": -1}, "a seed is below 2**64"),
        ({"seed": 2**64}, "a seed is below 2**64"),
        ({"seed": None}, "its file does not say its seed"),
        ({"device": "meta"}, "asks for the device 'meta': give --device"),
        ({"device": "cuda:1000"}, "give --device"),
        ({"model": None}, "does not say which model it was drawn with: give --model"),
        ({"unrepeatable": "its noise was given"}, "cannot be made again: its noise was given"),
        ({"model_digest": "sampled:0"}, "the bundled model of another version of ideoflow: give --model sketch"),
        ({"model_digest": "nonsense"}, "another version of ideoflow"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_what_a_file_may_not_ask_for_is_refused_before_anything_is_loaded(untouched, changes: dict, says: str):
    assert says in run(written("a.png", **changes), fails=2).stderr


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "/no/such/model", "model_digest": "sampled:1"}, "/no/such/model, which is missing here"),
        ({"model": "no/such"}, "no/such, which is missing here"),  # of before digests: a folder, or a stranger's id?
        ({"loras": [{"path": "no/such", "scale": 1}]}, "no/such, which is missing here"),
        ({"loras": [{"path": "/x.safetensors", "scale": 1, "digest": "sha256:1"}]}, "/x.safetensors, which is missing"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_a_trusted_file_that_names_what_is_missing_is_told_so(untouched, changes: dict, says: str):
    assert says in run(written("a.png", **changes), "--trust-settings", fails=2).stderr


def test_an_option_in_place_of_what_a_file_may_not_ask_for_is_followed(untouched):
    path = written("a.png", steps=500, width=4096, device="meta", unrepeatable="its noise was given")
    with pytest.raises(AssertionError, match="something was loaded"):
        CliRunner().invoke(app, ["generate", str(path), *SMALL], catch_exceptions=False)


def test_a_picture_of_before_digests_is_made_again():
    run(written("old.png"), "--out", "a.png")
    run(CAPTION, *SMALL, "--preset", "turbo", "--out", "b.png")
    np.testing.assert_array_equal(pixels("a.png"), pixels("b.png"))


def test_what_a_file_says_is_shown(untouched):
    told = CliRunner().invoke(app, ["generate", str(written("a.png"))]).stderr
    assert (
        "note: what a.png was drawn with: the bundled model, V4_TURBO_12, 1 steps, guidance 2, 96 x 96, seed 5" in told
    )


def test_another_model_than_the_files_is_said(tiny_folder: Path):
    path = written("a.png", model="/x", model_digest="sampled:1", loras=[{"path": "/y", "scale": 1}])
    result = run(path, *SMALL, "--model", tiny_folder, "--lora", "none", "--out", "b.png")
    assert f"{tiny_folder} is not what a.png was drawn with: this is another picture" in result.stderr


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_jpeg_and_webp_are_written_and_made_again(suffix: str):
    run(CAPTION, *SMALL, "--out", f"a.{suffix}")
    run(CAPTION, *SMALL, "--out", "folder", "--format", {"jpg": "jpeg"}.get(suffix, suffix))
    assert [path.suffix for path in Path("folder").iterdir()] == [f".{suffix}"]
    run(f"a.{suffix}", "--out", f"b.{suffix}")
    assert Path(f"a.{suffix}").read_bytes() == Path(f"b.{suffix}").read_bytes()
    run(CAPTION, *SMALL, "--out", f"c.{suffix}", "--no-metadata")
    assert "carries no ideoflow settings" in run(f"c.{suffix}", fails=2).stderr


# Digests


def test_the_digest_of_a_model_knows_every_component_and_nothing_beside(tmp_path: Path, tiny_folder: Path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_folder, copy)
    before = digest_model(tiny_folder)
    assert digest_model(copy) == before
    (copy / "README.md").write_text("about")
    (copy / "transformer" / ".cache").write_text("hidden")
    assert digest_model(copy) == before
    seen = {before}
    for file in sorted(copy.rglob("*.json")) + sorted(copy.rglob("*.safetensors")):
        kept = file.read_bytes()
        file.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        seen.add(digest_model(copy))
        file.write_bytes(kept)
    assert len(seen) == 1 + len([*copy.rglob("*.json"), *copy.rglob("*.safetensors")])


def test_the_digest_of_a_large_file_sees_training_its_header_and_its_end(tmp_path: Path):
    path, data = tmp_path / "a.safetensors", bytearray(b"\x5a" * 2**23)
    path.write_bytes(data)
    before = digest_model(path)
    for change in (range(10, 11), range(2**23 - 1, 2**23), range(2**20, 2**23, 64)):
        other = bytearray(data)
        for at in change:
            other[at] ^= 1
        path.write_bytes(other)
        assert digest_model(path) != before
    path.write_bytes(data + b"\x5a")
    assert digest_model(path) != before
    assert digest_file(path) != digest_model(path)


# From Python


@pytest.fixture(scope="module")
def pipe() -> Ideogram4Pipeline:
    pipe = sketch.load()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def kept(pipe: Ideogram4Pipeline, **arguments: object) -> list[dict]:
    options = {"size": (96, 96), "preset": "V4_TURBO_12", "num_inference_steps": 1, "guidance_scale": 2.0}
    images = pipe(**({"prompt": CAPTION} | options | arguments)).images
    return [json.loads(image.info["ideoflow"]) for image in images]


def fresh(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_a_picture_saved_from_python_is_made_again_by_the_command(pipe: Ideogram4Pipeline):
    for number, own in enumerate(
        (
            {"preset": "V4_TURBO_12", "num_inference_steps": 2},
            {"num_inference_steps": 3, "guidance_scale": 4, "guidance_schedule": None},
        )
    ):
        image = pipe(CAPTION, size=(96, 112), generator=fresh(7)[0], **own).images[0]
        save_image(image, f"{number}.png")
        run(f"{number}.png", "--out", f"{number}-again.png")
        np.testing.assert_array_equal(pixels(f"{number}-again.png"), np.asarray(image))


def test_a_picture_with_a_lora_saved_from_python_is_made_again(pipe: Ideogram4Pipeline, tmp_path: Path):
    path = make_lora(tmp_path / "b.safetensors")
    pipe.load_lora_weights(path, adapter_name="x")
    pipe.set_adapters(["x"], [0.3])
    try:
        image = pipe(CAPTION, size=(96, 96), preset="V4_TURBO_12", num_inference_steps=2, generator=fresh(7)[0]).images[
            0
        ]
        save_image(image, "a.webp")
        pipe.set_adapters(["x"], [{"transformer": {"layers.0": 0.5}}])
    except (TypeError, ValueError):
        pass
    finally:
        pipe.unload_lora_weights()
    run("a.webp", "--trust-settings", "--out", "again.png")
    np.testing.assert_array_equal(pixels("again.png"), np.asarray(image))
    assert kept(pipe, generator=fresh(1))[0]["loras"] == []


def test_a_picture_with_lokr_is_made_again(pipe: Ideogram4Pipeline, tmp_path: Path):
    width = pipe.transformer.config.attention_head_dim * pipe.transformer.config.num_attention_heads
    name = "diffusion_model.layers.0.attention.qkv"
    factors = {f"{name}.lokr_w1": torch.randn(3, 1), f"{name}.lokr_w2": torch.randn(width, width) / 4}
    save_file(factors, tmp_path / "k.safetensors")
    run(CAPTION, *SMALL, "--lora", "k.safetensors:0.7", "--out", "a.png")
    assert read_settings("a.png")["loras"][0]["scale"] == 0.7 and read_settings("a.png")["unrepeatable"] is None
    run("a.png", "--trust-settings", "--out", "b.png")
    np.testing.assert_array_equal(pixels("a.png"), pixels("b.png"))


def test_each_of_several_generators_is_a_seed_and_one_for_all_is_none(pipe: Ideogram4Pipeline):
    assert [one["seed"] for one in kept(pipe, num_images_per_prompt=2, generator=fresh(3, 4))] == [3, 4]
    shared = kept(pipe, num_images_per_prompt=2, generator=fresh(3)[0])
    assert all(one["seed"] is None and "fresh generator" in one["unrepeatable"] for one in shared)


def cases(pipe: Ideogram4Pipeline) -> dict[str, tuple[dict, str]]:
    used = fresh(3)[0]
    torch.randn(1, generator=used)
    noise = torch.randn(1, 36, pipe.transformer.config.in_channels)

    def stop(pipe, step, time, tensors):
        pipe._interrupt = True
        return tensors

    return {
        "no generator": ({}, "fresh generator"),
        "a used generator": ({"generator": used}, "fresh generator"),
        "noise": ({"latents": noise}, "its noise was given"),
        "a callback": ({"generator": fresh(1), "callback_on_step_end": lambda *_: None}, "a callback"),
        "attention_kwargs": ({"generator": fresh(1), "attention_kwargs": {"scale": 0.5}}, "attention_kwargs"),
        "schedule": ({"generator": fresh(1), "mu": 0.3}, "schedule is that of no preset"),
        "stopped": (
            {
                "generator": fresh(1),
                "num_inference_steps": 3,
                "callback_on_step_end": stop,
                "callback_on_step_end_tensor_inputs": [],
            },
            "stopped before its last step",
        ),
    }


@pytest.mark.parametrize(
    "case",
    ["no generator", "a used generator", "noise", "a callback", "attention_kwargs", "schedule", "stopped"],
)
def test_what_cannot_be_made_again_says_why(pipe: Ideogram4Pipeline, case: str):
    arguments, why = cases(pipe)[case]
    assert why in kept(pipe, **arguments)[0]["unrepeatable"]


def test_a_pipeline_that_is_not_what_its_files_make_says_so(tmp_path: Path, tiny_folder: Path):
    from diffusers import FlowMatchEulerDiscreteScheduler

    def why(pipe: Ideogram4Pipeline) -> str | None:
        pipe.set_progress_bar_config(disable=True)
        return kept(pipe, size=(32, 32), generator=fresh(1))[0]["unrepeatable"]

    pipe = Ideogram4Pipeline.from_pretrained(tiny_folder)
    assert why(pipe) is None
    assert why(Ideogram4Pipeline(**pipe.components)) == "its pipeline was put together in Python"
    other = Ideogram4Pipeline.from_pretrained(tiny_folder, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
    assert why(other) == "the pipeline was loaded with `scheduler`"
    weights = load_file(make_tiny_lora(pipe, tmp_path / "a.safetensors"))
    pipe.load_lora_weights(weights, adapter_name="given")
    assert why(pipe) == "its adapter 'given' was loaded from no file"
    pipe.unload_lora_weights()
    pipe.load_lora_weights(tmp_path / "a.safetensors", adapter_name="filed")
    assert why(pipe) is None
    pipe.fuse_lora()
    assert why(pipe) == "an adapter was fused into the weights"
    pipe.unload_lora_weights()
    assert why(pipe) == "an adapter was fused into the weights"
    pipe = Ideogram4Pipeline.from_pretrained(tiny_folder)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert why(pipe) == "the pipeline's scheduler was replaced"


def make_tiny_lora(pipe: Ideogram4Pipeline, path: Path) -> Path:
    width = pipe.transformer.config.attention_head_dim * pipe.transformer.config.num_attention_heads
    name = "transformer.layers.0.attention.to_q"
    save_file({f"{name}.lora_A.weight": torch.randn(2, width), f"{name}.lora_B.weight": torch.randn(width, 2)}, path)
    return path
