"""The database: picked by its URL, its schema brought to head on start-up, statements run on it."""

import asyncio
import logging
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from copy import copy
from functools import cached_property, lru_cache, partial
from pathlib import Path
from random import getrandbits
from typing import Any, Final, cast

import psycopg2
import sqlalchemy
from pydantic_core import from_json, to_json
from sqlalchemy import ARRAY, ClauseElement, Connection, Double, NullPool, bindparam, make_url
from sqlalchemy.dialects import sqlite as sqlite_dialect

# Its ON CONFLICT compiles for SQLite as well.
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.dialects.postgresql import psycopg2 as psycopg2_dialect
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeEngine
from sqlmodel.sql.sqltypes import UTCDateTime

from engines import Result, postgres, sqlite
from engines.gather import Gatherer
from engines.spelling import Citus, read_timestamp
from errors import Conflict, Unauthorized, Unavailable
from models import FEED, TASK
from queries import Query
from settings import Settings

log = logging.getLogger("tasks")

_MIGRATIONS: Final = Path(__file__).parent / "migrations"
HEAD: Final = max(path.name for path in _MIGRATIONS.glob("versions/[0-9]*.py"))[:4]
# PostgreSQL's OID of double precision, the only number that SQLAlchemy asks about.
_FLOAT8: Final = 701
# How an upgrade begins: one process at a time, under an advisory lock that is waited for as long as
# it takes, whatever limits the role has; what it then sees is what the one before it has left,
# whatever isolation the role has. For a table's lock it waits less than a call does: calls wait
# behind it, and somebody may read that table for hours (`pg_dump`). A process that freezes, or
# whose machine is gone without a word, lets go of what it has locked.
_UPGRADE: Final = (
    "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; "
    "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; "
    f"SELECT pg_advisory_xact_lock({0x7461736B73}); SET LOCAL lock_timeout = '2s'; "
    "SET LOCAL idle_in_transaction_session_timeout = '15s'"
)
PIECE: Final = 1000  # rows that are made ready at a stretch
QUEUE: Final = 2000  # statements that may be under way or wait, in this process
_PATIENCE: Final = 30.0  # seconds to wait at start-up for a database that is not there yet
_ANSWER: Final = 10.0  # seconds that the start waits for another process to finish writing
VERSION_TABLE: Final = "tasks_schema_version"  # Alembic's own name for it is many services'
_PASSING: Final = ("08", "40", "53", "55", "57", "25006")  # classes of SQLSTATE to wait out
_STOOD_IN_THE_WAY: Final = ("40", "55P03")  # another transaction, or who holds a lock
# SQLite's extended codes of a value that is there already, and of a NULL where none may be.
_REFUSED_SQLITE: Final = (sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_NOTNULL)
_ENDED: Final = "task_feed_position"  # the rule that nothing is written for a deleted account
_PASSING_SQLITE: Final = (5, 6, 10, 13)  # SQLITE_BUSY, _LOCKED, _IOERR, _FULL
# A refused connection comes without its SQLSTATE, so these tell by the words what no waiting
# changes. In another language than English they are waited out.
_FINAL: Final = re.compile(
    r"authentication failed|pg_hba\.conf|password supplied|not permitted|permission denied for"
    r"|(role|database) .* does not exist|no such (user|database)|not found|certificate"
    r"|not support SSL|^invalid "
)


def _version_in(table: str) -> sqlalchemy.Select[Any]:
    return sqlalchemy.table(table, sqlalchemy.column("version_num")).select()


_version: Final = _version_in(VERSION_TABLE)
# What tells this database from any other is kept as the position of nobody.
_identity: Final = sqlalchemy.select(FEED.c.position).where(FEED.c.user_id == "")
_identify: Final = (
    insert(FEED)
    .values(user_id="", position=bindparam("identity"), forgotten=0)
    .on_conflict_do_nothing(index_elements=[FEED.c.user_id])
)


class StartupError(Exception):
    """The database cannot be used; the message says why in one line, without secrets."""


