"""`ideoflow convert` and `ideoflow inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from PIL import Image, ImageChops
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from ideoflow import sketch
from ideoflow.cli import app

HEART = Path(__file__).parents[2] / "examples" / "captions" / "heart.json"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, fails: int = 0) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == fails, result.output
    assert "Traceback" not in result.output
    return result


def test_there_and_back(tmp_path):
    run("convert", "sketch", "original", "--to", "original")
    result = run("convert", "original", "peer", "--to", "diffusers")
    assert result.stdout.strip() == "peer" and not result.stderr
    for file in sketch.path().rglob("*.safetensors"):
        before, after = load_file(file), load_file(tmp_path / "peer" / file.relative_to(sketch.path()))
        assert all(torch.equal(before[name], after[name]) for name in before) and before.keys() == after.keys()
    assert "exists: name another" in run("convert", "original", "peer", "--to", "diffusers", fails=2).output
    run("convert", "original", "peer", "--to", "diffusers", "--overwrite")


def test_the_old_word_for_a_form_is_told_the_new_one(tmp_path):
    said = run("convert", "sketch", "new", "--to", "peer").stderr
    assert said.splitlines() == ["note: --to peer is called --to diffusers now"]
    assert "form: diffusers" in run("inspect", "new").stdout
    assert "peer" not in run("convert", "--help").stdout


def test_what_a_conversion_loses_is_said():
    assert "rounded to fp8" in run("convert", "sketch", "fp8", "--to", "fp8").stderr
    said = run("convert", "fp8/transformer", "x.safetensors", "--to", "diffusers", "--dtype", "float32").stderr
    assert "fp8 is expanded to torch.float32, which is larger and no more precise" in said
    assert {t.dtype for t in load_file("x.safetensors").values()} == {torch.float32}


def test_a_pipeline_is_described():
    text = run("inspect", "sketch").stdout
    assert "language model 7.4 MB, vision tower 5.4 kB" in text and "form: diffusers" in text
    found = json.loads(run("inspect", "sketch", "--json").stdout)
    weights = load_file(sketch.path() / "transformer" / "diffusion_pytorch_model.safetensors")
    described = found["components"]["transformer"]
    assert described["parameters"] == sum(t.numel() for t in weights.values())
    assert described["bytes"] == sum(t.numel() * 2 for t in weights.values())
    linear = sum(t.numel() + 4 * len(t) for n, t in weights.items() if _in_block(n))
    rest = sum(2 * t.numel() for n, t in weights.items() if not _in_block(n))
    assert described["memory"]["fp8"] == linear + rest
    left = found["components"]["unconditional_transformer"]["left_in_file"]["bfloat16"]
    assert left == 2 * (128 * 1664 + 128 + 1664)


def _in_block(name: str) -> bool:
    return name.startswith("layers.") and ("attention.to" in name or "feed_forward" in name)


def test_forms_are_named():
    run("convert", "sketch", "a", "--to", "fp8")
    run("convert", "a/transformer", "b.safetensors", "--to", "original")
    assert "form: diffusers, fp8" in run("inspect", "a/transformer").stdout
    assert json.loads(run("inspect", "b.safetensors", "--json").stdout)["form"] == "original"
    save_file({"transformer.layers.0.attention.to_q.lora_A.weight": torch.randn(4, 8)}, "lora.safetensors")
    found = json.loads(run("inspect", "lora.safetensors", "--json").stdout)
    assert (found["kind"], found["ranks"]) == ("adapter", {"4": 1})


def test_headers_alone_are_read():
    """A file whose data is not on the disk at all is described as quickly as any."""
    header = {"x": {"dtype": "F32", "shape": [2**16, 2**15], "data_offsets": [0, 2**33]}}
    text = json.dumps(header).encode()
    with open("sparse.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + 2**33)
    assert json.loads(run("inspect", "sparse.safetensors", "--json").stdout)["bytes"] == 2**33


@pytest.mark.parametrize("command", ["inspect {}", "convert {} out --to diffusers"])
def test_what_cannot_be_read_is_said_in_a_line(command):
    Path("broken.safetensors").write_bytes(b'\x10\x00\x00\x00\x00\x00\x00\x00{"x": 1}')
    torch.save({"x": torch.randn(3)}, "model.safetensors")
    for name, message in (
        ("broken.safetensors", "is no whole safetensors file"),
        ("model.safetensors", "such files can run code when they are opened"),
        ("nothing", "there is no such file or folder"),
    ):
        arguments = (
            [command[0], name, *command[1:]]
            if command[0] == "inspect"
            else ["convert", name, "out", "--to", "diffusers"]
        )
        assert message in run(*arguments, fails=2).stderr
    assert not Path("out").exists()


def test_adapters_go_there_and_back():
    tensors = {}
    for name in ("to_q", "to_k", "to_v"):
        tensors[f"transformer.layers.0.attention.{name}.lora_A.weight"] = torch.randn(4, 256)
        tensors[f"transformer.layers.0.attention.{name}.lora_B.weight"] = torch.randn(256, 4)
    save_file(tensors, "a.safetensors")
    run("convert", "a.safetensors", "b.safetensors", "--to", "comfy-lora")
    assert set(load_file("b.safetensors")) >= {"diffusion_model.layers.0.attention.qkv.lora_A.weight"}
    run("convert", "b.safetensors", "c.safetensors", "--to", "diffusers-lora")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file("c.safetensors").items())

    save_file({**tensors, "transformer.layers.0.attention.norm_q.diff": torch.randn(64)}, "odd.safetensors")
    assert "norm_q.diff" in run("convert", "odd.safetensors", "d.safetensors", "--to", "comfy-lora", fails=2).stderr
    run("convert", "odd.safetensors", "d.safetensors", "--to", "comfy-lora", "--ignore-unknown")
    assert load_file("d.safetensors").keys() == load_file("b.safetensors").keys()


def inspected(*arguments: str) -> dict[str, Any]:
    return json.loads(run("inspect", *arguments, "--json").stdout)


def adapters() -> dict[str, dict[str, torch.Tensor]]:
    """One layer's tensors of each kind of adapter."""
    start = "diffusion_model.layers.0.attention.o"
    pair = {f"{start}.lora_down.weight": torch.randn(4, 256), f"{start}.lora_up.weight": torch.randn(256, 4)}
    alpha = {f"{start}.alpha": torch.tensor(2.0)}
    return {
        "LoRA": pair,
        "DoRA": {**pair, **alpha, f"{start}.dora_scale": torch.randn(256, 1)},
        "LoKr": {
            f"{start}.lokr_w1": torch.randn(8, 8),
            f"{start}.lokr_w2_a": torch.randn(32, 3),
            f"{start}.lokr_w2_b": torch.randn(3, 32),
            **alpha,
        },
        "LoHa": {
            f"{start}.hada_{side}_{half}": torch.randn(*shape)
            for side in ("w1", "w2")
            for half, shape in (("a", (256, 5)), ("b", (5, 256)))
        },
    }


