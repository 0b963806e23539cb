"""Random use of the whole API by two users, step by step, beside a model in plain Python."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from recurrence import following
from tests.support import model
from tests.support.service import Service
from tests.support.strategies import (
    REPRODUCIBLE,
    RULES,
    bulk_filters,
    changes,
    dues,
    filters,
    new_tasks,
    orders,
    pages,
    titles,
)

DEFAULTS: dict[str, Any] = {
    "description": None,
    "completed": False,
    "completed_at": None,
    "priority": "none",
    "due_date": None,
    "remind_at": None,
    "recurrence": None,
    "repeat_from": "due",
    "tags": [],
    "order": None,
    "deleted": False,
}
READ_ONLY = {"id", "etag", "url", "user_id", "completed_at", "created_at", "updated_at"}
REFUSED = [
    {"title": ""},
    {"title": None},
    {"titel": "x"},
    {"completed": 1},
    {"priority": ""},
    {"due_date": "2026-11-21T10:00:00.5"},
    {"tags": ["a", " a"]},
    {"order": "1"},
]
# What a client says it knows of a task, and whether a change then goes through.
CONDITIONS = {
    "none": True,
    "any": True,
    "current": True,
    "listed": True,
    "stale": False,
    "weak": False,
    "unknown": False,
}

users = st.integers(0, 1)
conditions = st.sampled_from(sorted(CONDITIONS))


OWN = ("due_date", "remind_at", "recurrence")


def fits(task: model.Task, change: dict[str, Any]) -> bool:
    """Return whether a task may be changed so: what repeats has a due date."""
    after = task | change
    sent = {"due_date", "recurrence"} & change.keys()
    return not sent or after["recurrence"] is None or after["due_date"] is not None


def stored(body: dict[str, Any]) -> dict[str, Any]:
    """Return what is kept of a body."""
    kept = {name: value for name, value in body.items() if name not in READ_ONLY}
    return kept | ({"title": kept["title"].strip()} if "title" in kept else {})


class TwoUsers(RuleBasedStateMachine):
    """Every step is a request, checked against `tasks`: of each user, the tasks by id.

    `trash` holds those that are deleted, `copies` what a follower of the user's changes has.
    """

    made: Bundle[int] = Bundle("made")  # the ids of all tasks, of both users, deleted ones too

    def __init__(self, api: httpx2.Client) -> None:
        super().__init__()
        self.api = api
        names = [f"{letter}-{uuid4().hex}" for letter in "ab"]
        self.names = names
        self.paths = [f"/api/{name}/tasks" for name in names]
        self.tasks: list[dict[int, model.Task]] = [{}, {}]
        self.trash: list[dict[int, model.Task]] = [{}, {}]
        self.copies: list[dict[int, model.Task]] = [{}, {}]
        self.positions = [0, 0]
        self.etags: dict[int, list[str]] = {}  # every tag that a task has had, the current one last
        self.keys: dict[tuple[int, str], tuple[dict[str, Any], int]] = {}
        self.newest = 0
        self.repeated: set[int] = set()  # those that have made their next task

    # Requests on one task

    @rule(target=made, user=users, body=new_tasks, key=st.sampled_from([None, None, "k", "K"]))
    def create(self, user: int, body: dict[str, Any], key: str | None) -> Any:
        headers = {"Idempotency-Key": key} if key else {}
        answer = self.api.post(self.paths[user], json=body, headers=headers)
        first, number = self.keys.get((user, key or ""), ({}, 0))
        if number in self.tasks[user]:
            if first != DEFAULTS | stored(body):
                assert answer.status_code == 422
                return multiple()
            assert answer.headers["idempotency-replayed"] == "true"
            self.is_current(answer, user, number, status=201)
            return multiple()
        task = answer.json()
        assert answer.status_code == 201, answer.text
        assert "idempotency-replayed" not in answer.headers
        assert answer.headers["location"] == task["url"]
        assert task["url"] == f"{self.api.base_url.join(self.paths[user])}/{task['id']}"
        assert task["id"] > self.newest
        assert task["updated_at"] == task["created_at"]
        expected = DEFAULTS | stored(body)
        if key:
            self.keys[user, key] = expected, task["id"]
        completed_at = task["created_at"] if expected["completed"] else None
        server_set = ("id", "uid", "etag", "url", "created_at", "updated_at")
        made = {name: task[name] for name in server_set}
        assert task == {
            **expected,
            **made,
            "user_id": self.names[user],
            "completed_at": completed_at,
        }
        self.newest = task["id"]
        self.tasks[user][task["id"]] = task
        self.is_new(answer, task["id"])
        return task["id"]

    @rule(
        user=users,
        number=made,
        change=changes,
        method=st.sampled_from(["PUT", "PATCH"]),
        condition=conditions,
    )
    def update(
        self, user: int, number: int, change: dict[str, Any], method: str, condition: str
    ) -> None:
        answer = self.ask(method, user, number, "", change, condition)
        if self.goes_through(answer, user, number, condition, change):
            self.has_changed(answer, user, number, stored(change))

    @rule(user=users, number=made, completed=st.sampled_from([None, True, False]), how=conditions)
    def complete(self, user: int, number: int, completed: bool | None, how: str) -> None:
        body = None if completed is None else {"completed": completed}
        answer = self.ask("PATCH", user, number, "/complete", body, how)
        if self.goes_through(answer, user, number, how):
            toggled = not self.tasks[user][number]["completed"]
            self.has_changed(answer, user, number, body or {"completed": toggled})

    @rule(target=made, user=users, body=new_tasks, due=dues, repeats=st.sampled_from(RULES))
    def complete_what_repeats(self, user: int, body: dict[str, Any], due: str, repeats: str) -> Any:
        repeating = {"due_date": due, "recurrence": repeats, "deleted": False, "completed": False}
        number: Any = self.create(user, body | repeating, None)
        for completed in (None, False, True):  # there is one next task, however often
            self.complete(user, number, completed, "none")
        return number

    @rule(user=users, number=made, condition=conditions)
    def delete(self, user: int, number: int, condition: str) -> None:
        answer = self.ask("DELETE", user, number, "", None, condition)
        if self.goes_through(answer, user, number, condition):
            self.has_been_trashed(answer.json(), user, self.tasks[user].pop(number))

    @rule(user=users, number=made, condition=conditions)
    def delete_forever(self, user: int, number: int, condition: str) -> None:
        answer = self.ask("DELETE", user, number, "?forever=true", None, condition)
        everything = self.tasks[user] | self.trash[user]
        # What tells 404 from 412 does not look into the trash.
        if number in self.trash[user] and not CONDITIONS[condition]:
            assert answer.status_code == 404
        elif number not in everything or not CONDITIONS[condition]:
            assert answer.status_code == (412 if number in everything else 404)
        else:
            assert answer.json() == everything[number]
            self.tasks[user].pop(number, None)
            self.trash[user].pop(number, None)

    @rule(user=users, number=made, title=titles)
    def restore(self, user: int, number: int, title: str) -> None:
        body = {"deleted": False, "title": title}
        answer = self.api.patch(f"{self.paths[user]}/{number}", json=body)
        if number in self.trash[user]:
            self.tasks[user][number] = self.trash[user].pop(number)
        if number in self.tasks[user]:
            self.has_changed(answer, user, number, stored(body))
        else:
            assert answer.status_code == 404

    @rule(user=users, limit=st.integers(1, 4))
    def follow(self, user: int, limit: int) -> None:
        more = True
        while more:
            params = {"since": self.positions[user], "limit": limit}
            page = self.api.get(f"{self.paths[user]}/changes", params=params).json()
            for task in page["changes"]:
                if task.get("gone"):
                    assert task.keys() == {"id", "uid", "deleted", "gone"}
                    self.copies[user].pop(task["id"], None)
                else:
                    self.copies[user][task["id"]] = task
            more = page["more"]
            assert page["position"] > self.positions[user] or not more
            assert len(page["changes"]) >= limit or not more
            self.positions[user] = page["position"]
        assert self.copies[user] == self.tasks[user] | self.trash[user]

    @rule(user=users, number=made, known=conditions, method=st.sampled_from(["GET", "HEAD"]))
    def read(self, user: int, number: int, known: str, method: str) -> None:
        headers = self.condition("If-None-Match", number, known)
        answer = self.api.request(method, f"{self.paths[user]}/{number}", headers=headers)
        if number not in self.tasks[user]:
            assert answer.status_code == 404
            return
        has_it = known in ("any", "current", "listed", "weak")
        assert answer.status_code == (304 if has_it else 200)
        assert answer.headers["etag"] == self.etags[number][-1]
        body = self.tasks[user][number] if method == "GET" and not has_it else None
        assert (answer.json() if answer.content else None) == body

    @rule(user=users, number=made, body=st.sampled_from(REFUSED), title=titles)
    def refuse(self, user: int, number: int, body: dict[str, Any], title: str) -> None:
        path = self.paths[user]
        answers = [
            self.api.post(path, json={"title": title, **body}, headers={"Idempotency-Key": "k"}),
            self.api.put(f"{path}/{number}", json={"title": title, **body}),
            self.api.patch(path, json=body),
            self.api.patch(f"{path}?completd=true", json={"title": title}),
            self.api.delete(f"{path}?completd=true"),
        ]
        assert [answer.status_code for answer in answers] == [422] * 5

    # Requests on many

    @rule(user=users, data=st.data(), change=changes)
    def update_all(self, user: int, data: st.DataObject, change: dict[str, Any]) -> None:
        chosen = data.draw(bulk_filters(list(self.tasks[user].values())))
        matching = model.select(self.tasks[user].values(), chosen)
        answer = self.api.patch(self.paths[user], params=chosen, json=change)
        if not all(fits(task, change) for task in matching):
            assert answer.status_code == 422
            return
        assert answer.json() == {"updated": len(matching)}
        for task in matching:
            read = self.api.get(f"{self.paths[user]}/{task['id']}")
            self.has_changed(read, user, task["id"], stored(change))
        if stored(change):
            assert len({self.tasks[user][task["id"]]["updated_at"] for task in matching}) <= 1

    @rule(user=users, data=st.data())
    def delete_all(self, user: int, data: st.DataObject) -> None:
        chosen = data.draw(bulk_filters(list(self.tasks[user].values())))
        matching = model.select(self.tasks[user].values(), chosen)
        answer = self.api.request("DELETE", self.paths[user], params=chosen)
        assert answer.json() == {"deleted": len(matching)}
        trash = self.api.get(self.paths[user], params={"deleted": "true"}).json()
        trash = {task["id"]: task for task in trash}
        for task in matching:
            self.has_been_trashed(trash[task["id"]], user, self.tasks[user].pop(task["id"]))

    @rule(user=users, data=st.data())
    def empty_trash(self, user: int, data: st.DataObject) -> None:
        chosen = data.draw(bulk_filters(list(self.trash[user].values())))
        matching = model.select(self.trash[user].values(), chosen)
        chosen.append(("deleted", "true"))
        answer = self.api.request("DELETE", self.paths[user], params=chosen)
        assert answer.json() == {"deleted": len(matching)}
        for task in matching:
            del self.trash[user][task["id"]]

    @rule(user=users, data=st.data(), known=st.booleans())
    def list_tasks(self, user: int, data: st.DataObject, known: bool) -> None:
        query = data.draw(filters([*self.tasks[user].values()]))
        matching = model.select(self.tasks[user].values(), query)
        stats = self.api.get(f"{self.paths[user]}/stats", params=query)
        assert stats.json() == model.stats(matching)
        query += data.draw(orders()) + data.draw(pages())
        expected, more, less = model.page(model.arrange(matching, query), query)
        answer = self.api.get(self.paths[user], params=query)
        assert answer.json() == expected
        assert answer.headers["x-total-count"] == str(len(matching))
        assert ("next" in answer.links, "prev" in answer.links) == (more, less)
        if known:
            headers = {"If-None-Match": answer.headers["etag"]}
            again = self.api.get(self.paths[user], params=query, headers=headers)
            assert (again.status_code, again.content) == (304, b"")

    @invariant()
    def every_user_sees_their_tasks_and_no_others(self) -> None:
        for path, tasks in zip(self.paths, self.tasks, strict=True):
            assert self.api.get(path).json() == model.arrange(tasks.values(), [])
        for path, tasks in zip(self.paths, self.trash, strict=True):
            trash = self.api.get(path, params={"deleted": "true"}).json()
            assert trash == model.arrange(tasks.values(), [])

    # What the rules share

    def condition(self, header: str, number: int, kind: str) -> dict[str, str]:
        """Return the header that says what a client knows of a task."""
        *older, current = self.etags[number]
        value = {
            "any": "*",
            "current": current,
            "listed": f'"x", {current}',
            "stale": older[-1] if older else '"x"',
            "weak": f"W/{current}",
            "unknown": f'"x", W/"{number}", "{number}"',
        }
        return {header: value[kind]} if kind in value else {}

    def ask(
        self, method: str, user: int, number: int, suffix: str, body: Any, condition: str
    ) -> httpx2.Response:
        headers = self.condition("If-Match", number, condition)
        path = f"{self.paths[user]}/{number}{suffix}"
        return self.api.request(method, path, json=body, headers=headers)

    def goes_through(
        self,
        answer: httpx2.Response,
        user: int,
        number: int,
        condition: str,
        change: dict[str, Any] = DEFAULTS,
    ) -> bool:
        """Check that the answer is the 200, 404, 412 or 422 that it must be; return whether 200."""
        found = number in self.tasks[user]
        expected = (200 if CONDITIONS[condition] else 412) if found else 404
        if expected == 200 and not fits(self.tasks[user][number], change):
            expected = 422
        assert answer.status_code == expected, answer.text
        return expected == 200

    def has_changed(
        self, answer: httpx2.Response, user: int, number: int, change: dict[str, Any]
    ) -> None:
        """Check an answer with a task that `change` has just been made to, and keep it."""
        old, new = self.tasks[user][number], answer.json()
        if not change:
            self.is_current(answer, user, number)
            return
        expected = old | change | {name: new[name] for name in ("updated_at", "etag")}
        if not expected["completed"]:
            expected["completed_at"] = None
        elif not old["completed"]:
            expected["completed_at"] = new["updated_at"]
        assert new == expected
        assert new["updated_at"] >= old["updated_at"]
        if new["completed"] and not old["completed"]:
            self.has_repeated(user, new)
        self.tasks[user][number] = new
        self.is_new(answer, number)

    def has_repeated(self, user: int, task: model.Task) -> None:
        """Look for the next of a task that has just been completed, and keep it."""
        if task["recurrence"] is None or task["id"] in self.repeated:
            return
        today = datetime.fromisoformat(task["completed_at"]).date()
        dates = task["due_date"], task["remind_at"], task["repeat_from"]
        found = following(task["recurrence"], *dates, today)
        if found is None:
            return
        self.repeated.add(task["id"])
        listed = self.api.get(self.paths[user], params={"created_at": task["completed_at"]}).json()
        [new] = [
            each
            for each in listed
            if each["id"] not in self.etags
            and each["title"] == task["title"]
            and dict(zip(OWN, found, strict=True)).items() <= each.items()
        ][:1]
        server_set = ("id", "uid", "etag", "url", "created_at", "updated_at")
        assert new == task | {
            **{name: new[name] for name in server_set},
            **dict(zip(OWN, found, strict=True)),
            "completed": False,
            "completed_at": None,
            "deleted": False,
        }
        assert new["created_at"] == new["updated_at"] == task["updated_at"]
        self.tasks[user][new["id"]] = new
        self.etags[new["id"]] = [new["etag"]]
        self.newest = max(self.newest, new["id"])

    def has_been_trashed(self, new: model.Task, user: int, old: model.Task) -> None:
        touched = {name: new[name] for name in ("updated_at", "etag")}
        assert new == old | {"deleted": True} | touched
        assert new["etag"] not in self.etags[old["id"]]
        self.etags[old["id"]].append(new["etag"])
        self.trash[user][old["id"]] = new

    def is_current(
        self, answer: httpx2.Response, user: int, number: int, status: int = 200
    ) -> None:
        assert answer.status_code == status, answer.text
        assert answer.json() == self.tasks[user][number]
        assert answer.headers["etag"] == self.etags[number][-1]

    def is_new(self, answer: httpx2.Response, number: int) -> None:
        """Check that the task has a tag that it never had before, and keep it."""
        seen = self.etags.setdefault(number, [])
        assert answer.headers["etag"] == answer.json()["etag"] not in seen
        seen.append(answer.headers["etag"])


@pytest.fixture(scope="module")
def api(service: Service) -> Iterator[httpx2.Client]:
    """A client for all the runs."""
    with httpx2.Client(base_url=service.url, trust_env=False, verify=False) as client:
        yield client


def test_the_api_does_what_the_model_does(api: httpx2.Client) -> None:
    run_state_machine_as_test(
        lambda: TwoUsers(api),  # type: ignore[arg-type]  # any callable that makes one
        settings=settings(REPRODUCIBLE, max_examples=30, stateful_step_count=25),
    )
