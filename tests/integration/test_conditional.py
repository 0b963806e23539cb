"""Conditional requests (RFC 9110, section 13): ETag, If-Match, If-None-Match."""

import re
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from tests.conftest import Database
from tests.support.api import assert_refused, create
from tests.support.service import Service

STRONG = re.compile(r'"[\x21\x23-\x7e]+"')

# Every way to change one task: method, path after the task's, body.
CHANGES: list[tuple[str, str, Any]] = [
    ("PUT", "", {"title": "changed"}),
    ("PATCH", "", {"title": "changed"}),
    ("PATCH", "/complete", None),
    ("PATCH", "/complete", {"completed": True}),
    ("DELETE", "", None),
]
NAMES = ["put", "patch", "toggle", "set", "delete"]

# What If-Match may say of a task whose tags were `old` and now is `new`, and the answer.
IF_MATCH: list[tuple[str, Callable[[str, str], str], int]] = [
    ("current", lambda old, new: new, 200),
    ("any", lambda old, new: "*", 200),
    ("list with the current", lambda old, new: f'"x", {old},{new}', 200),
    ("list with odd commas", lambda old, new: f'"x",, ,"a,b" ,\t{new},', 200),
    ("list with a weak one", lambda old, new: f'W/"x", {new}', 200),
    ("stale", lambda old, new: old, 412),
    ("weak", lambda old, new: f"W/{new}", 412),
    ("list of others", lambda old, new: f'"x", {old}, W/{new}', 412),
    ("empty tag", lambda old, new: '""', 412),
    ("longer", lambda old, new: new[:-1] + '0"', 412),
    ("padded", lambda old, new: new[:-2] + "0" + new[-2:], 412),
    ("huge", lambda old, new: new[:-1] + "9" * 30 + '"', 412),
    ("no quotes", lambda old, new: new.strip('"'), 422),
    ("one quote", lambda old, new: new[:-1], 422),
    ("two quotes", lambda old, new: f'"{new}"', 422),
    ("no comma", lambda old, new: f"{old} {new}", 422),
    ("half a list", lambda old, new: f"{new}, x", 422),
    ("small w", lambda old, new: f"w/{new}", 422),
    ("star in a list", lambda old, new: f"*, {new}", 422),
    ("comma", lambda old, new: ",", 422),
    ("empty", lambda old, new: "", 422),
]


def etag(answer: httpx2.Response) -> str:
    """Return the strong ETag of a good answer."""
    assert answer.is_success, answer.text
    tag: str = answer.headers["etag"]
    assert STRONG.fullmatch(tag)
    return tag


@pytest.fixture
def task(client: httpx2.Client, tasks: str) -> str:
    """The path of a task that has changed once since it was made."""
    path = f"{tasks}/{create(client, tasks)['id']}"
    client.patch(path, json={"description": "edited"})
    return path


def test_every_answer_with_a_task_has_the_tag_of_what_it_shows(
    client: httpx2.Client, tasks: str, user: str
) -> None:
    created = client.post(tasks, json={"title": "task"})
    path = f"{tasks}/{created.json()['id']}"
    assert etag(created) == etag(client.get(path)) == etag(client.get(path))
    for method, suffix, body in CHANGES[:-1]:
        changed = client.request(method, path + suffix, json=body)
        assert etag(changed) == etag(client.get(path))
        assert changed.json() == client.get(path).json()


def test_every_change_gives_a_tag_that_was_never_seen(client: httpx2.Client, tasks: str) -> None:
    created = client.post(tasks, json={"title": "task"})
    path = f"{tasks}/{created.json()['id']}"
    seen = [etag(created)]
    for _ in range(3):
        for method, suffix, body in CHANGES[:-1]:
            seen.append(etag(client.request(method, path + suffix, json=body)))
        client.patch(tasks, json={"priority": "low"})
        seen.append(etag(client.get(path)))
    assert len(set(seen)) == len(seen) == 16
    assert etag(client.patch(path, json={})) == seen[-1]
    assert etag(client.get(path)) == seen[-1]


