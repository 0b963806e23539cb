"""The 16 behaviours of Todo-Backend (todobackend.com), asked of the root URL `/api/tasks`."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx2
import pytest

from tests.conftest import Database
from tests.support.service import Service

ORIGIN = "https://www.todobackend.com"


@pytest.fixture(scope="module")
def backend(database: Database) -> Iterator[httpx2.Client]:
    """A client on another origin, of a service whose default user nobody else knows."""
    nobody = f"todo-{uuid4().hex}"
    with (
        Service(DATABASE_URL=database.url, DEFAULT_USER_ID=nobody, CORS_ORIGINS=ORIGIN) as service,
        httpx2.Client(
            base_url=service.url, headers={"Origin": ORIGIN}, trust_env=False, verify=False
        ) as client,
    ):
        yield client


@pytest.fixture
def root(backend: httpx2.Client) -> str:
    """The root URL, with no todos under it."""
    url = f"{backend.base_url}/api/tasks".replace("//api", "/api")
    assert backend.delete(url).is_success
    return url


def post(backend: httpx2.Client, root: str, **todo: Any) -> Any:
    """Create a todo; return what a GET of its URL answers."""
    answer = backend.post(root, json={"title": "blah", **todo})
    assert answer.is_success, answer.text
    return get(backend, answer.json()["url"])


def get(backend: httpx2.Client, url: str) -> Any:
    answer = backend.get(url)
    assert answer.status_code == 200, answer.text
    return answer.json()


class TestThePrerequisites:
    def test_the_root_responds_to_a_get_with_cors_headers(
        self, backend: httpx2.Client, root: str
    ) -> None:
        answer = backend.get(root)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        for method in ("GET", "POST", "PATCH", "DELETE"):
            asked = {
                "Access-Control-Request-Method": method,
                "Access-Control-Request-Headers": "content-type",
            }
            preflight = backend.options(root, headers=asked)
            assert preflight.status_code == 200
            assert method in preflight.headers["access-control-allow-methods"]
            assert "content-type" in preflight.headers["access-control-allow-headers"].lower()

    def test_the_root_responds_to_a_post_with_the_todo_that_was_posted(
        self, backend: httpx2.Client, root: str
    ) -> None:
        assert backend.post(root, json={"title": "a todo"}).json()["title"] == "a todo"

    def test_the_root_responds_successfully_to_a_delete(
        self, backend: httpx2.Client, root: str
    ) -> None:
        assert backend.delete(root).is_success

    def test_after_a_delete_the_root_responds_to_a_get_with_an_empty_array(
        self, backend: httpx2.Client, root: str
    ) -> None:
        post(backend, root)
        backend.delete(root)
        assert get(backend, root) == []


class TestStoringNewTodos:
    def test_a_posted_todo_is_in_the_list(self, backend: httpx2.Client, root: str) -> None:
        backend.post(root, json={"title": "walk the dog"})
        assert [todo["title"] for todo in get(backend, root)] == ["walk the dog"]

    def test_a_new_todo_is_not_completed(self, backend: httpx2.Client, root: str) -> None:
        assert backend.post(root, json={"title": "blah"}).json()["completed"] is False
        assert [todo["completed"] for todo in get(backend, root)] == [False]

    def test_each_new_todo_has_a_url(self, backend: httpx2.Client, root: str) -> None:
        url = urlsplit(backend.post(root, json={"title": "blah"}).json()["url"])
        assert (url.scheme, f"{url.scheme}://{url.netloc}") == ("http", root.partition("/api")[0])
        assert [todo["url"] for todo in get(backend, root)] == [url.geturl()]

    def test_each_new_todo_has_a_url_that_returns_it(
        self, backend: httpx2.Client, root: str
    ) -> None:
        created = backend.post(root, json={"title": "my todo"}).json()
        assert get(backend, created["url"]) == created
        assert created["title"] == "my todo"


class TestWorkingWithAnExistingTodo:
    def test_one_can_navigate_from_the_list_to_a_todo_by_its_url(
        self, backend: httpx2.Client, root: str
    ) -> None:
        post(backend, root, title="todo the first")
        post(backend, root, title="todo the second")
        todos = get(backend, root)
        assert {todo["title"] for todo in todos} == {"todo the first", "todo the second"}
        assert [get(backend, todo["url"]) for todo in todos] == todos

    def test_the_title_can_be_patched(self, backend: httpx2.Client, root: str) -> None:
        url = post(backend, root, title="initial title")["url"]
        answer = backend.patch(url, json={"title": "bathe the cat"})
        assert answer.json()["title"] == "bathe the cat"

    def test_the_completedness_can_be_patched(self, backend: httpx2.Client, root: str) -> None:
        url = post(backend, root)["url"]
        assert backend.patch(url, json={"completed": True}).json()["completed"] is True

    def test_changes_are_persisted_and_show_up_when_fetched_again(
        self, backend: httpx2.Client, root: str
    ) -> None:
        url = post(backend, root)["url"]
        changes = {"title": "changed title", "completed": True}
        patched = backend.patch(url, json=changes).json()
        assert {name: patched[name] for name in changes} == changes
        assert get(backend, url) == patched
        assert get(backend, root) == [patched]

    def test_a_todo_can_be_deleted_by_its_url(self, backend: httpx2.Client, root: str) -> None:
        url = post(backend, root)["url"]
        assert backend.delete(url).is_success
        assert backend.get(url).status_code == 404
        assert get(backend, root) == []


class TestTrackingTodoOrder:
    def test_a_todo_can_be_created_with_an_order(self, backend: httpx2.Client, root: str) -> None:
        answer = backend.post(root, json={"title": "blah", "order": 523})
        assert answer.json()["order"] == 523

    def test_the_order_can_be_patched(self, backend: httpx2.Client, root: str) -> None:
        url = post(backend, root, order=10)["url"]
        assert backend.patch(url, json={"order": 95}).json()["order"] == 95

    def test_changes_of_the_order_are_remembered(self, backend: httpx2.Client, root: str) -> None:
        url = post(backend, root, order=10)["url"]
        backend.patch(url, json={"order": 95})
        assert get(backend, url)["order"] == 95
        assert [todo["order"] for todo in get(backend, root)] == [95]
