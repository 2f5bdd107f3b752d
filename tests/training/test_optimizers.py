"""Optimizers and schedules by name, and the moving average of the weights."""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from typing import get_args

import pytest
import torch
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

from ideoflow import Ideogram4Transformer2DModel, sketch
from ideoflow.training.ema import Ema
from ideoflow.training.optimizers import OPTIMIZERS, make_optimizer, make_schedule
from ideoflow.training.run_state import optimizer_tensors, restore_optimizer, restore_schedule
from ideoflow.training.settings import Optimizer, Schedule
from tests.small import NARROW


def transformer() -> Ideogram4Transformer2DModel:
    return Ideogram4Transformer2DModel.from_pretrained(sketch.path() / "transformer")


def descend(model, optimizer, steps: int) -> float:
    """Pull all weights towards fixed random ones."""
    for _ in range(steps):
        optimizer.zero_grad()
        generator = torch.Generator().manual_seed(3)
        loss = sum((p - 0.1 * torch.randn(p.shape, generator=generator)).square().mean() for p in model.parameters())
        loss.backward()
        optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_optimizers_descend_and_go_on_from_a_checkpoint_bit_for_bit(name):
    torch.manual_seed(0)
    model = Ideogram4Transformer2DModel(**NARROW)
    optimizer = make_optimizer(name, model, lr=3e-3)
    first = descend(model, optimizer, 1)
    descend(model, optimizer, 2)
    names = {id(p): n for n, p in model.named_parameters()}
    state = {k: v.clone() for k, v in optimizer_tensors(optimizer, names).items()}
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    assert {key.rsplit("/", 1)[0] for key in state} == set(names.values())
    last = descend(model, optimizer, 3)
    assert last < 0.98 * first

    again = Ideogram4Transformer2DModel(**NARROW)
    again.load_state_dict(weights)
    resumed = make_optimizer(name, again, lr=3e-3)
    restore_optimizer(resumed, dict(again.named_parameters()), state)
    assert descend(again, resumed, 3) == last
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))


def test_muon_takes_the_matrices_of_the_blocks_and_leaves_the_rest_to_adamw():
    model = transformer()
    optimizer = make_optimizer("muon", model, lr=1e-3)
    adamw, muon = optimizer.parts
    inside = {id(p) for group in muon.param_groups for p in group["params"]}
    outside = {id(p) for group in adamw.param_groups for p in group["params"]}
    assert inside | outside == {id(p) for p in model.parameters()} and not inside & outside
    assert {n.split(".")[2] for n, p in model.named_parameters() if id(p) in inside} == {"attention", "feed_forward"}


def test_vectors_do_not_decay():
    optimizer = make_optimizer("adamw", transformer(), lr=1e-3, weight_decay=0.3)
    decays = {group["weight_decay"]: {p.ndim for p in group["params"]} for group in optimizer.param_groups}
    assert decays == {0.3: {2}, 0.0: {1}}


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if "8bit" in name])
def test_packages_that_are_missing_are_named(name):
    package = "torchao" if "torchao" in name else "bitsandbytes"
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(ImportError, match=f"pip install {package}"):
        make_optimizer(name, transformer(), lr=1e-3)


def test_names_that_do_not_exist_are_answered_with_those_that_do():
    model = transformer()
    with pytest.raises(ValueError, match="'sgd'; it is one of adamw"):
        make_optimizer("sgd", model, lr=1e-3)
    optimizer = make_optimizer("adamw", model, lr=1e-3)
    with pytest.raises(ValueError, match=r"'cosin'; it is one of .*cosine"):
        make_schedule(optimizer, "cosin", 1, 10)
    with pytest.raises(ValueError, match="choose another"):
        make_schedule(optimizer, "reduce_lr_on_plateau", 1, 10)
    with pytest.raises(ValueError, match="nothing would be trained"):
        make_optimizer("adamw", model.requires_grad_(False), lr=1e-3)


@pytest.mark.parametrize("name", ["constant_with_warmup", "linear", "cosine"])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_schedules_rise_and_go_on_where_they_were(name, kind):
    def rates(begin: int) -> list[float]:
        model = transformer()
        optimizer = make_optimizer(kind, model, lr=1e-2)
        schedule = make_schedule(optimizer, name, 4, 20)
        restore_schedule(schedule, begin)
        seen = []
        for _ in range(begin, 20):
            seen.append({group["lr"] for group in optimizer.param_groups}.pop())
            schedule.step()
        return seen

    whole = rates(0)
    assert whole[0] == 0 and whole[4] == pytest.approx(1e-2)
    assert whole[1:5] == sorted(whole[1:5])
    assert (whole[-1] < 0.01) if name != "constant_with_warmup" else whole[-1] == 1e-2
    assert rates(7) == pytest.approx(whole[7:])


def test_the_average_follows_its_formula_and_the_weights_come_back():
    torch.manual_seed(0)
    weights = {"a": torch.nn.Parameter(torch.randn(5)), "b": torch.nn.Parameter(torch.randn(2, 3))}
    ema = Ema(weights, 0.9)
    expected = {name: w.detach().clone() for name, w in weights.items()}
    for update in range(1, 150):
        for weight in weights.values():
            weight.data += torch.randn_like(weight)
        ema.update()
        decay = min(0.9, (1 + update) / (10 + update))
        expected = {name: decay * e + (1 - decay) * weights[name].detach() for name, e in expected.items()}
    assert all(torch.allclose(ema.values[name], expected[name], atol=1e-5) for name in weights)
    before = {name: w.detach().clone() for name, w in weights.items()}
    with pytest.raises(KeyError), ema.swapped():
        assert all(torch.equal(weights[name], ema.values[name]) for name in weights)
        raise KeyError
    assert all(torch.equal(weights[name], before[name]) for name in weights)
    with pytest.raises(ValueError, match="`decay` is 1"):
        Ema(weights, 1.0)


def test_the_settings_name_all_optimizers_and_all_schedules_that_can_be_had():
    assert set(get_args(Optimizer)) == set(OPTIMIZERS)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    found = set()
    for kind in TYPE_TO_SCHEDULER_FUNCTION:
        with suppress(ValueError):
            make_schedule(optimizer, kind.value, 2, 10)
            found.add(kind.value)
    assert set(get_args(Schedule)) == found
