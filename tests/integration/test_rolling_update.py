"""A rolling update: what the oldest version says to the database goes on working.

`released_statements.json` has the statements of that version, which is from before 0003, with
parameters, as it compiled them.
"""

import json
import sqlite3
from contextlib import closing
from datetime import datetime
from typing import Any

import httpx2
import psycopg2
import pytest

from tests.conftest import Database
from tests.support.service import REPOSITORY, Service

RELEASED: dict[str, list[dict[str, Any]]] = json.loads(
    (REPOSITORY / "tests" / "integration" / "released_statements.json").read_text()
)


# As that of a user whose tasks the released version has made.
NO_POSITION = {
    "call": "none",
    "sql": "DELETE FROM task_feed WHERE user_id = 'old'",
    "parameters": {},
}


def readable(parameters: dict[str, Any], database: Database) -> dict[str, Any]:
    """Return the parameters with the instants that JSON has no type for."""
    if database.name == "sqlite":
        return parameters
    instants = {name: parameters.get(name) for name in ("now", "completed_at")}
    read = {name: datetime.fromisoformat(value) for name, value in instants.items() if value}
    return parameters | read


def run_all(database: Database, statements: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Run the statements, each in a transaction of its own; return the rows of each."""
    rows: dict[str, list[Any]] = {}
    if database.name == "sqlite":
        connection: Any = sqlite3.connect(database.url.removeprefix("sqlite:///"))
    else:
        connection = psycopg2.connect(database.url)
    with closing(connection):
        for each in statements:
            cursor = connection.cursor()
            cursor.execute(each["sql"], readable(each["parameters"], database))
            returns = cursor.description is not None
            rows[each["call"]] = cursor.fetchall() if returns else [(cursor.rowcount,)]
            connection.commit()
    return rows


def test_the_released_version_goes_on_serving_on_the_new_schema(new_database: Database) -> None:
    with (
        Service(DATABASE_URL=new_database.url) as service,
        httpx2.Client(base_url=service.url, trust_env=False) as client,
    ):
        before_deletes = [
            each for each in RELEASED[new_database.name] if not each["call"].startswith("delete")
        ]
        rows = run_all(new_database, before_deletes)
        found = {call: len(each) for call, each in rows.items()}
        assert found["create"] == found["read"] == found["update"] == found["toggle"] == 1
        assert found["list"] == 3
        assert rows["repeat with a key"][0][0] == rows["create with a key"][0][0]
        assert rows["count"][0][0] == 3
        # And the new version takes over what the old one made.
        tasks = client.get("/api/old/tasks").json()
        assert len({task["uid"] for task in tasks}) == len(tasks) >= 3
        first = min(tasks, key=lambda task: int(task["id"]))
        again = client.post(
            "/api/old/tasks", json={"title": "c"}, headers={"Idempotency-Key": "key"}
        )
        assert again.status_code == 201, again.text
        assert again.headers["Idempotency-Replayed"] == "true"
        one, new = f"/api/old/tasks/{first['uid']}", {"title": "new"}
        writes = ("PATCH", one, new), ("PATCH", "/api/old/tasks", new), ("DELETE", one, None)
        for method, path, body in writes:
            run_all(new_database, [NO_POSITION])
            answer = client.request(method, path, json=body)
            assert answer.status_code == 200
            assert answer.json().get("updated", 1)
        page = client.get("/api/old/tasks/changes").json()
        assert {task["id"] for task in page["changes"]} == {task["id"] for task in tasks}
        deletes = [each for each in RELEASED[new_database.name] if each not in before_deletes]
        rows = run_all(new_database, deletes)
        assert len(rows["delete"]) == 1
        assert client.get("/api/old/tasks").json() == []


@pytest.mark.parametrize("name", sorted(RELEASED))
def test_every_kind_of_call_is_among_the_statements(name: str) -> None:
    calls = {each["call"] for each in RELEASED[name]}
    shared = {"reads", "lists", "toggles", "completions", "creates"}
    assert {"create", "create with a key", "read", "list", "update", "toggle", "count"} <= calls
    assert (shared <= calls) == (name == "postgresql")
