"""Where plain words put things beside, above and on each other, and what is said where they cannot."""

from __future__ import annotations

import itertools

import pytest

from ideoflow.sketch.placing import boxes, kept
from ideoflow.sketch.prose import Reading, read
from ideoflow.sketch.wanted import Thing

Box = tuple[int, int, int, int]


def places(reading: Reading) -> list[Box]:
    found = boxes(reading.things, reading.relations, 1.0)
    assert all(kept(one, found) for one in reading.relations)
    return found


def named(reading: Reading, shape: str) -> list[Box]:
    found = places(reading)
    return [found[number] for number, thing in enumerate(reading.things) if thing.shape == shape]


@pytest.mark.parametrize(
    "text",
    [
        "a red heart between two blue stars on white",
        "a red heart between a blue star and a green star on white",
        "between a green star and a blue star is a red heart on white",
        "between two blue stars is a red heart, on white",
    ],
)
def test_a_thing_between_two_lies_between_them(text: str):
    reading = read(text)
    (heart,), (first, second) = named(reading, "heart"), sorted(named(reading, "star"), key=lambda box: box[1])
    assert first[3] <= heart[1] and heart[3] <= second[1]
    assert [one.kind for one in reading.relations] == ["between"]


@pytest.mark.parametrize("text", ["a red heart between three blue stars", "a red heart between a blue star"])
def test_between_other_than_two_things_is_said(text: str):
    assert "between: it was not clear which two things this was said of" in read(text).notes


