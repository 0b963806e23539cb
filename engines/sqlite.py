"""SQLite, the embedded default: threads that read, and one that writes, each with a connection.

Write-ahead logging lets readers go on while one writes; `synchronous=FULL` puts a write on disk
before it is acknowledged. What waits and what is under way changes under one lock: an interrupt
meets the statement that it is meant for, or none.
"""

import asyncio
import math
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any, Final

from engines import DEADLINE
from errors import Unavailable

Rows = tuple[list[tuple[Any, ...]], int]
Parameters = Mapping[str, Any]

_READERS: Final = 4
_TICK: Final = 0.2  # seconds between two looks at the deadlines, also while waiting for a lock
_GRACE: Final = 0.6  # seconds past its deadline in which an interrupted statement has ended
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
_SILENT: Final = "The disk does not answer; whether this was done is not known."


def connect(path: str) -> sqlite3.Connection:
    """Open the database file as this service wants it: autocommit, WAL, every write on disk."""
    connection = sqlite3.connect(path, timeout=_TICK, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    # 16 MB: with the 2 that are SQLite's default, many users at once put each other's pages out.
    connection.execute("PRAGMA cache_size = -16000")
    return connection


def _code(outcome: object) -> int:
    """Return SQLite's primary result code of a failure, else 0."""
    return getattr(outcome, "sqlite_errorcode", 0) & 0xFF


class _Job:
    """A statement that waits or is under way, until when, and the future of its rows."""

    __slots__ = ("alone", "deadline", "outcome", "owner", "parameters", "rows", "sql")

    def __init__(self, sql: str, parameters: Parameters, deadline: float) -> None:
        self.sql = sql
        self.parameters = parameters
        self.owner = parameters.get("owner")
        self.alone = deadline > DEADLINE  # what may be slow shares no transaction
        self.deadline = monotonic() + deadline
        self.outcome: Rows | Exception = Unavailable()
        self.rows: asyncio.Future[Rows] = asyncio.get_running_loop().create_future()

    def fail(self, error: Exception) -> None:
        if not self.rows.done():  # else whoever asked is gone
            self.rows.set_exception(error)

    def answer(self) -> None:
        """Hand over the outcome, as whoever asked shall see it."""
        if not isinstance(self.outcome, Exception):
            if not self.rows.done():
                self.rows.set_result(self.outcome)
        elif (code := _code(self.outcome)) in _LATE:
            heavy = self.alone and code == sqlite3.SQLITE_INTERRUPT
            self.fail(Unavailable(_HEAVY if heavy else _BUSY))
        else:
            self.fail(Unavailable() if code in _AWAY else self.outcome)


class _Queue(dict[Any, deque[_Job]]):
    """The jobs that wait: each owner's in their order, the owners in turn."""

    def add(self, job: _Job, *, first: bool = False) -> None:
        jobs = self.setdefault(job.owner, deque())
        jobs.insert(0 if first else len(jobs), job)

    def take(self, may: Callable[[_Job], bool]) -> _Job | None:
        """Take a job that may go, of the owner whose last turn is longest ago."""
        for owner, jobs in self.items():
            if may(jobs[0]):
                del self[owner]
                if len(jobs) > 1:
                    self[owner] = jobs
                return jobs.popleft()
        return None

    def drop(self, now: float) -> None:
        """Refuse what is past its deadline; forget that, and what nobody waits for any more."""
        for owner, jobs in list(self.items()):
            for job in jobs:
                if job.deadline < now:
                    job.fail(Unavailable(_BUSY))
            self[owner] = deque(job for job in jobs if not job.rows.done())
            if not self[owner]:
                del self[owner]


# What waits for a worker's next jobs (without any, it ends), and what is told when they are over.
_Take = Callable[["_Worker"], Sequence[_Job]]
_Done = Callable[[Sequence[_Job]], None]


class _Worker(threading.Thread):
    """A thread with a connection of its own, for one job, or some writes in one transaction."""

    def __init__(self, path: str, take: _Take, done: _Done) -> None:
        super().__init__(name="sqlite", daemon=True)
        self.jobs: Sequence[_Job] = ()  # under way
        self.until = math.inf  # when to interrupt them
        self._path = path
        self._take = take
        self._done = done
        self.connection: sqlite3.Connection | None = None

    def run(self) -> None:
        """Do what there is (threading.Thread)."""
        while jobs := self._take(self):
            try:
                if len(jobs) == 1:
                    self._run(jobs[0])
                else:
                    self._transaction(jobs)
            except Exception as error:
                for job in jobs:
                    job.outcome = error
            self._done(jobs)
        if self.connection:
            self.connection.close()

    def _transaction(self, jobs: Sequence[_Job]) -> None:
        """Run the writes in one transaction; one that fails leaves the others as they are."""
        self._execute("BEGIN IMMEDIATE", {})
        assert self.connection
        self.until = min(self.until, monotonic() + _SHARED)
        try:
            for job in jobs:
                self._run(job)
            self.connection.execute("COMMIT")
        finally:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")

    def _run(self, job: _Job) -> None:
        try:
            if not job.rows.done():  # else whoever asked is gone
                job.outcome = self._execute(job.sql, job.parameters)
        except Exception as error:
            if not (self.connection and self.connection.in_transaction):
                job.alone = True  # all is rolled back: interrupted, or a full disk
                raise
            job.outcome = error  # which SQLite undid by itself (its manual: ON CONFLICT, ABORT)

    def _execute(self, sql: str, parameters: Parameters) -> Rows:
        while True:
            try:
                if not self.connection:
                    self.connection = connect(self._path)
                cursor = self.connection.execute(sql, parameters)
                return cursor.fetchall(), cursor.rowcount
            except sqlite3.OperationalError as error:
                gone = all(job.rows.done() for job in self.jobs)
                if _code(error) != sqlite3.SQLITE_BUSY or gone or self.until < monotonic():
                    raise  # else another process has the lock: try again


class Pool:
    """Runs statements off the event loop, reads at the same time, writes one after the other.

    While a write is being put on disk, further ones gather; the next transaction, and so one wait
    for the disk, serves them all. Raises `Unavailable` when the file cannot be read or written, and
    when the deadline comes first: then nothing was done.
    """

    def __init__(self, path: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._reads = _Queue()
        self._writes = _Queue()
        self._lock = threading.Lock()
        self._to_read = threading.Condition(self._lock)
        self._to_write = threading.Condition(self._lock)
        self._closed = False
        self._readers = [_Worker(path, self._next_read, self._done) for _ in range(_READERS)]
        self._writer = _Worker(path, self._next_writes, self._done)
        self._ticker: asyncio.TimerHandle | None = None
        self._workers = (*self._readers, self._writer)
        for worker in self._workers:
            worker.start()

    async def run(
        self, sql: str, parameters: Parameters, *, repeatable: bool, deadline: float = DEADLINE
    ) -> Rows:
        """Run one statement and return what came back, at most `deadline` seconds from now."""
        job = _Job(sql, parameters, deadline)
        if sql.startswith("SELECT"):
            with self._to_read:
                self._reads.add(job)
                self._to_read.notify()
        else:
            with self._lock:
                if not self._writes:
                    self._loop.call_soon(self._wake_writer)  # for all others of this turn, too
                self._writes.add(job)
        if not self._ticker:
            self._ticker = self._loop.call_later(_TICK, self._tick)
        return await job.rows

    async def close(self) -> None:
        """Finish what is under way and close every connection."""
        with self._lock:
            self._closed = True
            self._reads.drop(math.inf)
            self._writes.drop(math.inf)
            self._to_read.notify_all()
            self._to_write.notify_all()
        for worker in self._workers:
            await asyncio.to_thread(worker.join)
        if self._ticker:
            self._ticker.cancel()

    def _wake_writer(self) -> None:
        with self._to_write:
            self._to_write.notify()

    def _next_read(self, worker: _Worker) -> Sequence[_Job]:
        with self._to_read:
            worker.jobs = ()
            while not self._closed:
                if job := self._reads.take(self._may_read):
                    worker.jobs = (job,)
                    worker.until = job.deadline
                    if self._reads:
                        self._to_read.notify()  # one that was done may have made way for two
                    return worker.jobs
                self._to_read.wait()
        return ()

    def _may_read(self, job: _Job) -> bool:
        """Return whether its owner, with n reads under way, leaves more than n threads idle."""
        owners = [worker.jobs[0].owner for worker in self._readers if worker.jobs]
        return owners.count(job.owner) < _READERS - len(owners)

    def _next_writes(self, worker: _Worker) -> Sequence[_Job]:
        jobs: list[_Job] = []

        def may(job: _Job) -> bool:
            return not jobs or not (job.alone or jobs[0].alone or len(jobs) == _MOST)

        with self._to_write:
            worker.jobs = ()
            while not self._writes and not self._closed:
                self._to_write.wait()
            while job := self._writes.take(may):
                jobs.append(job)
            worker.until = min((job.deadline for job in jobs), default=math.inf)
            worker.jobs = jobs
        return jobs

    def _done(self, jobs: Sequence[_Job]) -> None:
        """Let go again what was stopped for another's sake, and answer the rest."""
        now = monotonic()
        again = [job for job in jobs if _code(job.outcome) in _LATE and now < job.deadline]
        if again and jobs is self._writer.jobs:
            with self._lock:
                for job in reversed(again):  # at fault: after all that it held up, and alone
                    self._writes.add(job, first=not job.alone)
            jobs = [job for job in jobs if job not in again]
        self._loop.call_soon_threadsafe(_answer, jobs)

    def _tick(self) -> None:
        now = monotonic()
        with self._lock:
            self._reads.drop(now)
            self._writes.drop(now)
            busy = [worker for worker in self._workers if worker.jobs]
            for worker in busy:
                for job in worker.jobs:
                    if job.deadline + _GRACE < now:
                        job.fail(Unavailable(_SILENT))
                late = worker.until < now or (worker is not self._writer and job.rows.done())
                if late and worker.connection:
                    worker.connection.interrupt()  # nothing between two steps: it comes again
        self._ticker = None
        if self._reads or self._writes or busy:
            self._ticker = self._loop.call_later(_TICK, self._tick)


def _answer(jobs: Sequence[_Job]) -> None:
    for job in jobs:
        job.answer()
