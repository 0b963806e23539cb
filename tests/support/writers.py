"""Clients that write, and know afterwards what has to be in the database."""

from typing import Any
from uuid import uuid4

import httpx2

from tests.support.load import Answer, Client, all_tasks


def body(title: str) -> dict[str, Any]:
    """A task that shows by its title what all of it has to be."""
    return {
        "title": title,
        "description": title * 20,
        "tags": [title[:8], title[8:]],
        "priority": "high",
        "order": 0.5,
    }


class Writers:
    """Clients that create tasks and then complete or delete some; keeps what came of each."""

    def __init__(self, tasks: str) -> None:
        self.tasks = tasks
        self.known: dict[str, str] = {}  # title: the last state that was acknowledged
        self.uncertain: dict[str, str] = {}  # title: the state that was asked for without answer
        self.unanswered: list[str] = []  # titles of the keyed creates among those

    async def write(self, client: Client) -> None:
        title = uuid4().hex
        keyed = title[0] < "8"
        headers = {"Idempotency-Key": title} if keyed else {}
        answer = await client.send("POST", self.tasks, body(title), headers)
        if not answer.sent:  # while a service starts, hundreds: of them there is nothing to check
            return
        self._note(title, "pending", answer, 201)
        if answer.status != 201:
            if keyed:
                self.unanswered.append(title)
            return
        path = f"{self.tasks}/{answer.json()['id']}"
        if title[1] < "4":
            answer = await client.send("PATCH", f"{path}/complete", {"completed": True})
            self._note(title, "completed", answer, 200)
        elif title[1] < "8":
            self._note(title, "deleted", await client.send("DELETE", path), 200)

    def _note(self, title: str, state: str, answer: Answer, success: int) -> None:
        assert answer.status in (success, 503, 0), answer
        if answer.status == success:
            self.known[title] = state
            self.uncertain.pop(title, None)
        else:
            self.uncertain[title] = state

    def check(self, client: httpx2.Client) -> None:
        """Check that the database holds what was acknowledged, and nothing by halves."""
        found = all_tasks(client, self.tasks)
        titles = {task["title"]: task for task in found}
        assert len(titles) == len(found), "a task is there more than once"
        assert titles.keys() <= self.known.keys() | self.uncertain.keys()
        for title in self.known.keys() | self.uncertain.keys():
            task = titles.get(title)
            state = ("completed" if task["completed"] else "pending") if task else "deleted"
            before = self.known.get(title, "deleted")
            assert state in (before, self.uncertain.get(title, before)), (title, state, before)
            if task:
                assert {name: task[name] for name in body(title)} == body(title)
                assert (task["completed_at"] is not None) == task["completed"]

        for title in self.unanswered:  # to ask again with the same key makes it one task, as ever
            again = client.post(self.tasks, json=body(title), headers={"Idempotency-Key": title})
            assert again.status_code == 201
            assert ("idempotency-replayed" in again.headers) == (title in titles)
        found = all_tasks(client, self.tasks)
        assert {task["title"] for task in found} == titles.keys() | set(self.unanswered)
        assert len(found) == len(titles.keys() | set(self.unanswered))
