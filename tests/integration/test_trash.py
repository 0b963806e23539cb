"""The trash: deleted tasks wait there for 30 days, are told as gone for 30 more, then forgotten."""

import asyncio
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

import trash
from database import Database as Store
from settings import Settings
from tests.conftest import Database
from tests.support.api import assert_refused, create
from tests.support.app import in_process
from tests.support.problems import CORS, assert_problem


def changes(client: httpx2.Client, tasks: str, since: int = 0) -> Any:
    answer = client.get(f"{tasks}/changes", params={"since": since})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_deleted_task_is_found_in_the_trash_only(client: httpx2.Client, tasks: str) -> None:
    kept, task = create(client, tasks, title="kept"), create(client, tasks, title="gone")
    path = f"{tasks}/{task['id']}"
    deleted = client.delete(path).json()
    assert deleted["deleted"] is True
    for method, suffix in (("GET", ""), ("PATCH", ""), ("PUT", ""), ("PATCH", "/complete")):
        answer = client.request(method, path + suffix, json={"title": "x"} if not suffix else None)
        assert answer.status_code == 404, method
    assert client.delete(path).status_code == 404
    assert client.patch(path, json={"deleted": True}).status_code == 404
    assert client.get(tasks).json() == [kept]
    assert client.get(tasks, params={"q": "gone"}).json() == []
    assert client.get(f"{tasks}/stats").json()["total"] == 1
    assert client.get(tasks, params={"deleted": "true", "uid": task["uid"]}).json() == [deleted]
    assert client.get(tasks, params={"deleted": "false"}).json() == [kept]
    assert client.patch(tasks, json={"title": "all"}).json() == {"updated": 1}


@pytest.mark.parametrize("key", ["id", "uid"])
@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_a_task_comes_back_as_it_was(
    client: httpx2.Client, tasks: str, method: str, key: str
) -> None:
    task = create(client, tasks, title="back", tags=["a"], completed=True)
    path = f"{tasks}/{task[key]}"
    client.delete(path)
    back = client.request(method, path, json={"deleted": False}).json()
    touched = {name: back[name] for name in ("etag", "updated_at")}
    assert back == task | touched
    assert client.get(path).json() == back


def test_a_patch_deletes_as_well(client: httpx2.Client, tasks: str) -> None:
    task = create(client, tasks)
    answer = client.patch(f"{tasks}/{task['id']}", json={"deleted": True, "title": "last"})
    assert (answer.json()["deleted"], answer.json()["title"]) == (True, "last")
    assert client.get(tasks).json() == []


@pytest.mark.parametrize("trashed", [False, True])
def test_forever_is_at_once_and_out_of_the_trash_too(
    client: httpx2.Client, tasks: str, trashed: bool
) -> None:
    task = create(client, tasks, uid="mine")
    if trashed:
        task = client.delete(f"{tasks}/mine").json()
    answer = client.delete(f"{tasks}/mine", params={"forever": "true"})
    assert (answer.status_code, answer.json()) == (200, task)
    assert client.get(tasks, params={"deleted": "true"}).json() == []
    assert client.patch(f"{tasks}/mine", json={"deleted": False}).status_code == 404
    page = changes(client, tasks, since=2)
    gone = {"id": task["id"], "uid": "mine", "deleted": True, "gone": True}
    assert page["changes"] == [gone]
    assert create(client, tasks, uid="mine")["id"] > task["id"]


def test_forever_heeds_conditions_in_the_trash_too(client: httpx2.Client, tasks: str) -> None:
    task = create(client, tasks)
    trashed = client.delete(task["url"]).json()
    path = f"{tasks}/{task['uid']}"
    for headers in {"If-Match": task["etag"]}, {"If-None-Match": "*"}:
        assert client.delete(f"{path}?forever=true", headers=headers).status_code == 412
    assert client.get(tasks, params={"deleted": "true"}).json() == [trashed]
    answer = client.delete(f"{path}?forever=true", headers={"If-Match": trashed["etag"]})
    assert (answer.status_code, answer.json()) == (200, trashed)
    answer = client.delete(f"{path}?forever=true", headers={"If-Match": trashed["etag"]})
    assert answer.status_code == 404


@pytest.mark.parametrize("query", ["?forever=1", "?forever=yes", "?forevr=true", "?forever="])
def test_a_misspelt_forever_deletes_nothing(client: httpx2.Client, tasks: str, query: str) -> None:
    task = create(client, tasks)
    answer = client.delete(f"{tasks}/{task['id']}{query}")
    assert_refused(answer, query[1:].partition("=")[0], "query")
    assert client.get(tasks).json() == [task]


