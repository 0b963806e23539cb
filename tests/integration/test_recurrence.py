"""Tasks that repeat: completing one makes the next, once (contract section 10)."""

import asyncio
import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import psycopg2
import pytest

from queries import repeating
from queries import tasks as statements
from routes import tasks as routes
from schemas import TaskUpdate
from tests.conftest import Database
from tests.support.api import assert_refused, create
from tests.support.app import in_process
from tests.support.load import Request, at_once
from tests.support.service import REPOSITORY, Service
from tests.unit.test_recurrence import REFUSED

Json = dict[str, Any]
TODAY = datetime.now(UTC).date()
LAST = {"recurrence": "FREQ=DAILY;COUNT=1"}
TOMORROW = (TODAY + timedelta(1)).isoformat()
DAILY = {"due_date": TODAY.isoformat(), "recurrence": "FREQ=DAILY"}
SERVER_SET = ("id", "uid", "etag", "url", "created_at", "updated_at")


def pending(client: httpx2.Client, tasks: str) -> list[Json]:
    listed: list[Json] = client.get(tasks, params={"status": "pending"}).json()
    return listed


def complete(client: httpx2.Client, task: Json, **body: Any) -> httpx2.Response:
    answer = client.patch(f"{task['url']}/complete", json=body or None)
    assert answer.status_code == 200, answer.text
    return answer


def next_of(client: httpx2.Client, answer: httpx2.Response) -> Json:
    """The task that the answer to a completion names."""
    task: Json = client.get(answer.links["next"]["url"]).json()
    return task


def by_toggle(client: httpx2.Client, tasks: str, task: Json) -> httpx2.Response:
    return client.patch(f"{task['url']}/complete")


def by_setting(client: httpx2.Client, tasks: str, task: Json) -> httpx2.Response:
    return client.patch(f"{task['url']}/complete", json={"completed": True})


def by_put(client: httpx2.Client, tasks: str, task: Json) -> httpx2.Response:
    return client.put(task["url"], json=task | {"completed": True})


def by_patch(client: httpx2.Client, tasks: str, task: Json) -> httpx2.Response:
    return client.patch(f"{tasks}/{task['uid']}", json={"completed": True})


def in_bulk(client: httpx2.Client, tasks: str, task: Json) -> httpx2.Response:
    answer = client.patch(tasks, params={"id": task["id"]}, json={"completed": True})
    assert answer.json() == {"updated": 1}
    return answer


def by_agent(client: httpx2.Client, tasks: str, task: Json) -> httpx2.Response:
    arguments = {"task_id": task["uid"], "user_id": task["user_id"]}
    call = {"name": "complete_task", "arguments": arguments}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
    return client.post("/mcp", json=message, headers={"MCP-Protocol-Version": "2025-11-25"})


WAYS = [by_toggle, by_setting, by_put, by_patch, in_bulk, by_agent]
Way = Callable[[httpx2.Client, str, Json], httpx2.Response]


@pytest.mark.parametrize("way", WAYS)
def test_completing_makes_the_next_task_with_the_same_fields(
    way: Way, client: httpx2.Client, tasks: str
) -> None:
    task = create(
        client,
        tasks,
        title="Straße",
        description="ﬀ",
        priority="high",
        tags=["b", "a"],
        order=1.5,
        due_date=f"{TODAY}T10:00",
        remind_at=f"{TODAY}T09:30:00Z",
        recurrence="FREQ=DAILY;COUNT=5",
    )
    bystander = create(client, tasks, **DAILY)
    at = client.get(f"{tasks}/changes").json()["position"]
    assert way(client, tasks, task).status_code == 200
    page = client.get(f"{tasks}/changes", params={"since": at, "limit": 1}).json()
    assert len(page["changes"]) == 2  # although one is the limit: both are one change
    [new] = [each for each in pending(client, tasks) if each["id"] != bystander["id"]]
    assert new == task | {
        **{name: new[name] for name in SERVER_SET},
        "due_date": f"{TOMORROW}T10:00:00",
        "remind_at": f"{TOMORROW}T09:30:00.000000Z",
        "recurrence": "FREQ=DAILY;COUNT=4",
    }
    old = client.get(task["url"]).json()
    assert old == task | {
        "completed": True,
        **{name: old[name] for name in ("completed_at", "updated_at", "etag")},
    }
    assert old["completed_at"] == new["created_at"] == new["updated_at"]
    assert sorted(each["id"] for each in page["changes"]) == [task["id"], new["id"]]
    found = client.get(tasks, params={"q": "STRASSE", "status": "pending"}).json()
    assert found == [new]  # what is searched is copied as well


