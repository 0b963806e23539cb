"""A statement past its deadline ends at the server, and a 503 after one means: nothing was done."""

import itertools
import re
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import psycopg2
import pytest
from psycopg2.sql import SQL, Identifier

from tests.faults.conftest import BUSY
from tests.support.api import create
from tests.support.load import Client, Load, Request, all_tasks, at_once, creation, locked
from tests.support.postgres import Postgres
from tests.support.problems import CORS, assert_problem
from tests.support.processes import wait_until
from tests.support.proxy import Proxy
from tests.support.service import Service, changed_service

POOL = 3
LATE = 5.5  # seconds: the deadline, a tick, and a machine that is busy


@contextmanager
def row_locked(url: str, task: int) -> Iterator[None]:
    """Keep everybody else from changing one task of the database at `url`."""
    with closing(psycopg2.connect(url)) as connection:
        connection.cursor().execute("SELECT FROM task WHERE id = %s FOR UPDATE", (task,))
        yield
        connection.rollback()


def client_of(service: Service) -> httpx2.Client:
    return httpx2.Client(
        base_url=service.url, headers=CORS, timeout=60, trust_env=False, verify=False
    )


def make_every_statement_slow(url: str, seconds: float) -> None:
    """Replace the table by a view that takes so long for each row that it is asked for."""
    with closing(psycopg2.connect(url)) as connection:
        cursor = connection.cursor()
        cursor.execute("ALTER TABLE task RENAME TO stored")
        cursor.execute(
            "CREATE VIEW task AS SELECT * FROM stored WHERE pg_sleep(%s) IS NOT NULL", (seconds,)
        )
        connection.commit()


def test_a_heavy_search_in_a_loop_never_runs_more_often_than_the_pool_allows(
    url: str, busy: list[int], user: str
) -> None:
    numbers = itertools.count()

    async def search(client: Client) -> None:
        await client.send("GET", f"/api/{user}-{next(numbers) % 16}/tasks?q=x&limit=1")

    with Service(DATABASE_URL=url, DB_POOL_SIZE=str(POOL)) as service, client_of(service) as client:
        for number in range(16):
            create(client, f"/api/{user}-{number}/tasks")
        make_every_statement_slow(url, 5)
        del busy[:]
        with Load(service.url, search, clients=4 * POOL) as load:
            load.wait_for(503, 8 * POOL)
        assert max(busy) == POOL
        assert {answer.status for answer in load.answers} == {503}
        assert max(answer.seconds for answer in load.answers) < LATE
        told = {answer.json()["detail"] for answer in load.answers}
        assert told == {
            "This could not be done within 4 s and was undone; narrow it, or try again later.",
            "The database did not get to this in time; nothing was done.",
        }
        assert "away" not in service.log
        wait_until(lambda: busy[-1] == 0, "nothing goes on")


def test_creates_that_were_refused_after_their_deadline_do_not_appear_afterwards(
    url: str, busy: list[int], tasks: str
) -> None:
    with (
        Service(DATABASE_URL=url, DB_POOL_SIZE=str(POOL)) as service,
        client_of(service) as client,
    ):
        with locked(url):
            del busy[:]
            requests = [creation(tasks) for _ in range(75)]
            answers = at_once(service.url, requests)
            assert max(busy) <= POOL
            assert {answer.status for answer in answers} == {503}
            assert max(answer.seconds for answer in answers) < LATE
        assert create(client, tasks)
        assert len(all_tasks(client, tasks)) == 1
        assert "away" not in service.log


def test_a_bulk_call_has_a_longer_deadline_and_leaves_no_trace_when_it_is_past(
    url: str, tasks: str, tmp_path: Path
) -> None:
    small = "import engines\nengines.BULK_DEADLINE = 6\nfrom main import app as app\n"
    patch = Request("PATCH", tasks, {"completed": True})
    with (
        changed_service(tmp_path, small, DATABASE_URL=url) as service,
        client_of(service) as client,
    ):
        create(client, tasks)
        with locked(url):
            for answer in at_once(service.url, [patch] * 8):
                assert answer.status == 503
                assert 4 < answer.seconds < 6 + LATE - 4
                assert re.search("within 6 s|did not get to this", answer.json()["detail"])
        assert client.get(f"{tasks}?completed=false").headers["x-total-count"] == "1"
        with locked(url):
            late = threading.Thread(target=client.patch, args=(tasks,), kwargs={"json": patch.body})
            late.start()
            time.sleep(4.5)
            assert late.is_alive()
        late.join()
        assert client.get(f"{tasks}?completed=true").headers["x-total-count"] == "1"
        assert "away" not in service.log


def test_bulk_calls_that_wait_leave_half_of_the_pool_to_the_others(url: str, user: str) -> None:
    mine = f"/api/{user}/tasks"
    with Service(DATABASE_URL=url, DB_POOL_SIZE="4") as service, client_of(service) as client:
        task = create(client, mine)
        with row_locked(url, task["id"]):
            patches = [Request("PATCH", mine, {"completed": True})] * 20
            waiting = threading.Thread(target=at_once, args=(service.url, patches))
            waiting.start()
            for _ in range(20):
                time.sleep(0.02)
                create(client, f"/api/{user}-2/tasks")
            assert waiting.is_alive()
        waiting.join()


