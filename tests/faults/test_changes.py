"""Changes are exact: whatever writes at once, who follows misses nothing (contract section 9)."""

import asyncio
import random
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx2
import psycopg2
import pytest

from tests.conftest import Database
from tests.contract.test_readme import RESTORED, block, execute
from tests.support.events import Listener
from tests.support.load import Client, Request, at_once
from tests.support.pgbouncer import PgBouncer
from tests.support.postgres import Server
from tests.support.service import Service

USERS = ("ann", "bob", "cy")
WRITERS = 16
ROUNDS = 25  # of each writer
SOON = 0.2  # seconds that a transaction beside the service stays open


@pytest.fixture
def crowded(request: pytest.FixtureRequest, new_database: Database) -> Iterator[Service]:
    """The service with four workers, on PostgreSQL with PgBouncer between."""
    with ExitStack() as stack:
        url = new_database.url
        if new_database.name == "postgresql":
            server: Server = request.getfixturevalue("postgres")
            bouncer = stack.enter_context(PgBouncer(server))
            url = bouncer.url(urlsplit(url).path[1:])
        yield stack.enter_context(Service(DATABASE_URL=url, workers=4))


@contextmanager
def transactions_beside(url: str) -> Iterator[None]:
    """Hold one transaction open all the while, and write in others that take their time."""
    ended = threading.Event()
    held = connected(url)
    if url.startswith("sqlite:"):  # where one that writes would keep all others from it
        held.execute("BEGIN")
        held.execute("SELECT count(*) FROM task").fetchall()
    else:
        held.cursor().execute("CREATE TABLE held (id int); INSERT INTO held VALUES (1)")

    def write() -> None:
        with closing(connected(url)) as other:
            cursor = other.cursor()
            while not ended.wait(SOON):
                cursor.execute("UPDATE task_feed SET position = position + 1 WHERE user_id = 'ann'")
                cursor.execute(
                    """UPDATE task SET "order" = coalesce("order", 0) + 1,
                       position = (SELECT position FROM task_feed WHERE user_id = 'ann')
                       WHERE user_id = 'ann'
                       AND id = (SELECT min(id) FROM task WHERE user_id = 'ann')"""
                )
                ended.wait(SOON)
                other.commit()

    thread = threading.Thread(target=write, name="beside")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        held.rollback()
        held.close()


class Copy:
    """A client that follows a user by pages of changes."""

    def __init__(self, user: str) -> None:
        self.tasks: dict[int, dict[str, Any]] = {}
        self.position = 0
        self._path = f"/api/{user}/tasks/changes"

    async def go_on(self, client: Client, limit: int) -> bool:
        """Take one page; return whether there is more."""
        answer = await client.send("GET", f"{self._path}?since={self.position}&limit={limit}")
        if answer.status == 503:
            return True
        assert answer.status == 200, answer
        page = answer.json()
        assert page["position"] >= self.position
        assert not page["more"] or len(page["changes"]) >= limit
        ids = [change["id"] for change in page["changes"]]
        assert len(ids) == len(set(ids)), "told twice in one page"
        for change in page["changes"]:
            if change.get("gone"):
                self.tasks.pop(change["id"], None)
            else:
                self.tasks[change["id"]] = change
        self.position = page["position"]
        more: bool = page["more"]
        return more


