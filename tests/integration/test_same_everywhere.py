"""The same calls give the same answers on both databases, byte for byte."""

import re
from collections import Counter
from collections.abc import Iterator
from itertools import count
from typing import Any

import httpx2
import pytest

from tests.support.postgres import Server
from tests.support.service import Service

TASKS = "/api/someone/tasks"
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
# Headers that say when, by which request, or how long an address is.
OWN = {"date", "x-request-id", "content-length"}
TITLES = [
    *("apple", "Apple", "äpfel", "Äpfel", "apfel", "APPLE pie", "apple-pie", "apple_pie"),
    *("Straße", "STRASSE", "İstanbul", "istanbul", "ΌΣΟΣ", "όσος", "ﬁne", "FINE"),
    *(
        "e\u0301",
        "\u00e9",
        "日本",
        "👩‍👩‍👧",
        "\U0010ffff",
        "\uffff",
        "Z",
        "_",
        "100%",
        "~",
        "a b",
        "a\tb",
    ),
    *("1", "10", "2", '"quoted"', "'; --", "back\\slash", "\\u0041", "{}", "a\x01b", "a\x7f"),
]
NUMBERS: list[Any] = [
    *(0, -0.0, 1, -1, 0.1, 1 / 3, 1e16, 1e22, 123456789012345678, 2**53 + 1, 2**63, 10**30),
    *(1.7976931348623157e308, -1.7976931348623157e308, 5e-324, 2.2250738585072014e-308, 1e-7, None),
]
DUE: list[Any] = [
    *(None, "", "2026-11-21", "2026-11-21T00:00:00Z", "2026-11-21T23:59:59.999999Z", "2026-11-22"),
    *("2026-11-21T10:00:00.5+05:30", "0001-01-01", "9999-12-31", "9999-12-31T23:59:59Z"),
]
TAGS: list[list[str]] = [
    *([], ["a"], ["b", "a"], ["A"], ["é", "日本"], ['"', "'", "\\", ",", "{}"], ["null", "NULL"]),
    *([" x "], ["a b"], ["%", "_"], ["👩‍👩‍👧"], ["true", "1"]),
]
PRIORITIES = ["none", "low", "medium", "high", "urgent"]
BODIES: list[dict[str, Any]] = [
    {
        "title": title,
        "description": [None, "", f"about {title}\r\n", TITLES[-place]][place % 4],
        "completed": place % 3 == 0,
        "priority": PRIORITIES[place % 5],
        "due_date": DUE[place % len(DUE)],
        "tags": TAGS[place % len(TAGS)],
        "order": NUMBERS[place % len(NUMBERS)],
    }
    for place, title in enumerate(TITLES)
]
FIELDS = [
    "id",
    "title",
    "description",
    "completed",
    "completed_at",
    "priority",
    "due_date",
    "order",
]
FIELDS += ["created_at", "updated_at", "user_id"]
QUERIES: list[list[tuple[str, str]]] = [
    [],
    *([("sort", sign + field)] for field in FIELDS for sign in ("", "-")),
    [("sort", "-priority,due_date,title"), ("limit", "7"), ("offset", "5")],
    [("limit", "1"), ("offset", "1000")],
    *(
        [("q", text)]
        for text in ("apple", "ÄPFEL", "strasse", "i", "Σ", "%", "_", "\\", "é", "日", '"')
    ),
    *([("tag", tag)] for tag in ("a", "A", "é", "%", "null", "1", "\\")),
    *([("tags_like", tag)] for tag in ("a", "%", "日")),
    [("tag", "a"), ("tag", "b")],
    [("priority", "high"), ("priority", "low")],
    [("overdue", "true")],
    [("overdue", "false")],
    *(
        [(bound, day)]
        for bound in ("due_before", "due_after")
        for day in ("2026-11-21", "2026-11-22")
    ),
    *([(bound, "2026-11-21T10:00:00+05:00")] for bound in ("due_before", "due_after")),
    *([("due_date" + end, "2026-11-21")] for end in ("", "_gte", "_lte", "_ne", "_like")),
    *([("title" + end, "apple")] for end in ("", "_gte", "_lte", "_ne", "_like")),
    *([("description" + end, "")] for end in ("", "_ne", "_like")),
    *([("order" + end, "0.1")] for end in ("_gte", "_lte", "_ne")),
    *([("priority" + end, "medium")] for end in ("_gte", "_lte", "_ne", "_like")),
    *([("id" + end, "10")] for end in ("", "_gte", "_lte", "_ne", "_like")),
    [("completed", "true"), ("created_at_like", "Z"), ("completed_at_gte", "2001-01-01")],
    [("created_at_like", "T"), ("completed_at_like", "."), ("user_id", "someone")],
    [("sort", "tags")],
    [("unknown", "1")],
]


