"""`Idempotency-Key`: a create that may be sent again makes one task."""

from typing import Any

import httpx2
import pytest

from tests.support.api import assert_refused, create

KEY = {"Idempotency-Key": "1bb0cd6e-one-tap"}
BODY: dict[str, Any] = {
    "title": "Straße",
    "description": "first\nsecond",
    "priority": "high",
    "due_date": "2026-11-21T10:00:00Z",
    "tags": ["a", "b"],
    "order": 1.5,
}


def post(
    client: httpx2.Client, tasks: str, body: dict[str, Any], **headers: str
) -> httpx2.Response:
    return client.post(tasks, json=body, headers=KEY | headers)


def replayed(answer: httpx2.Response) -> bool:
    """Return whether a 201 says that it repeats an earlier one."""
    assert answer.status_code == 201, answer.text
    return bool(answer.headers.get("idempotency-replayed") == "true")


def test_a_repeat_answers_the_task_that_the_first_made(client: httpx2.Client, tasks: str) -> None:
    first = post(client, tasks, BODY)
    assert not replayed(first)
    assert "idempotency-replayed" not in first.headers
    for _ in range(2):
        again = post(client, tasks, BODY)
        assert replayed(again)
        assert again.json() == first.json()
        assert again.headers["location"] == first.headers["location"] == first.json()["url"]
        assert again.headers["etag"] == first.headers["etag"]
    assert client.get(tasks).json() == [first.json()]


@pytest.mark.parametrize(
    "same",
    [
        '{"order":1.5,"tags":["a","b"],"due_date":"2026-11-21T10:00:00Z","priority":"high",'
        '"description":"first\\nsecond","title":"Straße"}',
        '{ "title" : "Stra\\u00dfe",\n"description": "first\\u000asecond", "priority": "high",'
        ' "due_date": "2026-11-21T10:00:00Z", "tags": [ "a", "b" ], "order": 15e-1 }',
        # What the service would fill in or leave out itself.
        '{"title":" Straße ","description":"first\\nsecond","priority":"high","completed":false,'
        '"due_date":"2026-11-21T11:00:00+01:00","tags":["a","b"],"order":1.5,"id":7}',
    ],
    ids=["order of keys", "white space and escapes", "defaults"],
)
def test_the_same_body_written_otherwise_is_the_same(
    client: httpx2.Client, tasks: str, same: str
) -> None:
    first = post(client, tasks, BODY)
    headers = {"Content-Type": "application/json", **KEY}
    again = client.post(tasks, content=same.encode(), headers=headers)
    assert replayed(again)
    assert again.json() == first.json()


@pytest.mark.parametrize(
    "change",
    [
        {"title": "Strasse"},
        {"description": None},
        {"completed": True},
        {"priority": "urgent"},
        {"due_date": "2026-11-21"},
        {"tags": ["b", "a"]},
        {"order": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_body_under_the_same_key_is_refused_and_changes_nothing(
    client: httpx2.Client, tasks: str, change: dict[str, Any]
) -> None:
    first = post(client, tasks, BODY)
    assert_refused(post(client, tasks, BODY | change), "Idempotency-Key", "header")
    assert client.get(tasks).json() == [first.json()]
    assert client.get(first.json()["url"]).headers["etag"] == first.headers["etag"]
    assert replayed(post(client, tasks, BODY))


def test_a_key_is_its_users_own(client: httpx2.Client, tasks: str, user: str) -> None:
    other = f"/api/{user}-2/tasks"
    first, second = post(client, tasks, BODY), post(client, other, BODY | {"title": "other"})
    assert not replayed(first)
    assert not replayed(second)
    assert client.get(tasks).json() == [first.json()]
    assert client.get(other).json() == [second.json()]


def test_keys_that_differ_and_no_key_make_tasks_of_their_own(
    client: httpx2.Client, tasks: str
) -> None:
    for key in ("a", "A", "a.", "b"):
        assert not replayed(client.post(tasks, json=BODY, headers={"Idempotency-Key": key}))
    for _ in range(2):
        assert not replayed(client.post(tasks, json=BODY))
    assert client.get(tasks).headers["x-total-count"] == "6"


def test_a_repeat_after_a_change_answers_the_task_as_it_is_now(
    client: httpx2.Client, tasks: str
) -> None:
    url = post(client, tasks, BODY).json()["url"]
    changed = client.patch(url, json={"title": "renamed", "completed": True})
    again = post(client, tasks, BODY)
    assert replayed(again)
    assert again.json() == changed.json() == client.get(url).json()
    assert again.headers["etag"] == changed.headers["etag"] == client.get(url).headers["etag"]
    other = changed.json() | {"uid": None}
    assert_refused(post(client, tasks, other), "Idempotency-Key", "header")


@pytest.mark.parametrize("bulk", [False, True])
def test_a_repeat_after_a_delete_makes_a_new_task(
    client: httpx2.Client, tasks: str, bulk: bool
) -> None:
    first = post(client, tasks, BODY).json()
    assert client.delete(tasks if bulk else first["url"]).is_success
    new = post(client, tasks, BODY | {"title": "another"})
    assert not replayed(new)
    assert new.json()["id"] > first["id"]
    assert replayed(post(client, tasks, BODY | {"title": "another"}))
    assert client.get(tasks).json() == [new.json()]


def test_a_refused_create_uses_up_no_key(client: httpx2.Client, tasks: str) -> None:
    assert_refused(post(client, tasks, BODY | {"title": ""}), "title")
    assert not replayed(post(client, tasks, BODY))


@pytest.mark.parametrize("key", ["x", "x" * 255, "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"])
def test_a_key_is_visible_ascii(client: httpx2.Client, tasks: str, key: str) -> None:
    headers = {"Idempotency-Key": key}
    answers = [client.post(tasks, json=BODY, headers=headers) for _ in range(2)]
    assert [replayed(answer) for answer in answers] == [False, True]


@pytest.mark.parametrize("key", [b"", b"x" * 256, b"a b", b"a\tb", "é".encode(), b"\xff"])
def test_another_key_is_refused_and_makes_nothing(
    client: httpx2.Client, tasks: str, key: bytes
) -> None:
    answer = client.post(tasks, json=BODY, headers={b"Idempotency-Key": key})
    assert_refused(answer, "Idempotency-Key", "header")
    assert client.get(tasks).json() == []


def test_only_a_create_looks_at_the_key(client: httpx2.Client, tasks: str) -> None:
    task = create(client, tasks)
    for _ in range(2):
        path = f"{tasks}/{task['id']}/complete"
        toggled = client.patch(path, headers=KEY)
        assert "idempotency-replayed" not in toggled.headers
    assert toggled.json()["completed"] is False
