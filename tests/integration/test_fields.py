"""The fields of a task beside its text: each comes back as the contract says, on both databases."""

import json
import math
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2
import pytest

from tests.conftest import Database
from tests.support.api import assert_deleted, assert_refused, create
from tests.support.postgres import Postgres
from tests.support.processes import wait_until
from tests.support.service import Service

PRIORITIES = ["none", "low", "medium", "high", "urgent"]
LONGEST = [f"{n:02}" + "é" * 48 for n in range(20)]

KEPT = [
    ("priority", "none", "none"),
    ("priority", "urgent", "urgent"),
    ("priority", "HIGH", "high"),
    ("priority", "Low", "low"),
    # A day stays a day.
    ("due_date", "2026-11-21", "2026-11-21"),
    ("due_date", "2024-02-29", "2024-02-29"),
    ("due_date", "0001-01-01", "0001-01-01"),
    ("due_date", "9999-12-31", "9999-12-31"),
    # An instant comes back in UTC, to the microsecond; the first is JavaScript's toISOString().
    ("due_date", "2026-11-21T10:00:00.123Z", "2026-11-21T10:00:00.123000Z"),
    ("due_date", "2026-11-21T10:00:00Z", "2026-11-21T10:00:00.000000Z"),
    ("due_date", "2026-11-21t10:00:00z", "2026-11-21T10:00:00.000000Z"),
    ("due_date", "2026-11-21 10:00:00.123456Z", "2026-11-21T10:00:00.123456Z"),
    ("due_date", "2026-11-21T10:00:00.123456789Z", "2026-11-21T10:00:00.123456Z"),
    ("due_date", "2026-11-21T00:30:00+05:45", "2026-11-20T18:45:00.000000Z"),
    ("due_date", "2026-12-31T20:00:00-08:00", "2027-01-01T04:00:00.000000Z"),
    ("due_date", "2026-11-21T10:00:00-00:00", "2026-11-21T10:00:00.000000Z"),
    ("due_date", "0001-01-01T05:30:00+05:30", "0001-01-01T00:00:00.000000Z"),
    ("due_date", "9999-12-31T15:59:59.999999-08:00", "9999-12-31T23:59:59.999999Z"),
    ("due_date", "2026-12-01T14:30", "2026-12-01T14:30:00"),
    ("due_date", "2026-12-01T14:30:15", "2026-12-01T14:30:15"),
    ("due_date", "0001-01-01T00:00", "0001-01-01T00:00:00"),
    ("due_date", "9999-12-31T23:59:59", "9999-12-31T23:59:59"),
    ("due_date", "", None),
    ("due_date", None, None),
    ("tags", [], []),
    ("tags", ["b", "a", "B"], ["b", "a", "B"]),
    ("tags", ["  home ", "\tto do\n"], ["home", "to do"]),
    ("tags", ["É", "日本", "🛒", "'\"\\{},%_", "null", "1"], None),
    ("tags", LONGEST, LONGEST),
    ("order", 3, 3),
    ("order", -1.5, -1.5),
    ("order", 0.1, 0.1),
    ("order", 1.7976931348623157e308, 1.7976931348623157e308),
    ("order", 5e-324, 5e-324),
    ("order", None, None),
]
REFUSED: list[tuple[str, Any]] = [
    *[("priority", value) for value in ("hígh", "", "highest", 3, None, ["low"])],
    *[
        ("due_date", value)
        for value in (
            "2026-11-21T10:00:00.5",  # a wall-clock time is to the second
            "2026-11-21 10:00",
            "2026-11-21t10:00",
            "2026-11-21T10",
            "2026-11-21T24:00",
            "2026-11-21T10:60",
            "2026-11-21T10:00:60",
            "2026-02-29T10:00",
            "0000-01-01T10:00",
            "2026-11-21T10:00\n",
            "2026-11-21T\u0661\u0660:00",
            "2026-11-21T10:00Z",
            "2026-11-21Z",
            "2026-02-29",
            "2026-13-01",
            "2026-11-31T10:00:00Z",
            "2026-11-21T24:00:00Z",
            "2026-11-21T10:60:00Z",
            "2016-12-31T23:59:60Z",  # the leap second that was: no instant that could be kept
            "2026-11-21T23:59:60Z",
            "2026-11-21T10:00:00+24:00",
            "2026-11-21T10:00:00+05:99",
            "2026-11-21T10:00:00+0530",
            "2026-11-21T10:00:00,5Z",
            "2026-11-21T10:00:00.Z",
            "0001-01-01T00:00:00+00:01",  # in UTC, the year before the first
            "9999-12-31T23:59:59-00:01",  # in UTC, the year after the last
            "0000-01-01",
            "10000-01-01",
            "20261121",
            "2026-W47-6",
            "２０２６-１１-２１",  # noqa: RUF001
            " 2026-11-21",
            "2026-11-21\n",
            " ",
            "tomorrow",
            "null",
            1795255200,
            True,
        )
    ],
    *[
        ("tags", value)
        for value in (
            None,
            "home",
            {"home": True},
            ["home", "home"],
            ["home", " home "],
            [*LONGEST, "one too many"],
        )
    ],
    *[
        (field, value)
        for text in (
            "\u200b",
            "\u200d \u2060",
            "\ufeff",
            "\u202e",
            "\xad",
            "\u3164",
            "\u2800",
            "\x07",
            "\xa0",
            "\ufe0f",
            "\U000e0041",
        )
        for field, value in (("title", text), ("tags.0", [text]))
    ],
    *[("tags.1", ["home", tag]) for tag in ("", "  ", "x" * 51, "a\0b", 1, None)],
    *[("order", value) for value in ("3", "", True, [1], 10**400)],
]


