"""The pool of PostgreSQL connections by itself, over a wire that breaks, on both event loops."""

import asyncio
import contextlib
import gc
import itertools
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import psutil
import psycopg2
import pytest
import uvloop
from psycopg2.sql import SQL, Identifier

from engines import BULK_DEADLINE, DEADLINE, postgres
from engines.gather import Gatherer
from engines.postgres import Pool, Prepared, Sql, Statement, Undone
from errors import Unavailable
from tests.support.certificate import self_signed
from tests.support.needs import need
from tests.support.pgbouncer import PgBouncer
from tests.support.postgres import Postgres, failover_url
from tests.support.processes import wait_until
from tests.support.proxy import Proxy

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run[Any]]:
    """Runs a coroutine on the kind of event loop that this round is about."""
    factory = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}[request.param]
    with asyncio.Runner(loop_factory=factory) as runner:
        yield runner.run


@pytest.fixture
def proxy(own_postgres: Postgres) -> Iterator[Proxy]:
    with Proxy(own_postgres.port) as proxy:
        yield proxy


@pytest.fixture
def dsn(proxy: Proxy, own_postgres: Postgres) -> str:
    """A URL of the server, through the proxy."""
    return proxy.through(own_postgres.url())


@pytest.fixture
def table(own_postgres: Postgres) -> str:
    """The URL of a new database with the rows `(1, 0)` and `(2, 0)` in `counters(id, n)`."""
    url = own_postgres.create_database()
    database = url.rpartition("/")[2]
    own_postgres.execute(
        "CREATE TABLE counters AS SELECT id, 0 AS n FROM generate_series(1, 2) id",
        database=database,
    )
    return url


@contextlib.asynccontextmanager
async def pool_on(dsn: str, size: int = 1) -> AsyncIterator[Pool]:
    pool = Pool(dsn, size)
    try:
        yield pool
    finally:
        await pool.close()


async def value(
    pool: Pool,
    sql: Sql,
    *,
    repeatable: bool = False,
    deadline: float = DEADLINE,
    writes: bool = False,
    **parameters: object,
) -> Any:
    """The first column of the first row."""
    rows, _ = await pool.run(Statement(sql, parameters, repeatable, deadline, writes=writes))
    return rows[0][0]


def times_sent(proxy: Proxy, statement: str) -> int:
    return sum(sql.endswith(f"; {statement}") for sql in proxy.counts.sql)


async def answered(pool: Pool) -> None:
    """Return when the database answers."""
    for pause in itertools.repeat(0.01):
        with contextlib.suppress(Unavailable):
            await value(pool, "SELECT 1")
            return
        await asyncio.sleep(pause)


async def refused(statement: Coroutine[Any, Any, Any]) -> Unavailable:
    """The 503 that the statement ends with."""
    with pytest.raises(Unavailable) as error:
        await statement
    return error.value


BACKEND = "SELECT pg_backend_pid()"
SLEEP = "SELECT pg_sleep(0.2)"
LONG = "SELECT generate_series(1, 1000) FROM pg_sleep(0.1)"


def test_statements_share_the_connections_and_give_rows_and_counts(
    run: Run[Any], proxy: Proxy, dsn: str
) -> None:
    async def scenario() -> None:
        async with pool_on(dsn, size=3) as pool:
            numbers = await asyncio.gather(
                *(value(pool, "SELECT %(n)s + 0", n=n) for n in range(50))
            )
            assert numbers == list(range(50))
            assert await pool.run(Statement("SELECT 1 WHERE false", {}, repeatable=True)) == ([], 0)
            rows = await pool.run(Statement("VALUES (1, 'a'), (2, 'b')", {}, repeatable=True))
            assert rows == ([(1, "a"), (2, "b")], 2)
        assert proxy.counts.connections == 3

    run(scenario())


