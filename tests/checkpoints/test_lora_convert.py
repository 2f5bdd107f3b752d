"""LoRA files from one form to the other and back: the same change, the same ranks; and the file that is written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ideoflow.checkpoints import CheckpointError
from ideoflow.checkpoints.lora import Adapter, Lora, read_lora
from ideoflow.checkpoints.lora_convert import convert_lora, to_comfy, to_diffusers
from ideoflow.checkpoints.lora_strength import HEADER

from .lora_files import CONFIG, FORMS, HIDDEN, Header, Tensors, apart, original, peer_tensors, spelled, write

TYPES = [torch.bfloat16, torch.float16, torch.float32]
ALPHAS = [None, 1.0, 0.1, 4.0, 1e-3]


def values(generator: torch.Generator, rows: int, columns: int, dtype: torch.dtype, zeros: str) -> Tensor:
    """Random numbers; with some, or all, or negative zeros among them where `zeros` says so."""
    tensor = torch.randn(rows, columns, generator=generator).to(dtype)
    if zeros == "all":
        return torch.zeros_like(tensor)
    if zeros == "column":
        tensor[:, 0] = 0
    if zeros == "row":
        tensor[-1] = 0
    if zeros == "negative":
        tensor[0, -1] = -0.0
    return tensor


@st.composite
def peers(draw: Any) -> tuple[Tensors, Header]:
    """Files in diffusers' form: some of the layers, any ranks, equal or different `lora_A`, a header or none.

    q, k and v are trained: where one is zero, its rank cannot be told from the others' in every case.
    """
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    width, found, alphas = 4, {}, {}
    dtype = draw(st.sampled_from(TYPES))
    mixed = draw(st.booleans()) and draw(st.booleans())
    attention, other = ["to_q", "to_k", "to_v"], ["attention.to_out.0", "feed_forward.w1", "adaln_modulation"]
    for number in range(draw(st.integers(1, 2))):
        chosen = draw(st.sets(st.sampled_from(attention + other), min_size=1))
        shared = draw(st.booleans())
        rank, alpha = draw(st.integers(1, 4)), draw(st.sampled_from(ALPHAS))
        together = values(generator, rank, width, dtype, draw(st.sampled_from(["", "row"])))
        for last in sorted(chosen):
            name = f"layers.{number}." + (f"attention.{last}" if last in attention else last)
            if last in attention and shared:
                own, down = rank, together
            else:
                own = draw(st.integers(1, 4))
                down = values(generator, own, width, draw(st.sampled_from(TYPES)) if mixed else dtype, "")
            zeros = draw(st.sampled_from(["", "negative"] if last in attention else ["", "all", "column"]))
            up = values(generator, width, own, draw(st.sampled_from(TYPES)) if mixed else dtype, zeros)
            found[f"transformer.{name}.lora_A.weight"] = down.clone()
            found[f"transformer.{name}.lora_B.weight"] = up
            alphas[name] = (own, None if alpha is None else alpha * own)  # the same strength for q, k and v
    header = {"trigger": "sks", "ss_tag": "ü"}
    if draw(st.booleans()):
        peft = {"r": 1, "lora_alpha": 1, "rank_pattern": {name: rank for name, (rank, _) in alphas.items()}}
        peft["target_modules"] = sorted(alphas)
        peft["alpha_pattern"] = {name: rank if alpha is None else alpha for name, (rank, alpha) in alphas.items()}
        header[HEADER] = json.dumps({f"transformer.{key}": value for key, value in peft.items()} | {"other": 1})
    return found, header


@st.composite
def comfies(draw: Any) -> tuple[Tensors, Header]:
    """Files in ComfyUI's form: dense or block-diagonal qkv, some with zero columns, alphas of any type and shape."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    width, found = 4, {}
    dtype, alpha = draw(st.sampled_from(TYPES)), draw(st.sampled_from(ALPHAS))
    for number in range(draw(st.integers(1, 2))):
        for last in draw(st.sets(st.sampled_from(["attention.qkv", "attention.o", "feed_forward.w2"]), min_size=1)):
            rank = draw(st.integers(1, 6))
            down = values(generator, rank, width, dtype, draw(st.sampled_from(["", "row"])))
            rows = 3 * width if last.endswith("qkv") else width
            up = values(generator, rows, rank, dtype, draw(st.sampled_from(["", "all", "column", "negative"])))
            kind = draw(st.sampled_from(["dense", "blocks", "scattered", "padded"]))
            if last.endswith("qkv") and kind != "dense":
                owner = torch.randint(0, 3, (rank,), generator=generator)
                owner = owner if kind == "scattered" else owner.sort().values
                up = torch.where(torch.arange(rows)[:, None] // width == owner, up, torch.zeros_like(up))
            if kind == "padded":
                down[-1], up[:, -1] = 0, 0
            name = f"diffusion_model.layers.{number}.{last}"
            found[f"{name}.lora_A.weight"], found[f"{name}.lora_B.weight"] = down, up
            if alpha is not None and draw(st.booleans()):
                shape = draw(st.sampled_from([(), (1,)]))
                found[f"{name}.alpha"] = torch.full(shape, alpha, dtype=draw(st.sampled_from([*TYPES, torch.float64])))
    return found, {"trigger": "sks"}


def converted(folder: Path, found: tuple[Tensors, Header], *forms: str) -> tuple[Tensors, Header]:
    """Through `convert_lora`, from form to form."""
    tensors, header = found
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "0.safetensors", header)
    for number, form in enumerate(forms):
        convert_lora(folder / f"{number}.safetensors", folder / f"{number + 1}.safetensors", form, overwrite=True)
    with safe_open(folder / f"{len(forms)}.safetensors", "pt") as file:
        return load_file(folder / f"{len(forms)}.safetensors"), file.metadata()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("converted")