def identify(value: Any) -> str | None:
    return None if isinstance(value, str | int | float | None) else str(value)[:30]


@pytest.mark.parametrize(("field", "sent", "kept"), KEPT, ids=identify)
def test_a_field_comes_back_the_same_from_every_call(
    client: httpx2.Client, tasks: str, field: str, sent: Any, kept: Any
) -> None:
    expected = sent if kept is None and field == "tags" else kept
    created = create(client, tasks, **{field: sent})
    other = create(client, tasks)
    patched = client.patch(f"{tasks}/{other['id']}", json={field: sent}).json()
    read = client.get(f"{tasks}/{created['id']}").json()
    listed = client.get(tasks, params={"id": created["id"]}).json()[0]
    sent_back = client.put(f"{tasks}/{created['id']}", json=read).json()
    assert [t[field] for t in (created, patched, read, listed, sent_back)] == [expected] * 5


def test_the_time_zone_of_the_database_shows_nowhere(own_postgres: Postgres, tasks: str) -> None:
    url = own_postgres.create_database()
    name = urlsplit(url).path[1:]
    own_postgres.execute(f"ALTER DATABASE {name} SET timezone TO 'Asia/Kathmandu'")
    with (
        Service(DATABASE_URL=url) as service,
        httpx2.Client(base_url=service.url, trust_env=False) as client,
    ):
        made = create(client, tasks, completed=True, due_date="2026-11-21T10:00:00+05:45")
        assert client.get(f"{tasks}/{made['id']}").json() == made
        assert client.get(tasks, params={"created_at": made["created_at"]}).json() == [made]
    stamps = [value for name, value in made.items() if name.endswith("ed_at")]
    age = [datetime.now(UTC) - datetime.fromisoformat(stamp) for stamp in stamps]
    assert [stamp[-1] for stamp in stamps] == ["Z"] * 3
    assert all(timedelta(0) <= each < timedelta(minutes=5) for each in age)
    assert made["due_date"] == "2026-11-21T04:15:00.000000Z"


def test_there_is_no_negative_zero(client: httpx2.Client, tasks: str) -> None:
    made = client.post(tasks, json={"title": "x", "order": -0.0})
    listed = client.get(tasks)
    assert [answer.text.count('"order":0.0') for answer in (made, listed)] == [1, 1]


