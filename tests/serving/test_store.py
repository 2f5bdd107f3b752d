"""Jobs and pictures in a folder: what is kept, what survives, and what is refused."""

import contextlib
import errno
import logging
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from ideoflow.files import InUseError, temporary_beside
from ideoflow.serving.database import APPLICATION, LOCK, StoreError
from ideoflow.serving.records import FORMATS, STATUSES, UNFINISHED, JobRecord, PictureInfo
from ideoflow.serving.server_settings import read_settings
from ideoflow.serving.store import DuplicateKey, Store, UnknownJob
from ideoflow.serving.tables import SCHEMA

from .postgres import sql


def an_id(number: int) -> str:
    return f"job_{number:022d}"


def job(number: int, **fields) -> JobRecord:
    given = {
        "status": "queued",
        "created_at": 1000.5 + number,
        "request": {"seed": 7},
        "prompt": f'{{"a": "{number}"}}',
    }
    return JobRecord(an_id(number), **{**given, **fields})


def info(data: bytes, index: int = 0, **fields) -> PictureInfo:
    return PictureInfo(index, **{"seed": 5, "width": 64, "height": 48, "format": "png", "bytes": len(data), **fields})


def add(store: Store, number: int, data: bytes, index: int = 0, **fields) -> PictureInfo:
    store.add_picture(an_id(number), index, data, info(data, index, **fields))
    return info(data, index, **fields)


def ids(records: list[JobRecord]) -> list[int]:
    return [int(record.id[4:]) for record in records]


def pictures_in(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "pictures").rglob("*") if path.is_file())


@pytest.fixture(params=["sqlite", "postgres"])
def database(request) -> str | None:
    """Address of an empty database; None for a file in the store's folder."""
    return None if request.param == "sqlite" else request.getfixturevalue("postgres").database()


sqlite_alone = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
postgres_alone = pytest.mark.parametrize("database", ["postgres"], indirect=True)


@pytest.fixture
def store(tmp_path: Path, database: str | None):
    with contextlib.closing(Store(tmp_path / "data", database=database)) as store:
        store.address = database  # for `reopened`
        yield store


def reopened(store: Store, **limits) -> Store:
    store.close()
    again = Store(store.folder, database=store.address, **limits)
    again.address = store.address
    return again


def test_a_job_is_read_as_it_was_put_also_by_the_next_server(store):
    whole = job(
        1, status="failed", prompt='{"a": "zwölf \U0001f98a \u0000 \'\\""}', prompt_was="repaired", revised_prompt="x",
        request={"seed": 2**64 - 1, "adapters": {"ink": 0.25}, "size": None, "text": "\ud800"},
        warnings=["one", "zwei"], started_at=1e9 + 1 / 3, finished_at=2e9, error={"type": "t", "message": "m"},
        key="k", body_digest="abc",
    )  # fmt: skip
    store.put(whole)
    store.put(job(2))
    assert store.get(an_id(1)) == whole == store.by_key("k")
    again = reopened(store)
    assert again.get(an_id(1)) == whole and again.get(an_id(2)) == job(2)
    again.close()


def test_a_job_that_is_not_kept_is_none(store):
    assert store.get(an_id(1)) is None and store.by_key("k") is None and store.picture(an_id(1), 0) is None
    assert not store.forget(an_id(1))
    for change in (lambda: store.update(an_id(1), status="failed"), lambda: add(store, 1, b"x")):
        with pytest.raises(UnknownJob, match=an_id(1)):
            change()
    assert pictures_in(store.folder) == []


def test_a_change_touches_what_it_names(store):
    store.put(job(1))
    store.put(job(2))
    store.update(an_id(1), status="failed", finished_at=5.25, error={"message": "m"}, warnings=["w"])
    store.update(an_id(1), error=None)
    assert store.get(an_id(1)) == job(1, status="failed", finished_at=5.25, warnings=["w"])
    assert store.get(an_id(2)) == job(2)


@pytest.mark.parametrize("name", ["id", "key", "created_at", "pictures", "number", "nonsense"])
def test_what_stays_cannot_be_changed(store, name):
    store.put(job(1))
    with pytest.raises(TypeError, match=name):
        store.update(an_id(1), **{name: "x"})


def test_a_status_is_one_of_five(store):
    store.put(job(1))
    for act in (
        lambda: store.put(job(2, status="done")),
        lambda: store.update(an_id(1), status="done"),
        lambda: store.find(["done"]),
    ):
        with pytest.raises(ValueError, match=r"'done' is no status.*queued, running"):
            act()
    assert ids(store.find()) == [1]


