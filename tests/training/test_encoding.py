"""The cache: made once, found again while nothing it depends on changed, whole whoever dies while writing it."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time

import pytest
import torch

from ideoflow import sketch
from ideoflow.files import MACHINE
from ideoflow.latents import encode
from ideoflow.text_encoder import encode_captions
from ideoflow.training.cache import Store, fingerprint, key_of
from ideoflow.training.dataset import scan
from ideoflow.training.encoding import Encoder


@pytest.fixture(scope="module")
def pipeline():
    return sketch.load()


def test_samples_hold_what_the_encoders_give(pictures, pipeline, tmp_path):
    examples = scan(pictures).examples
    encoder = Encoder(pipeline, Store(tmp_path))
    seen = []
    encoder.encode(examples, lambda done, total, what: seen.append((done, total, what)), batch=3)
    assert (8, 8, "pictures") in seen and (8, 8, "captions") in seen
    for example, sample in zip(examples, encoder.samples(examples), strict=True):
        latents, text = sample.load()
        assert sample.name == example.name and sample.grid == (example.size[1] // 16, example.size[0] // 16)
        expected = encode(pipeline.vae, [example.open()])[0]
        assert latents.shape == (sample.grid[0] * sample.grid[1], 32) and latents.dtype == torch.float32
        assert (latents - expected).abs().max() <= 1e-4 * expected.abs().max()
        features = encode_captions(pipeline.text_encoder, pipeline.tokenizer, [example.caption], pipeline.taps)[0]
        projected = pipeline.transformer.project_text(features)
        assert len(text) == sample.text_tokens
        assert (text - projected).abs().max() <= 1e-4 * projected.abs().max()


def test_a_second_run_encodes_nothing(pictures, pipeline, tmp_path, monkeypatch):
    examples = scan(pictures).examples
    Encoder(pipeline, Store(tmp_path)).encode(examples)

    def refuse(*_args, **_options):
        raise AssertionError("encoded again")

    monkeypatch.setattr("ideoflow.training.encoding.encode", refuse)
    monkeypatch.setattr("ideoflow.training.encoding.encode_captions", refuse)
    again = Encoder(pipeline, Store(tmp_path))
    again.encode(examples)
    assert len(again.samples(examples)) == 8


def test_processes_share_the_work(pictures, pipeline, tmp_path):
    examples = scan(pictures).examples
    encoder = Encoder(pipeline, Store(tmp_path))
    encoder.encode(examples, rank=0, processes=2)
    first = len(list(tmp_path.glob("*/*.safetensors")))
    assert 0 < first < 16
    with pytest.raises(FileNotFoundError, match="encode it first"):
        encoder.samples(examples)
    encoder.encode(examples, rank=1, processes=2)
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 16 and len(encoder.samples(examples)) == 8


@pytest.mark.parametrize("part", ["vae.decoder", "text_encoder.language_model", "transformer.llm_cond_proj"])
def test_other_weights_make_other_keys(pictures, tmp_path, part):
    changed, examples = sketch.load(), scan(pictures).examples[:1]
    before = Encoder(changed, Store(tmp_path))
    keys = before._latent_key(examples[0]), before._text_key(examples[0])
    module = changed
    for name in part.split("."):
        module = getattr(module, name)
    with torch.no_grad():
        parameter = next(module.parameters())
        parameter.flatten()[0].add_(1.0)
    after = Encoder(changed, Store(tmp_path))
    latents_changed = after._latent_key(examples[0]) != keys[0]
    text_changed = after._text_key(examples[0]) != keys[1]
    assert (latents_changed, text_changed) == (part.startswith("vae"), not part.startswith("vae"))


def test_another_picture_size_or_caption_makes_another_key(pictures, pipeline, tmp_path):
    encoder = Encoder(pipeline, Store(tmp_path))
    large, small = scan(pictures).examples, scan(pictures, pixels=64 * 64).examples
    keys = {encoder._latent_key(example) for example in (*large, *small)}
    assert len(keys) == 16
    assert {encoder._text_key(a) for a in large} == {encoder._text_key(a) for a in small}
    assert len({encoder._text_key(a) for a in large}) == 8


def test_fingerprints_see_every_bit():
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 4)
    before = fingerprint(layer)
    assert before == fingerprint(layer) != fingerprint(layer, {"a": 1})
    layer.weight.data[3, 3] = torch.nextafter(layer.weight.data[3, 3], torch.tensor(9.0))
    assert fingerprint(layer) != before
    assert fingerprint(layer.bfloat16()) != fingerprint(layer.float())
    assert key_of("a", [1, 2]) == key_of("a", (1, 2)) != key_of("a", [2, 1])


def test_damaged_files_count_as_absent_and_are_made_anew(pictures, pipeline, tmp_path):
    examples = scan(pictures).examples[:2]
    encoder = Encoder(pipeline, Store(tmp_path))
    encoder.encode(examples)
    whole = {path: path.read_bytes() for path in tmp_path.glob("*/*.safetensors")}
    for number, (path, data) in enumerate(whole.items()):
        path.write_bytes((data[:-5], data[:9], b"", data + b"more")[number % 4])
        assert encoder.store.get(path.stem) is None and encoder.store.shapes(path.stem) is None
    encoder.encode(examples)
    assert {path: path.read_bytes() for path in whole} == whole


SAME = """
import random, sys, torch
from pathlib import Path
from ideoflow.training.cache import Store, key_of
store, keys = Store(Path(sys.argv[1])), list(range(60))
random.Random(sys.argv[2]).shuffle(keys)  # an order of its own for each process
for key in keys:
    store.put(key_of(key), {"a": torch.full((500,), float(key))})
