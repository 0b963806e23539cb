"""SQLite, the embedded default: threads that read, and one that writes, each with a connection.
What is read in no time is read on the loop.

Write-ahead logging lets readers go on while one writes; `synchronous=FULL` puts a write on disk
before it is acknowledged. What waits and what is under way changes under one lock: an interrupt
meets the statement that it is meant for, or none.
"""

import asyncio
import math
import os
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Any, Final

from engines import DEADLINE, Queue
from errors import Unavailable

Rows = tuple[list[tuple[Any, ...]], int]
Parameters = Mapping[str, Any]
First = tuple[str, Parameters]  # what goes before or after a statement, in one transaction; or ""

_READERS: Final = 4
_TICK: Final = 0.2  # seconds between two looks at the deadlines, also while waiting for a lock
_PAUSE: Final = 0.0005  # seconds between two attempts to lock the file
_GRACE: Final = 0.6  # seconds past its deadline in which an interrupted statement has ended
_NEAR: Final = 0.002  # seconds that a read may take on the loop
_STEPS: Final = 300  # of SQLite's machine between two looks at the clock
_MOST: Final = 100  # writes that share a transaction
_SHARED: Final = 1.0  # seconds that a shared transaction may take, in fairness to all in it
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
    connection = sqlite3.connect(path, timeout=_TICK, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    # 16 MB: with the 2 that are SQLite's default, many users at once put each other's pages out.
    connection.execute("PRAGMA cache_size = -16000")
    # Pages of the log that go into the file at a time: with 1000, SQLite's default, creates and
    # changes were a twentieth slower.
    connection.execute("PRAGMA wal_autocheckpoint = 4000")
    connection.create_function("long_in", 2, _holds, deterministic=True)
    return connection


def _holds(text: str | None, part: str) -> bool:
    """Return whether a text has a long part. SQLite's `instr` tries that at every place whole."""
    return text is not None and part in text


def _code(outcome: object) -> int:
    """Return SQLite's primary result code of a failure, else 0."""
    return getattr(outcome, "sqlite_errorcode", 0) & 0xFF


@dataclass(eq=False)
class _Job:
    """A statement that waits or is under way, until when, and the future of its rows."""

    sql: str
    calls: Sequence[Parameters]
    owner: Any
    first: First
    then: First
    seconds: float

    def __post_init__(self) -> None:
        # What may be slow shares no transaction, nor what could fail after it has done something.
        self.alone = self.seconds > DEADLINE or bool(self.then[0])
        self.deadline = monotonic() + self.seconds
        self.outcome: Rows | Exception = ([], 0)  # a list of its own
        self.rows: asyncio.Future[Rows] = asyncio.get_running_loop().create_future()

    def end(self, outcome: Rows | Exception) -> None:
        """Hand over the outcome, as whoever asked shall see it."""
        if self.rows.done():  # whoever asked is gone
            return
        if not isinstance(outcome, Exception):
            self.rows.set_result(outcome)
            return
        if (code := _code(outcome)) in _LATE:
            heavy = self.alone and code == sqlite3.SQLITE_INTERRUPT
            outcome = Unavailable(_HEAVY if heavy else _BUSY)
        self.rows.set_exception(Unavailable() if code in _AWAY else outcome)


class _Queue(Queue[_Job]):
    def __init__(self, lock: threading.Lock) -> None:
        super().__init__()
        self.ready = threading.Condition(lock)

    def drop(self, now: float) -> None:
        """Refuse what is past its deadline; forget that, and what nobody waits for any more."""
        for job in self.take_all():
            if job.deadline < now:
                job.end(Unavailable(_BUSY))
            if not job.rows.done():
                self.add(job)


@dataclass(eq=False)
class _Worker:
    """What a thread has under way, one job or some writes together, and its connection."""

    queue: _Queue  # from where its jobs come
    jobs: Sequence[_Job] = ()
    until: float = math.inf  # when to interrupt them
    connection: sqlite3.Connection | None = None


def _begin(connection: sqlite3.Connection) -> None:
    """Begin to write as soon as no other process does, or fail after a tick.

    SQLite would wait by itself, looking again after up to 100 ms: with two workers, p95 was 4 times
    as long.
    """
    until = monotonic() + _TICK
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError as error:
            if _code(error) != sqlite3.SQLITE_BUSY or monotonic() > until:
                raise
        sleep(_PAUSE)


def _transaction(connection: sqlite3.Connection, jobs: Sequence[_Job]) -> None:
    """Run the writes in one transaction; one that fails leaves the others as they are."""
    _begin(connection)
    try:
        for job in jobs:
            _run(connection, job)
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _run(connection: sqlite3.Connection, job: _Job) -> None:
    try:
        if not job.rows.done():  # else whoever asked is gone
            if job.first[0]:
                connection.execute(*job.first)
            rows = [row for call in job.calls for row in connection.execute(job.sql, call)]
            # A cursor does not count what a statement WITH steps has touched.
            job.outcome = rows, len(rows) or connection.execute("SELECT changes()").fetchone()[0]
            if job.then[0]:
                connection.execute(*job.then)
    except Exception as error:
        # All is rolled back: interrupted, or a full disk.
        if job.alone or not connection.in_transaction:
            job.alone |= _code(error) == sqlite3.SQLITE_INTERRUPT
            raise
        job.outcome = error  # which SQLite undid by itself (its manual: ON CONFLICT, ABORT)


class Pool:
    """Runs statements off the event loop, reads at the same time, writes one after the other.

    While a write is being put on disk, further ones gather; the next transaction, and so one wait
    for the disk, serves them all. Raises `Unavailable` when the file cannot be read or written, and
    when the deadline comes first: then nothing was done.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._closed = False
        self._file: tuple[int, int] | None = None  # which one is open: device and inode
        self._there = True  # when last looked for, a tick ago or less
        self._near: sqlite3.Connection | None = None
        self._near_until = 0.0
        self._reads, self._writes = _Queue(self._lock), _Queue(self._lock)
        self._readers = [_Worker(self._reads) for _ in range(_READERS)]
        self._workers = [*self._readers, _Worker(self._writes)]
        self._threads = [
            threading.Thread(target=self._work, args=[worker], name="sqlite", daemon=True)
            for worker in self._workers
        ]
        for thread in self._threads:
            thread.start()
        self._ticker = self._loop.create_task(self._tick())

    async def run(
        self,
        sql: str,
        parameters: Parameters,
        *,
        repeatable: bool,
        deadline: float = DEADLINE,
        first: First = ("", {}),
        then: First = ("", {}),
        each: Sequence[Parameters] = (),
    ) -> Rows:
        """Run one statement, or once for `each`, all or none; `first` before it, and `then` after.

        Return what came back, at most `deadline` seconds from now.
        """
        reads = sql.startswith(("SELECT", "WITH")) and not first[0]
        if reads and deadline <= DEADLINE and (rows := self._read_at_once(sql, parameters)):
            return rows
        job = _Job(sql, each or [parameters], parameters.get("owner"), first, then, deadline)
        queue = self._reads if reads else self._writes
        with self._lock:
            queue.add(job)
            queue.ready.notify()
        return await job.rows

    def _read_at_once(self, sql: str, parameters: Parameters) -> Rows | None:
        """Read on the loop; None where that is not short, or fails: then a thread shall say why."""
        try:
            if not (self._there if self._near else self._is_there()):
                return None
            if self._near is None:
                self._near = connect(self._path)
                self._near.execute("PRAGMA busy_timeout = 0")
                # By the clock: a step may search a long text, or wait for the disk.
                self._near.set_progress_handler(lambda: monotonic() > self._near_until, _STEPS)
            self._near_until = monotonic() + _NEAR
            rows = self._near.execute(sql, parameters).fetchall()
            return rows, len(rows)
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

    async def close(self) -> None:
        """Finish what is under way and close every connection."""
        with self._lock:
            self._closed = True
            for queue in (self._reads, self._writes):
                queue.drop(math.inf)
                queue.ready.notify_all()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        self._ticker.cancel()
        if self._near:
            self._near.close()

    def _work(self, worker: _Worker) -> None:
        """Do what there is, in a thread of its own."""
        while jobs := self._next(worker):
            try:
                if not self._is_there():
                    raise Unavailable(_MOVED)
                writes = worker.queue is self._writes
                if worker.connection is None:
                    worker.connection = connect(self._path)
                    if writes:
                        worker.connection.execute("PRAGMA busy_timeout = 0")  # see `_begin`
                if writes:
                    _transaction(worker.connection, jobs)
                else:
                    _run(worker.connection, jobs[0])
            except Exception as error:
                for job in jobs:
                    job.outcome = error
            self._loop.call_soon_threadsafe(self._done, worker.queue, jobs)
        if worker.connection:
            worker.connection.close()

    def _next(self, worker: _Worker) -> Sequence[_Job]:
        """Wait for what the worker shall do next; nothing once the pool is closed."""
        with self._lock:
            worker.jobs = jobs = []
            while not self._closed and not (jobs := self._choose(worker.queue)):
                worker.queue.ready.wait()
            if worker.queue:
                worker.queue.ready.notify()  # one read that was done may have made way for two
            shared = monotonic() + _SHARED if len(jobs) > 1 else math.inf
            worker.until = min([shared, *(job.deadline for job in jobs)])
            worker.jobs = jobs
        return jobs

    def _choose(self, queue: _Queue) -> list[_Job]:
        """Take one read, of an owner with fewer under way than threads are idle, or all writes."""
        if queue is self._reads:
            owners = [reader.jobs[0].owner for reader in self._readers if reader.jobs]
            job = queue.take(lambda job: owners.count(job.owner) < _READERS - len(owners))
            return [job] if job else []
        jobs: list[_Job] = []
        while job := queue.take(lambda job: not (jobs and (job.alone or jobs[0].alone))):
            jobs.append(job)
            if len(jobs) == _MOST:
                break
        return jobs

    def _done(self, queue: _Queue, jobs: Sequence[_Job]) -> None:
        """Let go again what was stopped for another's sake, and answer the rest."""
        now = math.inf if self._closed else monotonic()
        again = [job for job in jobs if _code(job.outcome) in _LATE and now < job.deadline]
        for job in jobs:
            if job not in again:
                job.end(job.outcome)
        if again:
            with self._lock:
                for job in reversed(again):  # at fault: after all that it held up, and alone
                    queue.add(job, first=not job.alone)
                queue.ready.notify()

    async def _tick(self) -> None:
        """Stop what is late, in time for its answer."""
        while True:
            await asyncio.sleep(_TICK)
            self._there = self._is_there()
            now = monotonic()
            with self._lock:
                self._reads.drop(now)
                self._writes.drop(now)
                for worker in self._workers:
                    for job in worker.jobs:
                        if job.deadline + _GRACE < now:
                            job.end(Unavailable(_SILENT))
                    gone = worker in self._readers and all(job.rows.done() for job in worker.jobs)
                    if worker.connection and worker.jobs and (gone or worker.until < now):
                        worker.connection.interrupt()  # if it is between two steps, next time
