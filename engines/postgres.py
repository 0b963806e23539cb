"""PostgreSQL from the event loop: psycopg2's asynchronous mode, and a small pool of connections.

No thread, no ping, no session state: a connection is a socket that the loop watches for its whole
life, and a statement in autocommit is one write and one read. psycopg2 documents the mode under
"Asynchronous support".
"""

import asyncio
import logging
import select
from collections import deque
from collections.abc import Mapping
from typing import Any, Final, cast

import psycopg2
from psycopg2.extensions import (
    POLL_OK,
    POLL_WRITE,
    TRANSACTION_STATUS_IDLE,
    parse_dsn,
)

from errors import Unavailable

log = logging.getLogger("tasks")

Rows = tuple[list[tuple[Any, ...]], int]  # the rows that came back, and how many rows were touched

# Seconds a request may wait for its statement, queueing and connecting included.
DEADLINE: Final = 4.0
_SMALL: Final = 4096  # bytes of a statement that libpq writes at once
_FRESH: Final = 0.05  # seconds since its last answer in which a connection is taken to be alive
_TICK: Final = 0.2  # seconds between two looks at the deadlines
# What the URL does not say. The kernel gives up on a peer that died without a word.
_DEFAULTS: Final = {
    "client_encoding": "UTF8",
    "fallback_application_name": "tasks",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "5000",
}
# SQLSTATE classes that speak of the server, not of the statement (PostgreSQL, appendix A):
# connection, resources, object in use, operator; and a primary that became a standby.
_AWAY: Final = ("08", "53", "55", "57", "25006")
_STANDBY: Final = "25006"  # nothing was done, and a new connection may find the primary
_ROLLED_BACK: Final = "40"  # for another transaction's sake, a deadlock: to be sent again


def connection_options(dsn: str) -> dict[str, Any]:
    """Return the libpq parameters to connect with beside `dsn`, which has the last word."""
    given = parse_dsn(dsn)
    return {name: value for name, value in _DEFAULTS.items() if name not in given}


class _Job:
    """A statement on its way, until when, and the future of its rows."""

    __slots__ = ("deadline", "parameters", "repeatable", "rows", "sent_again", "sql", "started")

    def __init__(
        self, sql: str, parameters: Mapping[str, Any], repeatable: bool, waited: float
    ) -> None:
        loop = asyncio.get_running_loop()
        self.sql = sql
        self.parameters = parameters
        self.repeatable = repeatable
        self.sent_again = False
        self.started = loop.time()
        self.deadline = self.started + DEADLINE - waited
        self.rows: asyncio.Future[Rows] = loop.create_future()

    def fail(self, error: Exception) -> None:
        if not self.rows.done():
            self.rows.set_exception(error)


