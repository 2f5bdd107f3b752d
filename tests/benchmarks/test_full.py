"""The benchmark of the full model: its sides compute the same picture on the same tensors, and its bars are right."""

import runpy
import sys
from argparse import ArgumentParser
from dataclasses import replace

import pytest
import torch

from benchmarks.full.bars import bars, table
from benchmarks.full.cases import BAR_CASES, OTHER_CASES, Case
from benchmarks.full.measure import Effort, load, make_inputs, measure
from benchmarks.full.models import TINY, Models, twin
from benchmarks.full.report import Report, broken
from benchmarks.full.sides import EXACT, FP8, SIDES, PeerRun, sides_of
from benchmarks.roofline import Config

EFFORT = Effort(rounds=1, case_seconds=1, picture_seconds=0, steps=2, matrix=16)


@pytest.fixture(scope="module")
def models():
    return Models(TINY, "cpu")


def tensors(branches) -> set[int]:
    return {parameter.data_ptr() for branch in branches for parameter in branch.parameters()}


def relative(a, b) -> float:
    return float((a - b).square().mean().sqrt() / b.square().mean().sqrt())


def test_all_sides_in_bf16_lie_on_the_same_weights(models):
    sides = sides_of(EXACT, "cpu", compiled=True)
    assert {side.is_ours for side in sides} == {True, False}
    assert all(tensors(side.load(models)) == tensors(models.ours("bf16")) for side in sides)


