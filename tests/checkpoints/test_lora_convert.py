"""LoRA files from one form to the other and back, bit for bit; and the file that is written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
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
from ideoflow.checkpoints.lora import HEADER, Adapter, Lora, read_lora
from ideoflow.checkpoints.lora_convert import COMFY_NOTE, PEER_NOTE, convert_lora, to_comfy, to_peer

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
    """Files in diffusers' form: some of the layers, any ranks, equal or different `lora_A`, a header or none."""
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
            zeros = draw(st.sampled_from(["", "", "all", "column", "negative"]))
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
            kind = draw(st.sampled_from(["dense", "blocks", "equal blocks", "scattered", "padded"]))
            if last.endswith("qkv") and kind != "dense":
                owner = torch.randint(0, 3, (rank,), generator=generator)
                owner = owner if kind == "scattered" else owner.sort().values
                up = torch.where(torch.arange(rows)[:, None] // width == owner, up, torch.zeros_like(up))
                if kind == "equal blocks":
                    down = down[:1].expand(rank, width).clone()
            if kind == "padded":
                down[-1], up[:, -1] = 0, 0
            name = f"diffusion_model.layers.{number}.{last}"
            found[f"{name}.lora_A.weight"], found[f"{name}.lora_B.weight"] = down, up
            if alpha is not None and draw(st.booleans()):
                shape = draw(st.sampled_from([(), (1,)]))
                found[f"{name}.alpha"] = torch.full(shape, alpha, dtype=draw(st.sampled_from([*TYPES, torch.float64])))
    return found, {"trigger": "sks"}


def same_bits(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    def bits(tensor: Tensor) -> Any:
        return str(tensor.dtype), tuple(tensor.shape), tensor.contiguous().reshape(-1).view(torch.uint8).tolist()

    return ours.keys() == theirs.keys() and all(bits(ours[name]) == bits(theirs[name]) for name in ours)


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
        up = adapter.up.double() * float(adapter.scale)
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
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@settings(max_examples=120, deadline=None)
@given(found=peers())
def test_the_peers_form_comes_back_bit_for_bit(place, found):
    tensors, header = converted(place, found, "comfy-lora", "peer-lora")
    assert same_bits(tensors, found[0])
    assert {key: value for key, value in header.items() if not key.startswith("ideoflow")} == {"format": "pt"} | found[
        1
    ]
    comfy = read_lora(place / "1.safetensors")
    assert comfy.form == "comfy" and COMFY_NOTE not in comfy.metadata and HEADER not in comfy.metadata
    assert not any(name.endswith((".to_q", ".to_k", ".to_v", ".to_out.0")) for name in comfy.layers)
    assert_same_change(read_lora(place / "0.safetensors"), comfy)


@settings(max_examples=120, deadline=None)
@given(found=comfies())
def test_the_comfy_form_comes_back_bit_for_bit(place, found):
    tensors, header = converted(place, found, "peer-lora", "comfy-lora")
    assert same_bits(tensors, found[0])
    assert header == {"format": "pt"} | found[1]
    peer = read_lora(place / "1.safetensors")
    assert peer.form == "peer" and not any(name.endswith(".alpha") for name in load_file(place / "1.safetensors"))
    assert_same_change(read_lora(place / "0.safetensors"), peer)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("to", ["comfy-lora", "peer-lora"])
def test_every_form_is_converted_with_its_strength(tmp_path, form, to):
    parts = original(alpha=2.5)
    source = write(tmp_path, form, parts)
    made = convert_lora(source, tmp_path / "new.safetensors", to)
    again = read_lora(tmp_path / "new.safetensors", CONFIG)
    assert again.form == to.removesuffix("-lora") == made.form
    assert_same_change(again, read_lora(write(tmp_path / "b", "comfy", parts)))
    header = FORMS[form](parts)[1]
    assert {key: value for key, value in header.items() if key != HEADER}.items() <= again.metadata.items()


def test_blocks_are_told_by_their_zeros_alone():
    """A file that nobody noted anything in: the block diagonal falls apart, and a shared `down` stays shared."""
    comfy = read_lora(spelled(original(blocks=True), "diffusion_model."))
    assert {a.rank for name, a in to_peer(comfy).layers.items() if ".to_q" in name} == {2}
    assert COMFY_NOTE not in to_peer(comfy).metadata and PEER_NOTE not in to_comfy(to_peer(comfy)).metadata
    shared = to_peer(read_lora(spelled(original(), "diffusion_model.")))
    assert {a.rank for name, a in shared.layers.items() if ".to_q" in name} == {6}
    assert to_comfy(shared).layers["layers.0.attention.qkv"].rank == 6


def test_the_sign_of_zero_is_kept():
    tensors = peer_tensors()
    name = "transformer.layers.0.attention.{}.lora_A.weight"
    for last in ("to_q", "to_k", "to_v"):
        tensors[name.format(last)][0, 0] = -0.0 if last == "to_k" else 0.0
    comfy = to_comfy(read_lora(tensors))
    assert comfy.layers["layers.0.attention.qkv"].rank == 18  # not one and the same
    assert same_bits(to_peer(comfy).tensors(), tensors)


def test_a_part_that_has_no_adapter_adds_no_rank():
    tensors = {key: tensor for key, tensor in peer_tensors().items() if "to_k" not in key}
    tensors["transformer.layers.0.attention.to_q.lora_A.weight"] += 1  # no longer shared
    comfy = to_comfy(read_lora(tensors))
    assert comfy.layers["layers.0.attention.qkv"].rank == 12
    assert comfy.layers["layers.0.attention.qkv"].up[HIDDEN : 2 * HIDDEN].count_nonzero() == 0
    assert same_bits(to_peer(comfy).tensors(), tensors)


def test_padding_of_older_files_is_stripped_and_comes_back():
    """Files of one rank for all layers, filled up with zeros."""
    padded = {}
    for name, tensor in spelled(original(alpha=None, blocks=True), "diffusion_model.").items():
        missing = 9 - (tensor.shape[0] if "lora_A" in name else tensor.shape[1])
        padded[name] = torch.nn.functional.pad(tensor, (0, 0, 0, missing) if "lora_A" in name else (0, missing))
    peer = to_peer(read_lora(padded))
    assert {name.split(".", 2)[-1]: a.rank for name, a in peer.layers.items()} == {
        **dict.fromkeys(("attention.to_q", "attention.to_k", "attention.to_v"), 2),
        **{"attention.to_out.0": 4, "feed_forward.w2": 3, "adaln_modulation": 4},
    }
    assert same_bits(to_comfy(peer).tensors(), padded)


def test_different_strengths_of_q_k_and_v_are_held_exactly_or_refused():
    tensors, alphas = {}, {"to_q": 1.0, "to_k": 1.5, "to_v": -4.0}
    for last, alpha in alphas.items():
        name = f"transformer.layers.0.attention.{last}"
        tensors[f"{name}.lora_down.weight"] = torch.randn(3, 8).bfloat16()
        tensors[f"{name}.lora_up.weight"] = torch.randn(8, 3).bfloat16()
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
    lora = read_lora(tensors)
    comfy = to_comfy(lora)
    assert_same_change(lora, comfy)
    back = to_peer(comfy)
    for last, alpha in alphas.items():
        adapter = back.layers[f"layers.0.attention.{last}"]
        assert float(adapter.scale) == alpha / 3 and adapter.up.dtype == torch.bfloat16
        assert torch.equal(adapter.up, tensors[f"transformer.layers.0.attention.{last}.lora_up.weight"])
    tensors["transformer.layers.0.attention.to_v.alpha"] = torch.tensor(0.1, dtype=torch.float64)
    with pytest.raises(CheckpointError, match=r"layers\.0\.attention\.qkv.*different strengths"):
        to_comfy(read_lora(tensors))
    tensors["transformer.layers.0.attention.to_v.alpha"] = torch.tensor(0.0)
    with pytest.raises(CheckpointError, match="different strengths"):
        to_comfy(read_lora(tensors))


NOTES = ["", "{", "[]", "null", '{"layers.0.attention.qkv":1}', '{"layers.0.attention.qkv":{"ranks":[1,2]}}']
NOTES += ['{"layers.0.attention.qkv":{"ranks":[9,9,9],"alphas":[null,"x",1],"types":[["a","b"],1,null]}}']
NOTES += ['{"layers.0.attention.qkv":{"rank":99999999,"kept":[0],"alpha":["float32",[99999999],1]}}']
NOTES += ['{"layers.0.attention.qkv":{"rank":12,"kept":[0,0,0,0,0,0],"alpha":null}}']
NOTES += ['{"layers.0.attention.qkv":{"alpha":["float32",[],7.0]}}']


@pytest.mark.parametrize("note", NOTES)
def test_a_note_that_leads_elsewhere_is_not_believed(note):
    comfy = read_lora(spelled(original(), "diffusion_model."))
    misled = replace(comfy, metadata={PEER_NOTE: note, "ideoflow.peer_header": note})
    assert same_bits(to_peer(misled).tensors(), to_peer(comfy).tensors())
    assert_same_change(to_peer(misled), to_peer(comfy))
    peer = replace(to_peer(comfy), metadata={COMFY_NOTE: note})
    assert same_bits(to_comfy(peer).tensors(), comfy.tensors())


def test_a_note_of_other_weights_is_not_believed():
    """Trained further after conversion: the blocks have changed, the note has not."""
    peer = to_peer(read_lora(spelled(original(alpha=None, blocks=True), "diffusion_model.")))
    query = peer.layers["layers.0.attention.to_q"]
    peer.layers["layers.0.attention.to_q"] = replace(query, up=torch.zeros_like(query.up))
    comfy = to_comfy(peer)
    assert PEER_NOTE in comfy.metadata and to_peer(comfy).layers["layers.0.attention.to_q"].rank == 2
    name = "layers.0.attention.qkv"
    adapter = comfy.layers[name]
    changed = replace(comfy, layers=comfy.layers | {name: replace(adapter, up=adapter.up + 0.5)})
    assert_same_change(to_peer(changed), changed)


# The file that is written


def test_a_new_file_is_whole_or_not_there(tmp_path, monkeypatch):
    source = write(tmp_path, "kohya", original())
    target = tmp_path / "new.safetensors"
    convert_lora(source, target, "peer-lora")
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
        (tmp_path / "a.bin", "peer-lora", "ends in .safetensors"),
        (tmp_path / "none" / "a.safetensors", "peer-lora", "folder is not there"),
        (tmp_path / "a.safetensors", "kohya", "choose comfy-lora or peer-lora"),
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
    convert_lora(tmp_path / "dora.safetensors", tmp_path / "b.safetensors", "peer-lora")
    save_file(load_file(source) | {"text_encoder.x.lora_A.weight": torch.ones(2, 2)}, tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match=r"c\.safetensors holds 1 tensor"):
        convert_lora(tmp_path / "c.safetensors", tmp_path / "d.safetensors", "peer-lora")
    with pytest.warns(UserWarning, match="left out"):
        convert_lora(tmp_path / "c.safetensors", tmp_path / "d.safetensors", "peer-lora", ignore_unknown=True)
    assert isinstance(read_lora(tmp_path / "d.safetensors").layers["layers.0.attention.to_q"], Adapter)
