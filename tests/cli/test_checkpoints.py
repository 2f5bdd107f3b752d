"""`ideoflow convert` and `ideoflow inspect`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from ideoflow import sketch
from ideoflow.cli import app


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
    result = run("convert", "original", "peer", "--to", "peer")
    assert result.stdout.strip() == "peer" and not result.stderr
    for file in sketch.path().rglob("*.safetensors"):
        before, after = load_file(file), load_file(tmp_path / "peer" / file.relative_to(sketch.path()))
        assert all(torch.equal(before[name], after[name]) for name in before) and before.keys() == after.keys()
    assert "exists: name another" in run("convert", "original", "peer", "--to", "peer", fails=2).output
    run("convert", "original", "peer", "--to", "peer", "--overwrite")


def test_what_a_conversion_loses_is_said():
    assert "rounded to fp8" in run("convert", "sketch", "fp8", "--to", "fp8").stderr
    said = run("convert", "fp8/transformer", "x.safetensors", "--to", "peer", "--dtype", "float32").stderr
    assert "fp8 is expanded to torch.float32, which is larger and no more precise" in said
    assert {t.dtype for t in load_file("x.safetensors").values()} == {torch.float32}


def test_a_pipeline_is_described():
    text = run("inspect", "sketch").stdout
    assert "language model 7.4 MB, vision tower 5.4 kB" in text and "form: peer" in text
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
    assert "form: peer, fp8" in run("inspect", "a/transformer").stdout
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


@pytest.mark.parametrize("command", ["inspect {}", "convert {} out --to peer"])
def test_what_cannot_be_read_is_said_in_a_line(command):
    Path("broken.safetensors").write_bytes(b'\x10\x00\x00\x00\x00\x00\x00\x00{"x": 1}')
    torch.save({"x": torch.randn(3)}, "model.safetensors")
    for name, message in (
        ("broken.safetensors", "is no whole safetensors file"),
        ("model.safetensors", "such files can run code when they are opened"),
        ("nothing", "there is no such file or folder"),
    ):
        arguments = (
            [command[0], name, *command[1:]] if command[0] == "inspect" else ["convert", name, "out", "--to", "peer"]
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
    run("convert", "b.safetensors", "c.safetensors", "--to", "peer-lora")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file("c.safetensors").items())

    save_file({**tensors, "transformer.layers.0.attention.norm_q.diff": torch.randn(64)}, "odd.safetensors")
    assert "norm_q.diff" in run("convert", "odd.safetensors", "d.safetensors", "--to", "comfy-lora", fails=2).stderr
    run("convert", "odd.safetensors", "d.safetensors", "--to", "comfy-lora", "--ignore-unknown")
    assert load_file("d.safetensors").keys() == load_file("b.safetensors").keys()