@pytest.mark.parametrize(("field", "value"), REFUSED, ids=identify)
def test_a_bad_value_is_refused_by_name_and_changes_nothing(
    client: httpx2.Client, tasks: str, field: str, value: Any
) -> None:
    name = field.partition(".")[0]
    before = create(client, tasks, priority="low", due_date="2026-11-21", tags=["x"], order=1)
    assert_refused(client.post(tasks, json={"title": "new", name: value}), field)
    for method in ("PUT", "PATCH"):
        body = {"title": "changed", name: value}
        assert_refused(client.request(method, f"{tasks}/{before['id']}", json=body), field)
    assert_refused(client.patch(tasks, json={"title": "changed", name: value}), field)
    assert client.get(tasks).json() == [before]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400"])
def test_an_order_that_is_not_finite_is_refused(
    client: httpx2.Client, tasks: str, number: str
) -> None:
    body = f'{{"title": "task", "order": {number}}}'
    answer = client.post(tasks, content=body, headers={"Content-Type": "application/json"})
    assert_refused(answer, "order")
    assert client.get(tasks).json() == []


def test_fields_that_are_not_sent_have_their_defaults_and_then_stay(
    client: httpx2.Client, tasks: str
) -> None:
    created = create(client, tasks)
    planning = ("priority", "due_date", "tags", "order", "description", "completed", "completed_at")
    assert [created[name] for name in planning] == ["none", None, [], None, None, False, None]

    planned = {"priority": "high", "due_date": "2026-11-21", "tags": ["a"], "order": 2}
    path = f"{tasks}/{created['id']}"
    client.patch(path, json=planned)
    renamed = client.put(path, json={"title": "renamed"}).json()
    assert {name: renamed[name] for name in planned} == planned
    cleared = client.patch(path, json={"due_date": None, "order": None, "tags": []}).json()
    assert [cleared[name] for name in ("due_date", "order", "tags")] == [None, None, []]
    assert (cleared["title"], cleared["priority"]) == ("renamed", "high")


def test_minus_zero_is_zero_on_both_databases(client: httpx2.Client, tasks: str) -> None:
    created = create(client, tasks, order=-0.0)
    read = client.get(f"{tasks}/{created['id']}").json()
    assert [math.copysign(1, task["order"]) for task in (created, read)] == [1, 1]


def test_every_priority_is_kept_and_sorts_by_rank(client: httpx2.Client, tasks: str) -> None:
    for priority in ("high", "none", "urgent", "low", "medium"):
        create(client, tasks, priority=priority)
    rising = [task["priority"] for task in client.get(f"{tasks}?sort=priority").json()]
    falling = [task["priority"] for task in client.get(f"{tasks}?sort=-priority").json()]
    assert rising == PRIORITIES
    assert falling == PRIORITIES[::-1]


@pytest.mark.parametrize(
    "user",
    ["plain", "auth0|5f", "a@b.example", "a b", "émile", "100%", "a?b#c", "+", "日本"],
)
def test_the_url_leads_to_the_task_for_any_user_id(client: httpx2.Client, user: str) -> None:
    path = f"/api/{quote(user, safe='')}/tasks"
    answer = client.post(path, json={"title": "task"})
    task = answer.json()
    assert task["user_id"] == user
    assert answer.headers["location"] == task["url"]
    assert client.get(task["url"]).json() == task
    assert client.get(path, params={"id": task["id"]}).json() == [task]
    assert_deleted(client.delete(task["url"]), task)
    assert client.get(task["url"]).status_code == 404


def test_the_url_stays_under_the_mount_that_was_asked(client: httpx2.Client) -> None:
    task = create(client, "/api/tasks")
    named = client.get(f"/api/{task['user_id']}/tasks/{task['id']}").json()
    path = urlsplit(str(client.base_url))._replace(path=f"/api/tasks/{task['id']}").geturl()
    assert task["url"] == path
    assert named == {**task, "url": path.replace("/api/", f"/api/{task['user_id']}/")}
    client.delete(task["url"])


