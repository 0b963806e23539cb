"""Ids of the client's own, and arrays of new tasks (contract sections 1, 2 and 4)."""

import time
from collections import Counter
from datetime import datetime
from typing import Any
from uuid import RFC_4122, UUID

import httpx2
import pytest

from tests.support.api import assert_refused, create
from tests.support.load import Request, at_once
from tests.support.problems import CORS, assert_problem
from tests.support.service import Service

BODY = {"title": "Straße", "tags": ["a"], "uid": "draft_1-a"}


def replayed(answer: httpx2.Response) -> bool:
    assert answer.status_code == 201, answer.text
    return answer.headers.get("idempotency-replayed") == "true"


def test_every_call_about_a_task_takes_its_uid(client: httpx2.Client, tasks: str) -> None:
    task = create(client, tasks, **BODY)
    path = f"{tasks}/{BODY['uid']}"
    assert client.get(path).json() == task
    assert client.put(path, json={"title": "b"}).json()["title"] == "b"
    changed = client.patch(path, json={"title": "c"}, headers={"If-Match": "*"})
    assert changed.json()["id"] == task["id"]
    for _ in range(2):
        done = client.patch(f"{path}/complete", json={"completed": True})
        assert done.json()["completed"] is True
    assert client.patch(f"{path}/complete").json()["completed"] is False
    stale = client.patch(path, json={"title": "d"}, headers={"If-Match": task["etag"]})
    assert stale.status_code == 412
    assert client.delete(path).json()["deleted"] is True
    for method in ("GET", "PUT", "PATCH", "DELETE"):
        answer = client.request(method, path, json={} if method[0] == "P" else None)
        assert answer.status_code == 404, method
        assert "draft_1-a" not in answer.text


@pytest.mark.parametrize(
    "uid",
    ["", " ", "7", "0", "00", "stats", "changes", "a b", "a.b", "a/b", "é", "a" * 65, 7, True],
)
def test_what_can_be_no_uid_is_refused(client: httpx2.Client, tasks: str, uid: Any) -> None:
    assert_refused(client.post(tasks, json={"title": "x", "uid": uid}), "uid")
    assert client.get(tasks).json() == []


@pytest.mark.parametrize("uid", ["a", "-1", "1e0", "0x1", "_", "Stats", "a" * 64, "1-2"])
def test_what_can_be_a_uid_leads_to_its_task(client: httpx2.Client, tasks: str, uid: str) -> None:
    task = create(client, tasks, uid=uid)
    assert client.get(f"{tasks}/{uid}").json() == task
    assert client.get(tasks, params={"uid": uid}).json() == [task]


def test_a_uid_is_its_users_own_and_stays(client: httpx2.Client, tasks: str, user: str) -> None:
    mine = create(client, tasks, uid="same")
    theirs = create(client, f"/api/{user}-2/tasks", uid="same", title="theirs")
    assert mine["id"] != theirs["id"]
    for method in ("PUT", "PATCH"):
        changed = client.request(method, f"{tasks}/same", json={"uid": "other", "title": "b"})
        assert changed.json()["uid"] == "same"
    assert client.get(f"{tasks}/other").status_code == 404


def test_a_uid_of_the_services_own_begins_with_the_time(client: httpx2.Client, tasks: str) -> None:
    ours = []
    for body in ({"title": "a"}, [{"title": "b"}, {"title": "c"}], {"title": "d"}):
        time.sleep(0.002)
        made = client.post(tasks, json=body).json()
        ours += made if isinstance(made, list) else [made]
    for task in ours:
        uid = UUID(task["uid"])
        assert (uid.version, uid.variant, str(uid)) == (7, RFC_4122, task["uid"])
        created = datetime.fromisoformat(task["created_at"])
        assert abs(created.timestamp() - (uid.int >> 80) / 1000) < 1
    first, second, third, last = (task["uid"] for task in ours)
    assert first < min(second, third) <= max(second, third) < last
    assert second != third


@pytest.mark.parametrize("trashed", [False, True])
def test_a_uid_makes_a_create_safe_to_repeat(
    client: httpx2.Client, tasks: str, trashed: bool
) -> None:
    assert not replayed(client.post(tasks, json=BODY))
    task = client.get(f"{tasks}/{BODY['uid']}").json()
    if trashed:
        task = client.delete(f"{tasks}/{BODY['uid']}").json()
    again = client.post(tasks, json=BODY)
    assert replayed(again)
    assert again.json() == task
    for body in (BODY | {"title": "other"}, {"title": "Straße", "uid": BODY["uid"]}):
        other = client.post(tasks, json=body, headers=CORS)
        assert_problem(other, 409)
        (error,) = other.json()["errors"]
        assert (error["field"], error["in"]) == ("uid", "body")
    assert [*client.get(tasks).json(), *client.get(f"{tasks}?deleted=true").json()] == [task]


