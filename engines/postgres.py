"""PostgreSQL from the event loop: psycopg2's asynchronous mode, and a small pool of connections.

No thread, no ping, no session state: a connection is a socket that the loop watches for its whole
life, and a statement in autocommit is one write and one read. psycopg2 documents the mode under
"Asynchronous support".
"""

import asyncio
import logging
import select
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, cast

import psycopg2
from psycopg2.extensions import POLL_OK, POLL_WRITE, new_type, parse_dsn, register_type

from engines import DEADLINE, TICK, Queue, Result
from engines.spelling import read_timestamp
from errors import Unavailable

log = logging.getLogger("tasks")

GRACE: Final = 0.5  # seconds of a deadline that are kept back for the server's answer to arrive in
_FROZEN: Final = 60.0  # seconds after which a server that owes an answer is taken to be gone
# What the URL does not say; and text is UTF-8, whatever it says. The kernel gives up on a peer that
# died without a word.
_DEFAULTS: Final = {
    "client_encoding": "UTF8",
    "fallback_application_name": "tasks",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "5000",
}
# SQLSTATE classes that speak of the server, not of the statement (PostgreSQL, appendix A):
# connection, resources, shutdown; and a primary that became a standby.
_AWAY: Final = ("08", "53", "57P", "25006")
_STANDBY: Final = "25006"  # nothing was done, and a new connection may find the primary
_OTHERS: Final = ("08", "57P")  # on a connection that goes on: of a server behind this one (Citus)
# The time is up, or an administrator's limit is reached: of a statement, a lock, a temporary file.
_STOPPED: Final = ("57014", "55P03", "53400")
_ROLLED_BACK: Final = ("40001", "40P01")  # for another transaction's sake: to be sent again
# Not prepared here, or by somebody else, or for other tables: there is a pooler, or a migration.
_UNPREPARED: Final = ("26000", "42P05", "0A000")
# `timestamptz`, which nobody here reckons with: text is what goes out.
_TIMESTAMP: Final = new_type((1184,), "TIMESTAMP", lambda stored, _: read_timestamp(stored))
NOT_IN_TIME: Final = "The database did not get to this in time; nothing was done."
_UNKNOWN: Final = (
    "The database went silent before it answered; whether the change was made is not known."
)


def connection_options(dsn: str) -> dict[str, Any]:
    """Return the libpq parameters beside `dsn`, which has the last word on all but the encoding."""
    given = parse_dsn(dsn).keys() - {"client_encoding"}
    return {name: value for name, value in _DEFAULTS.items() if name not in given}


class Undone(Unavailable):
    """503 after which nothing was done: never sent, or stopped and rolled back by the server."""


class Prepared:
    """What each connection plans once (PostgreSQL's manual: PREPARE), in psycopg2's spelling.

    To plan it takes longer than to run it. `PREPARE` goes in the same message as the first
    `EXECUTE`, so it is no round trip more. The name follows from the text: behind a pooler, where
    connections are somebody else's too, a name never means another statement. `types` are those of
    the parameters, as SQL.
    """

    def __init__(self, sql: str, types: Mapping[str, str]) -> None:
        self.plain = sql
        self.name = f"tasks_{sha256(sql.encode()).hexdigest()[:16]}"
        text = sql % {name: f"${place}" for place, name in enumerate(types, 1)}
        given = ", ".join(f"%({name})s" for name in types)
        self.again = f"EXECUTE {self.name}({given})"
        planned = text.replace("%", "%%")  # for psycopg2 reads it, too
        self.first = f"PREPARE {self.name}({', '.join(types.values())}) AS {planned}; {self.again}"


Sql = str | Prepared


