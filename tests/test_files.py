"""Files written whole or not at all, and locks."""

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ideoflow import files
from ideoflow.files import (
    ABANDONED,
    MACHINE,
    InUseError,
    check_place,
    check_writable,
    in_place,
    lock,
    write_bytes,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_text_is_written_with_its_folder(tmp_path):
    write_text(tmp_path / "a" / "b.txt", "zwölf\n")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "zwölf\n".encode()
    assert names(tmp_path / "a") == ["b.txt"]


def test_a_link_stays_a_link_and_a_file_keeps_its_permissions(tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"old")
    target.chmod(0o640)
    (tmp_path / "link").symlink_to(target)
    write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and target.read_bytes() == b"new" and target.stat().st_mode & 0o777 == 0o640


def test_a_link_that_leads_to_itself_is_told_before_the_work_and_by_its_name(tmp_path):
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop.name)
    with pytest.raises(ValueError, match=r"--out .*loop\.png: it is a link that leads to itself"):
        check_writable(loop, "--out")
    with pytest.raises(OSError, match=r"leads to itself.*loop\.png"):
        write_text(loop, "a")
    assert loop.is_symlink()


def test_a_device_is_written_to_as_it_stands():
    write_bytes(Path("/dev/null"), b"gone")
    assert Path("/dev/null").is_char_device()


def test_a_work_that_fails_leaves_what_was_there(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(RuntimeError), in_place(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]


def test_a_destination_that_appears_during_the_work_is_kept(tmp_path):
    for name in ("file", "folder"):
        path = tmp_path / name
        with pytest.raises(FileExistsError) as caught, in_place(path, overwrite=False) as temporary:
            if name == "file":
                temporary.write_text("mine")
                path.write_text("theirs")
            else:
                temporary.mkdir()
                (temporary / "x").write_text("mine")
                path.mkdir()
                (path / "x").write_text("theirs")
        assert caught.value.filename == str(path)
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "x").read_text() == "theirs"
    assert names(tmp_path) == ["file", "folder"]


