"""Many clients at once, over four workers: nothing is lost, nothing happens twice."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from tests.support.load import Client, Request, at_once
from tests.support.model import PRIORITIES
from tests.support.service import Service
from tests.support.strategies import LETTERS


@pytest.fixture
def client(crowded: Service) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=crowded.url, trust_env=False, verify=False) as client:
        yield client


def test_two_hundred_creates_with_one_key_make_one_task(
    client: httpx2.Client, crowded: Service, tasks: str
) -> None:
    request = Request("POST", tasks, {"title": "one tap"}, {"Idempotency-Key": "tap"})
    answers = at_once(crowded.url, [request] * 200)
    assert Counter(answer.status for answer in answers) == {201: 200}
    listed = client.get(tasks)
    assert listed.headers["x-total-count"] == "1"
    [task] = listed.json()
    assert all(answer.json() == task for answer in answers)
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1


def test_creates_with_one_key_and_different_bodies_make_the_task_of_one_of_them(
    client: httpx2.Client, crowded: Service, tasks: str
) -> None:
    key = {"Idempotency-Key": "tap"}
    requests = [Request("POST", tasks, {"title": f"tap {n % 2}"}, key) for n in range(40)]
    answers = at_once(crowded.url, requests)
    [task] = client.get(tasks).json()
    for answer in answers:
        same = answer.request.body["title"] == task["title"]
        assert answer.status == (201 if same else 422)
        assert not same or answer.json() == task
    made = [a for a in answers if a.status == 201 and "idempotency-replayed" not in a.headers]
    assert len(made) == 1


def test_a_hundred_toggles_at_once_are_a_hundred_toggles(
    client: httpx2.Client, crowded: Service, tasks: str
) -> None:
    created = client.post(tasks, json={"title": "task"})
    path = f"{tasks}/{created.json()['id']}"
    answers = at_once(crowded.url, [Request("PATCH", f"{path}/complete")] * 100)
    assert {answer.status for answer in answers} == {200}
    after = client.get(path)
    assert after.json()["completed"] is False
    assert after.json()["completed_at"] is None
    # Each saw a state of its own, every second one completed.
    assert len({answer.headers["etag"] for answer in answers}) == 100
    assert sum(answer.json()["completed"] for answer in answers) == 50
    assert all(bool(a.json()["completed_at"]) == a.json()["completed"] for a in answers)


def test_changes_of_different_fields_at_once_are_all_kept(
    client: httpx2.Client, crowded: Service, tasks: str
) -> None:
    path = f"{tasks}/{client.post(tasks, json={'title': 'task'}).json()['id']}"
    changes = {
        "title": "renamed",
        "description": "described",
        "completed": True,
        "priority": "high",
        "due_date": "2026-11-21",
        "tags": ["a"],
        "order": 4.5,
    }
    requests = [Request("PATCH", path, {name: value}) for name, value in changes.items()]
    requests += [Request("PATCH", f"{tasks}?status=all", {"order": 4.5})] * 5
    assert {answer.status for answer in at_once(crowded.url, requests)} == {200}
    after = client.get(path).json()
    assert {name: after[name] for name in changes} == changes


@pytest.mark.parametrize(
    ("field", "clients", "add"),
    [
        ("tags", 20, lambda value, n: [*value, f"edit {n}"]),
        ("description", 50, lambda value, n: f"{value or ''}edit {n}\n"),
    ],
)
def test_clients_that_retry_on_412_lose_no_edit(
    client: httpx2.Client,
    crowded: Service,
    tasks: str,
    field: str,
    clients: int,
    add: Callable[[Any, int], Any],
) -> None:
    created = client.post(tasks, json={"title": "task"})
    path = f"{tasks}/{created.json()['id']}"
    refused = 0

    async def edit(number: int) -> None:
        nonlocal refused
        editor = Client(crowded.url)
        while True:
            read = await editor.send("GET", path)
            changed = {field: add(read.json()[field], number)}
            condition = {"If-Match": read.headers["etag"]}
            written = await editor.send("PATCH", path, changed, condition)
            assert written.status in (200, 412), written
            if written.status == 200:
                break
            refused += 1
        editor.close()

    async def edit_all() -> None:
        await asyncio.gather(*map(edit, range(clients)))

    asyncio.run(edit_all())
    after = client.get(path)
    edits = after.json()[field]
    parts = edits if field == "tags" else edits.splitlines()
    assert sorted(parts) == sorted(f"edit {n}" for n in range(clients))
    assert refused > 0  # else they never met


def test_deletes_at_once_give_the_task_to_one(
    client: httpx2.Client, crowded: Service, tasks: str
) -> None:
    task = client.post(tasks, json={"title": "task"}).json()
    requests = [Request("DELETE", f"{tasks}/{task['id']}")] * 30
    answers = at_once(crowded.url, requests)
    assert Counter(answer.status for answer in answers) == {200: 1, 404: 29}
    (deleted,) = [answer.json() for answer in answers if answer.status == 200]
    touched = {name: deleted[name] for name in ("etag", "updated_at")}
    assert deleted == task | {"deleted": True} | touched


def test_deletes_amid_those_who_bring_the_task_back_meet_no_condition(
    client: httpx2.Client, crowded: Service, tasks: str
) -> None:
    path = client.post(tasks, json={"title": "task"}).json()["url"].removeprefix(crowded.url)
    requests = [Request("DELETE", path), Request("PATCH", path, {"deleted": False})] * 200
    statuses = {answer.status for answer in at_once(crowded.url, requests)}
    assert {200} <= statuses <= {200, 404}


def test_creates_at_once_all_get_ids_of_their_own(
    client: httpx2.Client, crowded: Service, tasks: str
) -> None:
    answers = at_once(crowded.url, [Request("POST", tasks, {"title": str(n)}) for n in range(100)])
    assert Counter(answer.status for answer in answers) == {201: 100}
    made = {answer.json()["id"]: answer.json() for answer in answers}
    assert len(made) == 100
    assert {task["id"]: task for task in client.get(tasks).json()} == made


def test_whoever_asks_at_the_same_time_gets_their_own_answer(service: Service, tasks: str) -> None:
    """One worker, so that calls of one kind meet; each with values that are easy to garble."""
    words = [*LETTERS, "{}", "{a,b}", "null", "\\N", "%s", "\n\t"]
    bodies: list[dict[str, Any]] = [
        {
            "title": f"{n}{word}.",
            "description": None if n % 3 == 0 else word,
            "completed": n % 2 == 0,
            "priority": PRIORITIES[n % 5],
            "due_date": (None, "2026-11-21", "2026-11-21T10:00:00.000001Z")[n % 3],
            "tags": [f"-{word}-", "b"] if n % 4 else [],
            "order": (None, 0.1, -1e300, 5e-324)[n % 4],
        }
        for n, word in enumerate(words)
    ]
    paths = [tasks, tasks.replace("/tasks", "-2/tasks")]
    posts = [Request("POST", paths[n % 2], body) for n, body in enumerate(bodies)]
    made = [answer.json() for answer in at_once(service.url, posts)]
    for body, task in zip(bodies, made, strict=True):
        assert {name: task[name] for name in body} == body
        assert (task["completed_at"] == task["created_at"]) == body["completed"]

    reads = [Request("GET", paths[n % 2] + f"/{task['id']}") for n, task in enumerate(made)]
    foreign = [Request("GET", paths[1 - n % 2] + f"/{task['id']}") for n, task in enumerate(made)]
    lists = [Request("GET", paths[n % 2]) for n in range(50)]
    pages = [Request("GET", f"{paths[n % 2]}?sort=id&limit=3&offset=1") for n in range(50)]
    answers = at_once(service.url, [*reads, *foreign, *lists, *pages])
    assert [answer.json() for answer in answers[: len(made)]] == made
    assert {answer.status for answer in answers[len(made) : 2 * len(made)]} == {404}
    for n, (whole, page) in enumerate(zip(answers[-100:-50], answers[-50:], strict=True)):
        oldest = sorted(made[n % 2 :: 2], key=lambda task: int(task["id"]))
        assert whole.json() == oldest[::-1]
        assert page.json() == sorted(oldest, key=lambda task: int(task["id"]))[1:4]
        assert whole.headers["x-total-count"] == page.headers["x-total-count"] == str(len(oldest))

    wanted = [{"completed": n % 3 == 0} for n in range(len(made))]
    sets = [
        Request("PATCH", f"{r.path}/complete", body) for r, body in zip(reads, wanted, strict=True)
    ]
    toggles = [Request("PATCH", f"{read.path}/complete") for read in reads]
    for old, body, answer in zip(made, wanted, at_once(service.url, sets), strict=True):
        task = answer.json()
        kept = old["completed_at"] if old["completed"] else task["updated_at"]
        changed = {"completed_at": kept if body["completed"] else None}
        touched = {name: task[name] for name in ("etag", "updated_at")}
        assert task == old | body | changed | touched
    for body, answer in zip(wanted, at_once(service.url, toggles), strict=True):
        assert answer.json()["completed"] is not body["completed"]