def test_an_idempotency_key_is_for_one_job_as_long_as_it_is_kept(store):
    store.put(job(1, key="k"))
    with pytest.raises(DuplicateKey, match="'k'"):
        store.put(job(2, key="k"))
    assert store.get(an_id(2)) is None
    store.put(job(3))
    store.put(job(4))  # none is no key
    store.forget(an_id(1))
    store.put(job(2, key="k"))
    assert store.by_key("k").id == an_id(2)


def test_a_job_is_put_once_and_without_pictures(store):
    store.put(job(1))
    with pytest.raises(ValueError, match="is kept already"):
        store.put(job(1, prompt="other"))
    with pytest.raises(ValueError, match="add_picture"):
        store.put(job(2, pictures=[info(b"x")]))
    assert store.find() == [job(1)]


@pytest.mark.parametrize("format", FORMATS)
def test_a_picture_is_a_file_named_for_its_job(store, format):
    store.put(job(1))
    kept = [add(store, 1, bytes([index]) * 9, index, format=format, seed=2**64 - 1) for index in (1, 0)]
    assert store.get(an_id(1)).pictures == sorted(kept, key=lambda one: one.index)
    path = store.picture(an_id(1), 1)
    assert path == store.folder / "pictures" / "00" / f"{an_id(1)}-1.{format}" and path.read_bytes() == b"\1" * 9
    assert store.picture(an_id(1), 2) is None


def test_a_picture_made_again_takes_the_place_of_the_first(store):
    store.put(job(1))
    add(store, 1, b"first", format="png")
    second = add(store, 1, b"second", format="webp", seed=6)
    assert store.get(an_id(1)).pictures == [second]
    assert store.picture(an_id(1), 0).read_bytes() == b"second" and pictures_in(store.folder) == [f"{an_id(1)}-0.webp"]


@pytest.mark.parametrize(
    ("index", "data", "said"),
    [
        (0, b"abc", {"bytes": 4}),
        (0, b"", {}),
        (0, b"abc", {"format": "../x"}),
        (0, b"abc", {"format": "PNG"}),
        (10_000, b"abc", {}),
        (-1, b"abc", {}),
        (True, b"abc", {}),
        ("../1", b"abc", {}),
        (1.0, b"abc", {}),
    ],
)
def test_a_picture_that_is_not_what_is_said_of_it_is_refused(store, index, data, said):
    store.put(job(1))
    with pytest.raises((ValueError, TypeError)):
        add(store, 1, data, index, **said)
    with pytest.raises(ValueError, match="not what is said"):
        store.add_picture(an_id(1), 1, b"abc", info(b"abc", 0))
    assert pictures_in(store.folder) == [] and store.get(an_id(1)).pictures == []


A21 = "a" * 21  # with "job_" before and one letter behind: an id
HOSTILE = [
    "", "job_", "../../etc/passwd", "job_../../../../../../../x", f"job_{A21}", f"job_{A21}/", f"job_{A21}aa",
    f"job_{A21}a\n", f" job_{A21}a", f"JOB_{A21}a", f"job_{A21}.", f"job_{A21}\0", f"job_{A21}ä", f"job_{A21}\u0663",
    f"job_{A21}\ud800", f"/job_{A21}a", f"job_{A21}a-0.png", f"job_{A21}%", f"job_{A21}_", "job_' OR 1=1; --00000000",
    "a" * 10**6, None, 7, b"job_0000000000000000000000", ["job"],
]  # fmt: skip


@pytest.mark.parametrize("id", HOSTILE, ids=lambda id: ascii(id)[:40])
def test_an_id_of_another_form_is_no_job_and_reaches_no_path(store, id):
    store.put(job(1))
    add(store, 1, b"x")
    before = sorted(store.folder.rglob("*"))
    assert store.get(id) is None and store.picture(id, 0) is None and store.forget(id) is False
    data = b"abc"
    for refused in (
        lambda: store.put(JobRecord(id, "queued", 1.0, {}, "p")),
        lambda: store.update(id, status="failed"),
        lambda: store.add_picture(id, 0, data, info(data)),
        lambda: store.find(after=id) if id is not None else store.update(id),  # from None is from the newest
    ):
        with pytest.raises((ValueError, UnknownJob)) as told:
            refused()
        assert len(str(told.value)) < 200
    assert sorted(store.folder.rglob("*")) == before and len(store.find()) == 1


@pytest.mark.parametrize("index", [-1, 10_000, 2**63, 2**64, -(2**70)])
def test_a_number_that_no_picture_has_is_no_picture(store, index):
    store.put(job(1))
    assert store.picture(an_id(1), index) is None


