"""SQLite, the embedded default: threads that read, and one that writes, each with a connection.

Write-ahead logging lets readers go on while one writes; `synchronous=FULL` puts a write on disk
before it is acknowledged. The threads only run statements. Who waits, whose turn it is and who is
late is decided on the event loop: an interrupt meets the statement that it is meant for, or none.
"""

import asyncio
import math
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from time import monotonic
from typing import Any, Final

from errors import Unavailable

Rows = tuple[list[tuple[Any, ...]], int]

DEADLINE: Final = 4.0  # seconds that a statement may take, waiting included
_READERS: Final = 4
_NAP: Final = 0.2  # seconds that SQLite waits for a lock before the deadline is looked at again
_TICK: Final = 0.2  # seconds between two looks at the deadlines
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
    connection = sqlite3.connect(path, timeout=_NAP, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    # 16 MB: with the 2 that are SQLite's default, many users at once put each other's pages out.
    connection.execute("PRAGMA cache_size = -16000")
    return connection


class _Job:
    """A statement that waits or is under way, until when, and the future of its rows."""

    __slots__ = ("alone", "deadline", "outcome", "owner", "parameters", "reads", "rows", "sql")

    def __init__(self, sql: str, parameters: Mapping[str, Any], deadline: float) -> None:
        self.sql = sql
        self.parameters = parameters
        self.owner = parameters.get("owner")
        self.reads = sql.startswith("SELECT")
        self.alone = deadline > DEADLINE  # what may be slow shares no transaction
        self.deadline = monotonic() + deadline
        self.outcome: Rows | Exception = Unavailable()
        self.rows: asyncio.Future[Rows] = asyncio.get_running_loop().create_future()

    def answer(self, outcome: Rows | Exception) -> None:
        """Hand over what became of it, unless whoever asked is gone."""
        if self.rows.done():
            return
        if isinstance(outcome, Exception):
            self.rows.set_exception(outcome)
        else:
            self.rows.set_result(outcome)


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
                    job.answer(Unavailable(_BUSY))
            self[owner] = deque(job for job in jobs if not job.rows.done())
            if not self[owner]:
                del self[owner]


class _Worker(threading.Thread):
    """A thread with a connection of its own, for one job, or some writes in one transaction."""

    def __init__(self, path: str, done: Callable[["_Worker"], None]) -> None:
        super().__init__(name="sqlite", daemon=True)
        self.given: SimpleQueue[Sequence[_Job]] = SimpleQueue()  # nothing: the end
        self.jobs: Sequence[_Job] = ()  # under way; set by the event loop alone
        self._until = math.inf  # when to interrupt them
        self._path = path
        self._done = done
        self._loop = asyncio.get_running_loop()
        self._connection: sqlite3.Connection | None = None

    def give(self, jobs: Sequence[_Job]) -> None:
        """Begin with `jobs`; when each has its outcome, `done` is called."""
        self.jobs = jobs
        self._until = min(job.deadline for job in jobs)
        self.given.put(jobs)

    def look(self, now: float) -> None:
        """Interrupt what is late and reads that nobody waits for; answer if that does not help."""
        for job in self.jobs:
            late = self._until < now or (job.reads and job.rows.done())
            if late and self._connection:
                self._connection.interrupt()  # without effect between two statements: comes again
            if job.deadline + _GRACE < now:
                job.answer(Unavailable(_SILENT))

    def run(self) -> None:
        """Do what is given, until nothing is (threading.Thread)."""
        while jobs := self.given.get():
            try:
                if len(jobs) == 1:
                    self._run(jobs[0])
                else:
                    self._transaction(jobs)
            except Exception as error:
                for job in jobs:
                    job.outcome = error
            self._loop.call_soon_threadsafe(self._done, self)
        if self._connection:
            self._connection.close()

    def _transaction(self, jobs: Sequence[_Job]) -> None:
        """Run the writes in one transaction; one that fails leaves the others as they are."""
        self._execute("BEGIN IMMEDIATE", {})
        assert self._connection
        self._until = min(self._until, monotonic() + _SHARED)
        try:
            for job in jobs:
                self._run(job)
            self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def _run(self, job: _Job) -> None:
        try:
            if not job.rows.done():  # else whoever asked is gone
                job.outcome = self._execute(job.sql, job.parameters)
        except Exception as error:
            if not (self._connection and self._connection.in_transaction):
                job.alone = True  # all is rolled back: interrupted, or a full disk
                raise
            job.outcome = error  # which SQLite undid by itself (its manual: ON CONFLICT, ABORT)

    def _execute(self, sql: str, parameters: Mapping[str, Any]) -> Rows:
        while True:
            try:
                if not self._connection:
                    self._connection = connect(self._path)
                cursor = self._connection.execute(sql, parameters)
                return cursor.fetchall(), cursor.rowcount
            except sqlite3.OperationalError as error:
                gone = all(job.rows.done() for job in self.jobs)
                if _code(error) != sqlite3.SQLITE_BUSY or gone or self._until < monotonic():
                    raise  # else another process has the lock: try again


class Pool:
    """Runs statements off the event loop, reads at the same time, writes one after the other.

    While a write is being put on disk, further ones gather; the next transaction, and so one wait
    for the disk, serves them all. Raises `Unavailable` when the file cannot be read or written, and
    when the deadline comes first: then nothing was done.
    """

    def __init__(self, path: str) -> None:
        self._reads = _Queue()
        self._writes = _Queue()
        self._writer, *self._readers = (_Worker(path, self._done) for _ in range(1 + _READERS))
        self._idle = list(self._readers)
        self._ticker: asyncio.TimerHandle | None = None
        for worker in (self._writer, *self._readers):
            worker.start()

    async def run(
        self,
        sql: str,
        parameters: Mapping[str, Any],
        *,
        repeatable: bool,
        deadline: float = DEADLINE,
    ) -> Rows:
        """Run one statement and return what came back, at most `deadline` seconds from now."""
        loop = asyncio.get_running_loop()
        job = _Job(sql, parameters, deadline)
        if job.reads:
            self._reads.add(job)
            self._start_reads()
        else:
            self._writes.add(job)
            loop.call_soon(self._start_writes)  # with all others of this turn
        if not self._ticker:
            self._ticker = loop.call_later(_TICK, self._tick)
        return await job.rows

    async def close(self) -> None:
        """Finish what is under way and close every connection."""
        for queue in (self._reads, self._writes):
            queue.drop(math.inf)
        for worker in (self._writer, *self._readers):
            worker.given.put(())
            await asyncio.to_thread(worker.join)
        if self._ticker:
            self._ticker.cancel()

    def _start_reads(self) -> None:
        while self._idle and (job := self._reads.take(self._may_read)):
            self._idle.pop().give((job,))

    def _may_read(self, job: _Job) -> bool:
        """Return whether its owner, with n reads under way, leaves more than n threads idle."""
        under_way = [worker.jobs[0].owner for worker in self._readers if worker.jobs]
        return under_way.count(job.owner) < len(self._idle)

    def _start_writes(self) -> None:
        batch: list[_Job] = []

        def may(job: _Job) -> bool:
            return not batch or not (job.alone or batch[0].alone or len(batch) == _MOST)

        while not self._writer.jobs and (job := self._writes.take(may)):
            batch.append(job)
        if batch:
            self._writer.give(batch)

    def _done(self, worker: _Worker) -> None:
        jobs, worker.jobs = worker.jobs, ()
        now = monotonic()
        for job in reversed(jobs):  # those that go again keep their order
            if _code(job.outcome) in _LATE and now < job.deadline and not job.rows.done():
                # Not its own fault, or else alone, after those that it held up.
                self._writes.add(job, first=not job.alone)
            else:
                job.answer(_told(job))
        if worker is self._writer:
            self._start_writes()
        else:
            self._idle.append(worker)
            self._start_reads()

    def _tick(self) -> None:
        now = monotonic()
        for queue in (self._reads, self._writes):
            queue.drop(now)
        for worker in (self._writer, *self._readers):
            worker.look(now)
        self._ticker = None
        if self._reads or self._writes or self._writer.jobs or len(self._idle) < _READERS:
            self._ticker = asyncio.get_running_loop().call_later(_TICK, self._tick)


def _code(outcome: object) -> int:
    """Return SQLite's primary result code of a failure, else 0."""
    return getattr(outcome, "sqlite_errorcode", 0) & 0xFF


def _told(job: _Job) -> Rows | Exception:
    """Return the outcome as whoever asked shall see it."""
    code = _code(job.outcome)
    if code in _LATE:
        heavy = code == sqlite3.SQLITE_INTERRUPT and job.alone
        return Unavailable(_HEAVY if heavy else _BUSY)
    return Unavailable() if code in _AWAY else job.outcome