@pytest.mark.parametrize("way", WAYS)
def test_however_often_it_is_completed_there_is_one_next(
    way: Way, client: httpx2.Client, tasks: str
) -> None:
    task = create(client, tasks, **DAILY)
    for _ in range(3):
        assert way(client, tasks, task).status_code == 200
        complete(client, task, completed=True)
        complete(client, task, completed=False)
    listed = {each["id"]: each for each in client.get(tasks).json()}
    assert len(listed) == 2
    assert not any(each["completed"] for each in listed.values())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("forever", ["", "?forever=true"])
def test_a_next_one_that_was_deleted_is_not_made_again(
    forever: str, way: Way, client: httpx2.Client, tasks: str
) -> None:
    task = create(client, tasks, **DAILY)
    new = next_of(client, complete(client, task))
    assert client.delete(new["url"] + forever).status_code == 200
    complete(client, task, completed=False)
    again = way(client, tasks, task)
    assert "link" not in again.headers
    assert client.patch(tasks, json={"completed": True}).json() == {"updated": 1}
    assert [each["id"] for each in client.get(tasks).json()] == [task["id"]]


@pytest.mark.parametrize("way", [by_toggle, in_bulk])
def test_a_task_that_has_the_uid_of_the_next_is_in_nobodys_way(
    way: Way, client: httpx2.Client, tasks: str
) -> None:
    task = create(client, tasks, **DAILY)
    other = create(client, tasks, uid=repeating.next_uid(task))
    assert way(client, tasks, task).status_code == 200
    assert client.get(task["url"]).json()["completed"]
    assert pending(client, tasks) == [other]


def test_every_completing_answer_names_the_next_task_while_there_is_one(
    client: httpx2.Client, tasks: str
) -> None:
    task = create(client, tasks, **DAILY)
    first = complete(client, task)
    new = next_of(client, first)
    assert new["due_date"] == TOMORROW
    assert first.headers["link"] == f'<{new["url"]}>; rel="next"'
    for again in (complete(client, task, completed=True), by_put(client, tasks, task)):
        assert again.headers["link"] == first.headers["link"]
    assert "link" not in client.patch(task["url"], json={"title": "x"}).headers
    assert "link" not in complete(client, task).headers  # pending now
    client.patch(new["url"], json={"deleted": True})
    assert "link" not in complete(client, task).headers


def test_a_task_that_is_created_completed_makes_none(client: httpx2.Client, tasks: str) -> None:
    task = create(client, tasks, **DAILY, completed=True)
    client.post(tasks, json=[{"title": "x", **DAILY, "completed": True}])
    assert "link" not in complete(client, task, completed=True).headers
    assert pending(client, tasks) == []


def test_a_series_goes_on_and_ends(client: httpx2.Client, tasks: str) -> None:
    task = create(client, tasks, due_date="2026-01-31", recurrence="FREQ=DAILY;COUNT=3")
    dates = [task["due_date"]]
    while link := (answer := complete(client, task)).links.get("next"):
        task = client.get(link["url"]).json()
        dates.append(task["due_date"])
    assert dates == ["2026-01-31", TOMORROW, (TODAY + timedelta(2)).isoformat()]
    assert answer.json()["recurrence"] == "FREQ=DAILY;COUNT=1"
    assert pending(client, tasks) == []


def test_the_change_that_completes_counts_for_the_next(client: httpx2.Client, tasks: str) -> None:
    task = create(client, tasks)
    change = {**DAILY, "title": "new", "completed": True, "repeat_from": "completed"}
    new = next_of(client, client.patch(task["url"], json=change))
    assert (new["title"], new["repeat_from"], new["due_date"]) == ("new", "completed", TOMORROW)
    last = client.patch(new["url"], json={"completed": True, "recurrence": None})
    assert "link" not in last.headers
    assert pending(client, tasks) == []