def test_a_quantization_is_there_once_and_leaves_the_others_alone(models):
    before = {name: p.clone() for name, p in models.ours("bf16")[0].named_parameters()}
    assert tensors(models.ours("fp8")) == tensors(models.ours("fp8")) != tensors(models.ours("bf16"))
    after = dict(models.ours("bf16")[0].named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_twin_compiles_alone(models):
    (one, _), (other, _) = models.ours("bf16"), models.ours("bf16")
    one.compile_blocks()
    assert other.layers[0]._compiled_call_impl is None is not one.layers[0]._compiled_call_impl
    assert twin(other).layers[0]._compiled_call_impl is None


@pytest.mark.parametrize("batch", [1, 2])
def test_every_side_takes_the_same_step_and_draws_the_same_pictures(models, batch):
    """Within the roundings of bfloat16, and of fp8."""
    inputs = make_inputs(Case(64, 5, batch), Config.of(TINY), "cpu", steps=3)
    sides = [side for side in SIDES if not side.compiled]
    runs = {side.name: side.run(side.load(models), inputs) for side in sides}
    step, picture = runs["ideoflow"].step(), runs["ideoflow"].picture()
    assert step.shape == picture.shape == (batch, 16, TINY["in_channels"])
    for side in sides:
        limit = 0.01 if side.precision == "bf16" else 0.05
        assert relative(runs[side.name].step(), step) < limit
        assert relative(runs[side.name].picture(), picture) < limit
    if batch == 2:
        assert not torch.equal(step[0], step[1])


def test_a_picture_is_more_than_its_first_step(models):
    inputs = make_inputs(Case(64, 5, 1), Config.of(TINY), "cpu", steps=3)
    (side,) = (side for side in SIDES if side.name == "ideoflow")
    run = side.run(side.load(models), inputs)
    change = float(inputs.sigmas[0] - inputs.sigmas[-1])
    assert relative(run.picture(), inputs.latents + change * run.step()) > 0.001


def test_a_side_that_fails_is_told_and_the_others_go_on(models, monkeypatch):
    first, peer = (side for side in SIDES if side.name in ("ideoflow", "diffusers"))
    wrong = replace(first, name="wrong")
    unmade = replace(SIDES[0], name="unmade", change=lambda branch: branch.no_such_method())
    loaded = {side.name: load(side, models) for side in (first, peer, wrong, unmade)}
    for parameter in (loaded["wrong"][0].final_layer.linear, loaded["wrong"][1].final_layer.linear):
        parameter.weight = torch.nn.Parameter(-parameter.weight, requires_grad=False)
    monkeypatch.setattr(PeerRun, "step", lambda self: exhausted())
    figures = measure((first, peer, wrong, unmade), loaded, Case(64, 5, 1), Config.of(TINY), "cpu", EFFORT)["sides"]
    assert figures["ideoflow"]["seconds"] > 0 and "failed" not in figures["ideoflow"]
    assert "OutOfMemoryError" in figures["diffusers"]["failed"]
    assert "away from those of ideoflow" in figures["wrong"]["failed"]
    assert "no_such_method" in figures["unmade"]["failed"]
    assert not any("seconds" in figures[name] for name in ("diffusers", "wrong", "unmade"))


def exhausted() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(("limit", "rounds", "drawn"), [(1e9, 4, True), (0, 3, False)])
def test_long_cases_take_fewer_rounds_and_draw_nothing(models, limit, rounds, drawn):
    side, effort = SIDES[0], replace(EFFORT, rounds=4, case_seconds=limit, picture_seconds=limit)
    figures = measure([side], {side.name: side.load(models)}, Case(64, 5, 1), Config.of(TINY), "cpu", effort)
    assert figures["rounds"] == rounds and ("picture_seconds" in figures["sides"]["ideoflow"]) == drawn
    assert figures["sides"]["ideoflow"]["times_first"] == 1


def test_sizes_captions_and_batches_are_all_there_once():
    cases = {(case.pixels, case.caption_tokens, case.batch) for case in (*BAR_CASES, *OTHER_CASES)}
    expected = {(p, t, b) for p in (512, 1024, 2048) for t in (200, 500, 1500) for b in (1, 4)}
    assert cases == expected and len(BAR_CASES) + len(OTHER_CASES) == len(expected)


def case_of(phase: str, **sides: dict) -> dict:
    return {"phase": phase, "pixels": 1024, "caption_tokens": 500, "batch": 1, "sides": sides}


def timed(seconds: float, share: float = 0.0, **more: float) -> dict:
    return {"seconds": seconds, "share_of_matrix_rate": share, **more}


def test_bars_take_our_fastest_side_of_the_same_phase():
    exact = case_of(
        EXACT,
        **{
            "ideoflow": timed(2.0, 0.6, picture_seconds=50.0),
            "ideoflow, compiled": timed(1.0, 0.8, picture_seconds=20.0),
            "diffusers": timed(1.9, 0.4, picture_seconds=30.0),
            "diffusers, trimmed": {"failed": "OutOfMemoryError"},
            "diffusers, trimmed, compiled": timed(1.2, 0.4),
        },
    )
    fp8 = case_of(FP8, **{"ideoflow": timed(3.0, 0.5), "ideoflow, fp8": timed(2.0, 0.1)})
    slower = case_of("another phase", ideoflow=timed(1.0, 0.1), diffusers=timed(1.1, 0.1))
    by_wanted = {bar.wanted: bar for bar in bars([exact, fp8, slower], 1024)}
    assert by_wanted[1.8].step == pytest.approx(1.9) and by_wanted[1.8].met
    assert by_wanted[1.8].picture == pytest.approx(1.5) and by_wanted[1.8].side == "ideoflow, compiled"
    assert by_wanted[1.3].step == pytest.approx(1.2) and by_wanted[1.3].met is False
    assert by_wanted[1.3].picture is None
    assert by_wanted[0.7].step == 0.8 and by_wanted[0.7].met
    assert by_wanted[1.4].step == pytest.approx(1.5) and by_wanted[1.4].side == "ideoflow, fp8"


def test_bars_of_other_sizes_and_batches_are_not_taken():
    case = case_of(EXACT, ideoflow=timed(1.0, 0.9))
    assert bars([case | {"pixels": 512}, case | {"batch": 4}], 1024) == []


def test_what_was_not_measured_is_said():
    made = bars([case_of(EXACT, ideoflow=timed(1.0, 0.9), diffusers={"failed": "OutOfMemoryError"})], 1024)
    assert [bar.met for bar in made] == [None, None, True, None]
    assert table(made).count("not measured") == 3


def test_a_report_goes_on_where_it_was_stopped(tmp_path, capsys):
    out, case = tmp_path / "full.json", Case(1024, 500, 1)
    head = {"machine": {"gpu": "one"}, "sides": ["ideoflow"]}
    Report(head, out, False, ArgumentParser()).add(EXACT, case, {"sides": {"ideoflow": timed(1.0, 0.9)}}, 1024)

    resumed = Report(head, out, True, ArgumentParser())
    assert resumed.has(EXACT, case) and not resumed.has(FP8, case) and not resumed.has(EXACT, Case(512, 500, 1))
    assert not Report(head, out, False, ArgumentParser()).has(EXACT, case)
    failing = {"ideoflow": timed(1.0, 0.9), "diffusers": {"failed": "RuntimeError: of some bug"}}
    resumed.add(FP8, case, {"sides": failing}, 1024)
    assert not Report(head, out, True, ArgumentParser()).has(FP8, case)  # it is measured anew
    assert broken(resumed.results) == ["diffusers: RuntimeError: of some bug"]
    failing["diffusers"]["failed"] = "OutOfMemoryError: CUDA out of memory"
    assert broken(resumed.results) == []
    with pytest.raises(SystemExit):
        Report(head | {"machine": {"gpu": "another"}}, out, True, ArgumentParser())
    assert "another machine" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_nothing_is_measured_and_the_exit_code_says_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks.full"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("benchmarks.full", run_name="__main__")
    assert end.value.code == 4 and "nothing was measured: there is no GPU here" in capsys.readouterr().err
