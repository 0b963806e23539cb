"""More at once than there are connections: everybody is served, or told at once to come back."""

import json
import re
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

import database
from tests.conftest import Database
from tests.support.load import (
    Client,
    Load,
    Request,
    all_tasks,
    allow_many_connections,
    at_once,
    creation,
    locked,
)
from tests.support.processes import wait_until
from tests.support.service import Service, changed_service

AT_ONCE = 1000
SMALL_QUEUE = 100


@pytest.fixture(autouse=True)
def _many_connections() -> None:
    allow_many_connections(AT_ONCE)


def count_tasks(service: Service, tasks: str) -> int:
    with httpx2.Client(base_url=service.url, trust_env=False, verify=False) as client:
        return len(all_tasks(client, tasks))


def test_a_thousand_at_once_on_ten_connections_are_all_served(
    new_database: Database, tasks: str
) -> None:
    with Service(DATABASE_URL=new_database.url, DB_POOL_SIZE="10") as service:
        reads = [Request("GET", f"{tasks}?limit=3"), Request("GET", f"{tasks}/stats")]
        requests = [
            request
            for number in range(AT_ONCE // 2)
            for request in (creation(tasks), reads[number % 2])
        ]
        answers = at_once(service.url, requests)
        assert [answer.status for answer in answers] == [201, 200] * (AT_ONCE // 2)
        assert count_tasks(service, tasks) == AT_ONCE // 2
        assert not re.search("locked|Traceback", service.log)


def test_past_the_bound_of_the_queue_a_503_comes_at_once_and_the_rest_is_served(
    new_database: Database, tasks: str, tmp_path: Path
) -> None:
    assert database.QUEUE == 2000  # as documented; a smaller one is enough here
    small = f"import database\ndatabase.QUEUE = {SMALL_QUEUE}\nfrom main import app as app\n"

    async def create(client: Client) -> None:
        await client.send(*creation(tasks))

    with (
        changed_service(tmp_path, small, DATABASE_URL=new_database.url) as service,
        ExitStack() as lock,
    ):
        lock.enter_context(locked(new_database.url))
        with Load(service.url, create, 3 * SMALL_QUEUE) as load:
            wait_until(lambda: load.count(503) >= SMALL_QUEUE, "some are refused")
            assert load.count(201) == 0
            lock.close()
            load.wait_for(201, SMALL_QUEUE)
        refused = [answer for answer in load.answers if answer.status == 503]
        told = {json.loads(answer.body)["detail"] for answer in refused}
        assert told == {"Too many requests are waiting for the database."}
        assert {answer.headers["retry-after"] for answer in refused} == {"1"}
        assert load.count(201) + load.count(503) == len(load.answers)
        assert count_tasks(service, tasks) == load.count(201)


def test_four_workers_with_sixteen_writers_each_share_a_sqlite_file(
    tmp_path: Path, tasks: str
) -> None:
    async def create(client: Client) -> None:
        await client.send(*creation(tasks))

    with Service(DATABASE_URL=f"sqlite:///{tmp_path}/tasks.db", workers=4) as service:
        with Load(service.url, create, 4 * 16) as load:
            load.wait_for(201, 1000)
        assert load.count(201) == len(load.answers)
        assert "locked" not in service.log
        assert count_tasks(service, tasks) == load.count(201)