@dataclass(eq=False)
class Statement:
    """A statement, how long its caller waits for it and `since` when, and the future of its rows.

    `since` is by the loop's clock, 0 is now. `shared`: by several callers, who can go again alone
    when the server stops it. `writes`: though it is `repeatable`.
    """

    sql: Sql
    parameters: Mapping[str, Any]
    repeatable: bool
    seconds: float = DEADLINE
    since: float = 0.0
    shared: bool = False
    writes: bool = False
    sent_again: bool = False
    unsure: bool = False  # whether it was done
    verb: str = ""  # PREPARE or EXECUTE, where its plan is kept

    def __post_init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.long = self.seconds > DEADLINE
        self.writes |= not self.repeatable
        # A shared one is nobody's (and not its own: what it read would stay until the collector
        # looks); those that may take long wait apart from their owner's others.
        self.owner = self.parameters.get("owner", id(self)), self.long
        self.started = self.loop.time()
        self.deadline = (self.since or self.started) + self.seconds
        self.rows: asyncio.Future[Result] = self.loop.create_future()

    def limit(self) -> int:
        """Return how many tenths of a second the server may work on it, none when it is too late.

        Several calls leave half of their time for going again alone. No finer than tenths: each
        number is another text to those who count statements by it (`pg_stat_statements`).
        """
        left = self.deadline - GRACE - self.loop.time()
        return round(left * (5 if self.shared else 10))

    def stopped(self) -> Undone:
        """Return what to say when the server has stopped it and undone all of it."""
        if self.loop.time() < self.deadline - 2 * GRACE:
            return Undone("The database stopped this before its time was up; nothing was done.")
        late = f"This could not be done within {self.seconds:g} s and was undone"
        return Undone(f"{late}; narrow it, or try again later.")

    def fail(self, error: Exception) -> None:
        if self.unsure and isinstance(error, Unavailable):
            error = Unavailable(_UNKNOWN)
        if not self.rows.done():
            self.rows.set_exception(error)


class _Connection:
    """An open connection, with a job in flight or idle. The loop watches it either way."""

    def __init__(self, pool: "Pool", raw: Any) -> None:
        self.job: Statement | None = None
        self._pool = pool
        self._raw = raw
        register_type(_TIMESTAMP, raw)
        self._cursor = raw.cursor()
        self._fd: int = raw.fileno()
        self._prepared: dict[str, bool] = {}  # by name; False where it may not be
        self._writing = False
        self._poller = select.poll()
        self._poller.register(self._fd, select.POLLIN)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self.ready)

    def silent(self) -> bool:
        """Return whether there is nothing to read: what an idle server says is good-bye."""
        return not self._poller.poll(0)

    def send(self, job: Statement) -> bool:
        """Send the statement; return whether it is in flight, else it is over already.

        The limit of its time goes with it, in one message and so in one transaction: one round
        trip, and nothing is left in the session.
        """
        if (tenths := job.limit()) < 1:
            job.fail(Undone(NOT_IN_TIME))
            return False
        self.job = job
        try:
            text = self._spelt(job.sql)
            job.verb = text[:7]
            limited = f"SET LOCAL statement_timeout = {tenths}00; {text}"
            self._cursor.execute(limited, job.parameters)
        except Exception as error:  # what is no SQL, such as text with a NUL, included
            return not self._end(error)
        return not self._advance()

    def _spelt(self, sql: Sql) -> str:
        """Return what to send, and note what that prepares."""
        if isinstance(sql, str):
            return sql
        if not self._pool.prepares:
            return sql.plain
        if sql.name in self._prepared:
            return sql.again
        self._prepared[sql.name] = True
        return sql.first

    def ready(self) -> None:
        """Read or write what there is to."""
        if self.job is None:
            if not self.silent():  # else a tick was faster than the loop
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
                self._loop.add_writer(self._fd, self.ready)
            else:
                self._loop.remove_writer(self._fd)
        return state == POLL_OK and self._end(None)

    def _end(self, error: Exception | None) -> bool:
        job, self.job = self.job, None
        assert job
        code = getattr(error, "pgcode", None) or ""
        name = job.sql.name if isinstance(job.sql, Prepared) else ""
        if error and job.verb == "PREPARE":  # nobody knows whether it is prepared now
            self._prepared[name] = False
        if error is None:
            self._pool.log_back()
            self._deliver(job)
        elif code in _ROLLED_BACK:
            self._pool.send_again(job)
        elif code == "26000" and not self._prepared.get(name, True):  # so it is not
            del self._prepared[name]
            self._pool.send_again(job)
        elif code in _UNPREPARED and job.verb in ("PREPARE", "EXECUTE"):
            self._pool.prepares = False
            self._pool.send_again(job)
        elif code in _STOPPED:
            job.fail(job.stopped())
        elif isinstance(error, psycopg2.Error) and (not code or code.startswith(_AWAY)):
            if not (code.startswith(_OTHERS) and self.usable()):
                self._pool.discard(self)
                if code:  # else it was cut, and opening the next one tells more
                    self._pool.log_away(error)
            self._pool.lost(job, error)
        else:
            job.fail(error)
        return True

    def _deliver(self, job: Statement) -> None:
        cursor, self._cursor = self._cursor, self._raw.cursor()  # the old one keeps the answer
        if job.rows.done():  # whoever asked is gone
            return
        try:
            rows = cursor.fetchall() if cursor.description else []
            job.rows.set_result(Result(rows, cursor.rowcount))
        except Exception as error:  # what Python has no value for, such as a date before Christ
            job.fail(error)

    def usable(self) -> bool:
        """Return whether another statement may be sent."""
        idle = psycopg2.extensions.TRANSACTION_STATUS_IDLE
        return not self._raw.closed and self._raw.info.transaction_status == idle

    def close(self) -> None:
        """Close the socket, once the loop has forgotten it."""
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._raw.close()