@pytest.fixture(scope="module")
def both(
    postgres: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[httpx2.Client, httpx2.Client]]:
    """A client of a service on SQLite, and one on PostgreSQL, both new."""
    directory = tmp_path_factory.mktemp("same")
    urls = (f"sqlite:///{directory}/tasks.db", postgres.create_database())
    on_sqlite, on_postgresql = (Service(DATABASE_URL=url).start(wait=False) for url in urls)
    with (
        on_sqlite,
        on_postgresql,
        httpx2.Client(base_url=on_sqlite.url, trust_env=False, verify=False) as first,
        httpx2.Client(base_url=on_postgresql.url, trust_env=False, verify=False) as second,
    ):
        on_sqlite.wait_ready()
        on_postgresql.wait_ready()
        yield first, second


class Transcript:
    """What a client is answered, with names for the addresses and the instants in it."""

    def __init__(self, client: httpx2.Client) -> None:
        self._client = client
        self._names: dict[str, str] = {}
        self._numbers = count()

    def call(self, method: str, path: str, **call: Any) -> list[str]:
        """Return status, headers and body of the answer."""
        answer = self._client.request(method, path, **call)
        headers = [f"{name}: {value}" for name, value in answer.headers.items() if name not in OWN]
        tags = answer.headers.get("etag")
        if tags:  # random, or with a digest of the address
            headers.remove(f"etag: {tags}")
        return [self._plain(text) for text in (str(answer.status_code), *headers, answer.text)]

    def _plain(self, text: str) -> str:
        text = text.replace(str(self._client.base_url).rstrip("/"), "http://service")
        text = re.sub(r'"(request_id|uid|etag)":"(\\"|[\w-])+"', r'"\1":""', text)
        return TIMESTAMP.sub(self._name, text)

    def _name(self, instant: re.Match[str]) -> str:
        # Whole seconds and the ends of days were sent by the test; the service's own have a
        # fraction, and the same instant gets the same name everywhere.
        if instant[0].endswith((".000000Z", ".500000Z", ".999999Z")):
            return instant[0]
        return self._names.setdefault(instant[0], f"instant {next(self._numbers)}")


def calls() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield method, path and the rest of every call."""
    for body in BODIES:
        yield "POST", TASKS, {"json": body}
    for query in QUERIES:
        yield "GET", TASKS, {"params": query}
        yield "GET", f"{TASKS}/stats", {"params": query}
    for number, body in enumerate(reversed(BODIES), 1):
        yield "PATCH", f"{TASKS}/{number}/complete", {}
        yield "PUT", f"{TASKS}/{number}", {"json": body}
        yield "GET", f"{TASKS}/{number}", {}
    for number, field in enumerate(("description", "due_date", "order", "title", "tags"), 1):
        yield "PATCH", f"{TASKS}/{number}", {"json": {field: None}}
    for query in QUERIES:
        yield "PATCH", TASKS, {"params": query, "json": {"order": len(query), "priority": "low"}}
        yield "GET", TASKS, {"params": [("sort", "order,-title"), ("limit", "5")]}
    yield "PATCH", TASKS, {"params": {"status": "pending"}, "json": {"completed": True}}
    yield "GET", TASKS, {}
    yield "DELETE", f"{TASKS}/3", {}
    yield "DELETE", f"{TASKS}/3", {}
    yield "DELETE", TASKS, {"params": {"q": "apple"}}
    yield "GET", TASKS, {"params": {"sort": "updated_at,title"}}
    yield "DELETE", TASKS, {}
    yield "GET", TASKS, {}
    yield "POST", TASKS, {"json": {"title": "after all", "description": None}}


def test_the_same_calls_get_the_same_answers(both: tuple[httpx2.Client, httpx2.Client]) -> None:
    on_sqlite, on_postgresql = map(Transcript, both)
    statuses: Counter[str] = Counter()
    for method, path, call in calls():
        expected = on_sqlite.call(method, path, **call)
        assert on_postgresql.call(method, path, **call) == expected, (method, path, call)
        statuses[expected[0]] += 1
    # Two refusals are the same all too easily.
    assert statuses["201"] == len(TITLES) + 1
    assert statuses["200"] >= 3 * len(TITLES) + 3 * (len(QUERIES) - len(FIELDS))
