"""A database that goes away, breaks or keeps silent costs a 503 each, and no more (section 5)."""

import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
import psycopg2
import pytest

from tests.conftest import Database
from tests.support.load import Answer, Load, use_of_a_task
from tests.support.postgres import PASSWORD, USER, Postgres
from tests.support.problems import CORS, assert_problem
from tests.support.processes import wait_until
from tests.support.proxy import Proxy
from tests.support.service import REPOSITORY, Service, changed_service

CLIENTS = 30
AWAY = "The database is not available right now."
LATE = "The database did not get to this in time; nothing was done."
UNKNOWN = "The database went silent before it answered; whether the change was made is not known."


@dataclass
class Setup:
    """A service, the proxy to its database, and that database, which may be killed."""

    postgres: Postgres
    proxy: Proxy
    service: Service

    def leave(self, how: str) -> None:
        """Take the database away."""
        if how == "killed":
            self.postgres.kill()
        elif how == "refusing":
            self.proxy.refuse()
            self.proxy.cut()
        else:
            self.proxy.freeze()

    def come_back(self, how: str) -> None:
        """Bring it back; returns when it answers."""
        if how == "killed":
            self.postgres.start()
        elif how == "refusing":
            self.proxy.accept()
        else:
            self.proxy.thaw()


@pytest.fixture(scope="module")
def setup() -> Iterator[Setup]:
    with (
        Postgres() as postgres,
        Proxy(postgres.port) as proxy,
        Service(DATABASE_URL=proxy.through(postgres.url())) as service,
    ):
        yield Setup(postgres, proxy, service)


def client_of(service: Service) -> httpx2.Client:
    return httpx2.Client(
        base_url=service.url, headers=CORS, timeout=30, trust_env=False, verify=False
    )


def problem(answer: Answer) -> httpx2.Response:
    return httpx2.Response(answer.status, headers=dict(answer.headers), content=answer.body)