def test_a_uid_and_a_key_may_come_together(client: httpx2.Client, tasks: str) -> None:
    key = {"Idempotency-Key": "k"}
    assert not replayed(client.post(tasks, json=BODY, headers=key))
    assert replayed(client.post(tasks, json=BODY, headers=key))
    assert replayed(client.post(tasks, json=BODY, headers={"Idempotency-Key": "other"}))
    assert replayed(client.post(tasks, json=BODY))
    before = client.get(tasks)
    other = client.post(tasks, json=BODY | {"uid": "b"}, headers=key)
    assert_refused(other, "Idempotency-Key", "header")
    after = client.get(tasks)
    assert after.json() == before.json()
    assert after.headers["etag"] == before.headers["etag"]  # of the position: nothing was done


def test_a_hundred_creates_with_one_uid_make_one_task(
    client: httpx2.Client, service: Service, tasks: str
) -> None:
    answers = at_once(service.url, [Request("POST", tasks, BODY)] * 100)
    assert Counter(answer.status for answer in answers) == {201: 100}
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    (task,) = client.get(tasks).json()
    assert all(answer.json() == task for answer in answers)


# ---- arrays


@pytest.mark.parametrize("number", [1, 2, 1000])
def test_an_array_makes_all_of_its_tasks(client: httpx2.Client, tasks: str, number: int) -> None:
    bodies = [{"title": f"task {n}", "tags": [f"{n}"], "order": n / 3} for n in range(number)]
    answer = client.post(tasks, json=bodies)
    assert answer.status_code == 201
    made = answer.json()
    assert [
        {name: task[name] for name in body} for task, body in zip(made, bodies, strict=True)
    ] == bodies
    assert client.get(tasks, params={"sort": "order"}).json() == made
    assert client.get(f"{tasks}/changes").json()["position"] == 2


def test_the_last_of_an_array_is_the_newest(client: httpx2.Client, tasks: str) -> None:
    titles = [f"task {n}" for n in range(200)]
    made = client.post(tasks, json=[{"title": title} for title in titles]).json()
    assert [task["id"] for task in made] == sorted(task["id"] for task in made)
    assert [task["title"] for task in client.get(tasks).json()] == titles[::-1]


def test_an_array_with_uids_is_safe_to_repeat(client: httpx2.Client, tasks: str) -> None:
    bodies: list[dict[str, Any]] = [{"title": "a", "uid": "a"}, {"title": "b", "uid": "b"}]
    made = client.post(tasks, json=bodies).json()
    more = [*bodies, {"title": "c", "completed": True}]
    answer = client.post(tasks, json=more)
    assert answer.status_code == 201
    assert answer.json()[:2] == made
    assert len(client.get(tasks).json()) == 3


def test_of_an_array_with_anothers_uid_none_is_made(client: httpx2.Client, tasks: str) -> None:
    task = create(client, tasks, uid="b", title="other")
    bodies = [{"title": name, "uid": name} for name in "abc"]
    assert_problem(client.post(tasks, json=bodies, headers=CORS), 409)
    assert client.get(tasks).json() == [task]


@pytest.mark.parametrize(
    ("bodies", "field", "where"),
    [
        ([], "body", "body"),
        ([{"title": "x"}] * 1001, "body", "body"),
        ([{"title": "x"}, {"titel": "x"}], "1.title", "body"),
        ([{"title": "x"}, 7], "1", "body"),
        ([{"title": "x", "uid": "a"}, {"title": "x", "uid": "a"}], "1.uid", "body"),
        ([{"title": "x", "uid": "7"}], "0.uid", "body"),
    ],
    ids=["none", "too many", "no title", "no object", "one uid twice", "no uid"],
)
def test_an_array_with_a_fault_makes_nothing(
    client: httpx2.Client, tasks: str, bodies: Any, field: str, where: str
) -> None:
    assert_refused(client.post(tasks, json=bodies), field, where)
    assert client.get(tasks).json() == []


def test_a_key_is_for_one_task(client: httpx2.Client, tasks: str) -> None:
    answer = client.post(tasks, json=[{"title": "x"}], headers={"Idempotency-Key": "k"})
    assert_refused(answer, "Idempotency-Key", "header")


