"""The model's room holds the network alone: hardware is known in `ops`."""

from __future__ import annotations

import re
from pathlib import Path

import ideoflow.model

FILES = sorted(Path(ideoflow.model.__file__).parent.rglob("*.py"))
CHIPS = re.compile(
    r"cuda|\bcpus?\b|\bgpus?\b|\bmps\b|triton|flash(?!pack)|onednn|\bamx\b|avx|capability|device\.type", re.IGNORECASE
)


def test_no_word_of_a_chip_stands_in_it():
    found = [
        f"{file.name}:{number}: {line.strip()}"
        for file in FILES
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if CHIPS.search(line)
    ]
    assert not found


def test_it_is_read_in_one_sitting():
    assert sum(len(file.read_text(encoding="utf-8").splitlines()) for file in FILES) <= 1100
