"""The database: picked by its URL, its schema brought to head on start-up, statements run on it."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import psycopg2
import sqlalchemy
from sqlalchemy import ARRAY, ClauseElement, Connection, make_url
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.dialects.postgresql import psycopg2 as psycopg2_dialect
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeEngine
from sqlmodel.sql.sqltypes import UTCDateTime

from engines import postgres, sqlite
from engines.gather import Gatherer
from errors import Unavailable
from models import TASK
from queries import Query
from settings import Settings

log = logging.getLogger("tasks")

_MIGRATIONS: Final = Path(__file__).parent / "migrations"
HEAD: Final = max(path.name for path in _MIGRATIONS.glob("versions/[0-9]*.py"))[:4]
# PostgreSQL's OID of double precision, the only number that SQLAlchemy asks about.
_FLOAT8: Final = 701
_LOCK: Final = 0x7461736B73  # the advisory lock that one process at a time upgrades under
QUEUE: Final = 2000  # statements that may be under way or wait, in this process
_PATIENCE: Final = 30.0  # seconds to wait at start-up for a database that is not there yet
_version: Final[ClauseElement] = sqlalchemy.select(
    sqlalchemy.literal_column("version_num")
).select_from(sqlalchemy.table("alembic_version"))


class StartupError(Exception):
    """The database cannot be used; the message says why in one line, without secrets."""


class Result(NamedTuple):
    """The rows of a statement, and how many rows it touched."""

    rows: list[tuple[Any, ...]]
    touched: int


class _Compiled(NamedTuple):
    sql: str
    constants: Mapping[str, Any]
    to_sql: tuple[tuple[str, Callable[[Any], Any]], ...]  # parameters to convert
    from_sql: tuple[tuple[int, Callable[[Any], Any]], ...]  # columns to convert


class Database:
    """One database, whichever it is: all that handlers know."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.database_url.get_secret_value()
        self._size = settings.db_pool_size
        self._file = make_url(self._url).database if self._url.startswith("sqlite:") else None
        self._dialect: Dialect = (
            sqlite_dialect.dialect(paramstyle="named") if self._file else psycopg2_dialect.dialect()  # type: ignore[no-untyped-call]
        )
        self._compiled = lru_cache(maxsize=2048)(self._compile)
        self._gatherers: dict[ClauseElement, Gatherer] = {}
        self._pending = 0
        self._pool: sqlite.Pool | postgres.Pool

    def __str__(self) -> str:
        """Where the data is; never the password."""
        if self._file:
            return f"SQLite at {Path(self._file).absolute()}"
        given = psycopg2.extensions.parse_dsn(self._url)
        return f"PostgreSQL at {given.get('host', 'this machine')}/{given.get('dbname', '')}"

    async def open(self) -> None:
        """Get ready to run statements, with the schema at head, or raise `StartupError`."""
        self._pool = sqlite.Pool(self._file) if self._file else postgres.Pool(self._url, self._size)
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                if not await self.is_current():
                    await asyncio.to_thread(self._bring_to_head)
                return
            except (Unavailable, OperationalError) as error:
                if time.monotonic() > deadline:
                    reason = f"did not answer for {_PATIENCE:.0f} s"
                    raise StartupError(f"DATABASE_URL: {self} {reason}") from error
            except (psycopg2.Error, sqlite3.Error) as error:
                raise StartupError(f"DATABASE_URL: {self}: {_first_line(error)}") from error
            await asyncio.sleep(0.5)

    async def close(self) -> None:
        """Close every connection."""
        await self._pool.close()

    async def run(self, query: Query) -> Result:
        """Run one statement, atomically and in one round trip, or raise `Unavailable`."""
        if self._pending >= QUEUE:
            raise Unavailable("Too many requests are waiting for the database.")
        compiled = self._compiled(query.statement)
        parameters = {**compiled.constants, **query.parameters}
        for name, convert in compiled.to_sql:
            parameters[name] = convert(parameters[name])
        self._pending += 1
        try:
            if gatherer := self._gatherer(query):
                rows, touched = await gatherer.run(parameters)
            else:
                rows, touched = await self._pool.run(
                    compiled.sql,
                    parameters,
                    repeatable=query.repeatable,
                    deadline=query.deadline,
                )
        finally:
            self._pending -= 1
        if rows and compiled.from_sql:
            rows = [_converted(row, compiled.from_sql) for row in rows]
        return Result(rows, touched)

    def _gatherer(self, query: Query) -> Gatherer | None:
        """Return what gathers the calls of this query; None where each goes by itself."""
        if query.many is None or isinstance(self._pool, sqlite.Pool):
            return None
        if query.statement not in self._gatherers:
            one, many = self._compiled(query.statement), self._compiled(query.many)
            self._gatherers[query.statement] = Gatherer(
                self._pool, one.sql, many.sql, many.constants, repeatable=query.repeatable
            )
        return self._gatherers[query.statement]

    async def is_current(self) -> bool:
        """Return whether the database has the schema that this code is written for."""
        try:
            return (await self.run(Query(_version, {}, repeatable=True))).rows == [(HEAD,)]
        except psycopg2.errors.UndefinedTable:
            return False
        except sqlite3.OperationalError:  # no such table
            return False

    def _compile(self, statement: ClauseElement) -> _Compiled:
        sql = statement.compile(dialect=self._dialect)
        assert isinstance(sql, SQLCompiler)
        constants = {name: value for name, value in sql.params.items() if value is not None}
        to_sql = (
            (name, sql.binds[name].type.dialect_impl(self._dialect).bind_processor(self._dialect))
            for name in sql.params
        )
        columns = getattr(statement, "exported_columns", ())
        from_sql = ((place, self._reader(column.type)) for place, column in enumerate(columns))
        return _Compiled(
            sql.string,
            constants,
            tuple((name, convert) for name, convert in to_sql if convert),
            tuple((place, convert) for place, convert in from_sql if convert),
        )

    def _reader(self, kind: TypeEngine[Any]) -> Callable[[Any], Any] | None:
        """Return what makes Python's value of the driver's, or None where that is one already."""
        if not self._file and isinstance(kind, UTCDateTime):
            return _in_utc  # psycopg2 gives an instant in the time zone of the server
        if not self._file and isinstance(kind, ARRAY):
            return None  # psycopg2 gives a list
        return kind.dialect_impl(self._dialect).result_processor(self._dialect, _FLOAT8)

    def _bring_to_head(self) -> None:
        """Upgrade the schema in one transaction, while every other process that starts up waits."""
        from alembic import command  # only who upgrades pays for loading it
        from alembic.config import Config
        from alembic.util import CommandError

        with self.schema_transaction() as connection:
            tables = sqlalchemy.inspect(connection).get_table_names()
            if TASK.name in tables and "alembic_version" not in tables:
                raise StartupError(
                    f"DATABASE_URL: {self} already has a table {TASK.name!r} that is not this "
                    "service's; nothing was changed"
                )
            config = Config()
            config.set_main_option("script_location", str(_MIGRATIONS))
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise StartupError(
                    f"DATABASE_URL: {self} has a schema not of this service: {error}"
                ) from error
            except DBAPIError as error:
                if error.connection_invalidated:
                    raise
                raise StartupError(
                    f"DATABASE_URL: {self} keeps the schema that it has, since the upgrade failed: "
                    f"{_first_line(error.orig)}"
                ) from error

    @contextmanager
    def schema_transaction(self) -> Iterator[Connection]:
        """Open the one transaction in which the schema may change."""
        if self._file:
            file = self._file
            engine = sqlalchemy.create_engine("sqlite://", creator=lambda: sqlite.connect(file))
            lock = "BEGIN IMMEDIATE"
        else:
            options = {"connect_timeout": "5"} | postgres.connection_options(self._url)
            engine = sqlalchemy.create_engine(
                "postgresql+psycopg2://", creator=lambda: psycopg2.connect(self._url, **options)
            )
            lock = f"SELECT pg_advisory_xact_lock({_LOCK})"
        sqlalchemy.event.listen(engine, "begin", lambda began: began.exec_driver_sql(lock))
        try:
            with engine.begin() as connection:
                yield connection
        finally:
            engine.dispose()


def _first_line(error: BaseException | None) -> str:
    return str(error).partition("\n")[0]


def _in_utc(moment: datetime | None) -> datetime | None:
    return moment if moment is None or moment.tzinfo is UTC else moment.astimezone(UTC)


def _converted(
    row: tuple[Any, ...], converters: tuple[tuple[int, Callable[[Any], Any]], ...]
) -> tuple[Any, ...]:
    values = list(row)
    for place, convert in converters:
        values[place] = convert(values[place])
    return tuple(values)
