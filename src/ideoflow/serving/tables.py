"""The tables of jobs and their pictures, in whatever database they are kept."""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import JSON, Dialect, ForeignKey, String, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from .records import JobRecord, PictureInfo

SCHEMA = 1  # counted up with every change of the tables


_ESCAPE, _ZERO = "\uffff", "\uffff\ufffe"  # characters that no text has


class AnyText(TypeDecorator[str]):
    """Text of any characters: PostgreSQL keeps none of number zero, which is written as two others there."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """What the database is given for a text."""
        if value is None or dialect.name != "postgresql":
            return value
        return value.replace(_ESCAPE, 2 * _ESCAPE).replace("\0", _ZERO)

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        """The text of what the database has."""
        if value is None or dialect.name != "postgresql" or _ESCAPE not in value:
            return value
        return _ESCAPE.join(part.replace(_ZERO, "\0") for part in value.split(2 * _ESCAPE))


class Table(DeclarativeBase):
    """What all tables are: text columns take any text."""

    type_annotation_map: ClassVar = {str: AnyText()}


class PictureRow(Table):
    """A finished picture of a job."""

    __tablename__ = "pictures"

    job: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    index: Mapped[int] = mapped_column(primary_key=True)
    seed: Mapped[str]  # as text: seeds go up to 2**64 - 1, integers of SQLite to 2**63 - 1
    width: Mapped[int]
    height: Mapped[int]
    format: Mapped[str]
    bytes: Mapped[int]

    def info(self) -> PictureInfo:
        """What is known of it."""
        return PictureInfo(self.index, int(self.seed), self.width, self.height, self.format, self.bytes)


class JobRow(Table):
    """A job."""

    __tablename__ = "jobs"

    number: Mapped[int] = mapped_column(primary_key=True)  # the order in which jobs came; clocks are set back at times
    id: Mapped[str] = mapped_column(unique=True)
    status: Mapped[str] = mapped_column(index=True)
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None] = mapped_column(index=True)
    request: Mapped[dict[str, Any]] = mapped_column(JSON)
    prompt: Mapped[str]
    # The prompt as `find` compares it, folded once and not by each.
    searched: Mapped[str] = mapped_column(deferred=True)
    prompt_was: Mapped[str]
    revised_prompt: Mapped[str | None]
    warnings: Mapped[list[str]] = mapped_column(JSON)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    key: Mapped[str | None] = mapped_column(unique=True)
    body_digest: Mapped[str | None]
    model: Mapped[str]
    attempts: Mapped[int]
    pictures: Mapped[list[PictureRow]] = relationship(order_by=PictureRow.index, viewonly=True)

    def record(self) -> JobRecord:
        """The job with what is known of its pictures."""
        return JobRecord(
            id=self.id,
            status=self.status,  # type: ignore[arg-type]  # checked before it was kept
            created_at=self.created_at,
            started_at=self.started_at,
            finished_at=self.finished_at,
            request=self.request,
            prompt=self.prompt,
            prompt_was=self.prompt_was,
            revised_prompt=self.revised_prompt,
            warnings=self.warnings,
            error=self.error,
            key=self.key,
            body_digest=self.body_digest,
            model=self.model,
            attempts=self.attempts,
            pictures=[picture.info() for picture in self.pictures],
        )
