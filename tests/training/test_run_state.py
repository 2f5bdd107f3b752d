"""Checkpoints: what comes back is what was saved, byte for byte, or one error that names what is wrong with it."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ideoflow.training import run_state
from ideoflow.training.batches import Draw, StreamState
from ideoflow.training.parallel import Group
from ideoflow.training.run import prepare
from ideoflow.training.run_state import PARTS, State, Values, load, save
from ideoflow.training.settings import Settings

FILES = ("state.json", *(f"{part}.safetensors" for part in PARTS))


def made(step: int = 7) -> State:
    draw = torch.Generator().manual_seed(step)
    weights = {name: torch.randn(3, 4, generator=draw) for name in ("a", "b.c")}
    optimizer = {f"{name}/exp_avg": torch.randn(3, 4, generator=draw) for name in weights}
    stream = StreamState(epoch=1, begin=2, left=[Draw(0, 1)], ready=[(Draw(1, 0), Draw(1, 1))])
    values = Values(
        stream=stream, recent=0.5, batches=2, samples=["x.png", "y\u2028.png"], settings={"data": {"lr": 1e-4}}
    )
    average = {name: t + 1 for name, t in weights.items()}
    return State(step, values, weights, optimizer | {"a/step": torch.tensor(7.0)}, average)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("checkpoints"), made(), keep=3)


def test_what_is_loaded_is_what_was_saved(whole):
    saved, loaded = made(), load(whole)
    assert loaded.step == 7 and loaded.values == saved.values
    for part in PARTS:
        one, other = getattr(saved, part), getattr(loaded, part)
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def refused(folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        load(folder)
    text = str(caught.value)
    assert text.startswith(f"{folder} is not a whole checkpoint: ") and "\n" not in text
    assert text.endswith("Remove it to use the one before.")
    return text


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(FILES), st.sampled_from(["flip", "cut", "insert", "delete", "zero"]), st.floats(0, 1), st.binary(
    min_size=1, max_size=9))  # fmt: skip
def test_every_changed_byte_is_noticed(tmp_path_factory, whole, name, how, where, new):
    folder = shutil.copytree(whole, tmp_path_factory.mktemp("damaged") / whole.name)
    data = (folder / name).read_bytes()
    place = min(len(data) - 1, round(where * len(data)))
    changed = {
        "flip": data[:place] + bytes([data[place] ^ (new[0] or 1)]) + data[place + 1 :],
        "cut": data[:place],
        "insert": data[:place] + new + data[place:],
        "delete": data[:place] + data[place + len(new) :],
        "zero": data[:place] + bytes(len(data) - place),
    }[how]
    (folder / name).write_bytes(changed)
    try:
        loaded = load(folder)
    except ValueError:
        refused(folder)
    else:  # white space between the parts of JSON says nothing
        assert changed == data or (name == "state.json" and json.loads(changed) == json.loads(data))
        assert loaded.values == made().values


def places(value: object, at: tuple = ()) -> list[tuple]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, held in inner for place in places(held, (*at, key)))]


def signed(folder: Path, record: object) -> None:
    """Write a record with a digest that fits, as no damage does."""
    content = json.loads((folder / "state.json").read_text())
    with suppress(ValueError):
        content["digest"] = run_state._Record.model_validate_json(json.dumps(record)).digest()
    (folder / "state.json").write_text(json.dumps(content | {"record": record}))


WRONG = [None, -1, 1.5, "x", [], {}, [[1]], True, float("nan")]
ANY = ("samples", "settings", "files")  # where any text or object is a value of the right kind


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: str(wrong)[:9])
def test_a_value_of_another_kind_is_named_wherever_it_stands(tmp_path, whole, wrong):
    record = json.loads((whole / "state.json").read_text())["record"]
    for number, place in enumerate(places(record)):
        if not place or any(part in ANY for part in place[:-1]) or (place[-1] == "recent" and wrong is None):
            continue
        changed = json.loads(json.dumps(record))
        held = changed
        for part in place[:-1]:
            held = held[part]
        if held[place[-1]] == wrong or (wrong in ([], {}) and type(held[place[-1]]) is type(wrong)):
            continue
        if place[-1] == "recent" and wrong in (-1, 1.5):
            continue
        held[place[-1]] = wrong
        folder = shutil.copytree(whole, tmp_path / str(number) / whole.name)
        signed(folder, changed)
        text = refused(folder)
        assert "state.json" in text or ".safetensors is not as it was saved" in text, (place, text)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_exchanged_file_is_named(tmp_path, whole, name):
    folder = shutil.copytree(whole, tmp_path / whole.name)
    (folder / name).unlink()
    assert name in refused(folder)
    other = save(tmp_path / "others", made(8), keep=1)
    shutil.copy(other / name, folder / name)
    assert name in refused(folder)


def test_a_checkpoint_under_another_step_is_refused(tmp_path, whole):
    refused(shutil.copytree(whole, tmp_path / "step-0000009"))


@pytest.fixture(scope="module")
def trainer(pictures, tmp_path_factory):
    """A run of two steps."""
    out = tmp_path_factory.mktemp("run")
    options = dict(data=str(pictures), out=str(out), cache=str(pictures / ".cache"), steps=2, tokens=600, rank=2,
                   lr=2e-3, warmup=0, ema=0.9, device="cpu")  # fmt: skip
    trainer = prepare(Settings.read(**options), Group(0, 1, torch.device("cpu")))
    trainer.run()
    return trainer


def change(part: str, how: str):
    """A state with one tensor of a part changed."""

    def changed(state: State) -> State:
        tensors = dict(getattr(state, part))
        name = next(n for n in tensors if not n.endswith("/step") and tensors[n].ndim == 2)
        tensors |= {
            "broadcast": {name: tensors[name][:1, :1].clone()},
            "transposed": {name: tensors[name].T.contiguous()},
            "one row less": {name: tensors[name][1:].clone()},
            "half": {name: tensors[name].half()},
            "nan": {name: torch.full_like(tensors[name], float("nan"))},
            "infinite": {name: tensors[name] / 0},
            "unknown": {"nothing/exp_avg": tensors[name]},
            "missing": {},
        }[how]
        if how == "missing":
            del tensors[name]
        return replace(state, **{part: tensors})

    return changed


def stream(**values):
    return lambda state: replace(
        state, values=state.values.model_copy(update={"stream": state.values.stream.model_copy(update=values)})
    )


DAMAGED = {
    **{
        f"{how} in the {part}": change(part, how)
        for part in ("weights", "average")
        for how in ("broadcast", "transposed", "one row less", "half", "nan", "infinite", "unknown", "missing")
    },
    **{
        f"{how} in the optimizer": change("optimizer", how)
        for how in ("broadcast", "transposed", "one row less", "nan", "infinite", "unknown")
    },
    "no average": lambda state: replace(state, average={}),
    "a sample that is not there": stream(ready=[(Draw(0, 999),)]),
    "a sample that is not there, to come": stream(left=[Draw(0, 999)]),
    "an empty batch": stream(ready=[()]),
    "a batch of too much": stream(ready=[tuple(Draw(0, i % 8) for i in range(99))]),
    "a window behind the end": stream(begin=999),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_state_that_does_not_fit_changes_nothing(trainer, what):
    state = run_state.load(run_state.saved(trainer.folder / "checkpoints")[-1])
    before = {name: p.detach().clone() for name, p in trainer.trained.items()}
    with pytest.raises(ValueError, match=r"the checkpoint of step 2 in .* is damaged: .*\bits\b.*Remove it"):
        trainer.restore(DAMAGED[what](state))
    assert all(torch.equal(before[name], p) for name, p in trainer.trained.items())
    trainer.restore(state)


def test_a_tensor_rewritten_by_hand_is_refused(trainer, tmp_path):
    folder = shutil.copytree(run_state.saved(trainer.folder / "checkpoints")[-1], tmp_path / run_state.NAME.format(2))
    tensors = load_file(folder / "weights.safetensors")
    name = next(iter(tensors))
    save_file(tensors | {name: tensors[name][:1]}, folder / "weights.safetensors")
    assert "weights.safetensors is not as it was saved" in refused(folder)