class _Connection:
    """An open connection, with a job in flight or idle. The loop watches it either way."""

    def __init__(self, pool: "Pool", raw: Any) -> None:
        self.job: _Job | None = None
        self.idle_since = 0.0  # when its last job started, which is near enough and costs nothing
        self._pool = pool
        self._raw = raw
        self._cursor = raw.cursor()
        self._fd: int = raw.fileno()
        self._writing = False
        self._poller = select.poll()
        self._poller.register(self._fd, select.POLLIN)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._ready)

    def silent(self) -> bool:
        """Return whether an idle connection is alive: a server speaks then only to say good-bye."""
        return not self._poller.poll(0)

    def send(self, job: _Job) -> bool:
        """Send the statement; return whether it is in flight, else it is over already."""
        self.job = job
        try:
            self._cursor.execute(job.sql, job.parameters)
        except Exception as error:  # what is no SQL, such as text with a NUL, included
            return not self._end(error)
        # What fits the socket's empty buffer is written whole: only its answer is to come.
        return len(self._cursor.query) <= _SMALL or not self._advance()

    def _ready(self) -> None:
        if self.job is None:
            self._pool.discard(self)
        elif self._advance():
            self._pool.release(self)

    def _advance(self) -> bool:
        """Move the job on; return whether it is over."""
        try:
            state = self._raw.poll()
        except psycopg2.Error as error:
            return self._end(error)
        if (state == POLL_WRITE) != self._writing:
            self._writing = not self._writing
            if self._writing:  # larger than the socket's buffer
                self._loop.add_writer(self._fd, self._ready)
            else:
                self._loop.remove_writer(self._fd)
        return state == POLL_OK and self._end(None)

    def _end(self, error: Exception | None) -> bool:
        job, self.job = self.job, None
        assert job
        self.idle_since = job.started
        code = getattr(error, "pgcode", None) or ""
        if error is None:
            self._deliver(job)
        elif code.startswith(_ROLLED_BACK):
            self._pool.send_again(job)
        elif isinstance(error, psycopg2.Error) and (not code or code.startswith(_AWAY)):
            self._pool.discard(self)
            self._pool.lost(job, error)
        else:
            job.fail(error)
        return True

    def _deliver(self, job: _Job) -> None:
        if job.rows.done():  # whoever asked is gone
            return
        try:
            rows = self._cursor.fetchall() if self._cursor.description else []
            job.rows.set_result((rows, self._cursor.rowcount))
        except Exception as error:  # what Python has no value for, such as a date before Christ
            job.fail(error)

    def usable(self) -> bool:
        """Return whether another statement may be sent."""
        return not self._raw.closed and self._raw.info.transaction_status == TRANSACTION_STATUS_IDLE

    def close(self) -> None:
        """Close the socket, once the loop has forgotten it."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            self._fd = -1
            self._raw.close()


class Pool:
    """Runs statements on at most `size` connections, opened on demand, last used first.

    Raises `Unavailable` at once when the server cannot be reached, and within `DEADLINE` and a tick
    when it keeps silent. A statement whose connection died under it is sent once more only where
    that is harmless.
    """

    def __init__(self, dsn: str, size: int) -> None:
        self._dsn = dsn
        self._options = connection_options(dsn)
        self._size = size
        self._open: set[_Connection] = set()
        self._idle: list[_Connection] = []
        self._waiting: deque[_Job] = deque()
        self._connecting: set[asyncio.Task[None]] = set()
        self._ticker: asyncio.TimerHandle | None = None
        self._away = False

    async def run(self, sql: str, parameters: Mapping[str, Any], *, repeatable: bool) -> Rows:
        """Send one statement and return what came back."""
        return await self.start(sql, parameters, repeatable=repeatable)

    def start(
        self, sql: str, parameters: Mapping[str, Any], *, repeatable: bool, waited: float = 0.0
    ) -> asyncio.Future[Rows]:
        """Send one statement, whose caller has `waited` so many seconds; return its future."""
        job = _Job(sql, parameters, repeatable, waited)
        self._start(job)
        if self._ticker is None:
            self._ticker = asyncio.get_running_loop().call_later(_TICK, self._tick)
        return job.rows

    async def close(self) -> None:
        """Close every connection."""
        while self._waiting:
            self._waiting.popleft().fail(Unavailable())
        for task in list(self._connecting):
            task.cancel()
        for connection in list(self._open):
            self.discard(connection)

    def _start(self, job: _Job, *, first: bool = False) -> None:
        while self._idle:
            connection = self._idle.pop()
            stale = first or connection.idle_since < job.started - _FRESH
            if stale and not connection.silent():
                self.discard(connection)
            elif connection.send(job):
                return
            else:
                self.release(connection)
                return
        if first:
            self._waiting.appendleft(job)
        else:
            self._waiting.append(job)
        self._connect_on_demand()

    def release(self, connection: _Connection) -> None:
        """Give a connection that has done its job to whoever waits longest."""
        while connection in self._open:
            if not connection.usable():
                self.discard(connection)
            elif not self._waiting:
                self._idle.append(connection)
                return
            elif not (job := self._waiting.popleft()).rows.done() and connection.send(job):
                return

    def discard(self, connection: _Connection) -> None:
        """Close a connection that is of no more use."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        connection.close()
        self._connect_on_demand()

    def lost(self, job: _Job, error: psycopg2.Error) -> None:
        """Take back a job whose connection died under it."""
        self._log_away(error)
        if (job.repeatable or error.pgcode == _STANDBY) and not job.sent_again:
            job.sent_again = True
            self.send_again(job)
        else:
            job.fail(Unavailable())

    def send_again(self, job: _Job) -> None:
        """Start over with a job, before those that have waited less."""
        if not job.rows.done():
            self._start(job, first=True)

    def _connect_on_demand(self) -> None:
        have = len(self._open) + len(self._connecting)
        if have < self._size and len(self._waiting) > len(self._connecting):
            task = asyncio.get_running_loop().create_task(self._connect())
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        raw = None
        try:
            async with asyncio.timeout(DEADLINE):
                # Name resolution blocks, so this first step has a thread.
                raw = await loop.run_in_executor(
                    None, lambda: psycopg2.connect(self._dsn, async_=1, **self._options)
                )
                while (state := raw.poll()) != POLL_OK:
                    # libpq may have gone on to another host, and so to another socket.
                    await _wait_for(raw.fileno(), state)
        except (psycopg2.Error, TimeoutError) as error:
            if raw is not None:
                raw.close()
            if "," in parse_dsn(self._dsn).get("host", ""):
                # A host that swallows packets would hold up every attempt: begin with another.
                self._options.setdefault("load_balance_hosts", "random")
            self._log_away(error)
            while not self._open and self._waiting:
                self._waiting.popleft().fail(Unavailable())
            return
        if self._away:
            self._away = False
            log.info("the database is back")
        connection = _Connection(self, raw)
        self._open.add(connection)
        # No longer on its way: a job that the new connection loses may need another one at once.
        self._connecting.remove(cast("asyncio.Task[None]", asyncio.current_task()))
        self.release(connection)

    def _log_away(self, error: Exception) -> None:
        if not self._away:
            self._away = True
            reason = str(error).strip().partition("\n")[0] or "no answer"
            log.warning("the database is away: %s", reason)

    def _tick(self) -> None:
        """Give up on every job that is past its deadline; one in flight costs its connection."""
        now = asyncio.get_running_loop().time()
        while self._waiting and self._waiting[0].deadline < now:
            self._waiting.popleft().fail(Unavailable())
        busy = [connection for connection in self._open if connection.job]
        for connection in busy:
            job = connection.job
            if job and job.deadline < now:
                self._log_away(TimeoutError())
                self.discard(connection)
                job.fail(Unavailable())
        self._ticker = None
        if self._waiting or busy:
            self._ticker = asyncio.get_running_loop().call_later(_TICK, self._tick)


async def _wait_for(fd: int, state: int) -> None:
    """Wait until the socket is ready for what libpq wants to do with it."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    watch, unwatch = (
        (loop.add_writer, loop.remove_writer)
        if state == POLL_WRITE
        else (loop.add_reader, loop.remove_reader)
    )
    watch(fd, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        unwatch(fd)
