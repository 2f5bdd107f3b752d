"""Loading takes little more memory than what is loaded: measured in processes of their own."""

import pytest

from benchmarks.loading import CONFIG, Case, load, write_forms


@pytest.mark.long
def test_the_peak_is_what_stays_and_little_more(tmp_path):
    """The file has 170 MB: with its pages kept, or a second copy of the weights, the peak would show it."""
    write_forms(tmp_path, {**CONFIG, "num_layers": 4})
    for case in (Case("peer", "float32", {}, ("ours",)), Case("fp8", "bfloat16", {}, ("ours",))):
        figures = load("ours", tmp_path, case)
        assert figures["resident"] > 90e6
        assert figures["peak"] < figures["resident"] + 100e6, case