@pytest.mark.parametrize(("method", "suffix", "body"), CHANGES, ids=NAMES)
@pytest.mark.parametrize(
    ("header", "status"), [c[1:] for c in IF_MATCH], ids=[c[0] for c in IF_MATCH]
)
def test_if_match_lets_a_change_through_or_leaves_the_task_untouched(
    client: httpx2.Client,
    task: str,
    method: str,
    suffix: str,
    body: Any,
    header: Callable[[str, str], str],
    status: int,
) -> None:
    old = etag(client.get(task))
    before = client.patch(task, json={"tags": ["newer"]})
    condition = {"If-Match": header(old, etag(before))}
    answer = client.request(method, task + suffix, json=body, headers=condition)
    assert answer.status_code == status, answer.text
    after = client.get(task)
    if status != 200:
        assert (after.json(), etag(after)) == (before.json(), etag(before))
        assert answer.headers["content-type"] == "application/problem+json"
        if status == 422:
            assert_refused(answer, "If-Match", "header")
    elif method == "DELETE":
        assert after.status_code == 404
    else:
        assert after.json() == answer.json() != before.json()


@pytest.mark.parametrize(("method", "suffix", "body"), CHANGES, ids=NAMES)
@pytest.mark.parametrize("condition", ["*", "current", '"x"', 'W/"x"'])
def test_a_condition_on_a_task_that_is_not_there_is_404(
    client: httpx2.Client,
    tasks: str,
    task: str,
    method: str,
    suffix: str,
    body: Any,
    condition: str,
) -> None:
    before = client.get(task)
    tag = etag(before) if condition == "current" else condition
    foreign = task.replace("/tasks/", "-2/tasks/")
    deleted = f"{tasks}/{create(client, tasks)['id']}"
    client.delete(deleted)
    for path in (foreign, deleted, f"{tasks}/{2**53 - 1}"):
        answer = client.request(method, path + suffix, json=body, headers={"If-Match": tag})
        assert answer.status_code == 404, path
    assert client.get(task).json() == before.json()


def test_the_tag_of_another_task_does_not_match(
    client: httpx2.Client, tasks: str, task: str
) -> None:
    other = client.patch(f"{tasks}/{create(client, tasks)['id']}", json={"description": "edited"})
    answer = client.patch(task, json={"title": "x"}, headers={"If-Match": etag(other)})
    assert answer.status_code == 412


def test_tags_on_two_lines_are_one_list(client: httpx2.Client, task: str) -> None:
    tag = etag(client.get(task))
    for name, status in (("If-Match", 200), ("If-None-Match", 304)):
        lines = [(name, '"x"'), (name, tag), (name, '"y"')]
        method = "GET" if status == 304 else "PATCH"
        answer = client.request(method, task, json={} if status == 200 else None, headers=lines)
        assert answer.status_code == status


def test_a_bad_body_is_refused_before_the_condition_counts(
    client: httpx2.Client, task: str
) -> None:
    answer = client.patch(task, json={"title": ""}, headers={"If-Match": '"stale"'})
    assert_refused(answer, "title")


# Every GET of tasks: one, a list, an empty list, a page past the last, the numbers.
READS = [
    "/{id}",
    "",
    "?q=nothing",
    "?limit=1&offset=9",
    "?sort=title&limit=1",
    "/stats",
    "/changes",
]


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("{tag}", 304),
        ("W/{tag}", 304),
        ("*", 304),
        ('"x", W/"y", {tag}', 304),
        ('"x,y",W/{tag},', 304),
        ('"x"', 200),
        ('W/"x", "y"', 200),
        ('""', 200),
        ("x", 422),
        ('*, "x"', 422),
        ("", 422),
    ],
)
def test_if_none_match_saves_what_the_client_has(
    client: httpx2.Client, task: str, read: str, method: str, header: str, status: int
) -> None:
    tasks, _, number = task.rpartition("/")
    path = tasks + read.format(id=number)
    whole = client.get(path)
    condition = {"If-None-Match": header.format(tag=etag(whole))}
    answer = client.request(method, path, headers=condition)
    assert answer.status_code == status
    if status == 200:
        assert answer.headers["etag"] == whole.headers["etag"]
    if method == "HEAD" or status == 304:
        assert answer.content == b""
    elif status == 422:
        assert_refused(answer, "If-None-Match", "header")


@pytest.mark.parametrize("read", READS)
def test_304_has_the_headers_that_200_would_have_had(
    client: httpx2.Client, task: str, read: str
) -> None:
    """RFC 9110, section 15.4.5; and what a page of another origin needs to read the answer."""
    tasks, _, number = task.rpartition("/")
    path = tasks + read.format(id=number)
    origin = {"Origin": "http://localhost:5173"}
    whole = client.get(path, headers=origin)
    cached = client.get(path, headers=origin | {"If-None-Match": etag(whole)})
    assert cached.status_code == 304
    changing = {"date", "x-request-id"}
    assert changing <= set(cached.headers)
    body = {"content-type", "content-length"}
    # A list that is still good was not read: its count is that of the answer that is kept.
    unread = {"x-total-count", "link"}
    assert {name: value for name, value in cached.headers.items() if name not in changing} == {
        name: value for name, value in whole.headers.items() if name not in changing | body | unread
    }
    assert {"etag", "cache-control", "vary", "access-control-allow-origin"} <= set(cached.headers)
    assert "no-cache" in cached.headers["cache-control"]  # a browser asks before it shows