class Crowd:
    """Writers, and followers who look whether they are told what the writers know is done."""

    def __init__(self, url: str) -> None:
        self.copies = {user: [Copy(user) for _ in range(3)] for user in USERS}
        self.statuses: Counter[int] = Counter()
        self._url = url
        self._counted: dict[int, int] = {}  # of a writer's own task: the number it has been given
        self._ids: dict[str, list[int]] = {user: [1] for user in USERS}
        self._writing = WRITERS

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(WRITERS):
                group.create_task(self._write(USERS[number % len(USERS)], random.Random(number)))
            for copies in self.copies.values():
                for copy, limit in zip(copies, (1, 3, 1000), strict=True):
                    group.create_task(self._follow(copy, limit))

    async def _write(self, user: str, choose: random.Random) -> None:
        client, tasks = Client(self._url), f"/api/{user}/tasks"
        try:
            own = (await client.send("POST", tasks, {"title": "0"})).json()["id"]
            for number in range(1, ROUNDS + 1):
                answer = await client.send("PATCH", f"{tasks}/{own}", {"title": str(number)})
                self.statuses[answer.status] += 1
                if answer.status == 200:
                    self._counted[own] = number
                answer = await client.send(*self._something(user, choose))
                self.statuses[answer.status] += 1
                if answer.status == 201:
                    made = answer.json()
                    made = made if isinstance(made, list) else [made]
                    self._ids[user] += [task["id"] for task in made]
        finally:
            self._writing -= 1
            client.close()

    def _something(self, user: str, choose: random.Random) -> tuple[str, str, Any]:
        tasks = f"/api/{user}/tasks"
        one = f"{tasks}/{choose.choice(self._ids[user][-30:])}"
        priority = {"priority": choose.choice(["low", "medium", "high"])}
        new = {"title": "shared", "tags": ["shared"], **priority}
        return choose.choice(
            [
                ("POST", tasks, new),
                ("POST", tasks, [new, new]),
                ("PATCH", one, priority),
                ("PATCH", f"{one}/complete", None),
                ("DELETE", one, None),
                ("PATCH", one, {"deleted": False}),
                ("DELETE", f"{one}?forever=true", None),
                ("PATCH", f"{tasks}?tag=shared", priority),
                ("DELETE", f"{tasks}?tag=shared&priority=low", None),
                ("DELETE", f"{tasks}?deleted=true", None),
            ]
        )

    async def _follow(self, copy: Copy, limit: int) -> None:
        client = Client(self._url)
        while self._writing:
            known = dict(self._counted)
            while await copy.go_on(client, limit) and self._writing:
                pass
            for id_, number in known.items():
                if self._writing and id_ in copy.tasks:
                    assert int(copy.tasks[id_]["title"]) >= number, "done before, and not told"
            await asyncio.sleep(0)
        while await copy.go_on(client, limit):
            pass
        client.close()


def everything(client: httpx2.Client, user: str) -> dict[int, dict[str, Any]]:
    """All of a user's tasks, the trash included."""
    found: dict[int, dict[str, Any]] = {}
    for deleted in ("false", "true"):
        answer = client.get(f"/api/{user}/tasks?deleted={deleted}")
        assert int(answer.headers["x-total-count"]) == len(answer.json())
        found |= {task["id"]: task for task in answer.json()}
    return found


def test_every_follower_ends_with_what_there_is(crowded: Service, new_database: Database) -> None:
    crowd = Crowd(crowded.url)
    with (
        httpx2.Client(base_url=crowded.url, trust_env=False, timeout=60) as client,
        ExitStack() as stack,
    ):
        listeners = {
            user: stack.enter_context(Listener(f"{crowded.url}/api/{user}/tasks/changes?limit=2"))
            for user in USERS
        }
        with transactions_beside(new_database.url):
            asyncio.run(crowd.run())
        assert crowd.statuses.keys() <= {200, 201, 404, 503}
        assert crowd.statuses[200] > WRITERS * ROUNDS
        for user in USERS:
            there = everything(client, user)
            position = client.get(f"/api/{user}/tasks/changes").json()["position"]
            listeners[user].wait_for(position)
            assert listeners[user].tasks == there
            for copy in crowd.copies[user]:
                asyncio.run(catch_up(crowded.url, copy))
                assert copy.position == position
                assert copy.tasks == there


async def catch_up(url: str, copy: Copy) -> None:
    """Take what was committed beside the service after the last call."""
    client = Client(url)
    while await copy.go_on(client, 2):
        pass
    client.close()


