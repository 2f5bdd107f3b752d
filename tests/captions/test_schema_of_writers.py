"""The JSON schema that writers are held to: made from the models, and no wider than what `check` allows."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ideoflow.captions import Caption
from ideoflow.captions.writing.grammar import _between, _ordered
from ideoflow.captions.writing.json_schema import caption_schema


def drawn(node: dict[str, Any], draw: random.Random, key: str = "") -> Any:
    """A value that a schema allows."""
    if "anyOf" in node:
        return drawn(draw.choice(node["anyOf"]), draw, key)
    if "const" in node:
        return node["const"]
    if node["type"] == "object":
        kept = [name for name in node["properties"] if name in node["required"] or draw.random() < 0.5]
        return {name: drawn(node["properties"][name], draw, name) for name in kept}
    if key == "bbox":
        (a, c), (b, d) = (sorted(draw.sample(range(1001), 2)) for _ in range(2))
        return [a, b, c, d]
    if node["type"] == "array":
        count = draw.randint(node.get("minItems", 0), min(node.get("maxItems", 3), 6))
        return [drawn(node["items"], draw, key) for _ in range(count)]
    if node["type"] == "integer":
        return draw.randint(node["minimum"], node["maximum"])
    return f"#{draw.randrange(2**24):06X}" if "pattern" in node else draw.choice(["a", "a “cup”", "日本", 'say "hi"'])


@pytest.mark.parametrize("layout", [True, False])
@given(seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_whatever_the_schema_allows_keeps_the_captions_schema(layout: bool, seed: int):
    data = drawn(caption_schema(layout), random.Random(seed))
    caption = Caption.parse(data)
    assert caption.check() == []
    assert caption.line() == json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def test_the_schema_needs_no_references_and_allows_no_null():
    for layout in (True, False):
        text = json.dumps(caption_schema(layout))
        assert "$ref" not in text and "null" not in text and "$defs" not in text


def test_without_a_layout_there_are_words_alone():
    schema = caption_schema(layout=False)
    assert list(schema["properties"]) == ["high_level_description", "compositional_deconstruction"]
    elements = schema["properties"]["compositional_deconstruction"]["properties"]["elements"]
    assert [list(one["properties"]) for one in elements["items"]["anyOf"]] == [
        ["type", "desc"],
        ["type", "text", "desc"],
    ]


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 1200))
def test_a_range_of_numbers_is_an_expression(least: int, most: int, number: int):
    least, most = min(least, most), max(least, most)
    assert bool(re.fullmatch(_between(least, most), str(number))) == (least <= number <= most)


@given(st.lists(st.integers(0, 1000), min_size=4, max_size=4))
@settings(max_examples=30, deadline=None)
def test_boxes_in_order_are_an_expression_for_each_axis(box: list[int]):
    text = ",".join(map(str, box))
    for axis in (0, 1):
        assert bool(re.fullmatch(_ordered(axis), text)) == (box[axis] < box[axis + 2])