def test_a_bulk_completion_makes_the_next_of_each_and_no_other(
    client: httpx2.Client, tasks: str
) -> None:
    mine = [create(client, tasks, title=f"{n}", **DAILY) for n in range(5)]
    single, ended = (
        create(client, tasks),
        create(client, tasks, **DAILY | {"recurrence": "FREQ=DAILY;COUNT=1"}),
    )
    complete(client, mine[0])
    at = client.get(f"{tasks}/changes").json()["position"]
    old = [each["id"] for each in (*mine, single, ended)]
    answer = client.patch(tasks, params={"id": old, "status": "all"}, json={"completed": True})
    assert answer.json() == {"updated": 7}
    assert sorted(each["title"] for each in pending(client, tasks)) == ["0", "1", "2", "3", "4"]
    page = client.get(f"{tasks}/changes", params={"since": at, "limit": 1}).json()
    assert len(page["changes"]) == 7 + 4  # all of it is one change


def test_the_next_tasks_of_a_bulk_completion_are_in_the_order_of_the_old(
    client: httpx2.Client, tasks: str
) -> None:
    mine = [create(client, tasks, title=f"{n}", **DAILY) for n in range(9)]
    for task in (mine[4], mine[2]):  # so that their rows are elsewhere
        client.patch(task["url"], json={"order": 1})
    assert client.patch(tasks, json={"completed": True}).json() == {"updated": 9}
    assert [each["title"] for each in pending(client, tasks)] == list("876543210")


def test_a_bulk_completion_of_repeating_tasks_honours_if_match(
    client: httpx2.Client, tasks: str
) -> None:
    create(client, tasks, **DAILY)
    stale = client.get(tasks).headers["etag"]
    create(client, tasks, **DAILY)
    done = {"completed": True}
    refused = client.patch(tasks, json=done, headers={"If-Match": stale})
    assert refused.status_code == 412
    assert len(pending(client, tasks)) == 2
    now = client.get(tasks).headers["etag"]
    assert client.patch(tasks, json=done, headers={"If-Match": now}).json() == {"updated": 2}
    assert len(client.get(tasks).json()) == 4


def test_a_bulk_completion_follows_a_bulk_change_of_the_same_shape(
    client: httpx2.Client, tasks: str
) -> None:
    create(client, tasks, **DAILY)
    now = {"If-Match": client.get(tasks).headers["etag"]}
    these = {"title_ne": "x", "uid_ne": "x"}  # which no other test asks for
    undone = client.patch(tasks, params=these, json={"completed": False}, headers=now)
    assert undone.json() == {"updated": 1}
    done = client.patch(tasks, params=these, json={"completed": True})
    assert (done.status_code, done.json()) == (200, {"updated": 1})
    assert len(client.get(tasks).json()) == 2


def test_a_completion_honours_if_match(client: httpx2.Client, tasks: str) -> None:
    task = create(client, tasks, **DAILY)
    fresh = client.patch(task["url"], json={"title": "x"}).headers["etag"]
    for etag, status in ((task["etag"], 412), (fresh, 200), (fresh, 412)):
        answer = client.patch(f"{task['url']}/complete", headers={"If-Match": etag})
        assert answer.status_code == status
    assert len(client.get(tasks).json()) == 2


def test_what_is_in_the_trash_or_not_there_is_not_found(client: httpx2.Client, tasks: str) -> None:
    task = create(client, tasks, **DAILY)
    client.delete(task["url"])
    for url in (task["url"], f"{tasks}/nobody"):
        for path, body in (("/complete", None), ("", {"completed": True}), ("", DAILY)):
            assert client.patch(url + path, json=body).status_code == 404
    restored = client.patch(task["url"], json={"deleted": False, "completed": True})
    assert next_of(client, restored)["deleted"] is False


