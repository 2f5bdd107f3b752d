"""Results that are each there once, wherever the one who wrote them was stopped: bytes are cut off at every place."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ideoflow.batch.index import Addresses, Index, read_lines, whole_lines
from ideoflow.batch.open_shard import OpenShard, Sample, samples
from ideoflow.batch.results import check_kind, open_results
from ideoflow.batch.shares import Share, alone, taken
from ideoflow.files import InUseError

WHOLE = Share()
KINDS = ("folder", "webdataset", "parquet")


def picture(number: int) -> tuple[str, bytes, dict[str, Any]]:
    """Address, file and what is said of a picture of its own colour."""
    file = io.BytesIO()
    Image.new("RGB", (16 + number, 16), (number, 255 - number, 7)).save(file, "PNG")
    about = {
        "line": number, "caption": f"picture {number} é", "width": 16 + number, "height": 16, "preset": "V4_TURBO_12",
        "steps": 2, "guidance": None if number % 2 else 2.0, "seed": 2**63 - 1 - number, "notes": ["mended"] * number,
    }  # fmt: skip
    return hashlib.sha1(str(number).encode()).hexdigest(), file.getvalue(), about


def fill(place: Path, kind: str, numbers: range, share: Share = WHOLE, each: int = 3, whole: bool = True) -> None:
    """What a run does: pictures that are there are left, and the others come."""
    results = open_results(place, kind, share, ".png", each)  # type: ignore[arg-type]
    for number in numbers:
        address, data, about = picture(number)
        if not results.has(address, about):
            results.add(address, data, about)
    results.close(whole)


def found(place: Path, kind: str) -> dict[str, bytes]:
    """All pictures of a place by address; none may be there twice, and the index has each once with what was said."""
    pictures: list[tuple[str, bytes]] = []
    if kind == "folder":
        pictures = [(path.stem, path.read_bytes()) for path in (place / "pictures").rglob("*.png")]
        indexed = [line for path in place.glob("index*.jsonl") for line in read_lines(path)]
        assert all((place / line["file"]).stem == line["address"] for line in indexed)
    else:
        shards = [path for path in place.iterdir() if path.suffix in (".tar", ".parquet") and path.name[0] != "."]
        for path in shards:
            pictures += of_tar(path) if kind == "webdataset" else of_parquet(path)
        indexed = [line for path in shards for line in read_lines(path.with_suffix(".jsonl"))]
        assert {line["file"] for line in indexed} == {path.name for path in shards}
    addresses = [address for address, _ in pictures]
    assert len(set(addresses)) == len(addresses)
    assert sorted(line["address"] for line in indexed) == sorted(addresses)
    for line in indexed:
        about = picture(line["line"])[2]
        assert {name: line[name] for name in about} == about
    return dict(pictures)


def of_tar(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as shard:
        members = [(member.name, shard.extractfile(member).read()) for member in shard.getmembers()]
    for (name, _), (about_name, about) in zip(members[::2], members[1::2], strict=True):
        assert about_name == name.replace(".png", ".json") and json.loads(about)["address"] == name[:-4]
    return [(name[:-4], data) for name, data in members[::2]]


def of_parquet(path: Path) -> list[tuple[str, bytes]]:
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(path).to_pylist()
    for row in rows:
        about = picture(row["line"])[2]
        assert {name: row[name] for name in about} == about
    return [(row["address"], row["image"]["bytes"]) for row in rows]


def expected(numbers: range) -> dict[str, bytes]:
    return {address: data for address, data, _ in map(picture, numbers)}


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_come_back_as_they_went_in_and_once(tmp_path: Path, kind: str):
    fill(tmp_path, kind, range(8))
    fill(tmp_path, kind, range(10))
    assert found(tmp_path, kind) == expected(range(10))
    if kind != "folder":
        assert len(list(tmp_path.glob("pictures-*.jsonl"))) == 4  # of 3, 3, 2 and 2 pictures


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_leaves_no_shard_half_full(tmp_path: Path, kind: str):
    for numbers in (range(2), range(4), range(5), range(7)):
        fill(tmp_path, kind, numbers, whole=False)
    fill(tmp_path, kind, range(7))
    assert found(tmp_path, kind) == expected(range(7))
    if kind != "folder":
        assert len(list(tmp_path.glob("pictures-*.jsonl"))) == 3
        assert [path for path in tmp_path.iterdir() if path.name.startswith(".open")] == []


def test_a_shard_that_is_cut_anywhere_keeps_every_whole_picture(tmp_path: Path):
    path = tmp_path / "shard.tar"
    shard = OpenShard(path)
    ends = []
    for number in range(3):
        address, data, about = picture(number)
        shard.add(Sample(f"{address}.png", data, {"address": address, **about}))
        ends.append(path.stat().st_size)
    shard.close()
    whole = path.read_bytes()
    for cut in range(0, len(whole) + 1, 101):
        path.write_bytes(whole[:cut])
        shard = OpenShard(path)
        kept = sum(end <= cut for end in ends)
        assert len(shard) == kept
        for number in range(kept, 3):
            address, data, about = picture(number)
            shard.add(Sample(f"{address}.png", data, {"address": address, **about}))
        shard.close()
        assert path.read_bytes() == whole


def test_nothing_of_a_long_picture_that_was_cut_short_stays_behind_a_short_one(tmp_path: Path):
    path = tmp_path / "shard.tar"
    address, data, about = picture(1)
    long = Sample("ab.png", bytes(100_000), {"address": "ab"})
    shard = OpenShard(path)
    shard.add(long)
    shard.close()
    path.write_bytes(path.read_bytes()[:90_000])
    shard = OpenShard(path)
    shard.add(Sample(f"{address}.png", data, {"address": address, **about}))
    shard.finish()
    assert path.stat().st_size == tarfile.RECORDSIZE and [one for one, _ in of_tar(path)] == [address]


def test_a_shard_whose_last_picture_is_not_as_it_was_written_loses_that_one(tmp_path: Path):
    """After a loss of power a file may have its length and not its bytes."""
    path = tmp_path / "shard.tar"
    shard = OpenShard(path)
    for number in range(2):
        address, data, about = picture(number)
        shard.add(Sample(f"{address}.png", data, {"address": address, **about}))
    shard.close()
    data = bytearray(path.read_bytes())
    at = data.rindex(b"IDAT")
    data[at : at + 20] = bytes(20)
    path.write_bytes(data)
    assert OpenShard(path).addresses == [picture(0)[0]]


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
@pytest.mark.parametrize("stage", ["finished", "indexed", "named"])
def test_stopped_while_a_shard_gets_its_name_nothing_is_lost_or_twice(tmp_path: Path, kind: str, stage: str):
    fill(tmp_path, kind, range(2), whole=False)
    path = tmp_path / ".open.tar"
    before = path.read_bytes()
    shard = OpenShard(path)
    shard.finish()
    finished = path.read_bytes()
    assert finished[: len(before)] == before and len(finished) % tarfile.RECORDSIZE == 0
    if stage == "indexed":
        (tmp_path / "pictures-00000.jsonl").write_bytes(b'{"address": "00", "file": "of another picture"}\n')
    if stage == "named":
        path.write_bytes(before)
        fill(tmp_path, kind, range(2))  # sealed ...
        if kind == "parquet":
            path.write_bytes(finished)  # ... but the shard that it was made of is there yet
    fill(tmp_path, kind, range(5))
    assert found(tmp_path, kind) == expected(range(5))


def test_a_picture_that_the_index_does_not_have_yet_comes_into_it(tmp_path: Path):
    fill(tmp_path, "folder", range(4))
    index = tmp_path / "index.jsonl"
    whole = index.read_bytes()
    for cut in range(0, len(whole), 97):
        index.write_bytes(whole[:cut])
        fill(tmp_path, "folder", range(4))
        assert found(tmp_path, "folder") == expected(range(4))


def test_a_picture_that_was_taken_away_is_drawn_again(tmp_path: Path):
    fill(tmp_path, "folder", range(3))
    next((tmp_path / "pictures").rglob("*.png")).unlink()
    fill(tmp_path, "folder", range(3))
    assert found(tmp_path, "folder") == expected(range(3))


def test_results_of_another_kind_are_not_filled_up(tmp_path: Path):
    for kind in KINDS:
        place = tmp_path / kind
        check_kind(place, kind)  # type: ignore[arg-type]
        fill(place, kind, range(4))
        check_kind(place, kind)  # type: ignore[arg-type]
        for other in KINDS:
            if other != kind:
                with pytest.raises(ValueError, match=f"has results of --as {kind}"):
                    check_kind(place, other)  # type: ignore[arg-type]


def test_a_shard_without_its_index_is_named(tmp_path: Path):
    fill(tmp_path, "webdataset", range(3))
    (tmp_path / "pictures-00000.jsonl").unlink()
    with pytest.raises(ValueError, match="has lost its index"):
        open_results(tmp_path, "webdataset", WHOLE, ".png", 3)


@pytest.mark.parametrize("kind", KINDS)
def test_shares_fill_one_place_and_may_become_more_or_fewer(tmp_path: Path, kind: str):
    """Four shares are stopped in the middle; two others, and then one, end what they began."""

    def run(share: Share, whole: bool, most: int) -> None:
        results = open_results(tmp_path, kind, share, ".png", 5)  # type: ignore[arg-type]
        for number in range(most):
            address, data, about = picture(number)
            if share.takes(address) and not results.has(address, about):
                results.add(address, data, about)
        results.close(whole)

    for number in range(1, 5):
        run(Share(number, 4), number == 1, 20)
    for number in (1, 2):
        with alone(tmp_path, Share(number, 2)):
            run(Share(number, 2), True, 30)
    assert not list(tmp_path.glob(".open*"))
    fill(tmp_path, kind, range(32))
    assert found(tmp_path, kind) == expected(range(32))


def test_a_share_is_one_runs_and_shares_of_another_number_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ideoflow.batch.shares.WAIT", 0.3)
    with taken(tmp_path, Share(1, 2)), alone(tmp_path, Share(1, 2)):
        with pytest.raises(InUseError, match=f"is in use by process {os.getpid()}"), taken(tmp_path, Share(1, 2)):
            pass
        with taken(tmp_path, Share(2, 2)), alone(tmp_path, Share(2, 2)):
            pass
        with taken(tmp_path, Share(3, 4)), pytest.raises(InUseError, match="1-of-2"), alone(tmp_path, Share(3, 4)):
            pass
    with taken(tmp_path, Share(3, 4)), alone(tmp_path, Share(3, 4)):
        pass


@pytest.mark.parametrize("size", [0, 1, 100, 2**16 - 1, 2**16, 2**16 + 1, 200_000])
def test_the_end_of_the_last_whole_line_is_found_in_files_of_any_length(tmp_path: Path, size: int):
    path = tmp_path / "index.jsonl"
    path.write_bytes(b'"first"\n' + b"x" * size)
    assert whole_lines(path) == 8
    path.write_bytes(b"x" * size)
    assert whole_lines(path) == 0
    path.write_bytes(b"x" * size + b"\n")
    assert whole_lines(path) == size + 1


def test_a_line_that_is_none_of_an_index_is_named(tmp_path: Path):
    path = tmp_path / "index.jsonl"
    for wrong in (b"{}\n", b"[1]\n", b"nothing\n", b'{"address": "xyz"}\n', b'{"address": 3}\n'):
        path.write_bytes(b'{"address": "ab"}\n' + wrong)
        with pytest.raises(ValueError, match="line 2, is no line of an index"):
            list(read_lines(path))


def test_addresses_are_a_set(tmp_path: Path):
    addresses = Addresses()
    one, other = picture(1)[0], picture(2)[0]
    addresses.add(one)
    addresses.add(one)
    assert one in addresses and other not in addresses
    Index(tmp_path / "index.jsonl").add({"address": other})
    addresses.read(tmp_path / "index.jsonl")
    assert other in addresses


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_datasets_reads_the_shards(tmp_path: Path, kind: str):
    """The `datasets` library is the judge of both forms."""
    import datasets

    fill(tmp_path / "place", kind, range(4), each=3)
    files = sorted(map(str, (tmp_path / "place").glob(f"pictures-*{'.tar' if kind == 'webdataset' else '.parquet'}")))
    rows = datasets.load_dataset(kind, data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 4
    name = "png" if kind == "webdataset" else "image"
    for row in rows:
        about = row["json"] if kind == "webdataset" else row
        assert row[name].size == (16 + about["line"], 16) and row[name].getpixel((0, 0))[0] == about["line"]
        assert about["seed"] == 2**63 - 1 - about["line"] and about["caption"] == f"picture {about['line']} é"
    shutil.rmtree(tmp_path / "cache")


def test_the_samples_of_a_shard_are_read_one_at_a_time(tmp_path: Path):
    fill(tmp_path, "webdataset", range(3))
    with (tmp_path / "pictures-00000.tar").open("rb") as file:
        one, end = next(samples(file))
        assert one.data == picture(0)[1] and file.tell() == end