def test_a_statement_past_its_deadline_is_stopped_and_costs_nothing(
    run: Run[Any], proxy: Proxy, dsn: str
) -> None:
    async def scenario() -> None:
        async with pool_on(dsn, size=2) as pool:
            slow = asyncio.create_task(refused(value(pool, "SELECT pg_sleep(60)", deadline=0.8)))
            await asyncio.sleep(0.05)
            for _ in range(20):
                await value(pool, BACKEND)
            assert isinstance(await slow, Undone)
            assert await value(pool, "SHOW statement_timeout") == "3500ms"
            await asyncio.gather(*(value(pool, SLEEP) for _ in range(2)))
        assert proxy.counts.connections == 2

    run(scenario())


def test_a_wire_that_goes_silent_costs_every_statement_a_503_and_leaks_nothing(
    run: Run[Any], proxy: Proxy, dsn: str
) -> None:
    async def scenario() -> None:
        async with pool_on(dsn, size=3) as pool:
            descriptors = []
            for _ in range(3):
                await asyncio.gather(*(value(pool, BACKEND) for _ in range(10)))
                proxy.freeze()
                for _ in range(2):  # on the connections there are, then with none to be had
                    started = time.monotonic()
                    statements = (
                        value(pool, BACKEND, repeatable=True, deadline=0.7) for _ in range(10)
                    )
                    answers = await asyncio.gather(*statements, return_exceptions=True)
                    assert all(isinstance(answer, Unavailable) for answer in answers)
                    assert time.monotonic() - started < 2
                proxy.cut()
                proxy.thaw()
                await asyncio.wait_for(answered(pool), 10)
                descriptors.append(psutil.Process().num_fds())
            assert descriptors[2] <= descriptors[0] + 3

    run(scenario())


def test_a_statement_larger_than_the_sockets_buffers_is_sent_whole(
    run: Run[Any], dsn: str, proxy: Proxy
) -> None:
    large = "é" * 8_000_000

    async def scenario() -> None:
        async with pool_on(dsn) as pool:
            assert await value(pool, "SELECT length(%(text)s)", text=large) == len(large)
            assert await value(pool, "SELECT length(%(text)s)", text="x" * 200_000) == 200_000
            assert len(await value(pool, "SELECT repeat('x', 5000000)")) == 5_000_000
        assert proxy.counts.connections == 1

    run(scenario())


def test_a_cancelled_request_leaves_its_connection_usable(
    run: Run[Any], proxy: Proxy, dsn: str
) -> None:
    async def scenario() -> None:
        async with pool_on(dsn) as pool:
            backend = await value(pool, BACKEND)
            running = asyncio.create_task(value(pool, "SELECT 'old' FROM pg_sleep(0.2)"))
            waiting = asyncio.create_task(value(pool, "SELECT 'never sent'"))
            await asyncio.sleep(0.05)
            running.cancel()
            waiting.cancel()
            assert await value(pool, "SELECT 'new'") == "new"
            assert await value(pool, BACKEND) == backend
            assert (running.cancelled(), waiting.cancelled()) == (True, True)
        assert not any("never sent" in sql for sql in proxy.counts.sql)

    run(scenario())


def test_a_long_answer_is_kept_for_nobody_when_its_caller_has_gone(run: Run[Any], dsn: str) -> None:
    async def scenario() -> None:
        async with pool_on(dsn, 2) as pool:
            await answered(pool)
            pool.run(Statement(LONG, {}, False)).cancel()
            await value(pool, SLEEP)  # on another connection, meanwhile
            held = [it for it in gc.get_objects() if isinstance(it, psycopg2.extensions.cursor)]
            assert not [it for it in held if it.rowcount == 1000]

    run(scenario())


def test_what_may_take_long_keeps_its_place_when_its_caller_has_gone(
    run: Run[Any], dsn: str
) -> None:
    async def scenario() -> None:
        async with pool_on(dsn, size=4) as pool:
            for owner in "abcd":
                slow = value(pool, "SELECT pg_sleep(1)", deadline=BULK_DEADLINE, owner=owner)
                sent = asyncio.create_task(slow)
                await asyncio.sleep(0.1)
                sent.cancel()
            began = time.monotonic()
            assert await value(pool, "SELECT 1") == 1
            assert time.monotonic() - began < 0.3

    run(scenario())