@pytest.mark.parametrize("bulk", [False, True])
@pytest.mark.parametrize(
    ("kept", "change", "field"),
    [
        (DAILY, {"due_date": None}, "due_date"),
        (DAILY, {"due_date": ""}, "due_date"),
        (DAILY, {"due_date": None, "completed": True}, "due_date"),
        (DAILY, {"due_date": None, "completed": False}, "due_date"),
        ({}, {"recurrence": "FREQ=DAILY"}, "recurrence"),
        (DAILY, {"due_date": None, "recurrence": "FREQ=DAILY"}, "recurrence"),
        (DAILY, {"recurrence": f"FREQ=DAILY;UNTIL={TODAY:%Y%m%d}T100000"}, "recurrence"),
        (
            DAILY | {"recurrence": f"FREQ=DAILY;UNTIL={TODAY:%Y%m%d}"},
            {"due_date": f"{TODAY}T10:00"},
            "due_date",
        ),
    ],
)
def test_a_rule_needs_a_due_date_that_fits(
    kept: Json, change: Json, field: str, bulk: bool, client: httpx2.Client, tasks: str
) -> None:
    task = create(client, tasks, **kept)
    assert_refused(client.patch(tasks if bulk else task["url"], json=change), field)
    assert client.get(tasks).json() == [task]


def test_a_rule_is_cleared_with_its_due_date(client: httpx2.Client, tasks: str) -> None:
    for nothing in (None, ""):
        task = create(client, tasks, **DAILY, remind_at=f"{TODAY}T10:00")
        change = {"recurrence": nothing, "due_date": nothing, "remind_at": nothing}
        cleared = client.patch(task["url"], json=change).json()
        assert [cleared[name] for name in change] == [None] * 3
        complete(client, task)
    assert pending(client, tasks) == []
    assert create(client, tasks, recurrence="", remind_at="")["recurrence"] is None


def test_a_new_rule_without_a_due_date_is_refused(client: httpx2.Client, tasks: str) -> None:
    body = {"title": "x", "recurrence": "FREQ=DAILY"}
    assert_refused(client.post(tasks, json=body), "recurrence")
    assert_refused(client.post(tasks, json=[body]), "0.recurrence")
    assert_refused(client.post(tasks, json=body | {"due_date": "soon"}), "due_date")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("recurrence", "FREQ=HOURLY"),
        ("recurrence", "FREQ=DAILY;" * 20_000),
        ("recurrence", "FREQ=DAILY;\ud800"),
        ("recurrence", 1),
        ("repeat_from", None),
        ("repeat_from", "start"),
        ("remind_at", "2026-11-21"),
        ("remind_at", "2026-11-21T10:00:00.5"),
        ("remind_at", "soon"),
    ],
)
def test_a_bad_value_is_refused_by_name(
    field: str, value: Any, client: httpx2.Client, tasks: str
) -> None:
    task = create(client, tasks, **DAILY)
    body = json.dumps({"title": "x", "due_date": "2026-11-21"} | {field: value})
    headers = {"Content-Type": "application/json"}
    assert_refused(client.post(tasks, content=body, headers=headers), field)
    assert_refused(client.put(task["url"], content=body, headers=headers), field)
    assert client.get(tasks).json() == [task]


@pytest.mark.parametrize(("rule", "part"), [each for each in REFUSED if each[0]])
def test_a_refused_rule_names_its_part_as_that_is_spelt(
    rule: str, part: str, client: httpx2.Client, tasks: str
) -> None:
    task = create(client, tasks, **DAILY)
    bodies = {"title": "x", "due_date": "2026-11-21", "recurrence": rule}, {"recurrence": rule}
    for answer in client.post(tasks, json=bodies[0]), client.patch(task["url"], json=bodies[1]):
        assert_refused(answer, "recurrence")
        assert answer.json()["detail"].startswith(f"recurrence: {part} must")


