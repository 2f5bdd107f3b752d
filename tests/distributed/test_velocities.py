"""Velocities under every plan are those of one process, and what ranks send is what docs/scale.md says."""

import pytest

PLANS = (
    dict(guidance=2),
    dict(context=2),
    dict(tensor=2),
    dict(data=2),
    dict(context=3),
    dict(tensor=3),
    dict(context=4),
    dict(guidance=2, context=2),
    dict(guidance=2, tensor=2),
    dict(context=2, tensor=2),
    dict(data=2, context=2),
    dict(data=2, guidance=2),
)
NEAR = 2e-5  # of velocities with deviation 1, in float32


def named(plan):
    return ",".join(f"{name}={number}" for name, number in plan.items())


def size(plan):
    product = 1
    for number in plan.values():
        product *= number
    return product


def heads(plan):
    """Heads of both branches: those that divide among the ranks of `context`, and those that do not."""
    t, n = plan.get("tensor", 1), plan.get("context", 1)
    return [(2 * t * n, t), (t * (n + 1), 3 * t * n)]


def check(ranks):
    lead = ranks[0]
    assert lead["worst"] <= NEAR
    assert lead["largest"] > 1
    sent = {kind: sum(one["sent"].get(kind, 0) for one in ranks) for one in ranks for kind in one["sent"]}
    assert sent == lead["formula"]


@pytest.mark.parametrize("plan", [dict(guidance=2, context=2), dict(context=3), dict(tensor=2, guidance=2)], ids=named)
def test_ragged_mixed_streams(outcome, plan):
    check(outcome(size(plan), "compare", plan=plan, heads=heads(plan), seeds=4))


@pytest.mark.long
@pytest.mark.parametrize("plan", PLANS, ids=named)
def test_a_hundred_ragged_mixed_streams(outcome, plan):
    check(outcome(size(plan), "compare", plan=plan, heads=heads(plan), seeds=50, timeout=600))


@pytest.mark.long
@pytest.mark.parametrize("ranks", [2, 3])
def test_the_published_heads(outcome, ranks):
    check(outcome(ranks, "compare", plan=dict(context=ranks), heads=[(18, 18)], seeds=20, timeout=600))