def test_what_may_take_long_waits_for_nobody_else_who_asks_for_much(
    run: Run[Any], dsn: str
) -> None:
    async def scenario() -> None:
        async with pool_on(dsn, size=4) as pool:
            much = [
                asyncio.create_task(
                    value(pool, "SELECT pg_sleep(0.5)", deadline=BULK_DEADLINE, owner="a")
                )
                for _ in range(8)
            ]
            await asyncio.sleep(0.1)
            assert await value(pool, "SELECT 1", deadline=BULK_DEADLINE, owner="b") == 1
            assert not any(each.done() for each in much)
            await asyncio.gather(*much)

    run(scenario())


@pytest.mark.parametrize("repeatable", [True, False], ids=["read", "write"])
def test_what_dies_with_its_connection_is_sent_again_only_where_that_is_harmless(
    run: Run[Any], proxy: Proxy, dsn: str, repeatable: bool
) -> None:
    statement = "SELECT 7 FROM pg_sleep(0.2)"

    async def scenario() -> None:
        async with pool_on(dsn) as pool:
            await value(pool, BACKEND)
            sent = asyncio.create_task(value(pool, statement, repeatable=repeatable))
            await asyncio.sleep(0.05)
            proxy.cut()
            if repeatable:
                assert await sent == 7
            else:
                await refused(sent)  # type: ignore[arg-type]
            assert await value(pool, "SELECT 1") == 1
        assert times_sent(proxy, statement) == 1 + repeatable

    run(scenario())


def test_what_is_lost_and_not_sent_again_in_time_is_never_said_to_be_undone(
    run: Run[Any], proxy: Proxy, dsn: str, own_postgres: Postgres, table: str
) -> None:
    database = table.rpartition("/")[2]
    write = "INSERT INTO counters VALUES (3, 0) RETURNING id"
    written = partial(
        own_postgres.execute, "SELECT 1 FROM counters WHERE id = 3", database=database
    )

    async def scenario() -> None:
        async with pool_on(proxy.through(table)) as pool:
            await value(pool, "SELECT 1")
            proxy.delay(0.3)
            call = value(pool, write, repeatable=True, deadline=1.5, writes=True)
            sent = asyncio.create_task(refused(call))
            await asyncio.to_thread(wait_until, written, "it is done")
            proxy.freeze()
            proxy.cut()  # no answer comes, nor is there a new connection
            error = await sent
            assert not isinstance(error, Undone)
            assert "is not known" in error.detail
            proxy.thaw()

    run(scenario())


def test_a_shared_write_that_is_done_and_cannot_be_read_is_not_done_again(
    run: Run[Any], own_postgres: Postgres, table: str
) -> None:
    # What somebody else wrote into the database, such as a date before Christ, Python cannot hold.
    write = "INSERT INTO counters VALUES (3, 0) RETURNING '0044-03-15 BC'::timestamptz"

    async def scenario() -> None:
        async with pool_on(table) as pool:
            gatherer = Gatherer(pool, write, write, {}, repeatable=False)
            calls = (gatherer.run({}) for _ in range(3))  # together
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(answer) for answer in answers] == [ValueError] * 3
            assert await value(pool, "SELECT count(*) FROM counters WHERE id = 3") == 1

    run(scenario())


@pytest.mark.parametrize(
    ("before", "between"),
    [
        ("SELECT 1", "DEALLOCATE ALL"),
        ("PREPARE {name} (int) AS {sql}", "SELECT 1"),
        ("SELECT 1", "ALTER TABLE counters ALTER n TYPE text"),
    ],
    ids=["gone", "there already", "of another type"],
)
def test_what_a_pooler_or_a_migration_has_changed_is_done_all_the_same_and_once(
    run: Run[Any], table: str, before: str, between: str
) -> None:
    add = "INSERT INTO counters SELECT %(id)s, n FROM counters WHERE id = 1 RETURNING n"
    prepared = Prepared(add, {"id": "INT"})
    words = {"name": prepared.name, "sql": add % {"id": "$1"}}

    async def scenario() -> None:
        async with pool_on(table) as pool:
            await pool.run(Statement(before.format(**words), {}, repeatable=False))
            await pool.run(Statement(prepared, {"id": 3}, repeatable=False))
            await pool.run(Statement(between.format(**words), {}, repeatable=False))
            await pool.run(Statement(prepared, {"id": 3}, repeatable=False))
            assert not pool.prepares
            await pool.run(Statement(prepared, {"id": 3}, repeatable=False))
            assert await value(pool, "SELECT count(*) FROM counters WHERE id = 3") == 3

    run(scenario())


