"""SQLite, the embedded default: what is short is read and written on the loop, what is not in
threads, each with a connection; so is every wait for the disk.

Write-ahead logging lets readers go on while one writes; `synchronous=FULL` puts a write on disk
before it is acknowledged. Threads only run statements; what waits and what is under way changes on
the loop, so an interrupt meets the statement that it is meant for, or none.
"""

import asyncio
import logging
import math
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Event
from time import monotonic
from typing import Any, Final

from engines import DEADLINE, TICK, Queue, Result
from errors import Unavailable

log = logging.getLogger("tasks")

Parameters = Mapping[str, Any]
Step = tuple[str, Parameters]  # what goes before or after a statement, in one transaction

_READERS: Final = 4
_PAUSE: Final = 0.001  # seconds between two attempts to lock the file; uvloop knows no less
_GRACE: Final = 0.6  # seconds past its deadline in which an interrupted statement has ended
_NEAR: Final = 0.002  # seconds that a read may take on the loop
_STEPS: Final = 300  # of SQLite's machine between two looks at the clock
_SLOW: Final = 0.02  # seconds that a write may take there, before it is undone and goes alone
_TURN: Final = 0.005  # seconds after which no further write is begun there
_LATE: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_INTERRUPT)
_AWAY: Final = (  # result codes that speak of the file, not of the statement
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
)
_BUSY: Final = "The database is busy, and nothing was done; try again soon."
_HEAVY: Final = "This took too long and was stopped, nothing was done; narrow it with a filter."
_MOVED: Final = "The database's file is not where it was, and nothing was done."
_SILENT: Final = "The disk does not answer; whether this was done is not known."


