"""What tests of the API do over and over."""

from typing import Any

import httpx2


def create(client: httpx2.Client, tasks: str, **fields: Any) -> dict[str, Any]:
    """Create a task under the path `tasks`, titled `task` unless it has a title; return it."""
    answer = client.post(tasks, json={"title": "task", **fields})
    assert answer.status_code == 201, answer.text
    task: dict[str, Any] = answer.json()
    return task


def assert_refused(answer: httpx2.Response, field: str, where: str = "body") -> None:
    """Check that the answer is a 422 that names `field` of body, path, query or header."""
    assert answer.status_code == 422, f"{answer.status_code} {answer.text}"
    named = {(error["field"], error["in"]) for error in answer.json()["errors"]}
    assert (field, where) in named, answer.text


def assert_deleted(answer: httpx2.Response, task: dict[str, Any]) -> None:
    """Check that the answer is the task as it is in the trash."""
    assert answer.status_code == 200, answer.text
    now = answer.json()
    changed = {name: now[name] for name in ("etag", "updated_at")}
    assert now == task | {"deleted": True} | changed
    assert now["etag"] != task["etag"]
    assert now["updated_at"] > task["updated_at"]
