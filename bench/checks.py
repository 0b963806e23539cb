"""Checks that a service does the work before it is measured: a fast wrong answer is no answer."""

import http.client
import json
import re
from contextlib import closing
from typing import Any

import psycopg2
from sqlalchemy.dialects.postgresql import psycopg2 as dialect

from bench.load import Data
from bench.postgres import Postgres
from bench.servers import Server
from queries import tasks as statements
from schemas import TaskQuery, TaskUpdate

FIELDS = {
    "id",
    "user_id",
    "title",
    "description",
    "completed",
    "completed_at",
    "priority",
    "due_date",
    "tags",
    "order",
    "created_at",
    "updated_at",
}


def call(
    server: Server,
    method: str,
    path: str,
    body: dict[str, Any] | None = None,
    *,
    token: str | None = None,
) -> tuple[int, Any]:
    """Ask once; return the status and the decoded JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        headers = {"Content-Type": "application/json"} if body else {}
        headers |= {"Authorization": f"Bearer {token}"} if token else {}
        connection.request(method, path, json.dumps(body) if body else None, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def expect(server: Server, truth: bool, what: str) -> None:
    """Raise SystemExit, saying what is wrong with `server`, unless it is true."""
    if not truth:
        raise SystemExit(f"{server.name}: {what}")


def check(server: Server, postgres: Postgres, database: str, *, data: Data) -> None:
    """Raise SystemExit unless the four operations do what they should."""

    def stored(task_id: int) -> tuple[Any, ...]:
        select = "SELECT user_id, title, completed, completed_at FROM task WHERE id = %(id)s"
        rows = postgres.execute(database, select, id=task_id)
        expect(server, len(rows) == 1, f"task {task_id} is not in the database")
        return rows[0]

    user, task_id = "user-7", data.users + 7
    path = f"/api/{user}/tasks"

    status, task = call(server, "GET", f"{path}/{task_id}")
    expect(server, status == 200 and task.keys() >= FIELDS, f"get: {status}, {task}")
    expect(server, (task["id"], task["user_id"]) == (task_id, user), f"get: another task, {task}")
    expect(server, task["title"] == f"task number {task_id}", f"get: another title, {task}")
    status, _ = call(server, "GET", f"/api/user-8/tasks/{task_id}")
    expect(server, status == 404, f"get: somebody else's task answers {status}")

    status, tasks = call(server, "GET", path)
    newest_first = [7 + data.users * n for n in reversed(range(data.tasks // data.users))]
    expect(server, status == 200, f"list: {status}, {tasks}")
    expect(
        server,
        [task["id"] for task in tasks] == newest_first,
        "list: other tasks, or another order",
    )
    expect(server, all(task.keys() >= FIELDS for task in tasks), "list: fields are missing")

    was = stored(task_id)[2]
    for turn in (1, 2):
        status, task = call(server, "PATCH", f"{path}/{task_id}/complete")
        expect(server, status == 200 and task.keys() >= FIELDS, f"toggle: {status}, {task}")
        _, _, completed, completed_at = stored(task_id)
        expect(
            server, completed == task["completed"] == (was if turn == 2 else not was), "no toggle"
        )
        expect(
            server, (completed_at is not None) == completed, "toggle: completed_at does not follow"
        )

    body = {"title": "Is it there?", "priority": "high", "tags": ["home"], "due_date": "2026-12-24"}
    status, task = call(server, "POST", path, body)
    expect(server, status == 201 and task.keys() >= FIELDS, f"create: {status}, {task}")
    expect(server, stored(task["id"])[:3] == (user, body["title"], False), "create: another row")
    expect(server, {name: task[name] for name in body} == body, f"create: another task, {task}")
    postgres.tidy(database, tasks=data.tasks)


def check_plans(url: str) -> None:
    """Raise SystemExit unless the statements that calls share go by an index, for 1 and for 100."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        for query in (
            statements.read_task("user-7", 7),
            statements.list_tasks("user-7", TaskQuery()),
            statements.toggle_task("user-7", 7),
            statements.update_task("user-7", 7, TaskUpdate(completed=True)),
        ):
            assert query.many is not None
            compiled = query.many.compile(dialect=dialect.dialect())  # type: ignore[no-untyped-call]
            for callers in (1, 100):
                each = [{"n": n, **query.parameters} for n in range(callers)]
                calls = json.dumps(each, default=str)
                cursor.execute(f"EXPLAIN {compiled}", {**compiled.params, "calls": calls})
                plan = "\n".join(line for (line,) in cursor.fetchall())
                if "Index Scan" not in plan or re.search("Seq Scan on task(_feed)? ", plan):
                    raise SystemExit(f"not by an index, for {callers} callers:\n{compiled}\n{plan}")
