"""What was acknowledged is still there after a restart, however the service ended."""

from collections.abc import Iterator

import httpx2
import pytest

from tests.conftest import Database
from tests.support.api import create
from tests.support.service import Service


@pytest.fixture
def mortal(new_database: Database) -> Iterator[Service]:
    """A service that the test may end."""
    with Service(DATABASE_URL=new_database.url) as service:
        yield service


def snapshot(client: httpx2.Client, users: list[str]) -> list[tuple[bytes, str]]:
    """Return all tasks of all users as they are served, and their tags."""
    answers = [client.get(f"/api/{user}/tasks") for user in users]
    answers += [client.get(task["url"]) for answer in answers for task in answer.json()]
    assert {answer.status_code for answer in answers} == {200}
    return [(answer.content, answer.headers["etag"]) for answer in answers]


def test_tasks_outlive_the_service(mortal: Service) -> None:
    users = ["ann", "bob"]
    with httpx2.Client(base_url=mortal.url, trust_env=False, verify=False) as client:
        for user in users:
            tasks = f"/api/{user}/tasks"
            first, second, third = (
                create(client, tasks, title=f"{user} {place} 日本 👩‍👩‍👧", tags=["a"], order=0.1)
                for place in range(3)
            )
            client.put(f"{tasks}/{first['id']}", json={"title": "changed", "tags": []})
            client.patch(f"{tasks}/{second['id']}/complete")
            client.delete(f"{tasks}/{third['id']}")
        before = snapshot(client, users)
        assert len(before) == 2 + 4

        mortal.stop()
        mortal.start()
        assert snapshot(client, users) == before
        fourth = create(client, tasks, description="acknowledged, then SIGKILL")
        assert fourth["id"] > third["id"]  # the ids of deleted tasks are not used again

        before = snapshot(client, users)
        mortal.kill()
        mortal.start()
        assert snapshot(client, users) == before
        done = client.patch(f"{tasks}/{fourth['id']}/complete")
        assert done.json()["completed"] is True
