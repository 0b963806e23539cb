"""SQLite, the embedded default: a few connections in threads of their own, one writer at a time.

Write-ahead logging lets readers go on while one writes; `synchronous=FULL` puts a write on disk
before it is acknowledged.
"""

import asyncio
import sqlite3
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from errors import Unavailable

Rows = tuple[list[tuple[Any, ...]], int]

_THREADS: Final = 4
_PATIENCE: Final = 10.0  # seconds that a statement waits for another process to finish writing
QUEUE: Final = 2000  # statements that may wait for a thread
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
    return connection


class Pool:
    """Runs statements off the event loop.

    Raises `Unavailable` when `QUEUE` statements wait, or when the file stays locked or cannot be
    written.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._thread = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._executor = ThreadPoolExecutor(_THREADS, "sqlite")
        self._writing = asyncio.Lock()
        self._waiting = 0

    async def run(self, sql: str, parameters: Mapping[str, Any], *, repeatable: bool) -> Rows:
        """Run one statement and return what came back."""
        if self._waiting >= QUEUE:
            raise Unavailable("Too many requests are waiting for the database.")
        self._waiting += 1
        try:
            if sql.startswith("SELECT"):
                return await self._in_thread(sql, parameters)
            async with self._writing:
                return await self._in_thread(sql, parameters)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF in _AWAY:
                raise Unavailable from error
            raise
        finally:
            self._waiting -= 1

    async def close(self) -> None:
        """Finish what runs and close every connection."""
        self._executor.shutdown()
        for connection in self._connections:
            connection.close()

    async def _in_thread(self, sql: str, parameters: Mapping[str, Any]) -> Rows:
        return await asyncio.get_running_loop().run_in_executor(
            self._executor, self._run, sql, parameters
        )

    def _run(self, sql: str, parameters: Mapping[str, Any]) -> Rows:
        if not hasattr(self._thread, "connection"):
            self._thread.connection = connect(self._path)
            self._connections.append(self._thread.connection)
        cursor = self._thread.connection.execute(sql, parameters)
        return cursor.fetchall(), cursor.rowcount