class Pool:
    """Runs statements on at most `size` connections, opened on demand, last used first.

    Raises `Unavailable` at once when the server cannot be reached, and within its deadline and a
    tick when it keeps silent. A statement whose connection died under it is sent once more only
    where that is harmless.

    The server never runs more than `size` statements: each carries its own limit, shorter than its
    deadline, so the server ends it and says so, and `Undone` is true. A connection that owes an
    answer past its deadline (its server is frozen, the wire too, or PgBouncer has no server for it)
    keeps its place until the answer comes or its socket is dead, whoever still waits: closing a
    socket stops no statement. What was cut off under way ends at its limit, at the latest.
    """

    def __init__(self, dsn: str, size: int) -> None:
        self._dsn = dsn
        self._options = connection_options(dsn)
        self._size = size
        self._open: set[_Connection] = set()
        self._idle: list[_Connection] = []
        self._waiting: Queue[Statement] = Queue()
        self._connecting: set[asyncio.Task[None]] = set()
        self._ticker = asyncio.get_running_loop().create_task(self._tick())
        self._said = ""  # of the server, in the log
        self.prepares = True  # until it turns out that what is prepared does not stay

    def run(self, job: Statement, *, first: bool = False) -> asyncio.Future[Result]:
        """Send a statement, or have it wait its turn; return the future of its rows."""
        while self._idle and self._may(job):
            connection = self._idle.pop()
            if connection.silent():
                if not connection.send(job):
                    self.release(connection)
                return job.rows
            self.discard(connection)
        self._waiting.add(job, first=first)
        self._connect_on_demand()
        return job.rows

    async def close(self) -> None:
        """Close every connection."""
        self._ticker.cancel()
        for job in self._waiting.take_all():
            job.fail(Unavailable())
        for connection in list(self._open):
            self.discard(connection)

    def _may(self, job: Statement) -> bool:
        """Return whether its owner has fewer under way than there are connections for others.

        Those that may take long leave half of them to the rest, whoever still waits for an answer.
        """
        busy = len(self._open) - len(self._idle)
        if busy * 2 < self._size and not job.long:
            return True
        owners = [it.job.owner for it in self._open if it.job and it.job.long >= job.long]
        room = max(1, self._size // 2) if job.long else self._size
        return owners.count(job.owner) < room - len(owners)

    def release(self, connection: _Connection) -> None:
        """Give a connection that has done its job to whoever waits longest."""
        while connection in self._open:
            if not connection.usable():
                self.discard(connection)
            elif not (job := self._waiting.take(self._may)):
                self._idle.append(connection)
                return
            elif not job.rows.done() and connection.send(job):
                return

    def discard(self, connection: _Connection) -> None:
        """Close a connection that is of no more use."""
        self._open.remove(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        connection.close()
        self._connect_on_demand()

    def lost(self, job: Statement, error: psycopg2.Error) -> None:
        """Take back a job whose connection, or one behind it, died under it."""
        job.unsure |= job.writes and (error.pgcode or "08").startswith("08")
        if (job.repeatable or error.pgcode == _STANDBY) and not job.sent_again:
            job.sent_again = True
            self.send_again(job)
        else:
            job.fail(Unavailable())

    def send_again(self, job: Statement) -> None:
        """Start over with a job, before those that have waited less."""
        if not job.rows.done():
            self.run(job, first=True)

    def _connect_on_demand(self) -> None:
        have = len(self._open) + len(self._connecting)
        waiting = sum(map(len, self._waiting.values()))
        if have < self._size and waiting > len(self._connecting):
            task = asyncio.get_running_loop().create_task(self._connect())
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self) -> None:
        raw = None
        try:
            async with asyncio.timeout(DEADLINE):
                # Name resolution blocks, so this first step has a thread.
                raw = await asyncio.to_thread(
                    psycopg2.connect, self._dsn, async_=1, **self._options
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
            self.log_away(error, "lets nobody else in" if self._open else "is away")
            if not self._open:
                for job in self._waiting.take_all():
                    job.fail(Unavailable())
            return
        self.log_back()
        connection = _Connection(self, raw)
        self._open.add(connection)
        # No longer on its way: a job that the new connection loses may need another one at once.
        self._connecting.remove(cast("asyncio.Task[None]", asyncio.current_task()))
        self.release(connection)

    def log_away(self, error: Exception, what: str = "is away") -> None:
        """Say, once, that the server does not answer, or has let in as many as it does."""
        if self._said not in (what, "is away"):
            self._said = what
            reason = str(error).strip().partition("\n")[0] or "no answer"
            log.warning("the database %s: %s", what, reason)

    def log_back(self) -> None:
        """Say, once, that the server has answered again."""
        if self._said == "is away":
            self._said = ""
            log.info("the database is back")

    async def _tick(self) -> None:
        """Give up on every job that is past its deadline; one in flight keeps its connection."""
        while True:
            await asyncio.sleep(TICK)
            now = asyncio.get_running_loop().time()
            for job in self._waiting.take_late(now + GRACE):
                job.fail(Undone(NOT_IN_TIME))
            if self._waiting and self._idle:  # two may have made way for more than two
                self.release(self._idle.pop())
            busy = [(connection, connection.job) for connection in self._open if connection.job]
            for connection, job in busy:
                if not connection.silent():  # uvloop tells of a reset once, maybe with an answer
                    connection.ready()
                elif job.deadline + _FROZEN < now:
                    self.discard(connection)
                elif job.deadline < now and not job.rows.done():
                    self.log_away(TimeoutError())
                    job.unsure = job.writes
                    job.fail(Unavailable())


async def _wait_for(fd: int, state: int) -> None:
    """Wait until the socket is ready for what libpq wants to do with it."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    watch, unwatch = loop.add_reader, loop.remove_reader
    if state == POLL_WRITE:
        watch, unwatch = loop.add_writer, loop.remove_writer
    watch(fd, ready.set)
    try:
        await ready.wait()
    finally:
        unwatch(fd)