@pytest.mark.parametrize(("kind", "rank"), [("LoRA", "4"), ("DoRA", "4"), ("LoKr", "3"), ("LoHa", "5")])
def test_adapters_are_described(kind, rank):
    save_file(adapters()[kind], "a.safetensors", {"transformer.lora_alpha": "2"} if kind == "LoHa" else None)
    found = inspected("a.safetensors")
    assert (found["kind"], found["adapter"], found["ranks"]) == ("adapter", {kind: 1}, {rank: 1})
    where = {"LoRA": "1", "LoHa": "alpha in the header"}.get(kind, "alpha beside the weights")
    assert found["strength"] == where
    assert f"adapter: {kind} 1" in run("inspect", "a.safetensors").stdout


def test_pictures_are_drawn_with_lokr_and_loha():
    call = ["generate", str(HEART), "--size", "96x96", "--steps", "1", "--seed", "7", "--out"]
    run(*call, "bare.png")
    for kind in ("LoKr", "LoHa"):
        save_file({name: 4 * tensor for name, tensor in adapters()[kind].items()}, f"{kind}.safetensors")
        run(*call, f"{kind}.png", "--lora", f"{kind}.safetensors:0.8")
        assert Path(f"{kind}.png").read_bytes() != Path("bare.png").read_bytes()
        with Image.open(f"{kind}.png") as drawn, Image.open("bare.png") as bare:
            assert ImageChops.difference(drawn, bare).getbbox() is not None
        assert inspected(f"{kind}.png")["loras"][0]["scale"] == 0.8


