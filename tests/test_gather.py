"""Calls that share a statement: fewer statements, and an answer of their own for everyone."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import httpx2
import psycopg2
import pytest

from bench.checks import check_plans
from engines import gather
from engines.gather import Gatherer
from engines.postgres import Rows, Undone
from errors import Unavailable
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
        assert after.headers["etag"] == f'"{made[0]["id"]}-21"'


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
            cursor.execute("ANALYZE task")
    return url


class StandIn:
    """A pool that keeps what it is sent, and answers when the test says so."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Mapping[str, Any], asyncio.Future[Rows]]] = []

    async def run(self, sql: str, parameters: Mapping[str, Any], *, repeatable: bool) -> Rows:
        return await self.start(sql, parameters, repeatable=repeatable)

    def start(
        self,
        sql: str,
        parameters: Mapping[str, Any],
        *,
        repeatable: bool,
        waited: float = 0,
        shared: bool = False,
    ) -> asyncio.Future[Rows]:
        rows: asyncio.Future[Rows] = asyncio.get_running_loop().create_future()
        self.sent.append((sql, parameters, rows))
        return rows


async def _three_calls(pool: StandIn, *, repeatable: bool = False) -> list[asyncio.Task[Rows]]:
    """Make three calls that share a statement, behind one that is under way."""
    gatherer = Gatherer(pool, "one", "many", {}, repeatable=repeatable)  # type: ignore[arg-type]
    first = asyncio.create_task(gatherer.run({"task_id": 9}))
    calls = [asyncio.create_task(gatherer.run({"task_id": n})) for n in range(3)]
    await asyncio.sleep(0.01)
    assert [sql for sql, _, _ in pool.sent] == ["one", "many"]
    pool.sent.pop(0)[2].set_result(([("alone",)], 1))
    assert await first == ([("alone",)], 1)
    return calls


@pytest.mark.parametrize(
    ("error", "repeatable"),
    [
        (psycopg2.DataError("one of them"), False),
        (Undone("one of them takes too long"), False),
        (Unavailable("one of them ends its server"), True),
        (ValueError("one of them cannot be read"), True),
    ],
)
def test_a_statement_that_fails_for_several_is_sent_for_each_where_that_is_harmless(
    error: Exception, repeatable: bool
) -> None:
    async def scenario() -> None:
        pool = StandIn()
        calls = await _three_calls(pool, repeatable=repeatable)
        pool.sent[0][2].set_exception(error)
        await asyncio.sleep(0.01)
        assert [sql for sql, _, _ in pool.sent] == ["many", "one", "one", "one"]
        for number, (_, parameters, rows) in enumerate(pool.sent[1:]):
            assert parameters == {"task_id": number}
            if number == 1:
                rows.set_exception(psycopg2.DataError("this one"))
            else:
                rows.set_result(([(number,)], 1))
        first, second, third = await asyncio.gather(*calls, return_exceptions=True)
        assert (first, third) == (([(0,)], 1), ([(2,)], 1))
        assert isinstance(second, psycopg2.DataError)

    asyncio.run(scenario())


def test_when_the_outcome_for_several_is_unknown_all_of_them_hear_so() -> None:
    async def scenario() -> None:
        pool = StandIn()
        calls = await _three_calls(pool)
        pool.sent[0][2].set_exception(Unavailable())
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Unavailable] * 3
        assert len(pool.sent) == 1

    asyncio.run(scenario())


def test_who_gives_up_harms_nobody_else() -> None:
    async def scenario() -> None:
        pool = StandIn()
        calls = await _three_calls(pool)
        calls[1].cancel()
        await asyncio.sleep(0)
        pool.sent[0][2].set_result(([(2, "c"), (0, "a"), (1, "b")], 3))
        first, _, third = await asyncio.gather(*calls, return_exceptions=True)
        assert (first, third) == (([("a",)], 1), ([("c",)], 1))

    asyncio.run(scenario())


def test_the_same_task_twice_goes_into_two_statements() -> None:
    async def scenario() -> None:
        pool = StandIn()
        gatherer = Gatherer(pool, "one", "many", {}, repeatable=False)  # type: ignore[arg-type]
        calls = [asyncio.create_task(gatherer.run({"task_id": n})) for n in (9, 1, 2, 1)]
        await asyncio.sleep(0.01)
        assert [sql for sql, _, _ in pool.sent] == ["one", "many", "one"]
        pool.sent[0][2].set_result(([("alone",)], 1))
        pool.sent[1][2].set_result(([(1, "two"), (0, "one")], 2))
        pool.sent[2][2].set_result(([("one again",)], 1))
        answers = await asyncio.gather(*calls)
        assert [rows[0][0] for rows, _ in answers] == ["alone", "one", "two", "one again"]

    asyncio.run(scenario())


def test_who_waits_in_vain_is_told_so_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "DEADLINE", 0.7)

    async def scenario() -> None:
        pool = StandIn()
        gatherer = Gatherer(pool, "one", "many", {}, repeatable=False)  # type: ignore[arg-type]
        calls = [asyncio.create_task(gatherer.run({"task_id": 1})) for _ in range(30)]
        done, answered_never = await asyncio.wait(calls, timeout=2)
        # What was sent is the pool's to answer, and the rest is never sent.
        assert (len(pool.sent), len(answered_never)) == (10, 10)
        assert {type(call.exception()) for call in done} == {Undone}
        late = asyncio.create_task(gatherer.run({"task_id": 1}))
        await asyncio.sleep(0)
        pool.sent[0][2].set_result(([("first",)], 1))
        await asyncio.sleep(0.01)
        pool.sent[10][2].set_result(([("late",)], 1))
        assert (await late)[0] == [("late",)]
        for call in answered_never:
            call.cancel()

    asyncio.run(scenario())