"""


@pytest.fixture
def start(warm, tmp_path_factory):
    """A function that starts a program with arguments, as a process of its own."""
    script = tmp_path_factory.mktemp("script") / "script.py"

    def run(program: str, *arguments: object) -> subprocess.Popen:
        script.write_text(program)
        return subprocess.Popen([*warm, script, *map(str, arguments)], stdout=subprocess.PIPE)

    return run


def test_several_processes_fill_one_store(tmp_path, start):
    for process in [start(SAME, tmp_path, number) for number in range(4)]:
        assert process.wait() == 0
    store = Store(tmp_path)
    assert all(torch.equal(store.get(key_of(k))["a"], torch.full((500,), float(k))) for k in range(60))
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 60


ENDLESS = """
import sys, torch
from pathlib import Path
from ideoflow.training.cache import Store, key_of
store = Store(Path(sys.argv[1]))
print("begun", flush=True)
for number in range(10**6):
    key = number % 40
    store.put(key_of(key), {"a": torch.full((20_000,), float(key))})
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_only_whole_entries(tmp_path, start):
    draw = random.Random(1)
    for _ in range(6):
        process = start(ENDLESS, tmp_path)
        process.stdout.readline()
        time.sleep(draw.uniform(0.0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        store = Store(tmp_path)
        for key in range(40):
            tensors = store.get(key_of(key))
            assert tensors is None or torch.equal(tensors["a"], torch.full((20_000,), float(key)))
            assert tensors is not None or not store.path(key_of(key)).exists()
    assert any(store.path(key_of(key)).exists() for key in range(40))


def test_what_a_dead_process_left_of_a_file_goes_when_the_file_is_made(tmp_path):
    store = Store(tmp_path)
    path = store.path(key_of(1))
    path.parent.mkdir()
    left = path.with_name(f".{path.name}.{2**22 + 1}-0-{MACHINE}.partial")  # a process of that number cannot be
    left.write_bytes(b"half")
    store.put(key_of(1), {"a": torch.ones(3)})
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert json.dumps(store.shapes(key_of(1))) == '{"a": [3]}'