def test_what_a_reminder_service_polls_for(client: httpx2.Client, tasks: str) -> None:
    times = ["2026-11-21T10:00:00", "2026-11-21T10:00:00.000001Z", None, "2026-11-22T00:00:00"]
    made = [create(client, tasks, remind_at=time) for time in times]
    ids = {each["id"]: n for n, each in enumerate(made)}

    def found(**parameters: str) -> list[int]:
        listed = client.get(tasks, params={"sort": "remind_at", **parameters}).json()
        return [ids[each["id"]] for each in listed]

    assert found() == [0, 1, 3, 2]
    assert found(remind_at_lte="2026-11-21T10:00:00Z") == [0]
    assert found(remind_at_lte="2026-11-21") == [0, 1]
    assert found(remind_at_gte="2026-11-21T10:00:01Z") == [3]
    assert found(remind_at="") == [2]
    assert found(remind_at="2026-11-21T10:00") == [0]
    assert found(remind_at_like="T10") == [0, 1]
    assert found(recurrence="") == [0, 1, 3, 2]
    assert found(recurrence_ne="") == found(repeat_from="completed") == []
    client.patch(tasks, json=DAILY | {"repeat_from": "completed"})
    assert found(recurrence="FREQ=DAILY", repeat_from="completed") == [0, 1, 3, 2]
    assert found(recurrence_like="WEEKLY") == []
    assert client.delete(f"{tasks}?remind_at=").json() == {"deleted": 1}


def test_the_examples_of_the_page_are_so(client: httpx2.Client, tasks: str) -> None:
    """Completed on their day; the page says when the next one is due."""
    page = (REPOSITORY / "docs/api.md").read_text().partition("\n## Tasks that repeat\n")[2]
    lines = page.partition("\n## ")[0].splitlines()
    rows = [line.split("|")[1:-1] for line in lines if "| `FREQ" in line]
    assert len(rows) >= 8
    for _, rule, due, following in ([cell.strip().strip("`") for cell in row] for row in rows):
        task = create(client, tasks, due_date=due, recurrence=rule)
        assert next_of(client, complete(client, task))["due_date"] == following, rule


# ---- at once