def change(lora: Lora) -> dict[str, Tensor]:
    """What the adapters add to each weight of the peer's names, in float64."""
    found = {}
    for name, adapter in lora.layers.items():
        up = adapter.up.double() * adapter.scale
        if name.endswith("qkv"):
            for one, rows in zip(("to_q", "to_k", "to_v"), up.chunk(3), strict=True):
                found[name.replace("qkv", one)] = rows @ adapter.down.double()
        else:
            found[name.replace("attention.o", "attention.to_out.0")] = up @ adapter.down.double()
    return found


def assert_same_change(one: Lora, other: Lora) -> None:
    ours, theirs = change(one), change(other)
    for name in ours.keys() | theirs.keys():
        known = ours.get(name, theirs.get(name))
        a, b = (found.get(name, torch.zeros_like(known)) for found in (ours, theirs))
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def ranks(lora: Lora) -> dict[str, int]:
    return {name: adapter.rank for name, adapter in lora.layers.items()}


@settings(max_examples=120, deadline=None)
@given(found=peers())
def test_diffusers_form_comes_back_with_the_same_change_and_the_same_ranks(place, found):
    _, header = converted(place, found, "comfy-lora", "diffusers-lora")
    before, comfy, after = (read_lora(place / f"{number}.safetensors") for number in range(3))
    assert ranks(after) == ranks(before)
    assert comfy.form == "comfy" and HEADER not in comfy.metadata
    assert not any(name.endswith((".to_q", ".to_k", ".to_v", ".to_out.0")) for name in comfy.layers)
    assert_same_change(before, comfy)
    assert_same_change(before, after)
    assert {"trigger": "sks", "ss_tag": "ü"}.items() <= header.items()
    assert not any(key.startswith("ideoflow") for key in (*header, *comfy.metadata))