def test_jobs_are_found_newest_first_and_pages_do_not_shift_under_new_ones(store):
    for number in range(5):
        store.put(job(number, created_at=100.0 - number))  # the clock was set back: the order is that of coming
    first = store.find(limit=2)
    assert ids(first) == [4, 3]
    store.put(job(9))
    second = store.find(limit=2, after=first[-1].id)
    store.forget(an_id(0))
    assert ids(second) == [2, 1] and store.find(after=second[-1].id) == []
    with pytest.raises(UnknownJob):
        store.find(after=an_id(0))
    with pytest.raises(ValueError, match="`limit` is 0"):
        store.find(limit=0)


def test_the_newest_job_comes_after_a_forgotten_one(store):
    for number in range(3):
        store.put(job(number))
    store.forget(an_id(2))
    store.put(job(7))
    assert ids(store.find()) == [7, 1, 0] and ids(store.unfinished()) == [0, 1, 7]


def test_jobs_are_found_by_status_and_by_words_of_the_prompt(store):
    for number, (status, prompt) in enumerate(
        [("finished", "Zwölf Füchse"), ("running", "100% a_b"), ("failed", "FÜCHSE \0 'hinten'"), ("queued", "Straße")]
    ):
        store.put(job(number, status=status, prompt=prompt))
    assert ids(store.find(text="füchse")) == [2, 0]
    assert ids(store.find(text="HINTEN'")) == [2]  # behind a null character, too
    assert ids(store.find(text="STRASSE")) == [3]
    assert ids(store.find(text="0% a_")) == [1] and store.find(text="%") == store.find(text="_")  # no wildcards
    assert ids(store.find(["running", "failed"])) == [2, 1] and store.find([]) == []
    assert ids(store.find(["running", "failed"], text="füchse")) == [2]
    assert ids(store.unfinished()) == [1, 3]
    store.update(an_id(3), prompt="WEG")
    assert ids(store.find(text="weg")) == [3] and store.find(text="straße") == []


def test_what_ended_first_is_removed_first_and_what_has_not_ended_never(tmp_path, database):
    with contextlib.closing(Store(tmp_path / "data", keep_jobs=2, database=database)) as store:
        ended = {0: 50.0, 1: 20.0, 2: 40.0, 3: 30.0}
        for number in range(6):
            store.put(job(number, status="running"))
            add(store, number, b"picture")
        for number, moment in ended.items():
            store.update(an_id(number), status=("finished", "failed", "cancelled")[number % 3], finished_at=moment)
        assert store.retain() == 2 and store.retain() == 0
        assert ids(store.find()) == [5, 4, 2, 0]
        assert pictures_in(store.folder) == [f"{an_id(number)}-0.png" for number in (0, 2, 4, 5)]


def test_bytes_of_pictures_are_limited_those_of_running_jobs_included(tmp_path, database):
    with contextlib.closing(Store(tmp_path / "data", keep_bytes=100, database=database)) as store:
        for number in range(4):
            store.put(job(number))
            add(store, number, b"x" * 20, 0)
            add(store, number, b"x" * 20, 1)
        assert store.retain() == 0  # too much, but nothing has ended
        for number in (2, 1, 0):
            store.update(an_id(number), status="finished", finished_at=10.0 - number)
        assert store.retain() == 2 and ids(store.find()) == [3, 0]
        assert len(pictures_in(store.folder)) == 4


@pytest.mark.parametrize("limit", [0, -1, 1.5, "3", True])
@pytest.mark.parametrize("name", ["keep_jobs", "keep_bytes"])
def test_a_limit_is_a_whole_number_from_one(tmp_path, name, limit):
    with pytest.raises((ValueError, TypeError), match=f"`{name}` is .* from 1 or None"):
        Store(tmp_path / "data", **{name: limit})
    assert not (tmp_path / "data").exists()


def test_forgetting_removes_rows_and_files(store):
    for number in (1, 2):
        store.put(job(number))
        add(store, number, b"x")
    assert store.forget(an_id(1)) and not store.forget(an_id(1))
    assert store.get(an_id(1)) is None and store.find() == [store.get(an_id(2))]
    assert pictures_in(store.folder) == [f"{an_id(2)}-0.png"]
    with store._read() as session:
        assert session.connection().exec_driver_sql("SELECT count(*) FROM pictures").scalar() == 1


