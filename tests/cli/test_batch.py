"""`ideoflow batch` on the bundled model: each picture once, whatever is killed, and the same as in one quiet run."""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image
from typer.testing import CliRunner

from ideoflow import pictures
from ideoflow.batch.shares import Share
from ideoflow.cli import app

COLOURS = ("red", "blue", "green", "orange", "purple", "black")
SHAPES = ("heart", "circle", "star", "square", "triangle")
SIZES = ("64x64", "96x64", "64x96")
SHORT, LONG = 12, int(os.environ.get("IDEOFLOW_BATCH_CAPTIONS", "2000"))  # captions
KILLS = 10
OPTIONS = ("--device", "cpu", "--steps", "2")


def rows(count: int) -> list[Any]:
    """Captions of words and of boxes, of mixed sizes and steps, half of them without a seed; no two are the same."""
    draw = random.Random(7)
    boxes = json.loads((Path(__file__).parents[2] / "examples" / "captions" / "heart.json").read_text())
    found: list[Any] = []
    for number in range(count):
        words = f"a {draw.choice(COLOURS)} {draw.choice(SHAPES)} on {draw.choice(('pink', 'white', 'yellow'))}"
        own: dict[str, Any] = {"caption": boxes if number % 5 == 4 else words, "size": draw.choice(SIZES)}
        own["seed"] = number
        if number % 3 == 0:
            own["steps"] = draw.choice((1, 3))
        found.append(own)
    return found


