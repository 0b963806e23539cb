"""One request is one SQL statement, and on PostgreSQL one round trip, on both databases."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest

from engines import sqlite
from tests.conftest import KINDS
from tests.support.api import create
from tests.support.app import in_process
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.service import Service

TITLE = {"title": "x"}
# method, what follows the path of the tasks, the rest of the call, its status, its statements
CALLS: list[tuple[str, str, dict[str, Any], int, int]] = [
    ("GET", "", {}, 200, 1),
    ("HEAD", "", {}, 200, 1),
    ("GET", "?status=pending&q=x&tag=a&overdue=true&sort=-priority,due_date&limit=2", {}, 200, 1),
    ("GET", "?limit=1&offset=1", {}, 200, 1),
    ("GET", "?offset=1000", {}, 200, 1),
    ("GET", "?limit=1&before={missing}", {}, 200, 1),
    ("GET", "", {"headers": {"If-None-Match": "*"}}, 304, 1),
    ("POST", "", {"json": TITLE}, 201, 1),
    ("POST", "", {"json": TITLE | {"completed": True, "tags": ["a"]}}, 201, 1),
    ("PATCH", "", {"json": {"completed": True}}, 200, 1),
    ("PATCH", "?status=pending", {"json": TITLE}, 200, 1),
    ("DELETE", "?status=pending", {}, 200, 1),
    ("GET", "/stats", {}, 200, 1),
    ("GET", "/{id}", {}, 200, 1),
    ("GET", "/{id}", {"headers": {"If-None-Match": "*"}}, 304, 1),
    ("PUT", "/{id}", {"json": TITLE}, 200, 1),
    ("PATCH", "/{id}", {"json": {"description": None, "order": 2}}, 200, 1),
    ("PATCH", "/{id}", {"json": {}}, 200, 1),
    ("PATCH", "/{id}", {"json": TITLE, "headers": {"If-Match": "{etag}"}}, 200, 1),
    ("PATCH", "/{id}/complete", {}, 200, 1),
    ("PATCH", "/{id}/complete", {"json": {"completed": True}}, 200, 1),
    ("DELETE", "/{id}", {"headers": {"If-Match": "{etag}"}}, 200, 1),
    ("DELETE", "/{id}", {}, 200, 1),
    ("DELETE", "", {}, 200, 1),
    # Whether there is nothing to read is known after one statement, to change after two,
    ("GET", "/{missing}", {}, 404, 1),
    ("PUT", "/{missing}", {"json": TITLE}, 404, 2),
    ("PATCH", "/{missing}/complete", {}, 404, 2),
    ("DELETE", "/{missing}", {}, 404, 2),
    ("DELETE", "?q=nothing", {}, 200, 2),
    # as is what has another version,
    ("PUT", "/{id}", {"json": TITLE, "headers": {"If-Match": '"stale"'}}, 412, 2),
    ("PUT", "/{missing}", {"json": TITLE, "headers": {"If-Match": '"stale"'}}, 404, 2),
    # so does a list without a filter and without a task, for the position that its tag says,
    ("GET", "?before=1", {}, 200, 2),
    # and bad input takes none.
    ("POST", "", {"json": {}}, 422, 0),
    ("GET", "?nothing=1", {}, 422, 0),
    ("GET", "/1.0", {}, 422, 0),
    ("PATCH", "/{id}", {"content": b"{"}, 415, 0),
]


class Counted(NamedTuple):
    """A service, what makes the count begin, and the statements since then with their trips."""

    client: httpx2.Client
    reset: Any
    count: Any


@contextmanager
def counted_sqlite(path: Path, patch: pytest.MonkeyPatch) -> Iterator[Counted]:
    """Count what SQLite itself says it runs. A write raises the position in its transaction."""
    statements: list[str] = []
    raising = ("UPDATE task_feed", "INSERT INTO task_feed (user_id, position, forgotten) VALUES")
    framing = ("BEGIN", "COMMIT", "SELECT changes", *raising)
    connect = sqlite.connect

    def connect_and_trace(file: str) -> sqlite3.Connection:
        connection = connect(file)
        connection.set_trace_callback(
            lambda sql: None if sql.startswith(framing) else statements.append(sql)
        )
        return connection

    patch.setattr(sqlite, "connect", connect_and_trace)
    patch.setattr(sqlite, "_NEAR", 60.0)  # else what takes its time is begun anew in a thread
    with in_process(database_url=f"sqlite:///{path}/tasks.db") as client:
        yield Counted(client, statements.clear, lambda: (len(statements), len(statements)))


@contextmanager
def counted_postgresql(server: Postgres) -> Iterator[Counted]:
    """Count what goes over the wire."""
    with (
        Proxy(server.port) as proxy,
        Service(DATABASE_URL=proxy.through(server.create_database())) as service,
        httpx2.Client(base_url=service.url, trust_env=False, verify=False) as client,
    ):

        def count() -> tuple[int, int]:
            counts = proxy.counts
            assert counts.unreadable == counts.connections == 0
            assert counts.queries == counts.ready == len(counts.sql), counts.sql
            # Each takes its limit of time with it, in the same message.
            assert all(sql.startswith("SET LOCAL statement_timeout = ") for sql in counts.sql)
            # To plan one, the first time on a connection, touches no task.
            planned = sum("; PREPARE tasks_" in sql for sql in counts.sql)
            return counts.completed - counts.queries - planned, counts.round_trips

        yield Counted(client, proxy.reset, count)


@pytest.fixture(scope="module", params=KINDS)
def counted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Counted]:
    """A service on each database in turn, whose statements can be counted."""
    with pytest.MonkeyPatch.context() as patch:
        counting = (
            counted_sqlite(tmp_path_factory.mktemp("counted"), patch)
            if request.param == "sqlite"
            else counted_postgresql(request.getfixturevalue("own_postgres"))
        )
        with counting as counted:
            counted.client.get("/api/tasks")  # opens the connection
            yield counted


@pytest.mark.parametrize("mount", ["current user", "named user"])
@pytest.mark.parametrize(
    ("method", "path", "call", "status", "statements"),
    CALLS,
    ids=[f"{method} {path} {status}" for method, path, _, status, _ in CALLS],
)
def test_a_request_is_one_statement_and_one_round_trip(
    counted: Counted,
    tasks: str,
    mount: str,
    method: str,
    path: str,
    call: dict[str, Any],
    status: int,
    statements: int,
) -> None:
    mount = "/api/tasks" if mount == "current user" else tasks
    ids = [create(counted.client, mount, tags=["a"])["id"] for _ in range(2)]
    path = mount + path.format(id=ids[0], missing=2**53 - 1)
    if call.get("headers", {}).get("If-Match") == "{etag}":
        etag = counted.client.get(path).headers["etag"]
        call = call | {"headers": {"If-Match": etag}}
    counted.reset()
    answer = counted.client.request(method, path, **call)
    assert (answer.status_code, counted.count()) == (status, (statements, statements))


def test_a_create_with_a_key_is_one_statement_each_time(counted: Counted, tasks: str) -> None:
    for title, status in (("x", 201), ("x", 201), ("y", 422)):
        counted.reset()
        headers = {"Idempotency-Key": "key"}
        answer = counted.client.post(tasks, json={"title": title}, headers=headers)
        assert (answer.status_code, counted.count()) == (status, (1, 1))


def test_what_has_made_its_next_is_changed_by_one_statement(counted: Counted, tasks: str) -> None:
    daily = {"due_date": "2030-01-01", "recurrence": "FREQ=DAILY"}
    task = create(counted.client, tasks, **daily)
    counted.client.patch(f"{task['url']}/complete")
    for statements in (1, 2):  # pending; completed, and the next is read, for the answer names it
        counted.reset()
        counted.client.patch(f"{task['url']}/complete")
        assert counted.count() == (statements, statements)
    only = {"id": task["id"]}
    for completed in (False, True):
        counted.reset()
        counted.client.patch(tasks, params=only, json={"completed": completed})
        assert counted.count() == (1, 1)


@pytest.mark.parametrize(("path", "statements"), [("/health", 0), ("/ready", 1), ("/docs", 0)])
def test_what_is_not_about_tasks_asks_no_more_than_it_must(
    counted: Counted, path: str, statements: int
) -> None:
    counted.reset()
    assert counted.client.get(path).status_code == 200
    assert counted.count() == (statements, statements)


def test_a_long_list_is_one_statement_too(counted: Counted, tasks: str) -> None:
    for _ in range(40):
        create(counted.client, tasks, description="d" * 10_000)
    counted.reset()
    assert len(counted.client.get(tasks).content) > 400_000
    assert counted.count() == (1, 1)
