"""A PostgreSQL server of the tests' own, where one is installed: Debian's package has all that it takes."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from sqlalchemy import Connection, create_engine, make_url

NUMBERS = count()


def programs() -> Path | None:
    """The folder of PostgreSQL's programs; None where it is not installed."""
    found = shutil.which("pg_ctl")
    if found is not None:
        return Path(found).parent
    folders = Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")
    return max((file.parent for file in folders), key=lambda folder: int(folder.parent.name), default=None)


class Postgres:
    """A server that listens on a socket in its folder alone.

    Args:
        programs: Folder of its programs.
        folder: Where it lives; it is made.
    """

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self.folder = programs, folder
        self._data = folder / "data"
        folder.mkdir(mode=0o755, exist_ok=True)
        if os.geteuid() == 0:  # as whom it refuses to run
            shutil.chown(folder, "postgres")
        self._run(
            "initdb",
            "--pgdata",
            str(self._data),
            "--username",
            "tests",
            "--auth",
            "trust",
            "--no-sync",
            "--encoding",
            "UTF8",
        )
        self.start()

    def start(self) -> None:
        """Start it; returns once it answers."""
        options = f"-c listen_addresses='' -c unix_socket_directories={self.folder} -c fsync=off -c max_connections=40"
        log = str(self.folder / "log")
        self._run(
            "pg_ctl", "start", "--wait", "--silent", "--pgdata", str(self._data), "--log", log, "--options", options
        )

    def stop(self) -> None:
        """Stop it, and break off all connections."""
        self._run("pg_ctl", "stop", "--wait", "--silent", "--pgdata", str(self._data), "--mode", "immediate")

    def database(self) -> str:
        """The address of an empty schema, which is as good as a database and made in no time."""
        name = f"jobs_{next(NUMBERS)}"
        address = f"postgresql+psycopg://tests@/postgres?host={self.folder}"
        with sql(address) as connection:
            connection.exec_driver_sql(f"CREATE SCHEMA {name}")
        return f"{address}&options=-csearch_path%3D{name}"

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        if os.geteuid() == 0:
            command = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", *command]
        subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL)


@contextmanager
def running() -> Iterator[Postgres | None]:
    """A server while the block runs; None where PostgreSQL is not installed."""
    found = programs()
    if found is None:
        yield None
        return
    # Its socket's path has 107 bytes at most, and root's folders are closed to it.
    folder = Path(tempfile.mkdtemp(prefix="ideoflow-postgres-", dir="/tmp"))
    try:
        server = Postgres(found, folder)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


@contextmanager
def sql(database: str) -> Iterator[Connection]:
    """A connection of another program's."""
    engine = create_engine(make_url(database), isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()