@pytest.mark.parametrize("how", ["killed", "refusing", "frozen"])
def test_an_outage_under_load_costs_503s_and_nothing_else(
    setup: Setup, how: str, user: str
) -> None:
    service = setup.service
    process = psutil.Process(service.pids[0])
    with client_of(service) as client:
        with Load(service.url, use_of_a_task(user), clients=CLIENTS) as load:
            load.wait_for(200, 300)
            pids, descriptors, memory = service.pids, process.num_fds(), service.memory()

            setup.leave(how)
            left = time.monotonic()
            wave = CLIENTS if how == "frozen" else 5 * CLIENTS
            load.wait_for(503, wave)
            assert client.get("/health").status_code == 200
            for path in ("/ready", "/api/tasks"):
                refusal = client.get(path)
                detail = assert_problem(refusal, 503)
                assert int(refusal.headers["retry-after"]) >= 1
                assert detail in (AWAY, LATE)
            load.wait_for(503, wave)
            assert service.memory() < memory + 30_000_000

            # More 503s than there are clients: some were asked for after it had left.
            during = load.since(left)
            setup.come_back(how)
            back = time.monotonic()
            wait_until(lambda: client.get("/api/tasks").status_code == 200, "it is back", 2)
            assert client.get("/ready").status_code == 200
            load.wait_for(200, 300)

        assert {answer.status for answer in during} == {503}
        refused = [answer for answer in load.answers if answer.status == 503]
        assert max(answer.seconds for answer in refused) < 5
        for answer in refused[:: len(refused) // 20 + 1]:
            assert answer.headers["retry-after"].isdigit()
            assert problem(answer).json()["detail"] in (AWAY, LATE, UNKNOWN)
        assert {answer.status for answer in load.answers} <= {200, 201, 503}
        assert {answer.status for answer in load.since(back + 2)} <= {200, 201}
        assert service.pids == pids
        # Connections to the database may come and go; what clients had is closed.
        wait_until(lambda: process.num_fds() <= descriptors, "descriptors are given back", 10)
    told = "the database is away", "the database is back"
    assert [service.log.count(words) >= 1 for words in told] == [True, True]


@pytest.mark.parametrize("how", ["refusing", "frozen"])
@pytest.mark.parametrize(
    ("headers", "more"),
    [({"Idempotency-Key": "k"}, {}), ({}, {"uid": "u"}), ({"Idempotency-Key": "k"}, {"uid": "u"})],
)
def test_who_may_repeat_a_create_is_also_told_that_it_may_be_done(
    setup: Setup, how: str, headers: dict[str, str], more: dict[str, str], tasks: str
) -> None:
    waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with client_of(setup.service) as client, ThreadPoolExecutor() as another:
        client.post(tasks, json={"title": "first"})
        with closing(psycopg2.connect(setup.postgres.url())) as other:
            other.cursor().execute("SELECT 1 FROM task_feed FOR UPDATE")
            body = {"title": "second", **more}
            sent = another.submit(client.post, tasks, json=body, headers=headers)
            wait_until(lambda: setup.postgres.execute(waits), "it is under way")
            setup.leave(how)
        try:
            assert assert_problem(sent.result(15), 503) == UNKNOWN  # of one task: not in 30 s
        finally:
            setup.come_back(how)
        wait_until(lambda: client.get("/ready").status_code == 200, "it is back")
        again = client.post(tasks, json=body, headers=headers)
        assert again.headers["Idempotency-Replayed"] == "true"
        assert len(client.get(tasks).json()) == 2


@pytest.mark.parametrize("how", ["refusing", "frozen"])
def test_a_service_that_starts_before_its_database_waits_for_it(setup: Setup, how: str) -> None:
    service = Service(DATABASE_URL=setup.proxy.through(setup.postgres.create_database()))
    setup.leave(how)
    connections = setup.proxy.counts.connections
    try:
        service.start(wait=False)
        if how == "frozen":
            wait_until(lambda: setup.proxy.counts.connections > connections, "it has asked")
        else:
            wait_until(lambda: "the database is away" in service.log, "it has asked")
        assert service.running
    finally:
        setup.come_back(how)
    with service, client_of(service) as client:
        service.wait_ready(20)
        assert client.get("/ready").status_code == 200
        assert client.post("/api/tasks", json={"title": "x"}).status_code == 201


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("how", ["refusing", "frozen"])
def test_sigterm_ends_a_start_that_waits_at_once(setup: Setup, how: str, workers: int) -> None:
    url = setup.proxy.through(setup.postgres.create_database())
    setup.leave(how)
    connections = setup.proxy.counts.connections
    try:
        with closing(Service(DATABASE_URL=url, workers=workers)) as service:
            service.start(wait=False)
            if how == "frozen":
                wait_until(lambda: setup.proxy.counts.connections > connections, "it has asked")
            else:
                wait_until(lambda: "the database is away" in service.log, "it has asked")
            started = time.monotonic()
            assert service.stop() in (0, -15)
            assert time.monotonic() - started < 10  # not the half minute of its patience
            assert "Traceback" not in service.log
    finally:
        setup.come_back(how)


# uvicorn asks for the app before it handles signals, and again after.
LOADING = """
import signal, time
import main
def __getattr__(name):
    handler = signal.getsignal(signal.SIGTERM)
    if name == "app" and handler is not signal.SIG_DFL:
        print("uvicorn handles signals", flush=True)
        while not handler.__self__.should_exit:
            time.sleep(0.01)
    return getattr(main, name)
"""


def test_sigterm_while_the_service_is_loaded_is_not_lost(setup: Setup, tmp_path: Path) -> None:
    url = setup.proxy.through(setup.postgres.url())
    setup.leave("refusing")
    try:
        with closing(changed_service(tmp_path, LOADING, DATABASE_URL=url)) as service:
            service.start(wait=False)
            wait_until(lambda: "uvicorn handles signals" in service.log, "it is loaded")
            started = time.monotonic()
            assert service.stop() == -15
            assert time.monotonic() - started < 20  # not the half minute of its patience
            assert "away" not in service.log
    finally:
        setup.come_back("refusing")


@pytest.fixture
def rename_table(new_database: Database) -> Callable[[], None]:
    """Renames the table of tasks, as somebody might who shares the database."""

    def rename() -> None:
        opened: Any = (
            sqlite3.connect(new_database.url.removeprefix("sqlite:///"))
            if new_database.name == "sqlite"
            else psycopg2.connect(new_database.url)
        )
        with closing(opened) as connection:
            connection.cursor().execute("ALTER TABLE task RENAME TO elsewhere")
            connection.commit()

    return rename


def test_the_errors_of_a_broken_database_tell_nothing_about_it(
    new_database: Database, rename_table: Callable[[], None]
) -> None:
    said = ""
    with Service(DATABASE_URL=new_database.url) as service, client_of(service) as client:
        private = {"title": "private matter"}
        assert client.post("/api/somebody/tasks", json=private).status_code == 201
        rename_table()
        for method, path, body in (
            ("GET", "", None),
            ("GET", "/stats", None),
            ("POST", "", {"title": "refused title"}),
            ("PATCH", "", {"title": "refused title"}),
            ("PUT", "/1", {"title": "refused title"}),
            ("PATCH", "/1/complete", None),
            ("DELETE", "", None),
        ):
            answer = client.request(method, f"/api/tasks{path}", json=body)
            assert_problem(answer, 500)
            said += answer.text + str(answer.headers)
        assert client.get("/health").status_code == 200
        assert re.search("no such table|does not exist", service.log)
    secrets = [USER, PASSWORD, new_database.url.rpartition("/")[2], str(REPOSITORY)]
    words = ["SELECT", "INSERT", "UPDATE", "DELETE ", "FROM", "table", "relation", "column", "sql"]
    for word in [*secrets, *words, "private", "refused title", r"\.py", "psycopg2", "Traceback"]:
        assert not re.search(word, said), word
