"""Pipelines that were changed before or after a plan: quantized, adapted, fused; and ranks that fail by themselves."""

import pytest


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_quantized_layers_are_shared_with_their_scales(outcome, kind):
    lead = outcome(2, "quantized", plan=dict(tensor=2), kind=kind)[0]
    # Where int8 is multiplied as such, a rank rounds its part of an input by its own largest value.
    assert lead["worst"] <= (2e-5 if kind == "fp8" else 0.1)
    assert lead["rows"] == lead["scales"] == 2 * 16
    assert lead["kind"] != "Linear"


def test_adapters_act_where_a_rank_has_its_branch_alone(outcome):
    lead = outcome(2, "adapted", plan=dict(guidance=2))[0]
    assert lead["worst"] <= 2e-5
    assert lead["moved"] > 0.1


def test_a_rank_that_fails_ends_all_with_its_error(run):
    lead, other = run(2, "failing", plan=dict(context=2), culprit=1)
    assert lead.gave["told"] == ["RankLost: rank 1 failed: MemoryError: no room for attention"] * 2
    assert other.code == 1
    assert other.said.strip().splitlines()[-1] == "MemoryError: no room for attention"


def test_what_is_changed_in_rank_0_alone_is_refused(outcome):
    told = outcome(2, "changed", plan=dict(context=2))[0]
    assert list(told) == ["step"]
    assert "the conditional branch's weights were changed in this process alone" in told["step"]


def test_what_needs_the_weights_of_others_is_refused(outcome):
    told = outcome(2, "changed", plan=dict(guidance=2))[0]
    assert list(told) == ["fuse", "quantize", "step"]
    assert "the unconditional transformer's weights, which under `guidance=2` are on other ranks" in told["fuse"]
    assert "weights were changed in this process alone" in told["step"]  # for no picture of half-changed branches
