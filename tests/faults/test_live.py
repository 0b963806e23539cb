"""Streams of changes when something breaks: who comes back to them has missed nothing."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx2
import psutil
import pytest

from tests.conftest import Database
from tests.support.api import create
from tests.support.events import Listener
from tests.support.load import Load, all_tasks, allow_many_connections
from tests.support.postgres import Postgres
from tests.support.processes import wait_until
from tests.support.proxy import Proxy
from tests.support.service import Service
from tests.support.tokens import Key, claims
from tests.support.writers import Writers

SECRET = Key("HS256", private=b"a secret of no less than 32 bytes")
LISTENERS = 6
REQUEST = "GET {} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"


def client_of(service: Service) -> httpx2.Client:
    return httpx2.Client(base_url=service.url, trust_env=False, verify=False, timeout=60)


def changes_of(service: Service, tasks: str) -> str:
    return f"{service.url}{tasks}/changes"


def assert_all_know_all(listeners: list[Listener], client: httpx2.Client, tasks: str) -> None:
    """Check that every listener has come, by changes alone, to the list as it is."""
    position = client.get(f"{tasks}/changes").json()["position"]
    there = {task["id"]: task for task in all_tasks(client, tasks)}
    for listener in listeners:
        listener.wait_for(position)
        known = {id_: task for id_, task in listener.tasks.items() if not task["deleted"]}
        assert known == there
        positions = [int(id_) for id_ in listener.ids]
        assert positions == sorted(set(positions)), "told twice, or not in order"


@pytest.fixture
def broken(request: pytest.FixtureRequest) -> Iterator[tuple[Postgres, Proxy, Service]]:
    with (
        Postgres() as postgres,
        Proxy(postgres.port) as proxy,
        Service(DATABASE_URL=proxy.through(postgres.url())) as service,
    ):
        yield postgres, proxy, service


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_a_stream_outlives_its_database(
    broken: tuple[Postgres, Proxy, Service], tasks: str, how: str
) -> None:
    postgres, proxy, service = broken
    with client_of(service) as client, ExitStack() as stack:
        create(client, tasks, title="before")
        early = stack.enter_context(Listener(changes_of(service, tasks)))
        early.wait_for(2)
        postgres.kill() if how == "killed" else proxy.freeze()
        wait_until(lambda: client.get(tasks).status_code == 503, "it is away")
        # Answered 200 with comments: a page's `EventSource` would give up for good else.
        # More of them than may wait for the database at once.
        users = [
            stack.enter_context(Listener(changes_of(service, f"/api/u{n}/tasks")))
            for n in range(10)
        ]
        late = stack.enter_context(Listener(changes_of(service, tasks)))
        assert (late.statuses, late.pages) == ([200], [])
        postgres.start() if how == "killed" else proxy.thaw()
        late.wait_for(2)
        wait_until(lambda: client.get(tasks).status_code == 200, "it is back")
        create(client, tasks, title="after")
        for listener in (early, late):
            listener.wait_for(3)
            assert listener.titles() == ["before", "after"]
            assert listener.statuses == [200]
        for listener in users:
            listener.wait_for(1)
        assert "Traceback" not in service.log
        assert "never retrieved" not in service.log


def listeners_at(worker: psutil.Process, port: int) -> int:
    """How many clients a worker has, while there are none but listeners."""
    wires = worker.net_connections()
    return sum(wire.laddr.port == port and wire.status == "ESTABLISHED" for wire in wires)


@pytest.mark.parametrize("how", ["a worker is killed", "the service is restarted"])
def test_who_comes_back_has_missed_nothing(new_database: Database, tasks: str, how: str) -> None:
    writers = Writers(tasks)
    with (
        Service(DATABASE_URL=new_database.url, workers=2) as service,
        client_of(service) as client,
        ExitStack() as stack,
    ):
        listeners = [
            stack.enter_context(Listener(changes_of(service, tasks))) for _ in range(LISTENERS)
        ]
        workers = psutil.Process(service.pids[0]).children()
        most = max(workers, key=lambda one: listeners_at(one, service.port))
        with Load(service.url, writers.write, 8) as load:
            load.wait_for(201, 50)
            if how == "the service is restarted":
                service.restart()
            else:
                most.kill()
            load.wait_for(201, 100)
            wait_until(
                lambda: sum(len(listener.statuses) for listener in listeners) > LISTENERS,
                "some come back",
            )
        assert_all_know_all(listeners, client, tasks)


def test_streams_end_at_sigterm_and_are_whole(new_database: Database, tasks: str) -> None:
    with Service(DATABASE_URL=new_database.url) as service, ExitStack() as stack:
        wires = [
            stack.enter_context(socket.create_connection(("127.0.0.1", service.port), 30))
            for _ in range(20)
        ]
        for wire in wires:
            wire.sendall(REQUEST.format(f"{tasks}/changes").encode())
        received = [wire.recv(4096) for wire in wires]
        os.kill(service.pids[0], signal.SIGTERM)
        # Without a limit for its answers: nothing but their end lets the service end.
        assert service.wait_exit(30) == -signal.SIGTERM
        for came, wire in zip(received, wires, strict=True):
            rest = b"".join(iter(lambda: wire.recv(4096), b""))  # noqa: B023
            assert (came + rest).endswith(b"\r\n0\r\n\r\n")
        assert "Traceback" not in service.log


def test_a_stream_that_begins_after_sigterm_ends_at_once(
    new_database: Database, tasks: str
) -> None:
    with Service(DATABASE_URL=new_database.url) as service, ExitStack() as stack:
        os.kill(service.pids[0], signal.SIGSTOP)
        asked = REQUEST.format(f"{tasks}/changes").encode()
        for _ in range(10):  # as first thing the process finds the signal, then these
            wire = socket.create_connection(("127.0.0.1", service.port), 30)
            stack.enter_context(wire).sendall(asked)
        os.kill(service.pids[0], signal.SIGTERM)
        os.kill(service.pids[0], signal.SIGCONT)
        assert service.wait_exit(10) == -signal.SIGTERM


def test_a_stream_ends_with_its_token(new_database: Database, user: str) -> None:
    secret = SECRET.private.decode()
    with Service(DATABASE_URL=new_database.url, AUTH_SECRET=secret) as service:
        # The clocks of two machines may differ by half a minute, so this one still counts.
        token = SECRET.token(claims(user, exp=int(time.time()) - 15))
        url = f"{service.url}/api/tasks/changes?access_token={token}"
        with Listener(url, once=True) as short, Listener(url) as back:
            wait_until(lambda: short.ended, "the stream ends with its token")
            assert short.statuses == [200]
            wait_until(lambda: back.ended, "no stream for a token that does not count")
            assert (back.statuses[0], back.statuses[-1]) == (200, 401)


def test_a_stream_ends_with_the_account(new_database: Database) -> None:
    secret = SECRET.private.decode()
    settings = {"AUTH_SECRET": secret, "AUTH_ACCOUNTS": "true"}
    with (
        Service(DATABASE_URL=new_database.url, **settings) as service,
        client_of(service) as client,
    ):
        body = {"email": "ann@example.com", "password": "long enough"}
        token = client.post("/api/auth/signup", json=body).json()["access_token"]
        url = f"{service.url}/api/tasks/changes?access_token={token}"
        with Listener(url) as listener:
            client.headers["Authorization"] = f"Bearer {token}"
            create(client, "/api/tasks")
            listener.wait_for(2)
            answer = client.request("DELETE", "/api/auth/me", json={"password": "long enough"})
            assert answer.status_code == 200
            wait_until(lambda: listener.ended, "the stream ends with the account", 60)
            assert listener.statuses[-1] == 401


def test_who_cannot_be_known_yet_comes_back(own_postgres: Postgres) -> None:
    """Whether a token counts is in the database: while that is away, nobody can say 401."""
    settings = {"AUTH_SECRET": SECRET.private.decode(), "AUTH_ACCOUNTS": "true"}
    with (
        Proxy(own_postgres.port) as proxy,
        Service(DATABASE_URL=proxy.through(own_postgres.create_database()), **settings) as service,
        client_of(service) as client,
    ):
        body = {"email": "ann@example.com", "password": "long enough"}
        token = client.post("/api/auth/signup", json=body).json()["access_token"]
        client.headers["Authorization"] = f"Bearer {token}"
        create(client, "/api/tasks")
        service.restart()  # so that it does not know who has an account
        proxy.refuse()
        proxy.cut()
        with Listener(f"{service.url}/api/tasks/changes?access_token={token}") as listener:
            wait_until(lambda: len(listener.statuses) > 2, "it comes back")
            assert not listener.pages
            proxy.accept()
            listener.wait_for(2)
            assert set(listener.statuses) == {200}


def test_who_has_gone_or_does_not_read_is_let_go(new_database: Database, tasks: str) -> None:
    with Service(DATABASE_URL=new_database.url) as service, client_of(service) as client:
        for _ in range(20):
            new = [{"title": "large", "description": "x" * 9000} for _ in range(25)]
            assert client.post(tasks, json=new).status_code == 201
        changes = f"{tasks}/changes"
        with (
            socket.create_connection(("127.0.0.1", service.port)) as gone,
            socket.socket() as deaf,
            Listener(changes_of(service, tasks)) as listener,
        ):
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(("127.0.0.1", service.port))
            deaf.sendall(REQUEST.format(changes).encode())
            listener.wait_for(21)
            gone.sendall(REQUEST.format(f"{changes}?since=21").encode())
            assert gone.recv(4096)
            gone.close()
            line = f"GET {changes} "
            wait_until(lambda: service.log.count(line) == 2, "both are let go", 60)
            create(client, tasks, title="for those who read")
            listener.wait_for(22)
            assert listener.statuses == [200]
        assert "Traceback" not in service.log


def test_a_thousand_streams_are_cheap_and_others_are_served(new_database: Database) -> None:
    allow_many_connections(1200)
    with (
        Service(DATABASE_URL=new_database.url) as service,
        client_of(service) as client,
        ExitStack() as stack,
    ):
        task = create(client, "/api/u7/tasks")

        def listen(users: range) -> list[socket.socket]:
            wires = []
            for number in users:
                wire = socket.create_connection(("127.0.0.1", service.port), 60)
                wires.append(stack.enter_context(wire))
                wire.sendall(REQUEST.format(f"/api/u{number}/tasks/changes").encode())
                assert b" 200 OK" in wire.recv(4096)
            return wires

        listen(range(1000, 1100))  # what the first ones cost, further ones do not
        before = service.memory()
        wires = listen(range(1000))
        assert service.memory() - before < 1000 * 25_000
        assert client.patch(f"{task['url']}/complete").status_code == 200
        came = b""
        while b'"completed":true' not in came:
            came += wires[7].recv(4096)