def test_a_file_without_a_row_is_swept_at_the_start_and_files_of_others_stay(store):
    store.put(job(1))
    add(store, 1, b"kept")
    folder = store.folder / "pictures" / "00"
    with temporary_beside(folder / f"{an_id(1)}-1.png") as half_written:
        pass
    rubbish = [
        folder / f"{an_id(2)}-0.png",
        folder / f"{an_id(1)}-0.webp",
        half_written,
        store.folder / "pictures" / "zz" / f"{an_id(1)}-0.png",
    ]
    others = [folder / "holiday.png", store.folder / "pictures" / "note.txt", store.folder / "jobs.sqlite.backup"]
    for path in rubbish + others:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"kept")
    again = reopened(store)
    assert not any(path.exists() for path in rubbish) and all(path.exists() for path in others)
    assert again.picture(an_id(1), 0).read_bytes() == b"kept" and again.lost == ()
    again.close()


def test_a_row_without_its_whole_file_is_told_at_the_start(store, caplog):
    store.put(job(1, status="finished"))
    for index in range(3):
        add(store, 1, b"kept", index)
    store.picture(an_id(1), 0).unlink()
    store.picture(an_id(1), 1).write_bytes(b"cut")
    with caplog.at_level(logging.WARNING):
        again = reopened(store)
    assert again.lost == ((an_id(1), 0), (an_id(1), 1))
    (told,) = caplog.messages
    assert told.startswith("2 pictures of ") and f"{an_id(1)}-0.png" in told and f"{an_id(1)}-2.png" not in told
    assert [again.picture(an_id(1), index) is None for index in range(3)] == [True, True, False]
    assert len(again.get(an_id(1)).pictures) == 3
    again.close()


@pytest.mark.parametrize("status", STATUSES)
def test_a_lost_picture_of_a_job_that_goes_on_is_to_be_made_again(store, status):
    store.put(job(1, status=status))
    kept = [add(store, 1, b"kept", index) for index in range(2)]
    store.picture(an_id(1), 0).unlink()
    again = reopened(store)
    assert again.lost == ((an_id(1), 0),)
    assert again.get(an_id(1)).pictures == (kept[1:] if status in UNFINISHED else kept)
    again.close()


@sqlite_alone
def test_another_server_on_the_folder_is_refused(store):
    with pytest.raises(InUseError, match=rf"data \(--data\) is in use by process {os.getpid()} on"):
        Store(store.folder)
    program = "import sys, pathlib\nfrom ideoflow.serving.store import Store\nStore(pathlib.Path(sys.argv[1]))"
    other = subprocess.run([sys.executable, "-c", program, str(store.folder)], capture_output=True, text=True)
    assert other.returncode == 1 and f"is in use by process {os.getpid()} on" in other.stderr
    store.put(job(1))
    reopened(store).close()


@sqlite_alone
def test_nothing_works_after_closing(store):
    store.put(job(1))
    store.close()
    store.close()
    for act in (store.find, lambda: store.put(job(2)), lambda: store.get(an_id(1)), lambda: add(store, 1, b"x")):
        with pytest.raises(StoreError, match=r"(jobs\.sqlite|\?host=.*) is closed"):
            act()
    assert not (store.folder / "jobs.sqlite-wal").exists()


@sqlite_alone
def test_the_database_is_one_of_write_ahead_logging_with_keys_and_a_version(store):
    store.put(job(1))
    with sqlite3.connect(store.folder / "jobs.sqlite") as connection:
        asked = [
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "application_id", "user_version")
        ]
    assert asked == ["wal", APPLICATION, SCHEMA]
    with store._read() as session:
        assert [
            session.connection().exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("foreign_keys", "synchronous")
        ] == [1, 2]
    assert store.folder.stat().st_mode & 0o777 == 0o700


def damage_head(file: Path) -> None:
    file.write_bytes(b"no database, whatever its name" * 200)


def damage_one_page(file: Path) -> None:
    """In the middle, where it is long prompts that lie: no other page is harmed."""
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2 // 4096 * 4096)
        opened.write(random.Random(0).randbytes(200))


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2 // 4096 * 4096)


def foreign(file: Path) -> None:
    file.unlink()
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE jobs (id TEXT)")


