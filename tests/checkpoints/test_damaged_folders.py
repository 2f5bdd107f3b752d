"""Damaged files of every component: one clear error that names the file, or the component as it was.

What no reader can tell from a whole file is a value that was exchanged for another of its kind: a number for a number.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ideoflow import Ideogram4Transformer2DModel
from ideoflow.checkpoints import CheckpointError
from ideoflow.checkpoints.folders import NEEDED, OPTIONAL, index_of, load_scheduler, load_tokenizer
from ideoflow.pipeline.autoencoder import Autoencoder
from ideoflow.pipeline.qwen3_vl import Qwen3VLModel
from ideoflow.text_encoder import tokenise

from .forms import small_folder
from .test_corrupt import limited

INDEX = "model_index.json"
IDS = torch.arange(5, 25)[None]


def index(folder: Path) -> object:
    found = index_of(folder)
    load_scheduler(folder, found)
    load_tokenizer(folder, found)
    return {key: found.get(key, [None, None]) for key in (*NEEDED, *OPTIONAL, "text_encoder_taps")}


def scheduler(folder: Path) -> object:
    made = load_scheduler(folder, index_of(folder))
    made.set_timesteps(sigmas=[0.9, 0.6, 0.3], device="cpu")
    return made.sigmas.tolist(), made.timesteps.tolist(), made.config.num_train_timesteps


def tokenizer(folder: Path) -> object:
    made = load_tokenizer(folder, index_of(folder))
    return tokenise(made, ['{"a":"Some words, and 0123 #FF8800 é"}', "other words"], 10**9)


def text_encoder(folder: Path) -> object:
    with torch.no_grad():
        return Qwen3VLModel.from_pretrained(folder / "text_encoder").language_model(IDS).last_hidden_state.tolist()


def autoencoder(folder: Path) -> object:
    made = Autoencoder.from_pretrained(folder / "vae")
    latents = torch.linspace(-1, 1, 8 * 4 * 4).view(1, 8, 4, 4)
    with torch.no_grad():
        picture = made.decode(latents).sample
    return picture.tolist(), made.bn.running_mean.tolist(), made.config.batch_norm_eps, made.config.patch_size


def transformer(name: str) -> Callable[[Path], object]:
    def load(folder: Path) -> object:
        made = Ideogram4Transformer2DModel.from_pretrained(folder / name, check=False)
        return {key: value for key, value in made.config.items() if not key.startswith("_")}

    return load


# The files, and what a component does, read from its folder.
FILES: dict[str, Callable[[Path], object]] = {
    INDEX: index,
    "scheduler/scheduler_config.json": scheduler,
    "tokenizer/tokenizer.json": tokenizer,
    "tokenizer/tokenizer_config.json": tokenizer,
    "tokenizer/chat_template.jinja": tokenizer,
    "text_encoder/config.json": text_encoder,
    "text_encoder/model.safetensors": text_encoder,
    "vae/config.json": autoencoder,
    "vae/diffusion_pytorch_model.safetensors": autoencoder,
    "transformer/config.json": transformer("transformer"),
    "unconditional_transformer/config.json": transformer("unconditional_transformer"),
}
ODD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 3, 1.5, 10**30, 1e300, float("nan"), float("inf"), "", "x", "\0", [], [1], [None],
    {}, {"a": 1}, [[1, 2]], "../../etc", "a" * 5000,
)  # fmt: skip
WHOLES = (
    b"", b"null", b"[]", b"3", b'"x"', b"{", b"{}", b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe\x00", b"\0" * 64,
    b" " * 2**21, b"<html>404</html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
)  # fmt: skip


def places(found: Any, path: tuple = ()) -> list[tuple]:
    """The paths of all values in a JSON document, but few of long lists and large objects."""
    below = (
        list(found.items()) if isinstance(found, dict) else list(enumerate(found)) if isinstance(found, list) else []
    )
    return [path, *(one for key, value in below[:40] for one in places(value, (*path, key)))]


def damaged(data: bytes, name: str, dice: random.Random) -> tuple[str, bytes]:
    """What was done to a file, and its bytes."""
    header = len(data) if not name.endswith(".safetensors") else 8 + int.from_bytes(data[:8], "little")
    at = dice.randrange(header)
    ways = ["cut", "flip", "insert", "lose", "whole"]
    if name.endswith(".json"):
        ways += ["value", "key lost", "key renamed"] * 2
    way = dice.choice(ways)
    if way == "cut":
        return f"cut at {at}", data[:at]
    if way == "flip":
        changed = bytearray(data)
        changed[at] ^= 1 << dice.randrange(8)
        return f"flip at {at}", bytes(changed)
    if way == "insert":
        return f"insert at {at}", data[:at] + dice.randbytes(dice.randint(1, 8)) + data[at:]
    if way == "lose":
        return f"lose at {at}", data[:at] + data[at + dice.randint(1, 8) :]
    if way == "whole":
        whole = dice.choice(WHOLES)
        return f"whole {whole[:20]!r}", whole
    found = json.loads(data)
    path = dice.choice([one for one in places(found) if one])
    *above, last = path
    parent = found
    for key in above:
        parent = parent[key]
    if way == "value" or isinstance(parent, list):
        parent[last] = dice.choice(ODD)
    elif way == "key lost":
        del parent[last]
    else:
        letter = dice.randrange(len(last)) if last else 0
        parent[last[:letter] + dice.choice("xyz_Q") + last[letter + 1 :]] = parent.pop(last)
    return f"{way} {path}", json.dumps(found).encode()


def same_kinds(a: Any, b: Any) -> bool:
    """Whether two documents differ in nothing but values exchanged for others of their kind."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_kinds(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same_kinds, a, b))
    numbers = (int, float)
    return type(a) is type(b) or (isinstance(a, numbers) and isinstance(b, numbers) and not isinstance(a, bool))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The bundled model's folder, with two of the text encoder's layers."""
    return small_folder(tmp_path_factory.mktemp("damage") / "model")


def damage_and_load(folder: Path, seeds: range) -> Counter[str]:
    """Damage one file after another, load its component, and count what came of it."""
    intact = {name: (load(folder), (folder / name).read_bytes()) for name, load in FILES.items()}
    counts: Counter[str] = Counter()
    for seed in seeds:
        name = list(FILES)[seed % len(FILES)]
        wanted, data = intact[name]
        file = folder / name
        what, changed = damaged(data, name, random.Random(seed))
        file.write_bytes(changed)
        try:
            with limited():
                found = FILES[name](folder)
        except CheckpointError as error:
            told = str(error)
            assert name in told or str(file.parent) in told, (seed, name, what, told)
            assert len(told) < 2500 and "trust_remote_code" not in told and "\n" not in told, (seed, name, what, told)
            counts["refused"] += 1
        except Exception as error:
            raise AssertionError((seed, name, what)) from error
        else:
            if found == wanted:
                counts["as it was"] += 1
            else:
                exchanged = name.endswith((".jinja", ".safetensors")) or same_kinds(
                    json.loads(data), json.loads(changed)
                )
                assert exchanged, (seed, name, what, "loaded in silence, and another component")
                counts["exchanged"] += 1
        finally:
            file.write_bytes(data)
    return counts


def test_damaged_files_of_every_component_are_named(whole):
    counts = damage_and_load(whole, range(66))
    assert sum(counts.values()) == 66 and counts["refused"] > 40, counts


@pytest.mark.long
def test_a_thousand_damaged_files_of_every_component_are_named(whole):
    counts = damage_and_load(whole, range(1000, 2000))
    print(counts)
    assert sum(counts.values()) == 1000 and counts["refused"] > 600, counts