def test_a_hundred_creates_at_once_with_one_uid_make_one_task(crowded: Service) -> None:
    request = Request("POST", "/api/ann/tasks", {"title": "one tap", "uid": "tap"})
    answers = at_once(crowded.url, [request] * 100)
    assert Counter(answer.status for answer in answers) == {201: 100}
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    with httpx2.Client(base_url=crowded.url, trust_env=False) as client:
        [task] = client.get("/api/ann/tasks").json()
        page = client.get("/api/ann/tasks/changes").json()
    assert page["changes"] == [task]
    assert all(answer.json() == task for answer in answers)


def test_after_a_restore_clients_are_told_to_begin_anew(new_database: Database) -> None:
    path = "/api/ann/tasks"
    with (
        Service(DATABASE_URL=new_database.url) as service,
        httpx2.Client(base_url=service.url, trust_env=False) as client,
        Listener(f"{service.url}{path}/changes") as listener,
    ):
        client.post(path, json={"title": "in the backup"})
        backup = saved(new_database.url)
        for number in range(3):
            client.post(path, json={"title": f"lost {number}"})
        known = client.get(f"{path}/changes").json()["position"]
        listener.wait_for(known)
        restore(new_database.url, backup)
        assert client.get(f"{path}/changes?since={known}").status_code == 410
        # A stream that is there ends; the client comes back, is told 410, and begins again.
        listener.wait_until_ended()
        assert listener.statuses == [200, 410]
        copy = Copy("ann")
        asyncio.run(catch_up(service.url, copy))
        assert [task["title"] for task in copy.tasks.values()] == ["in the backup"]
        client.post(path, json={"title": "new"})
        asyncio.run(catch_up(service.url, copy))
        assert [task["title"] for task in copy.tasks.values()] == ["in the backup", "new"]
        assert copy.tasks == everything(client, "ann")


def test_after_a_restore_and_the_statement_for_it_the_new_is_not_taken_for_the_lost(
    new_database: Database,
) -> None:
    path = "/api/ann/tasks"
    with (
        Service(DATABASE_URL=new_database.url) as service,
        httpx2.Client(base_url=service.url, trust_env=False) as client,
    ):
        client.post(path, json={"title": "in the backup"})
        backup = saved(new_database.url)
        client.post(path, json={"title": "lost"})
        tag = client.get(path).headers["ETag"]
        known = client.get(f"{path}/changes").json()["position"]
        restore(new_database.url, backup)
        execute(block(RESTORED), new_database.url)
        client.post(path, json={"title": "new"})
        assert client.get(path, headers={"If-None-Match": tag}).status_code == 200
        assert client.patch(path, json={}, headers={"If-Match": tag}).status_code == 412
        assert client.get(f"{path}/changes?since={known}").status_code == 410
        copy = Copy("ann")
        asyncio.run(catch_up(service.url, copy))
        assert [task["title"] for task in copy.tasks.values()] == ["in the backup", "new"]


def saved(url: str) -> dict[str, list[Any]]:
    """Return what is in the tables of a database."""
    with closing(connected(url)) as connection:
        cursor = connection.cursor()
        rows = {}
        for table in ("task", "task_feed", "task_gone"):
            cursor.execute(f"SELECT * FROM {table}")
            rows[table] = cursor.fetchall()
        return rows


def restore(url: str, backup: dict[str, list[Any]]) -> None:
    """Take the tables back to that."""
    mark = "?" if url.startswith("sqlite:") else "%s"
    with closing(connected(url)) as connection:
        cursor = connection.cursor()
        for table in ("task", "task_feed", "task_gone"):
            cursor.execute(f"DELETE FROM {table}")
        for table, rows in backup.items():
            if table == "task_gone":  # where a trigger has written down what was deleted just now
                cursor.execute("DELETE FROM task_gone")
            for row in rows:
                cursor.execute(f"INSERT INTO {table} VALUES ({', '.join(mark for _ in row)})", row)
        connection.commit()


def connected(url: str) -> Any:
    if url.startswith("sqlite:"):
        return sqlite3.connect(url.removeprefix("sqlite:///"), timeout=30)
    return psycopg2.connect(url)