@pytest.mark.parametrize("way", [by_toggle, by_patch, in_bulk])
def test_a_rule_that_changes_while_the_next_date_is_reckoned_is_read_again(
    way: Way, new_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    reckoned: list[repeating.Nexts] = []

    def change_first(tasks: Iterable[Mapping[str, Any]], change: TaskUpdate) -> repeating.Nexts:
        reckoned.append(repeating.nexts_of(tasks, change))
        if len(reckoned) == 1:
            run(new_database, "UPDATE task_feed SET position = position + 1")
            run(new_database, "UPDATE task SET recurrence = 'FREQ=YEARLY', version = 1")
        return reckoned[-1]

    monkeypatch.setattr(routes, "nexts_of", change_first)
    with in_process(database_url=new_database.url) as client:
        task = create(client, "/api/tasks", due_date="2044-02-28", recurrence="FREQ=DAILY")
        assert way(client, "/api/tasks", task).status_code == 200
        [new] = pending(client, "/api/tasks")
        assert (new["recurrence"], new["due_date"]) == ("FREQ=YEARLY", "2045-02-28")
    assert len(reckoned) == 2


def test_rules_are_given_in_bulk_to_what_a_version_made_that_knew_no_positions(
    new_database: Database,
) -> None:
    with in_process(database_url=new_database.url) as client:
        task = create(client, "/api/tasks", due_date="2044-02-28")
        run(new_database, "DELETE FROM task_feed")
        answer = client.patch("/api/tasks", json={"recurrence": "FREQ=DAILY"})
        assert answer.json() == {"updated": 1}
        assert client.get(task["url"]).json()["recurrence"] == "FREQ=DAILY"


def run(database: Database, statement: str) -> None:
    """Run a statement on the database, beside the service."""
    url = database.url.removeprefix("sqlite:///")
    connect = sqlite3.connect if database.name == "sqlite" else psycopg2.connect
    with closing(connect(url)) as connection:
        connection.cursor().execute(statement)
        connection.commit()


def test_a_change_of_nothing_makes_no_next() -> None:
    query = statements.update_task("u", 1, TaskUpdate(), (1,), ruled=True)
    assert repeating.with_next(query, {1: ("x", None, None, None)}) == query


@pytest.mark.parametrize("others", ["none", "toggles", "bulk", "all"])
def test_a_hundred_completions_at_once_make_one_next_task(
    others: str, client: httpx2.Client, crowded: Service, tasks: str
) -> None:
    task = create(client, tasks, **DAILY)
    only = f"{tasks}?id={task['id']}"
    path = f"{tasks}/{task['id']}"
    requests = [
        Request("PATCH", f"{path}/complete", {"completed": True}),
        Request("PUT", path, {"completed": True, "title": "done"}),
    ] * 50
    if others in ("toggles", "all"):
        requests += [Request("PATCH", f"{path}/complete")] * 30
        requests += [Request("PATCH", f"{path}/complete", {"completed": False})] * 20
    if others in ("bulk", "all"):
        requests[::5] = [Request("PATCH", only, {"completed": True})] * len(requests[::5])
    answers = at_once(crowded.url, requests)
    assert {answer.status for answer in answers} == {200}
    complete(client, task, completed=True)
    old, new = sorted(client.get(tasks).json(), key=lambda each: each["id"])
    assert (old["id"], old["completed"]) == (task["id"], True)
    assert (new["completed"], new["due_date"]) == (False, TOMORROW)


def test_bulk_completions_at_once_make_one_next_of_each(
    client: httpx2.Client, crowded: Service, tasks: str
) -> None:
    made = [create(client, tasks, title=f"{n}", **DAILY) for n in range(20)]
    ids = "&".join(f"id={each['id']}" for each in made)
    bulk = [Request("PATCH", f"{tasks}?{ids}", {"completed": True})] * 12
    single = [Request("PATCH", f"{tasks}/{each['id']}/complete") for each in made]
    assert {answer.status for answer in at_once(crowded.url, bulk + single)} == {200}
    client.patch(f"{tasks}?{ids}", json={"completed": True})
    titles = [each["title"] for each in pending(client, tasks)]
    assert sorted(titles) == sorted(each["title"] for each in made)


def test_a_bulk_completion_that_others_always_forestall_is_given_up_in_time(
    new_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def position_that_is_over(*_: object) -> int:
        await asyncio.sleep(0.2)  # so that all its tries would take 20 s
        return 1

    monkeypatch.setattr(routes, "position_of", position_that_is_over)
    monkeypatch.setattr(routes, "BULK_DEADLINE", 0.5)
    with in_process(database_url=new_database.url) as client:
        create(client, "/api/tasks", title="x", due_date="2026-01-01", recurrence="FREQ=DAILY")
        started = time.monotonic()
        answer = client.patch("/api/tasks", json={"completed": True})
        assert time.monotonic() - started < 5
        assert answer.status_code == 503
        assert client.get("/api/tasks/stats").json()["completed"] == 0


KEEPS_ALL_AS_IT_IS = {
    "sqlite": """
        CREATE TRIGGER kept_{0} BEFORE {0} ON task WHEN OLD.title = 'kept'
        BEGIN SELECT raise(ignore); END""",
    "postgresql": """
        CREATE OR REPLACE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RETURN NULL; END $$;
        CREATE TRIGGER kept_{0} BEFORE {0} ON task FOR EACH ROW WHEN (OLD.title = 'kept')
        EXECUTE FUNCTION nothing()""",
}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "/complete", None),
        ("PUT", "", {"title": "other"}),
        ("DELETE", "", None),
        ("DELETE", "?forever=true", None),
    ],
)
def test_a_change_that_a_trigger_of_the_operators_passes_over_is_given_up_in_time(
    new_database: Database, monkeypatch: pytest.MonkeyPatch, method: str, path: str, body: Any
) -> None:
    monkeypatch.setattr(routes, "DEADLINE", 0.3)
    with in_process(database_url=new_database.url) as client:
        task = create(client, "/api/tasks", title="kept")
        for change in ("UPDATE", "DELETE"):
            run(new_database, KEEPS_ALL_AS_IT_IS[new_database.name].format(change))
        answer = client.request(method, f"/api/tasks/{task['id']}{path}", json=body)
        assert answer.status_code == 503
        assert client.get(f"/api/tasks/{task['id']}").json() == task