def test_a_run_with_several_adapters_is_described():
    Path("run").mkdir()
    for name, kind in (("pytorch_lora_weights", "LoRA"), ("comfyui_lora", "LoKr")):
        save_file(adapters()[kind], f"run/{name}.safetensors")
    found = inspected("run")
    assert found["kind"] == "adapters"
    assert {name: one["adapter"] for name, one in found["components"].items()} == {
        "comfyui_lora.safetensors": {"LoKr": 1},
        "pytorch_lora_weights.safetensors": {"LoRA": 1},
    }
    text = run("inspect", "run").stdout
    assert "comfyui_lora.safetensors:\n  adapter: LoKr 1" in text


@pytest.mark.parametrize(("component", "kind"), [("text_encoder", "text encoder"), ("vae", "autoencoder")])
def test_a_text_encoder_and_an_autoencoder_are_told_by_their_names(component, kind):
    file = next((sketch.path() / component).glob("*.safetensors"))
    Path("odd.safetensors").symlink_to(file)
    for path in ("odd.safetensors", str(sketch.path() / component)):
        found = inspected(path)
        assert found["kind"] == kind and found["bytes"] > 0 and "note" not in found
    assert ("parts" in found) == (kind == "text encoder")


def test_a_gguf_file_takes_its_configuration():
    weights = load_file(sketch.path() / "transformer" / "diffusion_pytorch_model.safetensors")
    writer = gguf.GGUFWriter("a.gguf", "ideogram4")
    for name, tensor in weights.items():
        values = tensor.float().numpy()
        if name.startswith("layers.") and tensor.ndim == 2:
            packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "give `config`" in run("inspect", "a.gguf", fails=2).stderr
    for config in (sketch.path() / "transformer", sketch.path() / "transformer" / "config.json"):
        found = inspected("a.gguf", "--config", str(config))
        assert found["kind"] == "transformer" and "gguf" in found["form"]


def test_a_picture_is_described_by_its_settings():
    run("generate", str(HEART), "--size", "96x96", "--steps", "1", "--seed", "7", "--out", "heart.png")
    found = inspected("heart.png")
    assert (found["kind"], found["seed"], found["width"], found["steps"]) == ("picture", 7, 96, 1)
    text = run("inspect", "heart.png").stdout
    assert "model: sketch" in text and "seed: 7" in text and "caption: {" in text
    Image.new("RGB", (8, 8)).save("other.png")
    assert "carries no ideoflow settings" in run("inspect", "other.png", fails=2).stderr


def test_names_and_headers_are_shown_without_control_characters():
    """A terminal would take them for commands."""
    escape = "\x1b]0;owned\x07\x1b[2J\nline"
    tensors = {f"x{escape}": torch.randn(2)}
    save_file(tensors, "odd.safetensors", {"trigger": escape, escape: "value"})
    lora = {**adapters()["LoRA"], f"diffusion_model.{escape}.diff": torch.randn(2)}
    save_file(lora, "lora.safetensors", {"trigger": escape})
    Path("run").mkdir()
    for name in ("a", "b"):
        save_file(adapters()["LoRA"], f"run/{name}{escape.replace('/', '')}.safetensors")
    for arguments, fails in (
        (["inspect", "odd.safetensors"], 0),
        (["inspect", "lora.safetensors"], 0),
        (["inspect", "run"], 0),
        (["convert", "odd.safetensors", "out", "--to", "diffusers"], 2),
        (["convert", "lora.safetensors", "out.safetensors", "--to", "comfy-lora"], 2),
    ):
        result = run(*arguments, fails=fails)
        assert not {"\x1b", "\x07"} & set(result.output), arguments
        assert "\nline" not in result.output
