"""Where the rows of jobs are kept: a file of SQLite in the server's folder, or a database of a PostgreSQL server.

A database is opened, looked into before anything is written to it, and held by one server at a time.
"""

from __future__ import annotations

import sqlite3
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Engine,
    create_engine,
    event,
    func,
    literal,
    make_url,
)
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.orm import InstrumentedAttribute, Session

from ..files import InUseError, sync, write_bytes
from .tables import SCHEMA, AnyText, Table

APPLICATION = 0x69646665  # "idfe": tells our databases from those of others
BUSY_SECONDS = 5.0  # for which a write waits while somebody looks into a file with another program
CONNECT_SECONDS = 10  # for which a PostgreSQL server may take to answer
STATEMENT_SECONDS = 60  # for which it may take to do what it was asked
LOCK = f"SELECT pg_try_advisory_lock({APPLICATION}, hashtext(current_schema()))"


class StoreError(OSError):
    """The database cannot be used: the message names it and says why."""


class Database(ABC):
    """A database that is open, and how it is spoken to.

    Attributes:
        name: what it is called in messages.
        is_new: whether it held nothing of ours when it was opened, and has the tables since.
    """

    name: str
    is_new: bool
    _engine: Engine
    _writing: Engine  # the same, for transactions that write

    @abstractmethod
    def create(self) -> None:
        """Make the tables of a new one."""

    @abstractmethod
    def holds(self, column: InstrumentedAttribute[str], text: str) -> ColumnElement[bool]:
        """Whether a column's text has a text within it."""

    def close(self) -> None:
        """Let go of it."""
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that reads, all of it of one moment."""
        with self._session(self._engine) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that writes, whole or not at all; one at a time."""
        with self._session(self._writing) as session:
            yield session

    @contextmanager
    def _session(self, engine: Engine) -> Iterator[Session]:
        """One transaction, whose errors name the database."""
        try:
            with Session(engine) as session, session.begin():
                yield session
        except (DBAPIError, sqlite3.Error) as error:
            raise StoreError(f"{self.name}: {_plain(getattr(error, 'orig', None) or error)}.") from error


class SqliteFile(Database):
    """A file of SQLite, which belongs to whoever holds its folder.

    Args:
        file: The file.

    Raises:
        StoreError: if it is damaged, not ours, or of a newer version.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.name = file, str(file)
        self.is_new = self._look()
        self._engine = create_engine(URL.create("sqlite", database=str(file)))
        event.listen(self._engine, "connect", _prepare)
        event.listen(self._engine, "begin", _begin)
        self._writing = self._engine.execution_options(begin="BEGIN IMMEDIATE")

    def create(self) -> None:
        """Make the tables of a new one."""
        with self.write() as session:
            connection = session.connection()
            Table.metadata.create_all(connection)
            connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION}")
            connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA}")
        sync(self.file.parent)

    def holds(self, column: InstrumentedAttribute[str], text: str) -> ColumnElement[bool]:
        """Whether a column's text has a text within it."""
        return func.instr(column, text) > 0

    def _look(self) -> bool:
        """Whether there is no database yet. One that is there is checked before anything is written to it."""
        if not self.file.exists():
            return True
        left = "It was left as it is: put a sound copy in its place, or name another folder by --data."
        try:
            with closing(sqlite3.connect(f"{self.file.as_uri()}?mode=ro", uri=True)) as connection:
                application, version, tables, found = (
                    connection.execute(question).fetchone()[0]
                    for question in (
                        "PRAGMA application_id",
                        "PRAGMA user_version",
                        "SELECT count(*) FROM sqlite_master",
                        "PRAGMA quick_check(1)",
                    )
                )
        except sqlite3.Error as error:
            raise StoreError(f"{self.file} cannot be read as a database ({error}). {left}") from error
        if found != "ok":
            raise StoreError(f"{self.file} is damaged ({' '.join(found.split())}). {left}")
        if application == version == tables == 0:
            return True
        if application != APPLICATION or version < 1:
            raise StoreError(f"{self.file} is no database of this server. {left}")
        if version > SCHEMA:
            raise StoreError(
                f"{self.file} has version {version}, and this server knows up to {SCHEMA}: use the newer ideoflow that "
                "wrote it, or name another folder by --data."
            )
        return False


