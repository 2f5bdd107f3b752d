"""What a pass takes beyond weights is shared among the ranks of `context`."""

import pytest


@pytest.mark.long
@pytest.mark.parametrize(("ranks", "over"), [(2, 1.15), (4, 1.35)])
def test_peak_memory_falls_with_the_ranks(outcome, ranks, over):
    for own in outcome(ranks, "memory", plan=dict(context=ranks), timeout=600):
        assert own["shared"] * ranks <= own["alone"] * over
