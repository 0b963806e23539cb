"""Calls that share a statement: fewer statements, and an answer of their own for everyone."""

import asyncio
import gc
import itertools
from collections.abc import Iterator
from contextlib import closing

import httpx2
import psycopg2
import pytest
from pydantic import SecretStr

from bench.checks import check_plans
from database import Database
from engines.gather import Gatherer
from queries import tasks as statements
from schemas import TaskCreate, TaskQuery
from settings import Settings
from tests.conftest import Database as NewDatabase
from tests.support.api import create
from tests.support.load import Request, at_once
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.service import Service


@pytest.fixture(scope="module")
def watched(own_postgres: Postgres) -> Iterator[tuple[Service, Proxy]]:
    """The service with PostgreSQL behind a proxy that counts."""
    with (
        Proxy(own_postgres.port) as proxy,
        Service(DATABASE_URL=proxy.through(own_postgres.create_database())) as service,
    ):
        yield service, proxy


def test_calls_at_once_share_statements_and_each_gets_its_own_answer(
    watched: tuple[Service, Proxy], user: str
) -> None:
    service, proxy = watched
    proxy.delay(0.01)  # far enough away for calls to meet
    with httpx2.Client(base_url=service.url, trust_env=False) as client:
        mine = [create(client, f"/api/{user}-{n % 7}/tasks", title=f"task {n}") for n in range(70)]
    requests, expected = [], []
    for number, task in enumerate(mine):
        tasks = task["url"].removeprefix(service.url).rpartition("/")[0]
        requests += [
            Request("GET", f"{tasks}/{task['id']}"),
            Request("PATCH", f"{tasks}/{task['id']}/complete"),
            Request("PATCH", f"{tasks}/{task['id']}/complete", {"completed": True}),
            Request("POST", tasks, {"title": f"new {number}", "tags": ["a", "b"], "order": number}),
            Request("GET", f"/api/somebody-else/tasks/{task['id']}"),
            Request("PATCH", f"/api/somebody-else/tasks/{task['id']}/complete"),
        ]
        expected += [task["title"]] * 3 + [f"new {number}", None, None]
    before = proxy.counts.queries
    answers = at_once(service.url, requests)
    statements = proxy.counts.queries - before
    proxy.delay(0)
    assert len(answers) == len(expected)
    for answer, title in zip(answers, expected, strict=True):
        if title is None:
            assert answer.status == 404
        else:
            assert answer.status == (201 if answer.request.method == "POST" else 200)
            assert answer.json()["title"] == title
            assert answer.json()["user_id"] in answer.request.path
    assert statements < len(requests) / 2


def test_lists_at_once_are_whole_and_in_order(watched: tuple[Service, Proxy], user: str) -> None:
    service, proxy = watched
    with httpx2.Client(base_url=service.url, trust_env=False) as client:
        for n in range(60):
            create(client, f"/api/{user}-{n % 6}/tasks", title=f"task {n}")
        proxy.delay(0.01)
        requests = [Request("GET", f"/api/{user}-{n % 8}/tasks") for n in range(120)]
        answers = at_once(service.url, requests)
        proxy.delay(0)
    for n, answer in enumerate(answers):
        titles = [task["title"] for task in answer.json()]
        owned = [f"task {k}" for k in reversed(range(60)) if k % 6 == n % 8]
        assert titles == owned
        assert answer.headers["x-total-count"] == str(len(owned))


def test_what_gathers_calls_is_there_once_however_often_their_statement_is_built(
    own_postgres: Postgres,
) -> None:
    names = ("title", "order", "priority", "due_date", "completed", "created_at", "updated_at")
    sorts = [",".join(pair) for pair in itertools.permutations(names, 2)]

    def gatherers() -> int:
        return sum(isinstance(each, Gatherer) for each in gc.get_objects())

    async def scenario() -> int:
        database = Database(Settings(database_url=SecretStr(own_postgres.create_database())))
        await database.open()
        before = gatherers()
        for _ in range(3):
            await database.run(statements.list_tasks("u", TaskQuery()))
            for sort in sorts:  # more than are kept
                statements.list_tasks("u", TaskQuery(sort=sort))
        made = gatherers() - before
        await database.close()
        return made

    assert asyncio.run(scenario()) == 1


def test_what_calls_have_read_is_let_go_at_once_not_when_the_collector_looks(
    new_database: NewDatabase,
) -> None:
    async def scenario() -> set[type]:
        database = Database(Settings(database_url=SecretStr(new_database.url)))
        await database.open()
        ((task_id, *_),), _ = await database.run(statements.create_task("u", TaskCreate(title="a")))

        async def calls() -> None:
            each = [
                query
                for _ in range(10)
                for query in (
                    statements.read_task("u", task_id),
                    statements.toggle_task("u", task_id),
                    statements.list_tasks("u", TaskQuery()),
                    statements.count_tasks("u", TaskQuery()),
                    statements.create_task("u", TaskCreate(title="b")),
                )
            ]
            await asyncio.gather(*map(database.run, each))

        await calls()
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            await calls()
            gc.collect()
            return {type(each) for each in gc.garbage}
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            await database.close()

    kinds = asyncio.run(scenario())
    assert not [kind for kind in kinds if kind is asyncio.Future or "engines" in kind.__module__]


def test_toggles_of_the_same_tasks_by_several_workers_never_lock_each_other_out(
    own_postgres: Postgres, user: str
) -> None:
    url = own_postgres.create_database()
    with (
        Service(DATABASE_URL=url, workers=4) as service,
        httpx2.Client(base_url=service.url, trust_env=False) as client,
    ):
        tasks = f"/api/{user}/tasks"
        made = [create(client, tasks) for _ in range(20)]
        paths = [f"{tasks}/{task['id']}/complete" for task in made]
        requests = [Request("PATCH", path) for path in (paths + paths[::-1]) * 10]
        answers = at_once(service.url, requests)
        assert {answer.status for answer in answers} == {200}
        after = client.get(f"{tasks}/{made[0]['id']}")
        assert after.json()["completed"] is False
        # 400 toggles, each of which the followers of the user can see.
        assert client.get(f"{tasks}/changes").json()["position"] > 21


def test_the_plans_for_many_callers_go_by_an_index(large_table: str) -> None:
    check_plans(large_table)  # the benchmark has the same checked over ten million tasks


@pytest.fixture(scope="module")
def large_table(own_postgres: Postgres) -> str:
    """The URL of a database with 200,000 tasks of 20,000 users."""
    url = own_postgres.create_database()
    with Service(DATABASE_URL=url):
        pass  # it made the table
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO task (user_id, title, title_folded, completed, priority, tags, "
                "created_at, updated_at, version, idempotency_replays) SELECT 'u' || n % 20000, "
                "'task', 'task', false, 0, '{}', now(), now(), 1, 0 "
                "FROM generate_series(1, 200000) n"
            )
            cursor.execute("INSERT INTO task_feed SELECT DISTINCT user_id, 1, 0 FROM task")
            cursor.execute("ANALYZE task, task_feed")
    return url
