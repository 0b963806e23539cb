"""SQLite, the embedded default: a few connections in threads of their own, one writer at a time.

Write-ahead logging lets readers go on while one writes; `synchronous=FULL` puts a write on disk
before it is acknowledged.
"""

import asyncio
import sqlite3
import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple, cast

from engines import DEADLINE
from errors import Unavailable

Rows = tuple[list[tuple[Any, ...]], int]

_THREADS: Final = 4
_PATIENCE: Final = 10.0  # seconds that a statement waits for another process to finish writing
_MOST: Final = 100  # writes that share a transaction
_AWAY: Final = (  # result codes that speak of the file, not of the statement
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
)


def connect(path: str) -> sqlite3.Connection:
    """Open the database file as this service wants it: autocommit, WAL, every write on disk."""
    connection = sqlite3.connect(
        path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
    )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    # 16 MB: with the 2 that are SQLite's default, many users at once put each other's pages out.
    connection.execute("PRAGMA cache_size = -16000")
    return connection


class _Write(NamedTuple):
    """A statement that waits to be run, and the future of its rows."""

    sql: str
    parameters: Mapping[str, Any]
    rows: asyncio.Future[Rows]


class Pool:
    """Runs statements off the event loop, reads at the same time, writes one after the other.

    While a write is being put on disk, further ones gather; the next transaction, and so one wait
    for the disk, serves them all. Raises `Unavailable` when the file stays locked or cannot be
    written.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._thread = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._executor = ThreadPoolExecutor(_THREADS, "sqlite")
        self._writes: deque[_Write] = deque()
        self._writer: asyncio.Task[None] | None = None

    async def run(
        self,
        sql: str,
        parameters: Mapping[str, Any],
        *,
        repeatable: bool,
        deadline: float = DEADLINE,
    ) -> Rows:
        """Run one statement and return what came back."""
        loop = asyncio.get_running_loop()
        try:
            if sql.startswith("SELECT"):
                return await loop.run_in_executor(self._executor, self._execute, sql, parameters)
            write = _Write(sql, parameters, loop.create_future())
            self._writes.append(write)
            if self._writer is None:
                self._writer = loop.create_task(self._write())
            return await write.rows
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF in _AWAY:
                raise Unavailable from error
            raise

    async def close(self) -> None:
        """Finish what runs and close every connection."""
        self._executor.shutdown()
        for connection in self._connections:
            connection.close()

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while self._writes:
            count = min(len(self._writes), _MOST)
            batch = [self._writes.popleft() for _ in range(count)]
            outcomes = await loop.run_in_executor(self._executor, self._transaction, batch)
            for write, outcome in zip(batch, outcomes, strict=True):
                if write.rows.done():  # whoever asked is gone
                    continue
                if isinstance(outcome, Exception):
                    write.rows.set_exception(outcome)
                else:
                    write.rows.set_result(outcome)
        self._writer = None

    def _connection(self) -> sqlite3.Connection:
        if not hasattr(self._thread, "connection"):
            self._thread.connection = connect(self._path)
            self._connections.append(self._thread.connection)
        return cast(sqlite3.Connection, self._thread.connection)

    def _execute(self, sql: str, parameters: Mapping[str, Any]) -> Rows:
        cursor = self._connection().execute(sql, parameters)
        return cursor.fetchall(), cursor.rowcount

    def _transaction(self, batch: list[_Write]) -> list[Rows | Exception]:
        """Run the writes in one transaction; one that fails leaves the others as they are."""
        try:
            connection = self._connection()
            if len(batch) == 1:
                return [self._execute(batch[0].sql, batch[0].parameters)]
            connection.execute("BEGIN IMMEDIATE")
            try:
                outcomes = [self._outcome(write) for write in batch]
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            return outcomes
        except Exception as error:
            return [error] * len(batch)

    def _outcome(self, write: _Write) -> Rows | Exception:
        try:
            return self._execute(write.sql, write.parameters)
        except Exception as error:
            if not self._connection().in_transaction:  # all is rolled back, as for a full disk
                raise
            return error  # which SQLite undid by itself (its manual: ON CONFLICT, ABORT)