# ---- conditions


@pytest.mark.parametrize(("method", "suffix"), [("PUT", ""), ("PATCH", ""), ("PATCH", "/complete")])
def test_if_none_match_any_refuses_to_change_what_is_there(
    client: httpx2.Client, tasks: str, method: str, suffix: str
) -> None:
    task = create(client, tasks, uid="a")
    body: dict[str, Any] = {"json": {"title": "b"}} if not suffix else {}
    for key, status in (("a", 412), (task["id"], 412), ("b", 404)):
        headers = {"If-None-Match": "*"}
        answer = client.request(method, f"{tasks}/{key}{suffix}", headers=headers, **body)
        assert answer.status_code == status
    assert client.delete(f"{tasks}/a", headers={"If-None-Match": "*"}).status_code == 412
    other = client.delete(f"{tasks}/a", headers={"If-None-Match": task["etag"]})
    assert_refused(other, "If-None-Match", "header")
    assert client.get(tasks).json() == [task]


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
@pytest.mark.parametrize("query", ["", "?q=nothing", "?status=pending"])
def test_a_bulk_call_is_done_only_at_the_position_of_its_tag(
    client: httpx2.Client, tasks: str, method: str, query: str
) -> None:
    task = create(client, tasks)
    body: dict[str, Any] = {"json": {"title": "b"}} if method == "PATCH" else {}
    stale = client.get(tasks).headers["etag"]
    client.patch(f"{tasks}/{task['id']}/complete")
    listed = client.get(tasks + query)
    for tag in (stale, f"W/{listed.headers['etag']}", '"x"', task["etag"], '"1"'):
        refused = client.request(method, tasks + query, headers={**CORS, "If-Match": tag}, **body)
        assert_problem(refused, 412)
    assert client.get(tasks + query).json() == listed.json()
    for tag in (f"{stale}, {listed.headers['etag']}", "*"):
        done = client.request(method, tasks + query, headers={"If-Match": tag}, **body)
        assert done.status_code == 200, done.text
    if method == "PATCH" and not query:
        assert client.get(tasks).json()[0]["title"] == "b"


def test_a_bulk_call_of_a_user_without_tasks_compares_as_well(
    client: httpx2.Client, tasks: str
) -> None:
    tag = client.get(tasks).headers["etag"]
    assert client.delete(tasks, headers={"If-Match": tag}).json() == {"deleted": 0}
    assert client.delete(tasks, headers={"If-Match": f'"7{tag[2:]}'}).status_code == 412


# ---- changes


def test_changes_come_once_each_and_in_their_order(client: httpx2.Client, tasks: str) -> None:
    made = [create(client, tasks, title=str(n)) for n in range(4)]
    client.patch(f"{tasks}/{made[1]['id']}", json={"title": "again"})
    page = client.get(f"{tasks}/changes").json()
    assert [task["title"] for task in page["changes"]] == ["0", "2", "3", "again"]
    assert (page["position"], page["more"]) == (6, False)
    assert client.get(f"{tasks}/changes", params={"since": 6}).json()["changes"] == []


def test_a_page_ends_within_no_change(client: httpx2.Client, tasks: str) -> None:
    for n in range(5):
        create(client, tasks, title=str(n))
    client.patch(tasks, params={"id": [1]}, json={"order": 1})  # nobody's
    client.patch(tasks, json={"order": 1})
    create(client, tasks, title="last")
    first = client.get(f"{tasks}/changes", params={"limit": 2}).json()
    assert len(first["changes"]) == 5
    assert first["more"] is True
    rest = client.get(f"{tasks}/changes", params={"since": first["position"], "limit": 2}).json()
    assert [task["title"] for task in rest["changes"]] == ["last"]
    assert rest["more"] is False


def test_a_position_of_another_database_is_gone(client: httpx2.Client, tasks: str) -> None:
    assert client.get(f"{tasks}/changes", params={"since": 1}).json()["position"] == 1
    for since in (2, 2**53 - 1):
        answer = client.get(f"{tasks}/changes", params={"since": since}, headers=CORS)
        assert_problem(answer, 410)


def test_what_has_not_changed_is_not_sent_again(client: httpx2.Client, tasks: str) -> None:
    create(client, tasks)
    for path in (tasks, f"{tasks}?sort=title&q=a", f"{tasks}/changes"):
        tag = client.get(path).headers["etag"]
        assert client.get(path, headers={"If-None-Match": tag}).status_code == 304
        create(client, tasks)
        assert client.get(path, headers={"If-None-Match": tag}).status_code == 200