@settings(max_examples=120, deadline=None)
@given(found=comfies())
def test_comfyuis_form_comes_back_with_the_same_change_and_the_same_ranks(place, found):
    _, header = converted(place, found, "diffusers-lora", "comfy-lora")
    before, apart, after = (read_lora(place / f"{number}.safetensors") for number in range(3))
    assert ranks(after) == ranks(before)
    assert header == {"format": "pt"} | found[1]
    assert apart.form == "diffusers" and not any(name.endswith(".alpha") for name in load_file(place / "1.safetensors"))
    assert_same_change(before, apart)
    assert_same_change(before, after)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("to", ["comfy-lora", "diffusers-lora"])
def test_every_form_is_converted_with_its_strength(tmp_path, form, to):
    parts = original(alpha=2.5)
    source = write(tmp_path, form, parts)
    made = convert_lora(source, tmp_path / "new.safetensors", to)
    again = read_lora(tmp_path / "new.safetensors", CONFIG)
    assert again.form == to.removesuffix("-lora") == made.form
    assert_same_change(again, read_lora(write(tmp_path / "b", "comfy", parts)))
    header = FORMS[form](parts)[1]
    assert {key: value for key, value in header.items() if key != HEADER}.items() <= again.metadata.items()


def test_a_block_diagonal_falls_apart_and_a_shared_down_stays_shared():
    comfy = read_lora(spelled(original(blocks=True), "diffusion_model."))
    assert {a.rank for name, a in to_diffusers(comfy).layers.items() if ".to_q" in name} == {2}
    shared = to_diffusers(read_lora(spelled(original(), "diffusion_model.")))
    assert {a.rank for name, a in shared.layers.items() if ".to_q" in name} == {6}
    assert to_comfy(shared).layers["layers.0.attention.qkv"].rank == 6


@pytest.mark.parametrize("shared", [True, False])
def test_an_adapter_that_was_never_trained_keeps_its_ranks(shared):
    """Its `lora_B` is zero, so that no zeros tell where a block ends."""
    tensors = {}
    for last in ("to_q", "to_k", "to_v"):
        name = f"transformer.layers.0.attention.{last}"
        tensors[f"{name}.lora_A.weight"] = torch.ones(4, 8) if shared else torch.randn(4, 8)
        tensors[f"{name}.lora_B.weight"] = torch.zeros(8, 4)
    before = read_lora(tensors)
    after = to_diffusers(to_comfy(before))
    assert ranks(after) == ranks(before)
    assert torch.equal(after.layers["layers.0.attention.to_k"].down, before.layers["layers.0.attention.to_k"].down)


def test_a_part_that_has_no_adapter_adds_no_rank():
    tensors = {key: tensor for key, tensor in peer_tensors().items() if "to_k" not in key}
    tensors["transformer.layers.0.attention.to_q.lora_A.weight"] += 1  # no longer shared
    comfy = to_comfy(read_lora(tensors))
    assert comfy.layers["layers.0.attention.qkv"].rank == 12
    assert comfy.layers["layers.0.attention.qkv"].up[HIDDEN : 2 * HIDDEN].count_nonzero() == 0
    assert ranks(to_diffusers(comfy)) == ranks(read_lora(tensors))
    assert_same_change(to_diffusers(comfy), read_lora(tensors))


def test_padding_of_older_files_stays_and_changes_nothing():
    """Files of one rank for all layers, filled up with zeros."""
    padded = {}
    for name, tensor in spelled(original(alpha=None, blocks=True), "diffusion_model.").items():
        missing = 9 - (tensor.shape[0] if "lora_A" in name else tensor.shape[1])
        padded[name] = torch.nn.functional.pad(tensor, (0, 0, 0, missing) if "lora_A" in name else (0, missing))
    before = read_lora(padded)
    after = to_comfy(to_diffusers(before))
    assert set(ranks(after).values()) == {9}
    assert_same_change(to_diffusers(before), before)
    assert_same_change(after, before)