@pytest.mark.parametrize("many", ["bulk calls", "arrays", "toggles"])
def test_calls_of_one_user_that_wait_hold_up_nobody_elses(url: str, user: str, many: str) -> None:
    mine, theirs = f"/api/{user}/tasks", f"/api/{user}-2/tasks"
    held = "UPDATE task_feed SET position = position WHERE user_id = %s"
    change = Request("PATCH", mine, {"priority": "low"})
    with Service(DATABASE_URL=url, DB_POOL_SIZE="4") as service, client_of(service) as client:
        toggle = Request("PATCH", f"{mine}/{create(client, mine)['id']}/complete")
        their_toggle = f"{theirs}/{create(client, theirs)['id']}/complete"
        array = Request("POST", mine, [{"title": "x"}])
        asked = {"bulk calls": change, "arrays": array, "toggles": toggle}[many]
        with closing(psycopg2.connect(url)) as connection:
            connection.cursor().execute(held, (user,))
            waiting = threading.Thread(target=at_once, args=(service.url, [asked] * 20))
            waiting.start()
            time.sleep(0.3)
            began = time.monotonic()
            assert client.patch(theirs, json={"priority": "low"}).json() == {"updated": 1}
            assert client.post(theirs, json=[{"title": "x"}]).status_code == 201
            assert client.patch(their_toggle).json()["completed"] is True
            assert time.monotonic() - began < 2
            assert waiting.is_alive()
            connection.rollback()
        waiting.join()


def test_calls_of_one_user_that_wait_leave_connections_to_others(url: str, user: str) -> None:
    mine = f"/api/{user}/tasks"
    with Service(DATABASE_URL=url, DB_POOL_SIZE="4") as service, client_of(service) as client:
        task = create(client, mine)
        with row_locked(url, task["id"]):
            patches = [Request("PATCH", f"{mine}/{task['id']}", {"title": "x"})] * 40
            waiting = threading.Thread(target=at_once, args=(service.url, patches))
            waiting.start()
            for _ in range(20):
                time.sleep(0.02)
                assert client.get(f"/api/{user}-2/tasks?status=pending").json() == []
            assert waiting.is_alive()
        waiting.join()
        assert client.get(f"{mine}/{task['id']}").json()["title"] == "x"


def test_toggles_that_wait_for_each_other_are_answered_in_time_when_the_database_freezes(
    own_postgres: Postgres, url: str, tasks: str
) -> None:
    with (
        Proxy(own_postgres.port) as proxy,
        Service(DATABASE_URL=proxy.through(url)) as service,
        client_of(service) as client,
    ):
        task = create(client, tasks)
        proxy.freeze()
        answers = at_once(service.url, [Request("PATCH", f"{tasks}/{task['id']}/complete")] * 300)
        assert {answer.status for answer in answers} == {503}
        assert max(answer.seconds for answer in answers) < LATE
        told = {answer.json()["detail"] for answer in answers}
        unknown = {words for words in told if "not known" in words}
        assert len(unknown) == 1  # of those that were sent; the others wait for nothing
        uncertain = sum(answer.json()["detail"] in unknown for answer in answers)
        proxy.thaw()
        wait_until(lambda: client.get("/ready").status_code == 200, "it is back")
        # Each change that was made has raised the position, from 2, where the create had left it.
        count = client.get(f"{tasks}/changes").json()["position"] - 2
        assert 0 <= count <= uncertain < 20
        wait_until(lambda: "the database is back" in service.log, "it is said")


@pytest.mark.parametrize("limit", ["none", "lock_timeout"])
def test_who_waits_for_a_lock_in_a_shared_statement_holds_up_nobody_else(
    own_postgres: Postgres, url: str, user: str, limit: str
) -> None:
    if limit == "lock_timeout":
        setting = SQL("ALTER DATABASE {} SET lock_timeout = '300ms'")
        own_postgres.execute(setting.format(Identifier(urlsplit(url).path[1:])))
    with (
        Proxy(own_postgres.port) as proxy,
        Service(DATABASE_URL=proxy.through(url)) as service,
        client_of(service) as client,
    ):
        made = [create(client, f"/api/{user}-{n}/tasks") for n in range(25)]
        connections = proxy.counts.connections
        proxy.delay(0.01)  # for calls to meet
        with row_locked(url, made[10]["id"]):
            paths = [urlsplit(task["url"]).path + "/complete" for task in made]
            answers = at_once(service.url, [Request("PATCH", path) for path in paths])
        proxy.delay(0)
        assert [answer.status for answer in answers] == [503 if n == 10 else 200 for n in range(25)]
        assert max(answer.seconds for answer in answers) < LATE
        assert "undone" in answers[10].json()["detail"] or limit == "lock_timeout"
        after = client.get(f"/api/{user}-10/tasks").json()[0]
        assert after["completed"] is False
        assert "away" not in service.log
        # Nor does it cost a connection.
        client.get("/ready")
        assert proxy.counts.connections - connections <= 9


def test_a_statement_that_an_administrator_cancels_is_503_and_no_outage(
    own_postgres: Postgres, url: str, tasks: str
) -> None:
    cancel = f"SELECT pg_cancel_backend(pid) FROM ({BUSY.replace('count(*)', 'pid')}) busy"
    with Service(DATABASE_URL=url) as service, client_of(service) as client:
        backends = own_postgres.count_backends(urlsplit(url).path[1:])
        with locked(url):
            answers: list[httpx2.Response] = []
            late = threading.Thread(
                target=lambda: answers.append(client.post(tasks, json={"title": "x"}))
            )
            late.start()
            for _ in itertools.takewhile(lambda _: not answers, itertools.count()):
                own_postgres.execute(cancel, urlsplit(url).path[1:])
                time.sleep(0.05)
            late.join()
        assert "nothing was done" in assert_problem(answers[0], 503)
        assert client.get(tasks).json() == []
        assert own_postgres.count_backends(urlsplit(url).path[1:]) == backends
        assert not re.search("away|back", service.log)