def written(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def run(*arguments: object, fails: int = 0, **kwargs: Any) -> Any:
    done = CliRunner().invoke(app, ["batch", *map(str, arguments)], **kwargs)
    assert done.exit_code == fails, done.output
    assert "Traceback" not in done.output
    return done


def index(place: Path) -> list[dict[str, Any]]:
    paths = [*place.glob("index*.jsonl"), *place.glob("pictures-*.jsonl")]
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def files(place: Path) -> dict[str, bytes]:
    """Every picture by its address; none is there twice, and the index is of these."""
    found = [(path.stem, path.read_bytes()) for path in place.rglob("*.png")]
    for path in place.glob("pictures-*.tar"):
        with tarfile.open(path) as shard:
            members = [member for member in shard.getmembers() if member.name.endswith(".png")]
            found += [(member.name[:-4], shard.extractfile(member).read()) for member in members]  # type: ignore
    addresses = [address for address, _ in found]
    assert len(set(addresses)) == len(addresses)
    assert sorted(line["address"] for line in index(place)) == sorted(addresses)
    return dict(found)


def pixels(data: bytes) -> np.ndarray:
    from io import BytesIO

    with Image.open(BytesIO(data)) as image:
        return np.asarray(image).astype(int)


def assert_same(one: dict[str, bytes], other: dict[str, bytes]) -> None:
    """The same pictures to one grey level, by which a picture may round in other company."""
    assert one.keys() == other.keys()
    for address, data in one.items():
        assert np.abs(pixels(data) - pixels(other[address])).max() <= 1, address


@pytest.fixture(scope="module", autouse=True)
def loaded_once() -> Iterator[None]:
    """Runs within this process share one pipeline, and the captions that it has encoded."""
    from ideoflow.cli import draw

    kept: dict[Any, Any] = {}

    def load(settings: Any, ignore_unknown: bool) -> Any:
        if settings not in kept:
            kept[settings] = draw.load(settings, ignore_unknown)
        return kept[settings]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["ideoflow.cli.batch"], "load", load)  # the command has the module's name
        yield


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A file of captions, and what one run makes of it that nothing disturbs."""
    folder = tmp_path_factory.mktemp("quiet")
    captions = written(folder / "captions.jsonl", rows(SHORT))
    done = run(captions, "--out", folder / "place", *OPTIONS)
    assert f"{SHORT} rows: {SHORT} pictures drawn, 0 there already, 0 rejected" in done.stdout
    return captions, folder / "place"


def test_every_row_becomes_the_picture_it_asks_for(quiet):
    captions, place = quiet
    lines = [json.loads(line) for line in captions.read_text().splitlines()]
    found = files(place)
    assert len(found) == SHORT
    for line in index(place):
        row = lines[line["line"] - 1]
        recipe = pictures.read_settings(place / line["file"])
        assert f"{recipe['width']}x{recipe['height']}" == row["size"] and recipe["seed"] == row["seed"] == line["seed"]
        assert (recipe["steps"] or 20) == row.get("steps", 2) == line["steps"]
        assert recipe["caption"] == line["caption"] and recipe["guidance"] == line["guidance"] == 2.0
        assert pixels(found[line["address"]]).std() > 1


def test_a_picture_is_the_one_that_generate_makes_of_its_file(quiet, tmp_path: Path):
    _, place = quiet
    line = index(place)[0]
    again = CliRunner().invoke(app, ["generate", str(place / line["file"]), "--out", str(tmp_path / "again.png")])
    assert again.exit_code == 0, again.output
    assert_same({"": (place / line["file"]).read_bytes()}, {"": (tmp_path / "again.png").read_bytes()})


def test_a_second_run_draws_nothing_and_more_rows_are_added(quiet, tmp_path: Path):
    captions, kept = quiet
    place = tmp_path / "place"
    shutil.copytree(kept, place)
    done = run(captions, "--out", place, *OPTIONS)
    assert f"0 pictures drawn, {SHORT} there already" in done.stdout and files(place) == files(kept)
    another = {**rows(1)[0], "seed": 99}
    more = written(tmp_path / "more.jsonl", [*rows(SHORT), another, another])
    done = run(more, "--out", place, *OPTIONS)
    assert f"{SHORT + 2} rows: 1 pictures drawn, {SHORT + 1} there already" in done.stdout


def test_order_and_company_change_no_picture(quiet, tmp_path: Path):
    """To one grey level; drawn alone, not a bit."""
    captions, place = quiet
    lines = captions.read_text().splitlines()[::-1]
    backwards = written(tmp_path / "backwards.jsonl", lines)
    run(backwards, "--out", tmp_path / "small", *OPTIONS, "--max-tokens", "150")
    assert_same(files(tmp_path / "small"), files(place))
    some = written(tmp_path / "some.jsonl", lines[:5])
    run(some, "--out", tmp_path / "one", *OPTIONS, "--max-requests", "1")
    some = written(tmp_path / "turned.jsonl", lines[4::-1])
    run(some, "--out", tmp_path / "other", *OPTIONS, "--max-requests", "1", "--as", "webdataset")
    assert files(tmp_path / "one") == files(tmp_path / "other")


def test_rows_without_a_seed_draw_the_same_whatever_stands_around_them(tmp_path: Path):
    words = [{"caption": f"a {colour} heart on pink", "size": "64x64"} for colour in COLOURS[:4]]
    run(written(tmp_path / "a.jsonl", words), "--out", tmp_path / "a", *OPTIONS)
    run(written(tmp_path / "b.jsonl", ["{", *words[::-1], words[0]]), "--out", tmp_path / "b", *OPTIONS, fails=1)
    run(written(tmp_path / "a.jsonl", words), "--out", tmp_path / "c", *OPTIONS, "--seed", "1")
    assert_same(files(tmp_path / "a"), files(tmp_path / "b"))
    assert len({line["seed"] for line in [*index(tmp_path / "a"), *index(tmp_path / "c")]}) == 8


def test_bad_rows_go_to_a_file_of_their_own_and_the_others_are_drawn(tmp_path: Path):
    good = rows(2)
    bad = ["{", '{"caption": "a red heart", "size": "99x99"}', '"a dragon"', '{"caption": "x", "n": 0}']
    long = json.dumps({"caption": {"high_level_description": "red " * 3000}, "size": "64x64"})
    captions = written(tmp_path / "captions.jsonl", [good[0], *bad, long, good[1]])
    for _ in range(2):  # each run tells of all of them
        done = run(captions, "--out", tmp_path / "place", *OPTIONS, fails=1)
        told = [json.loads(line) for line in (tmp_path / "place" / "rejected.jsonl").read_text().splitlines()]
        assert [line["line"] for line in told] == [2, 3, 4, 5, 6]
        assert all(line["reason"] and line["row"] for line in told)
        assert "2048" in told[-1]["reason"] and "99x99" in told[1]["reason"]
        assert "5 rejected" in done.stdout and "rejected.jsonl says why" in done.stdout.replace("\n", "")
        assert len(files(tmp_path / "place")) == 2
    run(written(captions, good), "--out", tmp_path / "place", *OPTIONS)
    assert not (tmp_path / "place" / "rejected.jsonl").exists()


def test_a_picture_that_fails_is_rejected_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from ideoflow.engine import Denoiser

    compute = Denoiser.compute

    def fails_for_one(self: Any, requests: Any) -> Any:
        if any(request.grid == (6, 4) for request in requests):
            raise RuntimeError("no such luck")
        return compute(self, requests)

    monkeypatch.setattr(Denoiser, "compute", fails_for_one)
    lines = rows(SHORT)
    run(written(tmp_path / "a.jsonl", lines), "--out", tmp_path / "place", *OPTIONS, fails=1)
    told = [json.loads(line) for line in (tmp_path / "place" / "rejected.jsonl").read_text().splitlines()]
    assert sorted(line["line"] for line in told) == [i for i, row in enumerate(lines, 1) if row["size"] == "64x96"]
    assert {line["reason"] for line in told} == {"RuntimeError: no such luck"}
    monkeypatch.undo()
    done = run(tmp_path / "a.jsonl", "--out", tmp_path / "place", *OPTIONS)
    assert f"{len(told)} pictures drawn" in done.stdout


def test_shares_draw_every_picture_once_into_one_place(quiet, tmp_path: Path):
    captions, place = quiet
    bad = written(tmp_path / "captions.jsonl", [*captions.read_text().splitlines(), "{", "{"])
    for number in (1, 2, 3):
        done = run(bad, "--out", tmp_path / "place", *OPTIONS, "--shard", f"{number}/3", fails=int(number > 1))
        own = (tmp_path / "place" / f"index-{number}-of-3.jsonl").read_text().splitlines()
        assert all(Share(number, 3).takes(json.loads(line)["address"]) for line in own)
        assert f"{len(own)} pictures drawn, 0 there already, {SHORT - len(own)} left to other shares" in done.stdout
    assert_same(files(tmp_path / "place"), files(place))
    told = [path.read_text().splitlines() for path in (tmp_path / "place").glob("rejected-*.jsonl")]
    assert sum(map(len, told)) == 2


def test_captions_come_from_standard_input_too(tmp_path: Path):
    text = "".join(json.dumps(row) + "\n" for row in rows(2))
    run("-", "--out", tmp_path / "place", *OPTIONS, "--as", "parquet", input=text)
    table = pyarrow.parquet.read_table(tmp_path / "place" / "pictures-00000.parquet").to_pylist()
    assert {row["address"] for row in table} == {line["address"] for line in index(tmp_path / "place")}
    assert [pixels(row["image"]["bytes"]).shape[:2] for row in table] == [
        (row["height"], row["width"]) for row in table
    ]


def test_other_file_types_and_no_settings_in_them(tmp_path: Path):
    captions = written(tmp_path / "a.jsonl", rows(2))
    run(captions, "--out", tmp_path / "place", *OPTIONS, "--format", "webp", "--no-metadata")
    found = list((tmp_path / "place").rglob("*.webp"))
    assert len(found) == 2
    with pytest.raises(ValueError, match="carries no ideoflow settings"):
        pictures.read_settings(found[0])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--as", "zip"], "--as 'zip' is unknown: choose one of folder, webdataset, parquet."),
        (["--shard", "0/4"], "--shard '0/4' is no share"),
        (["--size", "99x99"], "The nearest sizes are"),
        (["--size", "4096x4096"], "more pixels than --pixel-limit"),
        (["--preset", "trubo"], "Did you mean"),
        (["--model", "./nowhere"], "--model './nowhere': there is no such folder or file"),
        (["--format", "gif"], "--format 'gif' is unknown"),
        (["--guidance", "nan"], "give a finite number"),
        (["--output", "x"], "there is no option --output: give --out."),
        (["--batch-size", "4"], "--max-requests"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_there(tmp_path: Path, options: list[str], says: str):
    captions = written(tmp_path / "a.jsonl", rows(1))
    done = run(captions, "--out", tmp_path / "place", *options, fails=2)
    assert says in done.stderr.replace("\n", " ") and not (tmp_path / "place").exists()


def test_inputs_and_places_that_cannot_be_are_named(tmp_path: Path):
    captions = written(tmp_path / "a.jsonl", rows(1))
    assert "No such file" in run(tmp_path / "none.jsonl", "--out", tmp_path / "place", fails=2).stderr
    assert "is a folder" in run(tmp_path, "--out", tmp_path / "place", fails=2).stderr
    assert "is a file, not a folder" in run(captions, "--out", captions / "place", fails=2).stderr
    assert "is a file, not a folder" in run(captions, "--out", captions, fails=2).stderr
    (tmp_path / "full" / "pictures").mkdir(parents=True)
    done = run(captions, "--out", tmp_path / "full", "--as", "webdataset", fails=2)
    assert "has results of --as folder" in done.stderr.replace("\n", " ")


def test_parquet_without_pyarrow_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ideoflow.batch.parquet.find_spec", lambda name: None)
    captions = written(tmp_path / "a.jsonl", rows(1))
    done = run(captions, "--out", tmp_path / "place", "--as", "parquet", fails=2)
    assert "pip install 'ideoflow[parquet]'" in done.stderr


def test_a_place_that_another_run_fills_is_left_to_it(tmp_path: Path):
    captions = written(tmp_path / "a.jsonl", rows(1))
    (tmp_path / "place").mkdir()
    with (tmp_path / "place" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run(captions, "--out", tmp_path / "place", *OPTIONS, fails=2)
    assert "is in use by another process" in done.stderr.replace("\n", " ")


# Killed


def killed(warm: list[str], captions: Path, place: Path, pictures_there: int, *options: str) -> bool:
    """Start a run, and kill it once so many pictures are there; whether it was still at work."""
    command = [*warm, "-m", "ideoflow", "batch", str(captions), "--out", str(place), *OPTIONS, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and count(place) < pictures_there:
            time.sleep(0.005)
        alive = process.poll() is None
        process.send_signal(signal.SIGKILL)
        _, told = process.communicate()
        assert process.returncode == (-signal.SIGKILL if alive else 0), told
    with (place / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the system has put the process away
    return alive


def count(place: Path) -> int:
    """Pictures of a place, also in the shard that is being filled; roughly, where it changes under our eyes."""
    whole = [path for path in (*place.glob("index.jsonl"), *place.glob("pictures-*.jsonl"))]
    return sum(path.read_bytes().count(b"\n") for path in whole) + sum(
        path.read_bytes().count(b'"sha256"') for path in place.glob(".open.tar")
    )


def killed_often(warm: list[str], captions: Path, place: Path, at: list[int], *options: str) -> Iterator[bool]:
    for pictures_there in at:
        yield killed(warm, captions, place, pictures_there, *options)


@pytest.mark.parametrize("kind", ["folder", "webdataset"])
def test_killed_in_the_middle_every_picture_is_there_once_and_the_same(quiet, warm, tmp_path: Path, kind: str):
    captions, place = quiet
    options = ("--as", kind, "--per-file", "5", "--max-tokens", "150")  # so that not all are done at once
    assert killed(warm, captions, tmp_path / "place", 4, *options)
    there = count(tmp_path / "place")
    done = run(captions, "--out", tmp_path / "place", *OPTIONS, *options)
    assert f"{SHORT - there} pictures drawn, {there} there already" in done.stdout and 4 <= there < SHORT
    assert_same(files(tmp_path / "place"), files(place))
    assert [path for path in (tmp_path / "place").rglob(".*") if path.name != ".lock"] == []


@pytest.mark.long
@pytest.mark.parametrize("kind", ["folder", "webdataset"])
def test_killed_ten_times_every_picture_is_there_once_and_the_same(warm, tmp_path: Path, kind: str):
    """IDEOFLOW_BATCH_CAPTIONS says how many captions, 2000 if it is not set."""
    captions = written(tmp_path / "captions.jsonl", rows(LONG))
    quietly = run(captions, "--out", tmp_path / "quiet", *OPTIONS)
    assert f"{LONG} pictures drawn" in quietly.stdout
    draw = random.Random(3)
    at = sorted(draw.sample(range(1, max(LONG - 100, LONG * 9 // 10)), KILLS))
    options = ("--as", kind, "--per-file", "64")
    alive = list(killed_often(warm, captions, tmp_path / "place", at, *options))
    assert alive == [True] * KILLS
    done = run(captions, "--out", tmp_path / "place", *OPTIONS, *options)
    assert "0 rejected" in done.stdout and " 0 pictures drawn" not in done.stdout
    found, expected = files(tmp_path / "place"), files(tmp_path / "quiet")
    assert len(found) == LONG
    assert_same(found, expected)
    print(f"{sum(found[one] == expected[one] for one in found)} of {LONG} are the same to the last bit; killed at {at}")