def test_a_folder_takes_the_place_of_another(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("old")
    with in_place(tmp_path / "a") as temporary:
        temporary.mkdir()
        (temporary / "new").write_text("new")
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["new"]


def test_a_file_that_does_not_fit_is_an_error_by_its_own_name(tmp_path, monkeypatch):
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_bytes(tmp_path / "a", b"x")
    assert caught.value.filename == str(tmp_path / "a") and not names(tmp_path)


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, in_place(tmp_path / "out" / "a"):
        (tmp_path / "source").read_bytes()
    assert caught.value.filename == str(tmp_path / "source")


def test_threads_that_write_one_file_leave_one_of_theirs_whole(tmp_path):
    texts = [bytes([65 + n]) * 100_000 for n in range(8)]
    errors = []

    def write(text: bytes) -> None:
        try:
            for _ in range(20):
                write_bytes(tmp_path / "a", text)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and (tmp_path / "a").read_bytes() in texts and names(tmp_path) == ["a"]


def test_what_a_dead_process_left_is_removed_and_a_living_ones_is_not(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / f".a.{gone.pid}-0-{MACHINE}.partial").write_text("half")
    (tmp_path / f".a.{os.getppid()}-0-{MACHINE}.partial").write_text("half")
    write_text(tmp_path / "a", "whole")
    assert names(tmp_path) == [f".a.{os.getppid()}-0-{MACHINE}.partial", "a"]


ELSEWHERE = ["-0123abcd", ""]  # another machine's, and a name that says none


@pytest.mark.parametrize("machine", ELSEWHERE)
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_another_machine_writes_is_its_own_for_a_day(tmp_path, monkeypatch, machine, kind):
    """On a shared folder its process numbers say nothing here, where none of them may run."""
    left = tmp_path / f".a.{2**22 + 1}-0{machine}.partial"  # a number that no process here has
    if kind == "file":
        left.write_text("half")
    else:
        left.mkdir()
        (left / "weights").write_text("half")
        os.utime(left, (0, 0))
    write_text(tmp_path / "a", "whole")
    assert left.exists() and (tmp_path / "a").read_text() == "whole"
    monkeypatch.setattr(files.time, "time", lambda now=time.time: now() + ABANDONED + 60)
    write_text(tmp_path / "a", "again")
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("machine", ELSEWHERE)
def test_what_another_machine_is_replacing_is_not_put_back_under_its_hands(tmp_path, monkeypatch, machine):
    old = tmp_path / f".a.{2**22 + 1}-0{machine}.replaced"
    old.mkdir()
    (old / "config.json").write_text("old")
    for path in (old / "config.json", old):
        os.utime(path, (0, 0))  # the model is older than a day; that it was renamed is not
    files.clean(tmp_path / "a")
    assert names(tmp_path) == [old.name]
    monkeypatch.setattr(files.time, "time", lambda now=time.time: now() + ABANDONED + 60)
    files.clean(tmp_path / "a")
    assert names(tmp_path) == ["a"] and (tmp_path / "a" / "config.json").read_text() == "old"


def test_temporaries_name_their_machine_and_fit_into_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_numbers", iter([10**6]))
    monkeypatch.setattr(os, "getpid", lambda: 2**22)
    with in_place(tmp_path / "a") as temporary:
        assert temporary.name == f".a.{2**22}-{10**6}-{MACHINE}.partial"
        assert len(temporary.with_suffix(".replaced").name) - len("a") <= files.OF_TEMPORARIES
        temporary.write_text("x")


def test_a_leftover_that_its_owner_removes_meanwhile_is_no_error(tmp_path, monkeypatch):
    (tmp_path / f".a.7-0{ELSEWHERE[0]}.partial").write_text("half")

    def gone(path):
        path.unlink()
        raise FileNotFoundError(errno.ENOENT, "No such file", str(path))

    monkeypatch.setattr(files, "_last_change", gone)
    write_text(tmp_path / "a", "whole")
    assert names(tmp_path) == ["a"]


def test_a_place_without_room_or_for_shorter_names_is_told_before_the_work(tmp_path):
    """Files that may hold nothing, as where a disk is full: of root's own they are refused to nobody."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(ValueError, match=r"--out .*a\.png: nothing can be written into .*File too large"):
            check_writable(tmp_path / "a.png", "--out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with pytest.raises(ValueError, match="the name is too long"):
        check_writable(tmp_path / ("a" * 240 + ".png"), "--out")
    check_place(tmp_path, "DST")
    assert names(tmp_path) == []


def test_a_target_that_cannot_be_written_is_told_before_the_work(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"--out .*file/a.png: .*file is a file, not a folder"):
        check_writable(tmp_path / "file" / "a.png", "--out")
    with pytest.raises(ValueError, match=r"--out .* is a folder: name a file"):
        check_writable(tmp_path, "--out")
    check_writable(tmp_path / "not" / "there" / "yet.png", "--out")
    check_writable(Path("/dev/null"), "--out")
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs Linux")
def test_a_read_only_place_is_told_before_the_work():
    with pytest.raises(ValueError, match=r"--out /proc/x.png: nothing can be written into /proc"):
        check_writable(Path("/proc/x.png"), "--out")


HOLDER = """
import sys
from pathlib import Path
from ideoflow.files import lock
with lock(Path(sys.argv[1]), "the run"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_held_by_one_process_and_gone_with_it(tmp_path):
    path = tmp_path / "runs" / ".lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with (
        pytest.raises(InUseError, match=f"the run is in use by process {holder.pid} on .*: wait for it"),
        lock(path, "the run"),
    ):
        pass
    holder.kill()
    holder.communicate()
    with lock(path, "the run"):
        assert files._holder(os.open(path, os.O_RDONLY)).startswith(f"process {os.getpid()} ")


@pytest.mark.parametrize("name", ["a.png", ".hidden", "a.1-2.partial", ".a.1-2-0123abcd.partial", "a\nb"])
def test_a_temporary_tells_what_it_was_meant_for(tmp_path, name):
    with files.temporary_beside(tmp_path / name) as temporary:
        assert files.meant_for(temporary.name) == name


@pytest.mark.parametrize("name", ["a.png", ".a.png", "a.1-2.partial", ".a.x-2.partial", ""])
def test_a_name_of_another_form_is_no_temporarys(name):
    assert files.meant_for(name) is None
