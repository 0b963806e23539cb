"""The test infrastructure itself: servers start, break and come back; the proxy counts right."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import psycopg2
import pytest

from tests.support.pgbouncer import PgBouncer
from tests.support.postgres import Postgres, Server, failover_url
from tests.support.processes import wait_until
from tests.support.proxy import Proxy
from tests.support.service import REPOSITORY, Service

STAND_IN = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        return await send({"type": "lifespan.shutdown.complete"})
    import os
    print("served by", os.environ.get("NAME"), sorted(os.environ))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})
"""


def connect(url: str) -> psycopg2.extensions.connection:
    connection = psycopg2.connect(url, connect_timeout=5)
    connection.autocommit = True
    return connection


def one(connection: psycopg2.extensions.connection) -> object:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        return cursor.fetchone()


@pytest.fixture
def proxy(own_postgres: Postgres) -> Iterator[Proxy]:
    with Proxy(own_postgres.port) as proxy:
        yield proxy


@pytest.fixture
def connection(proxy: Proxy, own_postgres: Postgres) -> Iterator[psycopg2.extensions.connection]:
    with closing(connect(proxy.through(own_postgres.url()))) as connection:
        proxy.reset()
        yield connection


def test_postgres_makes_and_drops_databases(postgres: Server) -> None:
    url = postgres.create_database()
    name = url.partition("?")[0].rpartition("/")[2]
    with closing(connect(url)) as connection:
        assert one(connection) == (1,)
        assert postgres.count_backends(name) == 1
        assert postgres.terminate_backends(name) == 1
        with pytest.raises(psycopg2.OperationalError):
            one(connection)
    postgres.drop_databases()
    with pytest.raises(psycopg2.OperationalError, match="does not exist"):
        connect(url)


def test_postgres_is_as_configured(own_postgres: Postgres) -> None:
    assert own_postgres.execute("SHOW fsync") == [("off",)]
    assert own_postgres.version.startswith("PostgreSQL 18")
    assert own_postgres.execute("SELECT upper('ä')") == [("Ä",)]


def test_a_killed_postgres_comes_back_with_what_it_acknowledged() -> None:
    with Postgres(max_connections=20) as server:
        assert server.execute("SHOW max_connections") == [("20",)]
        assert server.execute("SHOW fsync") == [("on",)]
        server.execute("CREATE TABLE kept AS SELECT %s AS id", 7)
        pids = server.pids
        assert len(pids) > 3
        server.kill()
        assert not any(is_alive(pid) for pid in pids)
        with pytest.raises(psycopg2.OperationalError, match="refused"):
            server.execute("SELECT 1")
        server.start()
        assert server.execute("SELECT id FROM kept") == [(7,)]
        server.restart()
        assert server.execute("SELECT id FROM kept") == [(7,)]
        server.kill()
    assert not server.directory.exists()


def test_a_postgres_that_cannot_start_raises_with_its_log() -> None:
    with pytest.raises(RuntimeError, match="shared_buffers"), Postgres(shared_buffers="much"):
        pass


def test_a_standby_has_every_acknowledged_commit_and_takes_over() -> None:
    with Postgres() as primary, Postgres.standby_of(primary) as standby:
        url = failover_url(primary, standby)
        with closing(connect(url)) as connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE kept AS SELECT 1 AS id")
        primary.kill()
        standby.promote()
        with closing(connect(url)) as connection, connection.cursor() as cursor:
            cursor.execute("INSERT INTO kept VALUES (2)")
        assert standby.execute("SELECT id FROM kept") == [(1,), (2,)]