def test_a_bulk_delete_fills_the_trash_and_another_empties_it(
    client: httpx2.Client, tasks: str
) -> None:
    made = [create(client, tasks, title=f"task {n}", completed=n < 3) for n in range(5)]
    assert client.delete(tasks, params={"status": "completed"}).json() == {"deleted": 3}
    assert client.delete(tasks, params={"status": "completed"}).json() == {"deleted": 0}
    restore = {"deleted": "true", "id": made[0]["id"]}
    assert client.patch(tasks, params=restore, json={"deleted": False}).json() == {"updated": 1}
    assert client.delete(tasks, params={"deleted": "true"}).json() == {"deleted": 2}
    assert {task["id"] for task in client.get(tasks).json()} == {made[n]["id"] for n in (0, 3, 4)}
    gone = [each for each in changes(client, tasks, 2)["changes"] if each.get("gone")]
    assert [each["id"] for each in gone] == [made[1]["id"], made[2]["id"]]


def test_a_task_may_be_made_in_the_trash(client: httpx2.Client, tasks: str) -> None:
    task = create(client, tasks, deleted=True)
    assert client.get(tasks).json() == []
    assert client.get(tasks, params={"deleted": "true"}).json() == [task]


def test_the_service_empties_the_trash_and_forgets(new_database: Database) -> None:
    with in_process(database_url=new_database.url) as client:
        tasks = {user: f"/api/{user}/tasks" for user in ("ada", "ben")}
        for path in tasks.values():
            for n in range(3):
                create(client, path, title=f"task {n}", uid=f"task-{n}")
            for n in range(2):
                client.delete(f"{path}/task-{n}")
        copies = {user: changes(client, path) for user, path in tasks.items()}

        def age(table: str, column: str, uid: str) -> None:
            with store(new_database).schema_transaction() as connection:
                ago = "2026-01-01 00:00:00.000000"
                sql = f"UPDATE {table} SET {column} = :ago WHERE uid = :uid"
                connection.execute(text(sql), {"ago": ago, "uid": uid})

        age("task", "deleted_at", "task-0")
        empty(new_database)
        for user, path in tasks.items():
            trashed = client.get(path, params={"deleted": "true"}).json()
            assert [task["uid"] for task in trashed] == ["task-1"]
            page = changes(client, path, copies[user]["position"])
            (gone,) = page["changes"]
            assert (gone["uid"], gone["gone"]) == ("task-0", True)
            assert changes(client, path, page["position"])["changes"] == []

        # A first page that was kept is not good any more: nobody could go on from its end.
        kept = {user: client.get(f"{path}/changes?limit=1") for user, path in tasks.items()}
        age("task_gone", "gone_at", "task-0")
        empty(new_database)
        for user, path in tasks.items():
            late = {"since": copies[user]["position"]}
            assert_problem(client.get(f"{path}/changes", params=late, headers=CORS), 410)
            known = {"If-None-Match": kept[user].headers["etag"]}
            first = client.get(f"{path}/changes?limit=1", headers=known).json()
            assert (
                changes(client, path, first["position"])["changes"] == []
            )  # it goes on from there
            again = changes(client, path)
            assert {task["uid"] for task in again["changes"]} == {"task-1", "task-2"}
            assert changes(client, path, again["position"])["changes"] == []


def test_the_trash_of_a_user_without_a_position_is_emptied_too(new_database: Database) -> None:
    """Whose tasks somebody has handed over by hand; the trash of all others waited for it."""
    with in_process(database_url=new_database.url) as client:
        for user in ("ada", "ben"):
            create(client, f"/api/{user}/tasks", uid=user, deleted=True)
        with store(new_database).schema_transaction() as connection:
            connection.execute(text("UPDATE task SET deleted_at = '2026-01-01 00:00:00.000000'"))
            connection.execute(text("UPDATE task SET user_id = 'new' WHERE user_id = 'ada'"))
        empty(new_database)
        for user, uid in (("new", "ada"), ("ben", "ben")):
            (gone,) = changes(client, f"/api/{user}/tasks", 1)["changes"]
            assert (gone["uid"], gone["gone"]) == (uid, True)


def store(database: Database) -> Store:
    return Store(Settings(_env_file=None, database_url=database.url))


def empty(database: Database) -> None:
    """Do once what every worker does now and then."""

    async def work() -> None:
        opened = store(database)
        await opened.open()
        async with asyncio.timeout(10):
            await trash.empty(opened)
            await trash.empty(opened)  # there is nothing left to do
        await opened.close()

    asyncio.run(work())
