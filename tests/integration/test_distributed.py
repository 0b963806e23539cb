"""Tables distributed by user (Citus): a call goes to one shard. Collected only on a cluster."""

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import httpx2
import psycopg2
import pytest

from tests.integration.test_statements import CALLS
from tests.support.api import create
from tests.support.postgres import Server
from tests.support.proxy import Proxy
from tests.support.service import Service

DAILY = {"title": "x", "recurrence": "FREQ=DAILY", "due_date": "2030-01-01"}
MORE: list[tuple[str, str, dict[str, Any], int]] = [
    ("POST", "", {"json": [{"title": "x", "uid": "a"}, {"title": "y"}]}, 201),
    ("POST", "", {"json": {"title": "x", "uid": "b"}}, 201),
    ("POST", "", {"json": {"title": "x", "uid": "b"}}, 201),
    ("POST", "", {"json": {"title": "x"}, "headers": {"Idempotency-Key": "key"}}, 201),
    ("POST", "", {"json": DAILY | {"uid": "c"}}, 201),
    ("PATCH", "/c/complete", {}, 200),
    ("POST", "", {"json": DAILY}, 201),
    ("PATCH", "", {"json": {"completed": True}}, 200),
    ("PATCH", "?tags_like=a&updated_at_like=2", {"json": {"title": "x"}}, 200),
    ("GET", "/changes", {}, 200),
    ("GET", "/changes?since=2&limit=1", {}, 200),
    ("GET", "?deleted=true", {}, 200),
    ("DELETE", "/b", {}, 200),
    ("PATCH", "/b", {"json": {"deleted": False}}, 200),
    ("DELETE", "/b?forever=true", {}, 200),
    ("DELETE", "?deleted=true", {}, 200),
]
TABLES = ["task", "task_feed", "task_gone"]


def shards_of(url: str, statement: str, prepared: Mapping[str, str]) -> list[int]:
    """Return how many shards each step of a statement goes to, as the coordinator plans it."""
    *first, last = statement.split("; ")[1:]  # without its limit of time
    # From the sixth time on, one plan may serve for all values.
    times = 7 if last.startswith("EXECUTE") else 1
    if times > 1 and not first:
        first = [prepared[name_of(last)]]
    plan = ""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        for sql in [*first, *[f"EXPLAIN (COSTS OFF) {last}"] * times]:
            cursor.execute(sql)
            if cursor.description:
                plan += "\n".join(row[0] for row in cursor.fetchall())
    return [int(count) for count in re.findall(r"Task Count: (\d+)", plan)]


def name_of(statement: str) -> str:
    """Return the name that a PREPARE gives, or that an EXECUTE calls."""
    return statement.split("(")[0].split()[1]


@pytest.fixture(scope="module")
def home(postgres: Server) -> str:
    """The URL of a database whose tables are distributed by the first start."""
    return postgres.create_database()


def test_every_statement_goes_to_one_shard(postgres: Server, home: str, tasks: str) -> None:
    at = urlsplit(home)
    assert at.port
    with (
        Proxy(at.port, at.hostname or "") as proxy,
        Service(DATABASE_URL=proxy.through(home)) as service,
        httpx2.Client(base_url=service.url, trust_env=False, verify=False) as client,
    ):
        for method, path, call, status in [*[each[:4] for each in CALLS], *MORE]:
            task = create(client, tasks)
            headers = {
                name: task["etag"] if value == "{etag}" else value
                for name, value in call.get("headers", {}).items()
            }
            path = tasks + path.format(id=task["id"], missing=2**53 - 1)
            answer = client.request(method, path, **call | {"headers": headers})
            assert answer.status_code == status, (method, path, answer.text)

        def read_together(n: int) -> None:
            assert client.get(f"/api/{n}/tasks").status_code == 200

        with ThreadPoolExecutor(20) as pool:
            list(pool.map(read_together, range(100)))
        sent = [sql for sql in proxy.counts.sql if sql.startswith("SET LOCAL statement")]
    asked = {sql for sql in sent if "tasks_schema_version" not in sql}
    assert len(asked) > len(CALLS) + len(MORE) + 100
    first = [sql.split("; ")[1] for sql in asked]
    prepared = {name_of(sql): sql for sql in first if sql.startswith("PREPARE")}
    assert len(prepared) >= 4
    for statement in asked:
        shards = shards_of(home, statement, prepared)
        assert set(shards) == {1}, (shards, statement)


def test_an_existing_database_is_distributed_once_by_the_next_start(
    postgres: Server, tasks: str
) -> None:
    url = postgres.create_database(distributed=False)
    name = urlsplit(url).path[1:]

    def read(service: Service, client: httpx2.Client) -> Any:
        changes = client.get(f"{service.url}{tasks}/changes").json()
        return [each | {"url": ""} for each in changes["changes"]], changes["position"]

    with httpx2.Client(trust_env=False, verify=False) as client:
        with Service(DATABASE_URL=url) as service:
            for n in range(20):
                create(client, f"{service.url}{tasks}", title=str(n))
            before = read(service, client)
        postgres.distribute(name)
        for workers in (4, 1):  # all at once, and then nothing is left to be done
            with Service(DATABASE_URL=url, workers=workers) as service:
                assert read(service, client) == before
        with Service(DATABASE_URL=url) as service:
            create(client, f"{service.url}{tasks}")
            assert len(read(service, client)[0]) == 21
    found = "SELECT table_name::text, colocation_id FROM citus_tables ORDER BY 1"
    rows = postgres.execute(found, database=name)
    assert [row[0] for row in rows] == TABLES
    assert len({row[1] for row in rows}) == 1
    alone = postgres.execute("SHOW citus.select_opens_transaction_block", database=name)
    assert alone == [("off",)]
    left = "SELECT sum(pg_relation_size(name)) FROM unnest(%s::regclass[]) AS name"
    assert postgres.execute(left, TABLES, database=name) == [(0,)]