def urls(client: httpx2.Client, tasks: str, headers: dict[str, str]) -> set[str]:
    """Create two tasks; return all the URLs that the answers hold, without the id or the query."""
    created = [client.post(tasks, json={"title": "task"}, headers=headers) for _ in range(2)]
    listed = client.get(f"{tasks}?limit=1", headers=headers)
    read = client.get(f"{tasks}/{created[0].json()['id']}", headers=headers)
    found = [answer.json()["url"] for answer in (*created, read)]
    found += [answer.headers["location"] for answer in created] + [listed.json()[0]["url"]]
    return {url.rpartition("/")[0] for url in found} | {listed.links["next"]["url"].split("?")[0]}


@pytest.mark.parametrize(
    ("headers", "base"),
    [
        ({"Host": "tasks.example:8443"}, "http://tasks.example:8443"),
        ({"Host": "tasks.example", "X-Forwarded-Proto": "https"}, "https://tasks.example"),
        ({"Host": "tasks.example", "X-Forwarded-Host": "evil.example"}, "http://tasks.example"),
        ({"Host": "[::1]:8000"}, "http://[::1]:8000"),
    ],
)
def test_urls_are_those_that_the_client_sees_through_a_trusted_proxy(
    client: httpx2.Client, tasks: str, headers: dict[str, str], base: str
) -> None:
    assert urls(client, tasks, headers) == {base + tasks}


@pytest.fixture(scope="module")
def behind_a_path(database: Database) -> Iterator[Service]:
    """The service where a proxy serves it as /v1, and trusts the headers of another machine's."""
    options = ["--root-path", "/v1", "--forwarded-allow-ips", "192.0.2.1"]
    with Service(DATABASE_URL=database.url, args=options) as service:
        yield service


def without_host(address: int, where: Any, path: str) -> Any:
    """The JSON that HTTP/1.0 without `Host` answers at a socket address."""
    with socket.socket(address) as wire:
        wire.settimeout(10)
        wire.connect(where)
        body = b'{"title": "x"}'
        head = (
            f"POST {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n"
        )
        wire.sendall(head.encode() + body)
        received = b""
        while data := wire.recv(1 << 16):
            received += data
    return json.loads(received.partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
def test_a_request_without_host_gets_the_address_that_it_came_in_by(
    new_database: Database, tmp_path: Path, family: int
) -> None:
    path = str(tmp_path / "socket")
    options = {socket.AF_INET6: ["--host", "::1"], socket.AF_UNIX: ["--uds", path]}
    args = options.get(socket.AddressFamily(family), [])
    service = Service(DATABASE_URL=new_database.url, args=args)
    where, base = {
        socket.AF_INET: (("127.0.0.1", service.port), service.url),
        socket.AF_INET6: (("::1", service.port), f"http://[::1]:{service.port}"),
        socket.AF_UNIX: (path, "http://localhost"),
    }[socket.AddressFamily(family)]
    with service.start(wait=False):
        wait_until(lambda: "Uvicorn running" in service.log, "it listens")
        made = without_host(family, where, "/api/u/tasks")
        assert made["url"] == f"{base}/api/u/tasks/{made['id']}"


@pytest.mark.parametrize("root", ["/base", "/base/", "base", "base/"])
def test_a_root_path_may_have_slashes_at_its_ends_or_none(
    new_database: Database, root: str
) -> None:
    with Service(DATABASE_URL=new_database.url, args=["--root-path", root]) as service:
        assert f"{service.url}/base/docs" in service.log
        with httpx2.Client(base_url=service.url, trust_env=False) as client:
            assert urls(client, "/api/u/tasks", {}) == {f"{service.url}/base/api/u/tasks"}
            assert client.get("/").headers["location"] == "/base/docs"
            for path in ("/docs", "/api/tasks/", "/health/"):
                assert client.get(path).status_code == 200


def test_urls_hold_the_root_path_and_ignore_headers_of_strangers(
    behind_a_path: Service, tasks: str
) -> None:
    with httpx2.Client(base_url=behind_a_path.url, trust_env=False, verify=False) as client:
        headers = {"Host": "tasks.example", "X-Forwarded-Proto": "https"}
        assert urls(client, tasks, headers) == {f"http://tasks.example/v1{tasks}"}
        assert client.get("/").headers["location"] == "/v1/docs"