def connect(path: str) -> sqlite3.Connection:
    """Open the database file as this service wants it: autocommit, WAL, every write on disk."""
    connection = sqlite3.connect(path, timeout=TICK, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    # 16 MB: with the 2 that are SQLite's default, many users at once put each other's pages out.
    connection.execute("PRAGMA cache_size = -16000")
    # Pages of the log that go into the file at a time: with 1000, SQLite's default, creates and
    # changes were a twentieth slower.
    connection.execute("PRAGMA wal_autocheckpoint = 4000")
    # SQLite's `instr` tries a long part at every place whole.
    connection.create_function("long_in", 2, lambda text, part: part in (text or ""))
    return connection


def _code(outcome: object) -> int:
    """Return SQLite's primary result code of a failure, else 0."""
    return getattr(outcome, "sqlite_errorcode", 0) & 0xFF


@dataclass(eq=False)
class _Job:
    """A statement that waits or is under way, until when, and the future of its rows."""

    sql: str
    calls: Sequence[Parameters]
    owner: Any
    first: Sequence[Step]
    then: Sequence[Step]
    seconds: float
    alone: bool

    def __post_init__(self) -> None:
        # What may be slow shares no transaction, nor what could fail after it has done something.
        self.alone |= self.seconds > DEADLINE or bool(self.then)
        self.deadline = monotonic() + self.seconds
        self.outcome: Result | Exception = Result([], 0)  # a list of its own
        self.rows: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

    def end(self, outcome: Result | Exception) -> None:
        """Hand over the outcome, as whoever asked shall see it."""
        if self.rows.done():  # whoever asked is gone
            return
        if not isinstance(outcome, Exception):
            self.rows.set_result(outcome)
            return
        if (code := _code(outcome)) in _LATE:
            heavy = self.alone and code == sqlite3.SQLITE_INTERRUPT
            outcome = Unavailable(_HEAVY if heavy else _BUSY)
        if code in _AWAY:
            log.warning("the database is away: %s", outcome)
            outcome = Unavailable()
        self.rows.set_exception(outcome)


@dataclass(eq=False)
class _Worker:
    """What is under way on a connection: one job, or some writes together."""

    jobs: Sequence[_Job] = ()
    until: float = math.inf  # when to interrupt them
    connection: sqlite3.Connection | None = None


def _run(connection: sqlite3.Connection, job: _Job) -> None:
    try:
        if not job.rows.done():  # else whoever asked is gone
            for step in job.first:
                connection.execute(*step)
            rows = [row for call in job.calls for row in connection.execute(job.sql, call)]
            # A cursor does not count what a statement WITH steps has touched.
            touched = len(rows) or connection.execute("SELECT changes()").fetchone()[0]
            job.outcome = Result(rows, touched)
            for step in job.then:
                connection.execute(*step)
    except Exception as error:
        # All is rolled back: interrupted, or a full disk.
        stopped = _code(error) == sqlite3.SQLITE_INTERRUPT
        if stopped or job.alone or not connection.in_transaction:
            job.alone |= stopped
            raise
        job.outcome = error  # which SQLite undid by itself (its manual: ON CONFLICT, ABORT)


class Pool:
    """Runs statements: what is short on the event loop, what is not in threads. Reads go on at the
    same time, writes one transaction after the other.

    While one is being put on disk, further writes gather; the next transaction, and so one wait for
    the disk, serves them all. Raises `Unavailable` when the file cannot be read or written, and
    when the deadline comes first: then nothing was done.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._file: tuple[int, int] | None = None  # which one is open: device and inode
        self._there = True  # when last looked for, a tick ago or less
        self._near: sqlite3.Connection | None = None
        self._late = 0.0  # when what runs on the loop is given up
        self._reads, self._writes = Queue[_Job](), Queue[_Job]()
        self._workers = [_Worker() for _ in range(_READERS + 1)]
        *self._readers, self._writer = self._workers
        self._threads = ThreadPoolExecutor(len(self._workers), "sqlite")
        self._asked = asyncio.Event()  # to write
        self._writing = self._loop.create_task(self._write())
        self._ticker = self._loop.create_task(self._tick())

    async def run(
        self,
        sql: str,
        *calls: Parameters,
        deadline: float = DEADLINE,
        first: Sequence[Step] = (),
        then: Sequence[Step] = (),
        alone: bool = False,
    ) -> Result:
        """Run a statement once for each call, all or none; `first` before it, and `then` after;
        `alone` where it could fail after `first`.

        Return what came back, at most `deadline` seconds from now.
        """
        reads = sql.startswith(("SELECT", "WITH")) and not first
        if reads and deadline <= DEADLINE and (rows := self._read_at_once(sql, calls[0])):
            return rows
        job = _Job(sql, calls, calls[0].get("owner"), first, then, deadline, alone)
        if reads:
            self._reads.add(job)
            self._begin_reads()
        else:
            self._writes.add(job)
            self._asked.set()
        return await job.rows

    def _read_at_once(self, sql: str, parameters: Parameters) -> Result | None:
        """Read on the loop; None where that is not short, or fails: then a thread shall say why."""
        try:
            if not (self._there if self._near else self._is_there()):
                return None
            if self._near is None:
                self._near = connect(self._path)
                self._near.execute("PRAGMA busy_timeout = 0")
                self._near.set_progress_handler(self._is_late, _STEPS)
            self._late = monotonic() + _NEAR
            rows = self._near.execute(sql, parameters).fetchall()
            return Result(rows, len(rows))
        except sqlite3.Error:
            return None

    def _is_there(self) -> bool:
        """Return whether the path leads to the file that is open here, or will be.

        Of one that was moved, deleted or replaced SQLite still writes to what there was; and a
        connection that is opened then, to an empty file, takes the log of what is open away.
        """
        try:
            found = os.stat(self._path)
        except OSError:
            return False
        self._file = self._file or (found.st_dev, found.st_ino)
        return self._file == (found.st_dev, found.st_ino)

    def _is_late(self) -> bool:
        """Tell by the clock: a step may search a long text, or wait for the disk."""
        return monotonic() > self._late

    async def close(self) -> None:
        """Finish what is under way and close every connection."""
        self._closed = True
        for job in (*self._reads.take_all(), *self._writes.take_all()):
            job.end(Unavailable(_BUSY))
        self._asked.set()
        await self._writing
        await asyncio.to_thread(self._threads.shutdown)
        self._ticker.cancel()
        for connection in (self._near, *(worker.connection for worker in self._workers)):
            if connection:
                connection.close()

    def _begin_reads(self) -> None:
        """Have idle threads read, of each owner fewer at once than are left idle."""

        def may(job: _Job) -> bool:
            owners = [reader.jobs[0].owner for reader in self._readers if reader.jobs]
            return owners.count(job.owner) < _READERS - len(owners)

        for reader in self._readers:
            if not reader.jobs and (job := self._reads.take(may)):
                reader.jobs, reader.until = [job], job.deadline
                done = self._in_thread(self._read, reader, job)
                done.add_done_callback(partial(self._has_read, reader))

    def _read(self, reader: _Worker, job: _Job) -> None:
        try:
            if not self._is_there():
                raise Unavailable(_MOVED)
            reader.connection = reader.connection or connect(self._path)
            _run(reader.connection, job)
        except Exception as error:
            job.outcome = error

    def _has_read(self, reader: _Worker, _: Any) -> None:
        jobs, reader.jobs = reader.jobs, ()
        self._done(self._reads, jobs)
        self._begin_reads()

    async def _write(self) -> None:
        """Write what there is, one transaction after the other."""
        writer = self._writer
        while await self._asked.wait() and not self._closed:
            try:
                if not self._is_there():
                    raise Unavailable(_MOVED)
                if writer.connection is None:
                    if not os.access(self._path, os.W_OK):  # it would be opened to read, for good
                        raise Unavailable
                    writer.connection = await self._in_thread(connect, self._path)
                    writer.connection.execute("PRAGMA busy_timeout = 0")
                await self._transaction(writer.connection)
            except Exception as error:
                writer.jobs = writer.jobs or self._writes.take_all()
                for job in writer.jobs:
                    job.outcome = error
            jobs, writer.jobs, writer.until = writer.jobs, (), math.inf
            self._done(self._writes, jobs)
            if not (self._writes or self._closed):
                self._asked.clear()

    async def _transaction(self, connection: sqlite3.Connection) -> None:
        """Run a write that may be slow, or some that are not; one of them that fails leaves the
        others as they are.
        """
        try:
            await self._begin(connection)
            job = self._writes.take(lambda job: True)
            if job and job.alone:
                self._writer.jobs, self._writer.until = [job], job.deadline
                await self._in_thread(_run, connection, job)
            elif job:
                self._run_together(connection, job)
            await self._commit(connection)
        except Exception:
            # Also where SQLite has undone it: the loop shall go on between two that are slow. And
            # where it could not begin, for one is open still: an interrupt may stop ROLLBACK too.
            await self._in_thread(connection.rollback)
            raise

    async def _begin(self, connection: sqlite3.Connection) -> None:
        """Begin to write as soon as no other process does, or fail once nobody waits for it.

        SQLite would wait by itself, looking again after up to 100 ms: with two workers, p95 was 4
        times as long. They take so little time that it pays to look all the time at first.
        """
        soon = monotonic() + _TURN
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if _code(error) != sqlite3.SQLITE_BUSY or not self._writes:
                    raise
            await asyncio.sleep(0 if monotonic() < soon else _PAUSE)

    async def _commit(self, connection: sqlite3.Connection) -> None:
        """Put on disk what was written, in a thread.

        The loop waits until that has begun. Else it would keep the interpreter's lock for all that
        has come in meanwhile, up to 2 ms, in which no other process may write.
        """
        begun = Event()

        def commit() -> None:
            begun.set()
            connection.execute("COMMIT")

        done = self._in_thread(commit)
        begun.wait()
        await done

    def _run_together(self, connection: sqlite3.Connection, job: _Job | None) -> None:
        """Run writes on the loop, for to hand each to a thread takes longer than the write."""
        jobs: list[_Job] = []
        self._writer.jobs = jobs
        until = monotonic() + _TURN
        connection.set_progress_handler(self._is_late, _STEPS)
        try:
            while job:
                jobs.append(job)
                self._late = monotonic() + _SLOW
                _run(connection, job)
                more = monotonic() < until
                job = self._writes.take(lambda job: not job.alone) if more else None
        finally:  # else it might stop COMMIT or ROLLBACK, which go on in its count of steps
            connection.set_progress_handler(None, 0)

    def _in_thread(self, work: Callable[..., Any], *values: Any) -> asyncio.Future[Any]:
        return self._loop.run_in_executor(self._threads, work, *values)

    def _done(self, queue: Queue[_Job], jobs: Sequence[_Job]) -> None:
        """Let go again what was stopped for another's sake, and answer the rest."""
        now = math.inf if self._closed else monotonic()
        again = [job for job in jobs if _code(job.outcome) in _LATE and now < job.deadline]
        for job in jobs:
            if job not in again:
                job.end(job.outcome)
        for job in reversed(again):  # at fault: after all that it held up, and alone
            queue.add(job, first=not job.alone)

    async def _tick(self) -> None:
        """Stop what is late, in time for its answer."""
        while True:
            await asyncio.sleep(TICK)
            self._there = self._is_there()
            now = monotonic()
            for job in (*self._reads.take_late(now), *self._writes.take_late(now)):
                job.end(Unavailable(_BUSY))
            for worker in self._workers:
                for job in worker.jobs:
                    if job.deadline + _GRACE < now:
                        job.end(Unavailable(_SILENT))
                gone = worker in self._readers and all(job.rows.done() for job in worker.jobs)
                if worker.connection and worker.jobs and (gone or worker.until < now):
                    worker.connection.interrupt()  # if it is between two steps, next time