@pytest.mark.parametrize("read", READS)
def test_head_is_get_without_the_body(client: httpx2.Client, task: str, read: str) -> None:
    tasks, _, number = task.rpartition("/")
    path = tasks + read.format(id=number)
    answers = [client.get(path), client.head(path)]
    for answer in answers:
        for name in ("date", "x-request-id"):
            del answer.headers[name]
    assert answers[0].headers == answers[1].headers
    assert answers[1].headers["content-length"] == str(len(answers[0].content))
    assert answers[1].content == b""


def test_a_list_changes_its_tag_with_what_it_shows(client: httpx2.Client, tasks: str) -> None:
    create(client, tasks, title="a")

    def differs(path: str, change: Callable[[], Any]) -> bool:
        before = etag(client.get(path))
        assert change() is not None
        answer = client.get(path, headers={"If-None-Match": before})
        assert answer.status_code in (200, 304)
        return answer.status_code == 200 and etag(answer) != before

    one = client.get(tasks).json()[0]["url"]
    assert differs(tasks, lambda: client.patch(one, json={"title": "b"}))
    assert differs(tasks, lambda: client.patch(f"{one}/complete"))
    assert differs(f"{tasks}/stats", lambda: client.patch(f"{one}/complete"))
    assert not differs(f"{tasks}/stats", lambda: client.patch(one, json={"title": "c"}))
    # The same page of more tasks: what it shows stays, the total does not.
    first = f"{tasks}?sort=id&limit=1"
    assert differs(first, lambda: create(client, tasks, title="d"))
    assert differs(first, lambda: client.delete(f"{tasks}?title=d"))
    assert differs(f"{tasks}?offset=5", lambda: create(client, tasks, title="e"))
    # The tag of a list follows from the position; where the clock counts, from what it shows.
    assert differs(f"{tasks}?title=c", lambda: create(client, tasks, title="f"))
    assert differs(tasks, lambda: client.delete(tasks))


def test_a_page_of_changes_changes_its_tag_when_more_come(
    client: httpx2.Client, tasks: str
) -> None:
    create(client, tasks)
    path = f"{tasks}/changes?limit=1"
    last = client.get(path)
    create(client, tasks)
    first = client.get(path, headers={"If-None-Match": last.headers["etag"]})
    assert first.json() == last.json() | {"more": True}
    assert first.headers["etag"] != last.headers["etag"]
    known = {"If-None-Match": first.headers["etag"]}
    kept = client.get(path, headers=known)  # a page before the last, too
    assert (kept.status_code, kept.headers["vary"]) == (304, "Accept, Origin")
    client.delete(f"{tasks}/{last.json()['changes'][0]['id']}")
    assert client.get(path, headers=known).status_code == 200


def test_what_a_browser_has_kept_of_one_database_is_good_for_no_other(
    client: httpx2.Client, user: str, service: Service, new_database: Database
) -> None:
    """As when one is made anew, and filled anew: the positions are the same again."""

    def list_of(service: Service, **headers: str) -> httpx2.Response:
        headers["Host"] = "tasks.example"  # both were at one address
        return client.get(f"{service.url}/api/{user}/tasks", headers=headers)

    with Service(DATABASE_URL=new_database.url) as other:
        create(client, f"{service.url}/api/{user}/tasks", title="old")
        create(client, f"{other.url}/api/{user}/tasks", title="new")
        kept = etag(list_of(service))
        answer = list_of(other, **{"If-None-Match": kept})
        assert (answer.status_code, answer.json()[0]["title"]) == (200, "new")
        kept = etag(answer)
    with Service(DATABASE_URL=new_database.url, workers=2) as other:
        for _ in range(8):  # all processes of one database tell the same
            assert list_of(other, **{"If-None-Match": kept}).status_code == 304


def test_a_missing_task_is_404_whatever_the_condition(client: httpx2.Client, tasks: str) -> None:
    for tag in ("*", '"x"'):
        answer = client.get(f"{tasks}/{2**53 - 1}", headers={"If-None-Match": tag})
        assert answer.status_code == 404