@pytest.mark.parametrize("alphas", [(1.0, 1.5, -4.0), (3.0, 0.1, 1e-3), (0.0, 2.0, 0.0), (0.0, 0.0, 0.0)])
def test_different_strengths_of_q_k_and_v_become_one(alphas):
    tensors = {}
    for last, alpha in zip(("to_q", "to_k", "to_v"), alphas, strict=True):
        name = f"transformer.layers.0.attention.{last}"
        tensors[f"{name}.lora_down.weight"] = torch.randn(3, 8).bfloat16()
        tensors[f"{name}.lora_up.weight"] = torch.randn(8, 3).bfloat16()
        tensors[f"{name}.alpha"] = torch.tensor(alpha, dtype=torch.float64)
    lora = read_lora(tensors)
    comfy = to_comfy(lora)
    assert_same_change(lora, comfy)
    assert_same_change(lora, to_diffusers(comfy))
    assert ranks(to_diffusers(comfy)) == ranks(lora)


def test_the_old_word_for_the_form_of_diffusers_is_told_the_new_one(tmp_path):
    with pytest.warns(FutureWarning, match="'peer-lora' is called 'diffusers-lora' now"):
        convert_lora(write(tmp_path, "comfy", original()), tmp_path / "new.safetensors", "peer-lora")
    assert read_lora(tmp_path / "new.safetensors").form == "diffusers"


# The file that is written


def test_a_new_file_is_whole_or_not_there(tmp_path, monkeypatch):
    source = write(tmp_path, "kohya", original())
    target = tmp_path / "new.safetensors"
    convert_lora(source, target, "diffusers-lora")
    assert oct(target.stat().st_mode & 0o777) == oct(0o666 & ~umask())
    before = target.read_bytes()
    with pytest.raises(CheckpointError, match="exists"):
        convert_lora(source, target, "comfy-lora")
    assert target.read_bytes() == before
    monkeypatch.setattr(os, "fsync", failing := Failing())
    with pytest.raises(CheckpointError, match=r"new\.safetensors cannot be written: disk full"):
        convert_lora(source, target, "comfy-lora", overwrite=True)
    assert failing.calls == 1 and target.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter.safetensors", "new.safetensors"]
    monkeypatch.undo()
    convert_lora(target, target, "comfy-lora", overwrite=True)
    assert read_lora(target).form == "comfy"


class Failing:
    calls = 0

    def __call__(self, number: int) -> None:
        self.calls += 1
        raise OSError(28, "disk full")


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_what_cannot_be_written_is_said(tmp_path):
    source = write(tmp_path, "comfy", original())
    for target, to, says in (
        (tmp_path / "a.bin", "diffusers-lora", "ends in .safetensors"),
        (tmp_path / "none" / "a.safetensors", "diffusers-lora", "folder is not there"),
        (tmp_path / "a.safetensors", "kohya", "choose comfy-lora or diffusers-lora"),
    ):
        with pytest.raises(CheckpointError, match=says):
            convert_lora(source, target, to)
    tensors = peer_tensors()
    for name in apart(original()):
        rows = len(tensors[f"transformer.{name}.lora_B.weight"])
        tensors[f"transformer.{name}.lora_magnitude_vector"] = torch.ones(rows)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / "dora.safetensors")
    with pytest.raises(CheckpointError, match="has DoRA, for which"):
        convert_lora(tmp_path / "dora.safetensors", tmp_path / "b.safetensors", "comfy-lora")
    convert_lora(tmp_path / "dora.safetensors", tmp_path / "b.safetensors", "diffusers-lora")
    save_file(load_file(source) | {"text_encoder.x.lora_A.weight": torch.ones(2, 2)}, tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match=r"c\.safetensors holds 1 tensor"):
        convert_lora(tmp_path / "c.safetensors", tmp_path / "d.safetensors", "diffusers-lora")
    with pytest.warns(UserWarning, match="left out"):
        convert_lora(tmp_path / "c.safetensors", tmp_path / "d.safetensors", "diffusers-lora", ignore_unknown=True)
    assert isinstance(read_lora(tmp_path / "d.safetensors").layers["layers.0.attention.to_q"], Adapter)