@pytest.mark.parametrize("word", ["above", "below", "to the left of", "to the right of"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_relations_in_a_chain_are_all_kept(word: str, count: int):
    shapes = ("red heart", "blue star", "green ring", "black cross")[:count]
    reading = read(f" {word} ".join(f"a {shape}" for shape in shapes) + ", on white")
    axis, side = (0, word == "below") if word in ("above", "below") else (1, "right" in word)
    found = places(reading)[::-1] if side else places(reading)
    assert all(one[axis + 2] <= other[axis] for one, other in itertools.pairwise(found))
    assert len(reading.relations) == count - 1 and reading.notes == ()


@pytest.mark.parametrize("word", ["above", "below", "to the left of", "to the right of"])
@pytest.mark.parametrize(
    ("things", "others"),
    [("two red hearts", "a blue star"), ("a red heart", "two blue stars"), ("2 hearts", "2 stars")],
)
def test_all_of_a_group_are_related(word: str, things: str, others: str):
    reading = read(f"{things} {word} {others} on white")
    axis, side = (0, word == "below") if word in ("above", "below") else (1, "right" in word)
    hearts, stars = named(reading, "heart"), named(reading, "star")
    low, high = (stars, hearts) if side else (hearts, stars)
    assert max(box[axis + 2] for box in low) <= min(box[axis] for box in high)


@pytest.mark.parametrize(
    "text",
    [
        "a red circle with a white star in it",
        "a red circle with a white star inside",
        "a red circle with a white star inside it, on black",
        "a red circle with a white star inside on black",
        "a red circle containing a white star",
        "a red circle that encloses a white star on black",
        "a white star inside a red circle",
    ],
)
def test_a_thing_within_another_lies_within_it(text: str):
    reading = read(text)
    (star,), (circle,) = named(reading, "star"), named(reading, "circle")
    assert circle[0] < star[0] and circle[1] < star[1] and star[2] < circle[2] and star[3] < circle[3]
    assert not reading.unknown and len(reading.relations) == 1


def test_things_on_one_other_do_not_cover_each_other():
    (one, other) = named(read("two white stars on a red circle on black"), "star")
    assert one[3] <= other[1]


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("a red heart at the top left and bottom right", "one place here; bottom right is left out"),
        ("red hearts at the top left and bottom right", "one place here; bottom right is left out"),
        ("a red heart above a blue ring above the red heart", "not drawn so: blue ring above red heart"),
        ("a red heart at the left, to the right of a blue star at the right", "not drawn so: red heart"),
        ("a red star on two blue circles", "on: a thing lies on one other here, the first of 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_placed_so_is_said(text: str, note: str):
    assert any(note in said for said in read(text).notes), read(text)


def test_two_places_of_two_things_are_one_each():
    reading = read("two red hearts at the top left and bottom right, on white")
    assert [(thing.row, thing.column) for thing in reading.things] == [(-1, -1), (1, 1)] and reading.notes == ()


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("a red heart above a blue star. The star is above a green ring", 3),
        ("a red heart above a blue star. The blue star is above a green ring", 3),
        ("a heart on white. The heart is red.", 1),
        ("two stars on white. The stars are red.", 2),
        ("the red heart and the blue heart on white", 2),
        ("the word HI in white and the word HI in brown on red", 2),
        ("a red star and another red star on white", 2),
    ],
)
def test_a_shape_that_was_named_before_is_the_same_thing(text: str, count: int):
    assert len(read(text).things) == count


def test_one_of_several_that_is_spoken_of_again_is_said():
    assert any("not clear which" in note for note in read("two red hearts. The heart is above a blue star").notes)


@pytest.mark.parametrize(
    ("text", "ground", "left"),
    [
        ("a heart with red and white stripes on blue", "blue", "with red and white stripes"),
        ("a heart fading from red to blue on white", "white", "fading red to blue"),
        ("a red and white striped heart on blue", "blue", "red and white striped"),
        ("a striped red heart on blue", "blue", "striped"),
        ("a red to white gradient heart on black", "black", "red to white gradient"),
        ("a heart with a gradient from red to white, on a black background", "black", "with a gradient red to white"),
        ("a red striped heart and a blue star on white", "white", "red striped"),
    ],
)
def test_stripes_and_gradients_of_a_thing_are_not_the_background(text: str, ground: str, left: str):
    reading = read(text)
    assert (reading.ground.kind, reading.ground.colours, reading.things[0].colour) == ("solid", (ground,), "red")
    assert any(f"a thing has one plain colour here; left out: {left}" in note for note in reading.notes)


@pytest.mark.parametrize(
    ("text", "outline", "note"),
    [
        ("a red heart with a blue outline", False, "blue outline is left out"),
        ("a red heart outlined in blue", False, "outlined in blue is left out"),
        ("two red hearts with blue outlines", False, "blue outlines is left out"),
        ("a hollow heart filled with red", True, "a hollow thing is not filled"),
    ],
)
def test_an_outline_has_no_colour_of_its_own(text: str, outline: bool, note: str):
    reading = read(f"{text} on white")
    assert {(thing.colour, thing.outline) for thing in reading.things} == {("red", outline)}
    assert any(note in said for said in reading.notes)


def test_a_colour_of_an_outline_alone_is_the_things():
    assert [(one.colour, one.outline) for one in read("a heart with a blue outline on white").things] == [
        ("blue", True)
    ]


@pytest.mark.parametrize(
    ("text", "understood"),
    [
        ("a small red heart above a blue ring, on pink", "small red heart above blue ring, on plain pink"),
        ("a tiny red heart, a huge blue ring on pink", "tiny red heart, huge blue ring, on plain pink"),
        ("a red heart at the top left on pink", "red heart at the top left, on plain pink"),
        ("a red heart in the middle of pink", "red heart at the middle, on plain white"),
        ("a red heart between two blue stars on pink", "red heart between blue star and blue star, on plain pink"),
        ("under a red heart there is a blue star, on pink", "blue star below red heart, on plain pink"),
        ("a red dot left of a blue ring left of a black box on pink",
         "red circle to the left of blue ring to the left of black square, on plain pink"),
    ],
)  # fmt: skip
def test_what_was_understood_is_told_with_sizes_places_and_relations(text: str, understood: str):
    assert read(text).understood == understood


def test_a_size_is_told_as_it_was_said():
    assert [Thing(shape="star", colour="red", size=size).described for size in (0.55, 0.7, 1.0, 1.35, 1.6)] == [
        f"{said}red star" for said in ("tiny ", "small ", "", "large ", "huge ")
    ]