def newer(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")


def gone(file: Path) -> None:
    file.unlink()


def emptied(file: Path) -> None:
    os.truncate(file, 0)


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@sqlite_alone
@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (damage_head, "cannot be read as a database"),
        (damage_one_page, r"jobs\.sqlite is damaged \("),
        (cut, "damaged|malformed"),
        (foreign, "no database of this server"),
        (newer, f"has version {SCHEMA + 1}, and this server knows up to {SCHEMA}"),
        (gone, "holds no jobs, but .* 1 pictures"),
        (emptied, "holds no jobs, but .* 1 pictures"),
        (a_folder, "cannot be read as a database"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_a_database_that_is_not_ours_or_not_whole_is_told_by_name_and_left_as_it_is(store, harm, said):
    for number in range(20):
        store.put(job(number, prompt="long " * 1000))
    add(store, 1, b"x")
    store.close()
    harm(store.folder / "jobs.sqlite")
    before = (store.folder / "jobs.sqlite").read_bytes() if (store.folder / "jobs.sqlite").is_file() else None
    with pytest.raises(StoreError, match=said) as told:
        Store(store.folder)
    assert str(store.folder / "jobs.sqlite") in str(told.value) and len(str(told.value)) < 600
    assert ((store.folder / "jobs.sqlite").read_bytes() if (store.folder / "jobs.sqlite").is_file() else None) == before
    assert pictures_in(store.folder) == [f"{an_id(1)}-0.png"]  # no picture was swept for a row that could not be read
    with pytest.raises(StoreError):
        Store(store.folder)  # and the lock was let go


@pytest.mark.parametrize("place", ["/proc/x", "file", "file/x"])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, place, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    with pytest.raises(ValueError, match=f"--data .*{place}"):
        Store(Path(place))


@sqlite_alone
@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into every folder")
def test_a_folder_for_reading_only_is_refused(store):
    store.close()
    store.folder.chmod(0o500)
    with pytest.raises(ValueError, match=r"nothing can be written .*Permission denied"):
        Store(store.folder)
    store.folder.chmod(0o700)


@contextlib.contextmanager
def files_up_to(size: int):
    """A disk that is full: no file can grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_picture_that_does_not_fit_leaves_nothing_and_the_store_goes_on(store):
    store.put(job(1))
    add(store, 1, b"old")
    with files_up_to(200_000), pytest.raises(OSError, match=r"1-1\.png") as told:
        store.add_picture(an_id(1), 1, b"x" * 300_000, info(b"x" * 300_000, 1))
    assert told.value.errno == errno.EFBIG
    assert pictures_in(store.folder) == [f"{an_id(1)}-0.png"] and len(store.get(an_id(1)).pictures) == 1
    add(store, 1, b"x" * 300_000, 1)
    assert store.picture(an_id(1), 1).stat().st_size == 300_000


@sqlite_alone
def test_a_row_that_does_not_fit_is_told_and_not_kept_nor_is_its_picture(store):
    store.put(job(1))
    log = (store.folder / "jobs.sqlite-wal").stat().st_size
    with files_up_to(log):
        with pytest.raises(StoreError, match=r"jobs\.sqlite: (disk I/O error|database or disk is full)"):
            store.put(job(2))
        with pytest.raises(StoreError, match=r"jobs\.sqlite"):
            add(store, 1, b"x")
    assert pictures_in(store.folder) == []
    store.put(job(3))
    add(store, 1, b"x")
    again = reopened(store)
    assert ids(again.find()) == [3, 1] and len(again.get(an_id(1)).pictures) == 1
    again.close()


def all_at_once(*works) -> None:
    """Run each in a thread of its own, and raise what one of them raised."""
    failed = []

    def run(work) -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def test_threads_write_and_read_at_once_and_read_of_one_moment(store):
    writing = threading.Semaphore(0)

    def write(first: int) -> None:
        try:
            for number in range(first, first + 6):
                store.put(job(number))
                add(store, number, b"%d" % number)
                store.update(an_id(number), status="finished", finished_at=float(number))
                assert store.picture(an_id(number), 0).read_bytes() == b"%d" % number
                if number % 2:
                    store.forget(an_id(number))
        finally:
            writing.release()

    def read() -> None:
        for _ in range(3):
            while not writing.acquire(blocking=False):
                for record in store.find(["finished"]):
                    assert len(record.pictures) == 1  # neither before its picture nor while it is forgotten

    all_at_once(read, *(lambda n=n: write(100 * n) for n in range(3)))
    assert sorted(ids(store.find())) == [100 * n + k for n in range(3) for k in (0, 2, 4)]


def test_one_of_many_threads_gets_an_idempotency_key(store):
    got = []

    def work(number: int) -> None:
        with contextlib.suppress(DuplicateKey):
            store.put(job(number, key="k"))
            got.append(number)

    all_at_once(*(lambda number=number: work(number) for number in range(8)))
    assert len(got) == 1 and ids(store.find()) == got


def test_a_picture_of_a_job_that_is_forgotten_meanwhile_stays_nowhere(store):
    """Either the picture came before and went with its job, or it is refused."""

    def paint(number: int) -> None:
        with contextlib.suppress(UnknownJob):
            add(store, number, b"x")

    for number in range(10):
        store.put(job(number))
        all_at_once(lambda number=number: store.forget(an_id(number)), lambda number=number: paint(number))
    assert pictures_in(store.folder) == [] and store.find() == []


# A database of a PostgreSQL server


@postgres_alone
def test_another_server_on_the_database_is_refused_until_the_first_is_closed(store, database, tmp_path):
    with pytest.raises(InUseError, match=r"postgresql://tests@/postgres.* \(--database\) is in use by another"):
        Store(tmp_path / "other", database=database)
    store.put(job(1))
    assert ids(reopened(store).find()) == [1]


@postgres_alone
def test_after_the_database_was_away_the_store_goes_on(store, postgres):
    store.put(job(1))
    postgres.stop()
    with pytest.raises(StoreError, match=r"postgresql://tests@/postgres.*: "):
        store.put(job(2))
    with pytest.raises(StoreError):
        store.find()
    postgres.start()
    store.put(job(3))
    assert ids(store.find()) == [3, 1]


@postgres_alone
def test_who_lost_the_database_to_another_server_meanwhile_writes_nothing_more(store, database, postgres):
    store.put(job(1))
    postgres.stop()
    postgres.start()
    with sql(database) as other:
        assert other.exec_driver_sql(LOCK).scalar()
        with pytest.raises(StoreError, match="another server has it now"):
            store.put(job(2))
        assert ids(store.find()) == [1]
    until = time.monotonic() + 20
    while True:  # the other's lock goes a moment after its connection
        try:
            store.put(job(3))
            break
        except StoreError:
            assert time.monotonic() < until
            time.sleep(0.05)


@postgres_alone
def test_a_folder_and_a_database_that_do_not_belong_together_are_refused_and_left_as_they_are(
    store, database, postgres, tmp_path
):
    store.put(job(1))
    add(store, 1, b"kept")
    store.close()
    with pytest.raises(StoreError, match=r"in another folder than .*other: name that one by --data"):
        Store(tmp_path / "other", database=database)
    with pytest.raises(StoreError, match=r"holds no jobs, but .* 1 pictures"):
        Store(store.folder, database=postgres.database())
    with pytest.raises(StoreError, match=r"jobs\.sqlite holds no jobs, but .* 1 pictures"):
        Store(store.folder)
    assert pictures_in(store.folder) == [f"{an_id(1)}-0.png"]
    again = reopened(store)
    assert again.picture(an_id(1), 0).read_bytes() == b"kept"
    again.close()


@postgres_alone
def test_a_database_of_others_or_of_a_newer_version_is_refused(store, database, postgres, tmp_path):
    store.close()
    with sql(database) as other:
        other.exec_driver_sql(f"UPDATE ideoflow_store SET schema = {SCHEMA + 1}")
    with pytest.raises(StoreError, match=f"has version {SCHEMA + 1}, and this server knows up to {SCHEMA}"):
        reopened(store)
    foreign = postgres.database()
    with sql(foreign) as other:
        other.exec_driver_sql("CREATE TABLE jobs (id text)")
    with pytest.raises(StoreError, match="is no database of this server, and has a table jobs"):
        Store(tmp_path / "other", database=foreign)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("mysql://a:secret@b/c", "an address of 'mysql'"),
        ("postgresql://a:secret@b", "names no database"),
        ("secret", "no address of a database"),
        ("postgresql://a:secret@b:port/c", "no address of a database"),
    ],
)
def test_an_address_that_is_none_is_refused_without_showing_it(address, said):
    with pytest.raises(ValueError, match=rf"--database: .*{said}.*postgresql://USER:PASSWORD@HOST") as told:
        read_settings({"database": address})
    assert "secret" not in str(told.value)


def test_a_server_that_does_not_answer_is_one_error_without_the_password(tmp_path, postgres):
    with pytest.raises(StoreError) as told:
        Store(tmp_path / "data", database="postgresql://me:secret@127.0.0.1:1/jobs")
    assert "postgresql://me:***@127.0.0.1:1/jobs" in str(told.value) and "secret" not in str(told.value)
    assert "\n" not in str(told.value)


KILLED = """
import os, sys, time
from pathlib import Path
from ideoflow.files import InUseError
from ideoflow.serving.records import JobRecord, PictureInfo
from ideoflow.serving.store import Store

def say(*words):  # a line of less than PIPE_BUF is written whole or not at all
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

folder, first, database = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] or None
say("ready")
for _ in range(100):  # of one that was killed, PostgreSQL may hold the lock a moment longer
    try:
        store = Store(folder, keep_jobs=30, database=database)
        break
    except InUseError:
        time.sleep(0.1)
say("open")
for number in range(first, first + 10_000):
    id = f"job_{number:022d}"
    store.put(JobRecord(id, "queued", float(number), {"n": number}, "p" * (number % 5000), key=str(number)))
    say("put", number)
    store.update(id, status="running", started_at=1.0)
    for index in range(number % 3 + 1):
        data = bytes([number % 251, index]) * (10_000 + 997 * (number % 40))
        store.add_picture(id, index, data, PictureInfo(index, number, 64, 64, "png", len(data)))
        say("picture", number, index)
    store.update(id, status="finished", finished_at=float(number))
    say("finished", number)
    if number % 4 == 0:
        store.retain()
    if number % 5 == 0:
        say("forgetting", number)
        store.forget(id)
"""


def patient(folder: Path, database: str | None) -> Store:
    """The store of a server that was killed just now, whose lock PostgreSQL may hold a moment longer."""
    end = time.monotonic() + 10
    while True:
        try:
            return Store(folder, database=database)
        except InUseError:
            assert time.monotonic() < end
            time.sleep(0.05)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.long)])
def test_a_killed_server_loses_nothing_that_it_said_and_keeps_nothing_half(tmp_path, database, kills):
    moments = random.Random(kills)
    folder = tmp_path / "data"
    put, finished, forgotten = set(), set(), set()
    pictures: dict[int, set[int]] = {}
    for turn in range(kills):
        first = 10_000 * turn
        command = [sys.executable, "-c", KILLED, str(folder), str(first), database or ""]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"
        if turn % 3 == 0:  # while the folder is opened
            time.sleep(moments.uniform(0, 0.1))
        else:
            assert process.stdout.readline() == b"open\n"
            time.sleep(moments.uniform(0, 1.5))
        process.send_signal(signal.SIGKILL)
        said = [line.split() for line in process.communicate()[0].decode().splitlines()]
        assert process.returncode == -signal.SIGKILL
        put |= {int(number) for word, number, *_ in said if word == "put"}
        finished |= {int(number) for word, number, *_ in said if word == "finished"}
        forgotten |= {int(number) for word, number, *_ in said if word == "forgetting"}
        for _, number, *index in (line for line in said if line[0] == "picture"):
            pictures.setdefault(int(number), set()).add(int(index[0]))
        last = max((number for number in put if number >= first), default=first - 1)

        with contextlib.closing(patient(folder, database)) as store:
            assert store.lost == ()
            records = {int(record.id[4:]): record for record in store.find(limit=100_000)}
            for number, record in records.items():
                for picture in record.pictures:
                    data = bytes([number % 251, picture.index]) * (10_000 + 997 * (number % 40))
                    assert store.picture(record.id, picture.index).read_bytes() == data
            assert len(pictures_in(folder)) == sum(len(record.pictures) for record in records.values())
        ended = sorted(number for number, record in records.items() if record.status == "finished")
        assert set(records) - put <= {last + 1}  # put, and killed before it was said
        put |= set(records)
        finished |= set(ended)  # as well as those that it did not come to say
        for number in put:
            if number in records:
                assert pictures.get(number, set()) <= {picture.index for picture in records[number].pictures}
                assert number not in finished or records[number].status == "finished"
                assert number not in forgotten or number == last
            else:  # retention leaves 30, of which a job that is forgotten at once may have been one
                assert number in forgotten or (number in finished and len(ended) >= 29 and number < ended[0])
        forgotten -= set(records)  # it was killed while it forgot the last one, which stays now
    assert finished, "the moments were too early to mean anything"


class Kept(RuleBasedStateMachine):
    """The store beside plain dictionaries, over many operations and restarts."""

    numbers = Bundle("numbers")
    database: str | None = None

    def __init__(self):
        super().__init__()
        # In memory where there is such a place: thousands of fsyncs tell nothing here, and the tests above have a disk.
        self.folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
        self.store = Store(self.folder / "data", database=self.new_database())
        self.jobs: dict[str, JobRecord] = {}  # in the order of coming
        self.files: dict[tuple[str, int], bytes] = {}
        self.next = 0

    def new_database(self) -> str | None:
        return None

    def teardown(self):
        self.store.close()
        shutil.rmtree(self.folder)

    @rule(
        target=numbers,
        status=st.sampled_from(STATUSES),
        prompt=st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        key=st.none() | st.sampled_from("abc"),
        created=st.floats(0, 1e10),
        finished=st.none() | st.floats(0, 1e10),
        warnings=st.lists(st.text(max_size=3), max_size=2),
    )
    def put(self, status, prompt, key, created, finished, warnings):
        record = job(
            self.next,
            status=status,
            prompt=prompt,
            key=key,
            created_at=created,
            finished_at=finished,
            warnings=warnings,
        )
        self.next += 1
        if key is not None and key in {one.key for one in self.jobs.values()}:
            with pytest.raises(DuplicateKey):
                self.store.put(record)
        else:
            self.store.put(record)
            self.jobs[record.id] = record
        return record.id

    @rule(id=numbers, status=st.sampled_from(STATUSES), finished=st.none() | st.floats(0, 1e10))
    def update(self, id, status, finished):
        if id in self.jobs:
            self.store.update(id, status=status, finished_at=finished)
            self.jobs[id].status, self.jobs[id].finished_at = status, finished
        else:
            with pytest.raises(UnknownJob):
                self.store.update(id, status=status)

    @rule(
        id=numbers,
        index=st.integers(0, 2),
        data=st.binary(min_size=1, max_size=40),
        seed=st.integers(-(2**63), 2**64 - 1),
        format=st.sampled_from(FORMATS),
    )
    def add(self, id, index, data, seed, format):
        picture = info(data, index, seed=seed, format=format)
        if id not in self.jobs:
            with pytest.raises(UnknownJob):
                self.store.add_picture(id, index, data, picture)
            return
        self.store.add_picture(id, index, data, picture)
        kept = self.jobs[id].pictures
        kept[:] = sorted([one for one in kept if one.index != index] + [picture], key=lambda one: one.index)
        self.files[id, index] = data

    def _drop(self, id):
        del self.jobs[id]
        self.files = {name: data for name, data in self.files.items() if name[0] != id}

    @rule(id=numbers)
    def forget(self, id):
        assert self.store.forget(id) == (id in self.jobs)
        if id in self.jobs:
            self._drop(id)

    @precondition(lambda self: self.jobs)
    @rule(jobs=st.none() | st.integers(1, 4), bytes=st.none() | st.integers(1, 100))
    def retain(self, jobs, bytes):
        self.store.keep_jobs, self.store.keep_bytes = jobs, bytes
        ended = [one for one in self.jobs.values() if one.status not in UNFINISHED]
        ended.sort(key=lambda one: -1.0 if one.finished_at is None else one.finished_at)
        gone = 0
        while ended and (
            (jobs is not None and len(ended) > jobs)
            or (bytes is not None and sum(map(len, self.files.values())) > bytes)
        ):
            self._drop(ended.pop(0).id)
            gone += 1
        assert self.store.retain() == gone

    @rule()
    def restart(self):
        self.store.close()
        self.store = Store(self.folder / "data", database=self.database)
        assert self.store.lost == ()

    @rule(
        statuses=st.none() | st.lists(st.sampled_from(STATUSES), max_size=3),
        limit=st.integers(1, 3),
        text=st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=2),
    )
    def pages(self, statuses, limit, text):
        wanted = [
            one
            for one in reversed(self.jobs.values())
            if (statuses is None or one.status in statuses)
            and (text is None or text.casefold() in one.prompt.casefold())
        ]
        found: list[JobRecord] = []
        while page := self.store.find(statuses, limit, found[-1].id if found else None, text):
            found += page
        assert found == wanted

    @invariant()
    def the_same(self):
        assert self.store.find(limit=1000) == list(reversed(self.jobs.values()))
        assert self.store.unfinished() == [one for one in self.jobs.values() if one.status in UNFINISHED]
        for (id, index), data in self.files.items():
            assert self.store.picture(id, index).read_bytes() == data
        assert len(pictures_in(self.store.folder)) == len(self.files)


OFTEN = settings(
    max_examples=8, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
TestKept = Kept.TestCase
TestKept.settings = OFTEN


def test_the_same_in_postgres(postgres):
    class KeptThere(Kept):
        def new_database(self):
            self.database = postgres.database()
            return self.database

    run_state_machine_as_test(KeptThere, settings=settings(OFTEN, max_examples=2))


def test_without_the_extra_one_error_says_how_to_install_it():
    program = (
        "import importlib.util as util\nfind = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'fastapi' else find(name, *rest)\nimport ideoflow.serving"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stderr
    assert told.splitlines()[-1] == (
        'ImportError: The server needs fastapi, not installed here: pip install "ideoflow[serve]"'
    )