class PostgresDatabase(Database):
    """A database of a PostgreSQL server, whose pictures are in one folder, and which serves one server at a time.

    The database and the folder bear the same mark, so that neither is opened with another's.

    Args:
        url: As `--database` takes it.
        folder: The folder of the pictures.

    Raises:
        StoreError: if it cannot be reached, is not ours, of a newer version, or another folder's.
        InUseError: if another server holds it.
    """

    def __init__(self, url: str, folder: Path) -> None:
        address = postgres_url(url)
        if find_spec("psycopg") is None:
            raise StoreError('PostgreSQL needs psycopg, not installed here: pip install "ideoflow[postgres]"')
        self.name = address.set(drivername="postgresql").render_as_string(hide_password=True)
        self._mark = folder / "database"
        self._engine = create_engine(
            address,
            isolation_level="REPEATABLE READ",
            pool_pre_ping=True,
            connect_args={"connect_timeout": CONNECT_SECONDS, "application_name": "ideoflow"},
        )
        event.listen(self._engine, "connect", _bound)
        self._writing = self._engine.execution_options(isolation_level="READ COMMITTED")
        self._holding: Connection | None = None
        try:
            if not self._hold():
                raise InUseError(f"the database {self.name} (--database) is in use by another server: name another.")
            self.is_new = self._look()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of it."""
        if self._holding is not None:
            self._holding.invalidate()  # or the pool would keep it, and the lock with it
            self._holding.close()
            self._holding = None
        super().close()

    def create(self) -> None:
        """Make the tables of a new one."""
        if not self._mark.exists():  # before the database bears it: a kill between leaves a mark of nothing
            write_bytes(self._mark, uuid.uuid4().hex.encode())
            sync(self._mark.parent)
        with self.write() as session:
            connection = session.connection()
            Table.metadata.create_all(connection)
            connection.exec_driver_sql("CREATE TABLE ideoflow_store (schema integer NOT NULL, mark text NOT NULL)")
            connection.exec_driver_sql("INSERT INTO ideoflow_store VALUES (%s, %s)", (SCHEMA, self._own_mark()))

    def holds(self, column: InstrumentedAttribute[str], text: str) -> ColumnElement[bool]:
        """Whether a column's text has a text within it."""
        return func.strpos(column, literal(text, AnyText())) > 0

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that writes, whole or not at all; one at a time.

        Raises:
            StoreError: if the database was away meanwhile, and another server holds it now.
        """
        if not self._hold():
            raise StoreError(f"{self.name} was away, and another server has it now: this one writes nothing more.")
        with super().write() as session:
            yield session

    def _hold(self) -> bool:
        """Hold the database's lock, which goes with its connection and is taken again where that was lost; whether."""
        try:
            if self._holding is not None:
                try:
                    self._holding.exec_driver_sql("SELECT 1")
                    return True
                except DBAPIError:
                    self._holding.close()
                    self._holding = None
            connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            held = connection.exec_driver_sql(LOCK).scalar()
        except DBAPIError as error:
            raise StoreError(f"{self.name}: {_plain(error.orig)}.") from error
        if held:
            self._holding = connection
        else:
            connection.close()
        return bool(held)

    def _look(self) -> bool:
        """Whether there is nothing of ours yet. What is there is checked before anything is written."""
        with self.read() as session:
            connection = session.connection()
            ours, others = connection.exec_driver_sql(
                "SELECT to_regclass('ideoflow_store'), coalesce(to_regclass('jobs'), to_regclass('pictures'))"
            ).one()
            row = None if ours is None else connection.exec_driver_sql("SELECT schema, mark FROM ideoflow_store").one()
        if row is None:
            if others is not None:
                raise StoreError(
                    f"{self.name} is no database of this server, and has a table {others}: it was left as it is."
                    " Make one of its own by: createdb ideoflow"
                )
            return True
        if row.schema > SCHEMA:
            raise StoreError(
                f"{self.name} has version {row.schema}, and this server knows up to {SCHEMA}: use the newer ideoflow"
                " that wrote it, or name another database by --database."
            )
        if self._own_mark() != row.mark:
            raise StoreError(
                f"The pictures of {self.name} are in another folder than {self._mark.parent}: name that one by --data."
                f" If it is lost, write {row.mark} into {self._mark}, and its pictures are told as lost."
            )
        return False

    def _own_mark(self) -> str | None:
        try:
            return self._mark.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None


def postgres_url(text: str) -> URL:
    """The address of a PostgreSQL database, as `--database` takes it.

    Raises:
        ValueError: if it is none. The message does not show it, for it may hold a password.
    """
    example = "give postgresql://USER:PASSWORD@HOST:5432/DATABASE"
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError(f"that is no address of a database: {example}.") from None
    if url.drivername not in ("postgres", "postgresql", "postgresql+psycopg"):
        raise ValueError(f"that is an address of {url.drivername!r}: {example}, or nothing for a file in --data.")
    if not url.database:
        raise ValueError(f"the address names no database: {example}.")
    return url.set(drivername="postgresql+psycopg")


def _plain(error: BaseException | None) -> str:
    """An error's words on one line, without a full stop."""
    return " ".join(str(error).split()).rstrip(".")


def _prepare(connection: sqlite3.Connection, _record: object) -> None:
    """Set up a new connection."""
    connection.isolation_level = None  # `_begin` begins transactions: the module itself leaves reads out of them
    connection.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA journal_mode = WAL")
    # A killed process loses nothing with NORMAL either, as the system has what was written. FULL has every transaction
    # on the disk before it is acknowledged, for a machine that loses power: one fsync, beside the seconds of a picture.
    connection.execute("PRAGMA synchronous = FULL")


def _bound(connection: Any, _record: object) -> None:
    """Bound the time of each statement of a new connection."""
    connection.execute(f"SET statement_timeout = {STATEMENT_SECONDS * 1000}")
    connection.commit()


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))
