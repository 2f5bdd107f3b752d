"""Amounts of memory: what is read, what is refused, and what stays in reserve."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ideoflow.fitting import free_memory, parse_memory
from ideoflow.fitting.memory import reserve, show, with_reserve


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("12GB", 12 * 10**9),
        ("12GiB", 12 * 2**30),
        ("11500MB", 11_500_000_000),
        (" 0.5 tb ", 5 * 10**11),
        ("1.5gib", 3 * 2**29),
        ("512MiB", 2**29),
        ("2000000KB", 2 * 10**9),
        ("16000000000", 16 * 10**9),
        (16 * 10**9, 16 * 10**9),
        (8e9, 8 * 10**9),
    ],
)
def test_an_amount_is_read(given, expected):
    assert parse_memory(given) == expected


@pytest.mark.parametrize(
    "given", ["", "12 gigs", "GB", "-3GB", "12,5GB", "1e3GB", "nanGB", float("nan"), float("inf"), None, True, []]
)
def test_nonsense_is_refused_with_an_example(given):
    with pytest.raises(ValueError, match="12GB"):
        parse_memory(given)


@pytest.mark.parametrize("given", ["12", 12, 0, -5e9, "900KB"])
def test_a_number_without_its_unit_is_refused(given):
    with pytest.raises(ValueError, match="name a unit"):
        parse_memory(given)


@given(st.integers(0, 10**12), st.sampled_from(["cpu", "cuda"]))
def test_the_memory_needed_is_the_least_that_leaves_enough_after_the_reserve(needed, device):
    memory = with_reserve(needed, device)
    assert memory - reserve(memory, device) >= needed
    assert memory - 10 - reserve(memory - 10, device) < needed


def test_bytes_are_shown_in_powers_of_ten():
    assert show(12 * 2**30) == "12.88 GB" and show(5_250_000) == "5.2 MB"


def test_what_is_free_here_lies_between_this_process_and_the_machine():
    lines = Path("/proc/meminfo").read_text().splitlines()
    total = next(line for line in lines if line.startswith("MemTotal"))
    assert 10**7 < free_memory("cpu") <= 1024 * int(total.split()[1])