def test_one_autocommit_select_is_one_query_and_one_round_trip(
    proxy: Proxy, connection: psycopg2.extensions.connection
) -> None:
    one(connection)
    counts = proxy.counts
    assert (counts.queries, counts.completed, counts.ready, counts.round_trips) == (1, 1, 1, 1)
    assert counts.sql == ["SELECT 1"]
    assert counts.bytes_up == len("Q....SELECT 1.")
    assert counts.bytes_down > 0

    connection.autocommit = False
    one(connection)
    connection.commit()
    assert proxy.counts.sql == ["SELECT 1", "BEGIN", "SELECT 1", "COMMIT"]
    assert proxy.counts.round_trips == 4
    assert proxy.counts.unreadable == 0


def test_delay_holds_back_both_ways(
    proxy: Proxy, connection: psycopg2.extensions.connection
) -> None:
    proxy.delay(0.1)
    started = time.monotonic()
    assert one(connection) == (1,)
    assert time.monotonic() - started >= 0.2


def test_freeze_keeps_the_connection_and_thaw_delivers(proxy: Proxy) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=0.3) as client:
        proxy.freeze()
        client.sendall(bytes.fromhex("0000000804d2162f"))  # SSLRequest
        with pytest.raises(TimeoutError):
            client.recv(1)
        proxy.thaw()
        assert client.recv(1) == b"N"


def test_cut_resets_and_refuse_refuses(
    proxy: Proxy, connection: psycopg2.extensions.connection, own_postgres: Postgres
) -> None:
    url = proxy.through(own_postgres.url())
    proxy.refuse()
    with pytest.raises(psycopg2.OperationalError, match="refused"):
        connect(url)
    assert one(connection) == (1,)
    with socket.socket() as client:
        proxy.accept()
        client.connect(("127.0.0.1", proxy.port))
        wait_until(lambda: len(proxy.links) == 2, "the second connection arrives")
        assert proxy.cut() == 2
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with pytest.raises(psycopg2.OperationalError):
        one(connection)
    with closing(connect(url)) as connection:
        assert one(connection) == (1,)


def test_pgbouncer_shares_a_backend_between_transactions(own_postgres: Postgres) -> None:
    database = own_postgres.create_database("bounced")
    assert database.endswith("/bounced")
    with PgBouncer(own_postgres, default_pool_size=1) as bouncer:
        url = bouncer.url("bounced")
        with closing(connect(url)) as first, closing(connect(url)) as second:
            assert one(first) == one(second) == (1,)
            assert own_postgres.count_backends("bounced") == 1
            bouncer.restart()
            with pytest.raises(psycopg2.OperationalError):
                one(first)
        with closing(connect(url)) as connection:
            assert one(connection) == (1,)


def test_a_missing_pgbouncer_is_named(
    own_postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(RuntimeError, match="install Debian's package pgbouncer"):
        PgBouncer(own_postgres)


@pytest.mark.parametrize("workers", [1, 2])
def test_service_runs_stops_and_dies_as_told(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORS_ORIGINS", "https://leaked.example")
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    with Service(cwd=tmp_path, app="stand_in:app", workers=workers, NAME="us") as service:
        assert "served by us" in service.log
        assert "CORS_ORIGINS" not in service.log
        assert len(service.pids) >= workers
        assert service.memory() > 10_000_000
        assert service.stop() in (0, -signal.SIGTERM)
        assert service.pids == []
        pids = service.start().pids
        service.kill()
        assert not any(is_alive(pid) for pid in pids)
        service.start()


def test_a_service_that_does_not_start_raises_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="Could not import module"), Service(cwd=tmp_path):
        pass


def test_a_killed_test_run_leaves_nothing_behind() -> None:
    program = (
        "import os, tests.support.postgres as p; s = p.Postgres().start();"
        "print(s.directory, *s.pids, flush=True); os.kill(os.getpid(), 9)"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, stdout=subprocess.PIPE)
    assert result.returncode == -signal.SIGKILL
    directory, *pids = result.stdout.decode().split()
    assert len(pids) > 3
    wait_until(lambda: not any(is_alive(int(pid)) for pid in pids), "PostgreSQL ends", 10)
    wait_until(lambda: not os.path.exists(directory), "its directory is removed", 10)


def is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
