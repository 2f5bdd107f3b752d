"""Pictures of the bundled model under plans of four ranks are those of one process, to a grey level."""

import numpy as np
import pytest
from PIL import Image

from tests.distributed.conftest import ROOT


@pytest.mark.parametrize("plan", [dict(guidance=2, context=2), dict(guidance=2, tensor=2)], ids=str)
def test_pictures_of_the_bundled_model(outcome, plan):
    lead = outcome(4, "pictures", plan=plan)[0]
    assert lead["apart"] <= 1
    assert lead["contrast"] > 100


def test_a_picture_that_is_made_of_another(outcome):
    lead = outcome(2, "redrawn", plan=dict(context=2))[0]
    assert lead["apart"] <= 1
    assert lead["contrast"] > 100


@pytest.mark.long
@pytest.mark.parametrize(
    "plan", [dict(context=4), dict(tensor=2, context=2), dict(data=2, guidance=2), dict(data=4)], ids=str
)
def test_pictures_under_other_plans(outcome, plan):
    lead = outcome(4, "pictures", plan=plan)[0]
    assert lead["apart"] <= 1


def test_the_example_draws_a_heart_by_two_processes(start, tmp_path):
    out = tmp_path / "heart.png"
    for process in start(2, ROOT / "examples" / "parallel.py", "--device", "cpu", "--size", 96, "--out", out):
        assert process.wait(timeout=120) == 0, process.stderr.read()
    red, green, _ = np.asarray(Image.open(out))[48, 48].astype(int)
    assert red > green + 60