def test_of_several_that_find_nothing_prepared_at_once_each_is_done_once(
    run: Run[Any], table: str
) -> None:
    prepared = Prepared("INSERT INTO counters VALUES (%(id)s, 0)", {"id": "INT"})

    async def scenario() -> None:
        async with pool_on(table, 4) as pool:
            for sql in (prepared, "DEALLOCATE ALL", prepared):
                calls = (pool.run(Statement(sql, {"id": 3}, repeatable=False)) for _ in range(4))
                await asyncio.gather(*calls)
            assert await value(pool, "SELECT count(*) FROM counters WHERE id = 3") == 8

    run(scenario())


def test_what_could_not_be_prepared_is_prepared_later(run: Run[Any], table: str) -> None:
    prepared = Prepared("SELECT n, %(text)s FROM counters", {"text": "TEXT"})

    async def scenario() -> None:
        async with pool_on(table, 2) as pool:
            known = await value(pool, BACKEND)
            with pytest.raises(ValueError, match="NUL"):
                await value(pool, prepared, text="\0")  # not even sent
            assert await value(pool, prepared, text="") == 0

            lock = "LOCK TABLE counters; SELECT pg_sleep(1)"
            locked = pool.run(Statement(lock, {}, repeatable=False))
            await refused(value(pool, prepared, text="", deadline=1))  # stopped while it waits
            await locked
            assert await value(pool, prepared, text="") == 0
            assert pool.prepares
            assert await value(pool, BACKEND) == known  # nor has it cost a connection

    run(scenario())


def test_a_read_whose_connection_dies_each_time_is_sent_twice_not_for_ever(
    run: Run[Any], proxy: Proxy, dsn: str
) -> None:
    fatal = "SELECT pg_terminate_backend(pg_backend_pid())"

    async def scenario() -> None:
        async with pool_on(dsn) as pool:
            await refused(value(pool, fatal, repeatable=True))
            assert await value(pool, "SELECT 1") == 1
        assert times_sent(proxy, fatal) == 2

    run(scenario())