class _Compiled:
    """A statement as the driver takes it, and what it takes and gives instead of our values."""

    def __init__(self, statement: ClauseElement, dialect: Dialect) -> None:
        if isinstance(statement, sqlalchemy.Executable) and dialect.name == "sqlite":
            statement = statement.get_execution_options().get("on_sqlite", statement)
        compiled = statement.compile(dialect=dialect)
        assert isinstance(compiled, SQLCompiler)
        self.sql = compiled.string
        self.constants = {name: it for name, it in compiled.params.items() if it is not None}
        self._dialect = dialect
        self._types = {name: compiled.binds[name].type for name in compiled.params}
        to_sql = (
            (name, kind.dialect_impl(dialect).bind_processor(dialect))
            for name, kind in self._types.items()
        )
        self._to_sql = [(name, convert) for name, convert in to_sql if convert]
        # A copy is asked: SQLAlchemy notes the answer, and `repeating.py` has this return more.
        columns = getattr(copy(statement), "exported_columns", ())
        from_sql = ((place, _reader(column.type, dialect)) for place, column in enumerate(columns))
        self.from_sql = [(place, convert) for place, convert in from_sql if convert]

    @cached_property
    def prepared(self) -> postgres.Prepared:
        """The statement, to be planned once a connection (PostgreSQL)."""
        types = {name: kind.compile(self._dialect) for name, kind in self._types.items()}
        # A parameter has no collation; its column has.
        bare = {name: kind.partition(" COLLATE")[0] for name, kind in types.items()}
        return postgres.Prepared(self.sql, bare)

    def parameters(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the driver takes of the values."""
        parameters = {**self.constants, **values}
        for name, convert in self._to_sql:
            parameters[name] = convert(parameters[name])
        return parameters

    def row(self, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return what the driver has given, as values."""
        values = list(given)
        for place, convert in self.from_sql:
            values[place] = convert(values[place])
        return tuple(values)


class Database:
    """One database, whichever it is: all that handlers know."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.database_url.get_secret_value()
        self._size = settings.db_pool_size
        self._file = make_url(self._url).database if self._url.startswith("sqlite:") else None
        self._dialect: Dialect = (
            sqlite_dialect.dialect(paramstyle="named") if self._file else psycopg2_dialect.dialect()  # type: ignore[no-untyped-call]
        )
        self.distributed = False  # by user, over several nodes (Citus)
        # Of this database, and of the service: a part of the tags of lists, since what a browser
        # has kept of another database may be of the same positions.
        self.identity = HEAD
        self._compiled = lru_cache(maxsize=128)(lambda it: _Compiled(it, self._dialect))
        self._gatherers: dict[str, Gatherer] = {}
        self._pending = 0
        # Called with the user whose position a write of this process has raised.
        self.on_write: Callable[[str], None] = lambda user_id: None
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
        away = ""
        while True:
            try:
                await asyncio.to_thread(self._bring_to_head)
                # A role that may only read does without. Nobody else: with another identity than
                # other workers have, this one would refuse the tags of their lists.
                with suppress(psycopg2.errors.InsufficientPrivilege):
                    await self._identify()
                return
            except StartupError as error:
                raise StartupError(f"DATABASE_URL: {self} {error}") from error
            except (OSError, DBAPIError, psycopg2.Error, sqlite3.Error, Unavailable) as error:
                cause = getattr(error, "orig", error.__cause__) or error
                reason = _first_line(cause)
                waited = "" if _is_final(cause) else f" did not answer for {_PATIENCE:.0f} s"
                if not waited or time.monotonic() > deadline:
                    raise StartupError(f"DATABASE_URL: {self}{waited}: {reason}") from error
            if reason != away:
                log.warning("the database is away: %s", away := reason)
            await asyncio.sleep(0.5)

    async def close(self) -> None:
        """Close every connection."""
        await self._pool.close()

    async def run(self, query: Query) -> Result:
        """Run one statement, atomically and in one round trip, or raise `Unavailable`; `Conflict`
        where it is refused for what is there, 401 where the account is deleted.
        """
        if self._pending >= QUEUE:
            raise Unavailable("Too many requests are waiting for the database.")
        compiled = self._compiled(query.statement)
        self._pending += 1
        try:
            if isinstance(self._pool, sqlite.Pool):
                result = await self._run_there(self._pool, query, compiled)
            elif gatherer := self._gatherer(self._pool, query, compiled):
                result = await gatherer.run(compiled.parameters(query.parameters))
            else:
                result = await self._run_alone(self._pool, query, compiled)
        except (psycopg2.errors.DivisionByZero, psycopg2.errors.UniqueViolation) as error:
            raise Conflict from error
        except (psycopg2.errors.CheckViolation, sqlite3.IntegrityError) as error:
            # Not all that PostgreSQL says: that quotes the row.
            told = error.diag.message_primary if isinstance(error, psycopg2.Error) else str(error)
            if _ENDED in (told or ""):
                raise Unauthorized from error
            if getattr(error, "sqlite_errorcode", 0) in _REFUSED_SQLITE:
                raise Conflict from error
            raise
        finally:
            self._pending -= 1
        if query.raises is not None:
            self.on_write(query.parameters["owner"])
        rows = result.rows
        if compiled.from_sql:
            for start in range(0, len(rows), PIECE):
                if start:
                    await asyncio.sleep(0)  # a turn for everybody else
                piece = slice(start, start + PIECE)
                rows[piece] = map(compiled.row, rows[piece])
        return result

    async def _run_alone(self, pool: postgres.Pool, query: Query, compiled: _Compiled) -> Result:
        """Run a statement on PostgreSQL; that of several calls takes them as JSON."""
        values = query.parameters  # with the owner, whose turn it is
        if query.each and query.many is not None:
            calls = [{"n": n, **compiled.parameters(one)} for n, one in enumerate(query.each)]
            compiled = self._compiled(query.many)
            values = {**values, "calls": to_json(calls).decode()}
        job = postgres.Statement(
            compiled.prepared if query.planned_once else compiled.sql,
            compiled.parameters(values),
            query.repeatable,
            query.deadline,
            writes=query.raises is not None,
        )
        return await pool.run(job)

    async def _run_there(self, pool: sqlite.Pool, query: Query, compiled: _Compiled) -> Result:
        """Run a statement on SQLite, once for each call, after what raises the position."""

        def beside(statement: ClauseElement | None) -> list[sqlite.Step]:
            steps = [] if statement is None else [self._compiled(statement)]
            return [(step.sql, step.parameters(query.parameters)) for step in steps]

        return await pool.run(
            compiled.sql,
            *(compiled.parameters(values) for values in query.each or [query.parameters]),
            deadline=query.deadline,
            first=beside(query.raises),
            then=beside(query.then),
            alone=query.alone,
        )

    def _gatherer(self, pool: postgres.Pool, query: Query, one: _Compiled) -> Gatherer | None:
        """Return what gathers the calls of this query; None where each goes by itself.

        So it is where tables are distributed: one user's call goes to one node, several to all.
        """
        if query.many is None or query.each or self.distributed:
            return None
        if one.sql not in self._gatherers:  # by its text, for it may be built again and again
            many = self._compiled(query.many)
            self._gatherers[one.sql] = Gatherer(
                pool, one.prepared, many.prepared, many.constants, repeatable=query.repeatable
            )
        return self._gatherers[one.sql]

    async def is_current(self) -> bool:
        """Return whether the database has this code's schema, or a newer one, which only adds."""
        if self._file and not _is_writable(self._file):
            raise Unavailable("The database's file cannot be written.")
        try:
            rows = (await self.run(Query(_version, {}, repeatable=True))).rows
        except (psycopg2.errors.UndefinedTable, sqlite3.DatabaseError):  # no table, no database
            return False
        return [version >= HEAD for (version,) in rows] == [True]

    async def _identify(self) -> None:
        """Make the identity of a new database, and learn it: all workers have the same."""
        while not (rows := (await self.run(Query(_identity, {}, repeatable=True))).rows):
            await self.run(Query(_identify, {"identity": getrandbits(52)}))
        self.identity = f"{HEAD}-{rows[0][0]}"

    def _bring_to_head(self) -> None:
        """Upgrade the schema in one transaction, while every other process that starts up waits."""
        with self._engine().connect() as connection:
            ask = "PRAGMA encoding" if self._file else "SHOW server_encoding"
            encoding = str(connection.exec_driver_sql(ask).scalar())
            if encoding not in ("UTF8", "UTF-8"):  # UTF-16 sorts otherwise, and loses U+FFFF
                raise StartupError(f"must be a database in UTF8, and is one in {encoding}")
            if is_distributed(connection) is not None:  # as soon as this is at head
                self._dialect, self.distributed = Citus(), True  # type: ignore[no-untyped-call]
            at_head = versions_in(connection, VERSION_TABLE) == [HEAD] and not _missing(connection)
            if at_head and is_distributed(connection) is not False:
                return  # nobody is held up, and Alembic not loaded

        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        with self.schema_transaction() as config.attributes["connection"]:
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise StartupError(f"has a newer schema, or another service's: {error}") from error
            except DBAPIError as error:
                code = getattr(error.orig, "pgcode", None) or ""
                if error.connection_invalidated or code.startswith(_STOOD_IN_THE_WAY):
                    raise  # it is tried again
                reason = _first_line(error.orig)
                raise StartupError(
                    f"keeps the schema that it has, since the upgrade failed: {reason}"
                ) from error
            if missing := _missing(config.attributes["connection"]):
                raise StartupError(f"says that it is at {HEAD}, and has no {missing[0]}")

    @contextmanager
    def schema_transaction(self) -> Iterator[Connection]:
        """Open the one transaction in which the schema may change, after every other process's."""
        with ExitStack() as held:
            if self._file:
                # As long as that takes. SQLite's own lock, which may be somebody's who never lets
                # go, is only waited for so long.
                with suppress(ImportError, OSError):  # where there are no such locks
                    import fcntl

                    directory = os.open(Path(self._file).absolute().parent, os.O_RDONLY)
                    held.callback(os.close, directory)
                    fcntl.flock(directory, fcntl.LOCK_EX)
            connection = held.enter_context(self._engine().begin())
            connection.exec_driver_sql("BEGIN IMMEDIATE" if self._file else _UPGRADE)
            yield connection

    def _engine(self) -> sqlalchemy.Engine:
        """Return what opens ordinary connections, which change nothing by being opened."""
        connect: Callable[[], Any]
        if self._file:
            if not _is_writable(self._file):  # who may not read it may not read its -wal either
                os.close(os.open(self._file, os.O_RDWR | os.O_CREAT, 0o600))
            connect = partial(sqlite3.connect, self._file, timeout=_ANSWER, isolation_level=None)
        else:
            options = {"connect_timeout": "5"} | postgres.connection_options(self._url)
            connect = partial(psycopg2.connect, self._url, **options)
        kind = "sqlite://" if self._file else "postgresql+psycopg2://"
        return sqlalchemy.create_engine(kind, creator=connect, poolclass=NullPool)


def _missing(connection: Connection) -> list[str]:
    """Return the columns that this code uses and the database does not have."""
    found = columns_in(connection)
    return [
        f"{name}.{key}"
        for name, table in TASK.metadata.tables.items()
        for key in set(table.c.keys()) - found.get(name, set())
    ]


def is_distributed(connection: Connection) -> bool | None:
    """Return whether tables are distributed by user; None where that cannot be (no Citus)."""
    if connection.dialect.name == "sqlite":
        return None
    done = "SELECT to_regproc('task_moved') IS NOT NULL FROM pg_extension WHERE extname = 'citus'"
    return cast("bool | None", connection.exec_driver_sql(done).scalar())


def versions_in(connection: Connection, table: str) -> list[str]:
    """Return what one of Alembic's version tables says; nothing where there is no such table."""
    if not sqlalchemy.inspect(connection).has_table(table):
        return []
    return list(connection.scalars(_version_in(table)))


def columns_in(connection: Connection) -> dict[str, set[str]]:
    """Return the names of the columns of each table that is called like one of ours."""
    found = sqlalchemy.inspect(connection).get_multi_columns(filter_names=[*TASK.metadata.tables])
    return {name: {column["name"] for column in found[_, name]} for _, name in found}


def _is_writable(file: str) -> bool:
    return os.path.isfile(file) and os.access(file, os.R_OK | os.W_OK)


def _is_final(error: BaseException) -> bool:
    """Return whether waiting will not help."""
    if isinstance(error, OSError):
        return True
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF not in _PASSING_SQLITE
    if code := getattr(error, "pgcode", None):
        return not code.startswith(_PASSING)
    # One line for each host that was tried, or each way (with TLS and without).
    refusals = re.findall(r"^(?:connection to .* failed: |invalid ).*", str(error), re.MULTILINE)
    return bool(refusals) and all(map(_FINAL.search, refusals))


def _first_line(error: BaseException | None) -> str:
    return str(error).partition("\n")[0]


def _reader(kind: TypeEngine[Any], dialect: Dialect) -> Callable[[Any], Any] | None:
    """Return what makes Python's value of the driver's, or None where that is one already."""
    if isinstance(kind, UTCDateTime):
        return read_timestamp if dialect.name == "sqlite" else None  # which the pool has done
    if isinstance(kind, ARRAY):
        return _read_list if dialect.name == "sqlite" else None  # psycopg2 gives a list
    if isinstance(kind, Double) and dialect.name == "sqlite":  # its RETURNING gives 5.0 as 5
        return lambda stored: None if stored is None else float(stored)
    return kind.dialect_impl(dialect).result_processor(dialect, _FLOAT8)


def _read_list(stored: str | None) -> Any:
    return stored and from_json(stored)
