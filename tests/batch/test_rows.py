"""Rows of a file of captions: what each asks for, why a bad one is rejected, and what an address depends on."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ideoflow.batch import rows
from ideoflow.batch.rows import Defaults, Order, Row, RowReader, lines
from ideoflow.batch.shares import Share
from ideoflow.captions import Caption
from ideoflow.presets import MAX_STEPS
from ideoflow.sketch.prose import write

CAPTION: dict[str, Any] = {
    "high_level_description": "A red heart on pink.",
    "compositional_deconstruction": {
        "background": "plain pink",
        "elements": [{"type": "obj", "bbox": [250, 250, 750, 750], "desc": "a red heart"}],
    },
}
LINE = Caption.parse(CAPTION).line()
DEFAULTS = Defaults(size=(128, 96), preset="V4_DEFAULT_20")
MODEL = {"model": "sampled:1", "base": None, "loras": [["sha256:2", 0.5]], "dtype": "float32", "quantize": None}


def read(*values: Any, reader: RowReader | None = None) -> list[Row]:
    """The rows of a file of these values, or of these bytes."""
    data = b"\n".join(value if isinstance(value, bytes) else json.dumps(value).encode() for value in values)
    return list((reader or RowReader(DEFAULTS)).read(io.BytesIO(data)))


def order(value: Any, reader: RowReader | None = None) -> Order:
    (row,) = read(value, reader=reader)
    assert row.rejected is None, row.rejected
    (one,) = row.orders
    return one


def reason(value: Any, reader: RowReader | None = None) -> str:
    (row,) = read(value, reader=reader)
    assert row.rejected is not None and row.orders == ()
    return row.rejected.reason


@pytest.mark.parametrize(
    "row", [CAPTION, json.dumps(CAPTION), {"caption": CAPTION}, {"caption": LINE}, {"prompt": CAPTION}]
)
def test_a_row_is_a_caption_a_string_or_an_object_with_settings(row: Any):
    found = order(row)
    assert found.caption == LINE
    assert (found.width, found.height, found.preset, found.steps, found.guidance) == (
        128,
        96,
        "V4_DEFAULT_20",
        20,
        None,
    )


def test_words_are_put_into_a_caption_or_written_into_one():
    assert order("a red heart on pink").caption == Caption.from_text("a red heart on pink").line()
    written = order("a red heart on pink", RowReader(DEFAULTS, write))
    assert written.caption == write("a red heart on pink", (128, 96)).caption.line()


@pytest.mark.parametrize(
    ("row", "changes"),
    [
        ({"size": "64x80"}, {"width": 64, "height": 80}),
        ({"preset": "turbo"}, {"preset": "V4_TURBO_12", "steps": 12}),
        ({"preset": "turbo", "steps": 3}, {"preset": "V4_TURBO_12", "steps": 3}),
        ({"steps": 3}, {"steps": 3}),
        ({"num_inference_steps": 3}, {"steps": 3}),
        ({"guidance": 2}, {"guidance": 2.0}),
        ({"guidance_scale": 0.5}, {"guidance": 0.5}),
        ({"seed": 2**64 - 1}, {"seed": 2**64 - 1}),
        ({"size": None, "seed": None, "n": None}, {}),
    ],
)
def test_settings_of_a_row_replace_those_of_the_command(row: dict[str, Any], changes: dict[str, Any]):
    plain, own = order(CAPTION), order({"caption": CAPTION, **row})
    if "seed" not in changes:
        changes = {**changes, "seed": own.seed}
    assert own == replace(plain, **changes)


def test_a_rows_preset_brings_its_own_steps():
    reader = RowReader(replace(DEFAULTS, steps=5))
    assert order(CAPTION, reader).steps == 5
    assert order({"caption": CAPTION, "preset": "quality"}, reader).steps == 48


def test_pictures_of_a_row_have_seeds_one_after_another():
    (row,) = read({"caption": CAPTION, "n": 3, "seed": 2**64 - 2})
    assert [one.seed for one in row.orders] == [2**64 - 2, 2**64 - 1, 0]
    (row,) = read(CAPTION, reader=RowReader(replace(DEFAULTS, pictures=2)))
    assert row.orders[1].seed == row.orders[0].seed + 1


BAD: list[tuple[Any, str]] = [
    (b"{", "the row is no JSON: Expecting property name"),
    (b'{"caption": "x", seed: 3}', "the row is no JSON"),
    (b'"\xff"', "is not UTF-8 text: byte 1 is wrong"),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"a":' * 100_000, "nested too deeply"),
    (b'{"caption": "a", "caption": "b"}', "has the key 'caption' twice"),
    (b'{"caption": {"elements": 1, "elements": 2}}', "has the key 'elements' twice"),
    ([CAPTION], "give a caption (an object), words (a string), or an object with `caption`"),
    (7, "the row is 7: give"),
    (None, "the row is null: give"),
    ("", "the prompt is empty"),
    ({}, "is no caption"),
    ({"image": "a.png"}, "is no caption"),
    ({"caption": 3}, "`caption` is 3: "),
    ({"caption": None}, "`caption` is null: "),
    ({"caption": "x", "prompt": "y"}, "`prompt` is unknown"),
    ({"caption": "x", "negative_prompt": "y"}, "may have caption, size, preset, steps, guidance, seed, n"),
    ({"caption": "x", "size": "100x100"}, "The nearest sizes are 96x96 and 112x112"),
    ({"caption": "x", "size": "big"}, "`size` 'big' is not WIDTHxHEIGHT"),
    ({"caption": "x", "size": [64, 64]}, "`size` is [64, 64]: "),
    ({"caption": "x", "size": "4096x4096"}, "more than 4194304 pixels (--pixel-limit)"),
    ({"caption": "x", "preset": "trubo"}, "Did you mean 'V4_TURBO_12'?"),
    ({"caption": "x", "steps": 0}, "`steps` is 0: input should be greater than or equal to 1"),
    ({"caption": "x", "steps": MAX_STEPS + 1}, f"less than or equal to {MAX_STEPS}"),
    ({"caption": "x", "steps": "20"}, '`steps` is "20": input should be a valid integer'),
    ({"caption": "x", "steps": 2.5}, "`steps` is 2.5: "),
    ({"caption": "x", "steps": True}, "`steps` is true: "),
    (b'{"caption": "x", "guidance": NaN}', "`guidance` is NaN: input should be a finite number"),
    ({"caption": "x", "seed": -1}, "`seed` is -1: "),
    ({"caption": "x", "seed": 2**64}, "`seed` is 18446744073709551616: "),
    ({"caption": "x", "n": 0}, "`n` is 0: "),
    ({"caption": "x", "n": 10**9}, "`n` is 1000000000: "),
    (b'{"caption": "\\ud800"}', "half of a surrogate pair"),
    (b'{"caption": "x", "\\ud800": 1}', "unable to parse"),
]


@pytest.mark.parametrize(("row", "says"), BAD, ids=lambda value: str(value)[:40])
def test_a_bad_row_says_why(row: Any, says: str):
    told = reason(row)
    assert says in told and "\n" not in told and told.isprintable()
    told.encode()


def test_a_bad_row_is_told_with_its_line_and_the_others_are_read():
    found = read(CAPTION, b"", b"{", b"   ", "words")
    assert [row.line for row in found] == [1, 3, 5]
    assert [row.rejected is None for row in found] == [True, False, True]
    assert found[1].rejected.line == 3 and found[1].rejected.row == "{\n"


def test_strict_rejects_what_is_mended_otherwise():
    slip = {"compositional_deconstruction": {"elements": [{"type": "obj", "desc": "a dot"}], "background": "red"}}
    assert any("mended" in note for note in order(slip).notes)
    assert "the caption breaks the schema (--strict)" in reason(slip, RowReader(DEFAULTS, strict=True))
    assert order(CAPTION, RowReader(DEFAULTS, strict=True)).notes == ()
    words = RowReader(DEFAULTS, write, strict=True)
    assert order("a red heart on pink", words).caption.startswith("{")
    assert "fluffy" in reason("a fluffy red heart on pink", words)


def test_a_line_without_end_is_not_kept_in_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rows, "MOST_BYTES", 1000)
    long = b'"' + b"x" * 10_000 + b'"'
    found = list(lines(io.BytesIO(b'"a"\n' + long + b"\n" + b'"b"\n' + long)))
    assert [(number, len(data)) for number, _, data in found] == [(1, 4), (2, 1001), (3, 4), (4, 1001)]
    assert found[-1][1] == 4 + 10_003 + 4 + 10_002
    assert "the row has more than" in read(long)[0].rejected.reason


def test_a_byte_order_mark_is_no_part_of_the_first_row():
    (row,) = read(b"\xef\xbb\xbf" + json.dumps(CAPTION).encode())
    assert row.orders[0].caption == LINE


@given(st.binary(max_size=200), st.binary(max_size=50))
@settings(max_examples=100, deadline=None)
def test_no_bytes_stop_the_reading(garbage: bytes, more: bytes):
    data = garbage + b"\n" + more + b"\n" + json.dumps(CAPTION).encode()
    found = list(RowReader(DEFAULTS).read(io.BytesIO(data)))
    assert found[-1].orders[0].caption == LINE and found[-1].end == len(data)
    for row in found:
        assert (row.rejected is None) == bool(row.orders)


# Addresses and seeds


def test_an_address_depends_on_all_that_the_picture_depends_on_and_nothing_else():
    plain = order({"caption": CAPTION, "seed": 5})
    own = plain.address(MODEL)
    assert len(own) == 40 and int(own, 16) >= 0
    changed = [
        replace(plain, caption=LINE + " ").address(MODEL),
        *(replace(plain, **{name: getattr(plain, name) + 16}).address(MODEL)
          for name in ("width", "height", "steps", "seed")),
        replace(plain, preset="V4_TURBO_12").address(MODEL),
        replace(plain, guidance=7.0).address(MODEL),
        *(plain.address({**MODEL, name: "other"}) for name in MODEL),
        plain.address({**MODEL, "loras": [["sha256:2", 0.6]]}),
    ]  # fmt: skip
    assert len({own, *changed}) == 1 + len(changed)
    assert replace(plain, line=99, notes=("mended",)).address(dict(reversed(MODEL.items()))) == own


def test_equal_rows_have_one_address_however_they_are_written():
    turned = json.dumps(CAPTION, indent=None, separators=(" , ", " : ")).encode()
    found = [order(CAPTION), order(turned), order({"prompt": LINE, "size": "128x96", "steps": 20})]
    assert len({one.address(MODEL) for one in found}) == 1


def test_a_seed_is_made_of_caption_size_and_the_commands_seed():
    own = order(CAPTION).seed
    assert 0 <= own < 2**32
    assert order({"caption": CAPTION, "steps": 3, "guidance": 2}).seed == own
    assert read("words", "{", CAPTION)[2].orders[0].seed == own
    others = [
        order({"caption": CAPTION, "size": "96x128"}).seed,
        order("a red heart").seed,
        order(CAPTION, RowReader(replace(DEFAULTS, seed=1))).seed,
    ]
    assert len({own, *others}) == 4


@given(st.integers(1, 40), st.lists(st.binary(min_size=20, max_size=20), min_size=1, max_size=50, unique=True))
def test_each_address_and_each_line_is_of_one_share(count: int, addresses: list[bytes]):
    shares = [Share(number, count) for number in range(1, count + 1)]
    for number, address in enumerate(addresses, 1):
        assert sum(share.takes(address.hex()) for share in shares) == 1
        assert sum(share.takes_line(number) for share in shares) == 1


def test_shares_are_about_equal():
    found = [order({"caption": CAPTION, "seed": seed}).address(MODEL) for seed in range(200)]
    counts = [sum(map(Share(number, 4).takes, found)) for number in range(1, 5)]
    assert min(counts) > 30 and sum(counts) == 200


@pytest.mark.parametrize("text", ["", "1", "0/4", "5/4", "1/0", "-1/4", "a/b", "1/2/3", "1/1000000", "\u0661/4"])
def test_what_is_no_share_is_refused(text: str):
    with pytest.raises(ValueError, match=r"--shard .* is no share: give NUMBER/COUNT, such as 2/8"):
        Share.of(text)
    assert Share.of("2/8") == Share(2, 8) and Share.of("1/1").suffix == "" and Share.of("2/8").suffix == "-2-of-8"