def test_a_read_that_loses_a_brand_new_only_connection_gets_another_at_once(
    run: Run[Any], dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = postgres._Connection.send
    sent: list[Statement] = []

    def send_on_a_dead_socket_first(self: postgres._Connection, job: Statement) -> bool:
        if not sent:
            with socket.socket(fileno=os.dup(self._fd)) as wire:
                wire.shutdown(socket.SHUT_RDWR)
        sent.append(job)
        return send(self, job)

    monkeypatch.setattr(postgres._Connection, "send", send_on_a_dead_socket_first)

    async def scenario() -> None:
        async with pool_on(dsn) as pool, asyncio.timeout(DEADLINE / 2):
            assert await value(pool, "SELECT 1", repeatable=True) == 1
        assert len(sent) == 2

    run(scenario())


def test_a_server_that_lets_in_fewer_than_the_pool_is_not_said_to_be_away(
    run: Run[Any], own_postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"few_{uuid4().hex}"
    own_postgres.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'few' CONNECTION LIMIT 2")
    dsn = urlsplit(own_postgres.url())._replace(netloc=f"{name}:few@127.0.0.1:{own_postgres.port}")
    said: list[str] = []
    for level in ("info", "warning"):
        monkeypatch.setattr(postgres.log, level, lambda text, *values: said.append(text % values))

    async def scenario() -> None:
        async with pool_on(dsn.geturl(), 4) as pool:
            for _ in range(3):
                await asyncio.gather(*(value(pool, SLEEP) for _ in range(6)))

    run(scenario())
    assert said == [
        f'the database lets nobody else in: FATAL:  too many connections for role "{name}"'
    ]


def test_idle_connections_that_were_killed_are_noticed_before_the_next_write(
    run: Run[Any], own_postgres: Postgres, table: str
) -> None:
    async def scenario() -> None:
        async with pool_on(table, size=3) as pool:
            descriptors = []
            for _ in range(3):
                await asyncio.gather(*(value(pool, SLEEP) for _ in range(3)))
                descriptors.append(psutil.Process().num_fds())
                # The loop stands still meanwhile: the very next statement has to look by itself.
                assert own_postgres.terminate_backends(table.rpartition("/")[2]) == 3
                await value(pool, "UPDATE counters SET n = n + 1 WHERE id = 1 RETURNING n")
            assert await value(pool, "SELECT n FROM counters WHERE id = 1") == 3
            assert descriptors[2] <= descriptors[0] + 2

    run(scenario())


def test_a_statement_that_fails_tells_why_and_keeps_its_connection(run: Run[Any], dsn: str) -> None:
    async def scenario() -> None:
        async with pool_on(dsn) as pool:
            backend = await value(pool, BACKEND)
            with pytest.raises(psycopg2.errors.DivisionByZero):
                await value(pool, "SELECT 1 / 0")
            with pytest.raises(ValueError, match="NUL"):
                await value(pool, "SELECT %(text)s", text="\0")
            with pytest.raises(ValueError, match="year"):  # no Python date
                await value(pool, "SELECT '0044-03-15 BC'::date")
            assert await value(pool, BACKEND) == backend

    run(scenario())


def test_two_statements_that_deadlock_are_both_done_once(
    run: Run[Any], own_postgres: Postgres, table: str
) -> None:
    name = Identifier(table.rpartition("/")[2])
    own_postgres.execute(SQL("ALTER DATABASE {} SET deadlock_timeout = '50ms'").format(name))
    # Several statements in one message are one transaction.
    step = "UPDATE counters SET n = n + 1 WHERE id = %d"
    crossing = [
        "; SELECT pg_sleep(0.1); ".join(step % row for row in rows) for rows in ((1, 2), (2, 1))
    ]

    async def scenario() -> None:
        async with pool_on(table, size=2) as pool:
            await asyncio.gather(
                *(pool.run(Statement(sql, {}, repeatable=False)) for sql in crossing)
            )
            assert await value(pool, "SELECT array_agg(n) FROM counters") == [2, 2]

    run(scenario())
    deadlocks = "SELECT 1 FROM pg_stat_database WHERE datname = %s AND deadlocks > 0"
    wait_until(
        lambda: own_postgres.execute(deadlocks, table.rpartition("/")[2]), "there was a deadlock"
    )


def test_a_write_to_what_became_a_standby_is_sent_once_more_on_a_new_connection(
    run: Run[Any], own_postgres: Postgres, proxy: Proxy, table: str
) -> None:
    name = Identifier(table.rpartition("/")[2])
    read_only = SQL("ALTER DATABASE {} SET default_transaction_read_only = {}")
    write = "UPDATE counters SET n = n + 1 WHERE id = 1 RETURNING n"
    own_postgres.execute(read_only.format(name, SQL("on")))

    async def scenario() -> None:
        async with pool_on(proxy.through(table)) as pool:
            assert (await refused(value(pool, write))).status_code == 503
            assert times_sent(proxy, write) == 2
            assert await value(pool, "SELECT n FROM counters WHERE id = 1") == 0
            own_postgres.execute(read_only.format(name, SQL("off")))
            assert await value(pool, write) == 1

    run(scenario())


def test_the_first_of_two_hosts_may_be_dead(
    run: Run[Any], own_postgres: Postgres, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "DEADLINE", 0.5)

    async def answers(url: str) -> None:
        async with pool_on(url) as pool:
            await asyncio.wait_for(answered(pool), 20)

    # Both hosts are the same server, the first time through the proxy.
    url = failover_url(own_postgres, own_postgres).replace(
        f"127.0.0.1:{own_postgres.port}", f"127.0.0.1:{proxy.port}", 1
    )
    proxy.refuse()
    run(answers(url))
    proxy.accept()
    proxy.freeze()  # takes the connection, and never says a word
    run(answers(url))


@pytest.mark.parametrize("encoding", ["latin1", "SQL_ASCII"])
def test_text_is_utf_8_whatever_the_url_says(
    run: Run[Any], own_postgres: Postgres, encoding: str
) -> None:
    async def scenario() -> None:
        async with pool_on(f"{own_postgres.url()}?client_encoding={encoding}") as pool:
            assert await value(pool, "SELECT %(text)s || '€'", text="é") == "é€"

    run(scenario())


@pytest.fixture(scope="module")
def encrypted(own_postgres: Postgres) -> Iterator[tuple[PgBouncer, Path]]:
    """A server that only speaks TLS, with a self-signed certificate, and that certificate.

    It is PgBouncer, for the PostgreSQL of the wheel is built without TLS.
    """
    need("pgbouncer", "apt-get install pgbouncer")
    key, certificate = self_signed()
    with PgBouncer(
        own_postgres,
        client_tls_sslmode="require",
        client_tls_key_file=str(key),
        client_tls_cert_file=str(certificate),
    ) as server:
        yield server, certificate


@pytest.mark.parametrize("checked", [False, True], ids=["require", "verify-ca"])
def test_tls_is_spoken_where_the_url_asks_for_it(
    run: Run[Any], encrypted: tuple[PgBouncer, Path], checked: bool
) -> None:
    server, certificate = encrypted
    mode = f"verify-ca&sslrootcert={certificate}" if checked else "require"
    large = "é" * 4_000_000

    async def scenario() -> None:
        with Proxy(server.port) as proxy:
            url = proxy.through(server.url())
            async with pool_on(f"{url}?sslmode={mode}") as pool:
                assert await value(pool, "SELECT length(%(text)s)", text=large) == len(large)
                assert len(await value(pool, "SELECT repeat('x', 5000000)")) == 5_000_000
                assert (proxy.counts.connections, proxy.counts.unreadable) == (1, 1)
                server.restart()
                assert await value(pool, "SELECT 1") == 1
            async with pool_on(f"{url}?sslmode=disable") as pool:
                await refused(value(pool, "SELECT 1"))

    run(scenario())


def test_tls_that_the_server_does_not_speak_is_no_reason_to_do_without(
    run: Run[Any], dsn: str, proxy: Proxy
) -> None:
    async def scenario() -> None:
        async with pool_on(f"{dsn}?sslmode=require") as pool:
            await refused(value(pool, "SELECT 1"))
        assert proxy.counts.sql == []

    run(scenario())


def test_closing_fails_what_waits_and_leaves_no_connection(
    run: Run[Any], own_postgres: Postgres, table: str
) -> None:
    async def scenario() -> None:
        pool = Pool(table, 2)
        await asyncio.gather(*(value(pool, SLEEP) for _ in range(2)))
        statements = [asyncio.create_task(value(pool, SLEEP)) for _ in range(5)]
        await asyncio.sleep(0)
        await pool.close()
        wait_until(
            lambda: own_postgres.count_backends(table.rpartition("/")[2]) == 0, "all are closed"
        )
        for statement in statements[2:]:
            await refused(statement)  # type: ignore[arg-type]
        for statement in statements[:2]:
            statement.cancel()

    run(scenario())


def test_a_server_that_owes_an_answer_for_long_loses_its_place(
    run: Run[Any], proxy: Proxy, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "_FROZEN", 0.5)

    async def scenario() -> None:
        async with pool_on(dsn) as pool:
            assert await value(pool, "SELECT 1") == 1
            proxy.freeze()
            await refused(value(pool, "SELECT 2", deadline=1.0))
            for pause in itertools.repeat(0.05, 200):
                await asyncio.sleep(pause if pool._open else 0)
            assert not pool._open
            proxy.thaw()
            assert await value(pool, "SELECT 3") == 3

    run(scenario())
