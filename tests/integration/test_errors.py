"""Every failure is a problem that a page can read, and hostile input is one too (section 5)."""

import asyncio
import gzip
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest
from fastapi import Response

import errors
from database import Database
from door import Cors, Door
from main import Envelope
from tests.support.api import assert_refused, create
from tests.support.app import in_process
from tests.support.problems import CORS, ORIGIN, assert_problem
from tests.support.processes import wait_until
from tests.support.service import Service

LIMIT = 256 * 1024
JSON = {"Content-Type": "application/json"}
MARKER = "s3cret-inpu7"
SECRET = "0123456789abcdef0123456789abcdef"
# Every call that reads a body: method and what follows the path of the tasks.
WRITES = [
    ("POST", ""),
    ("PATCH", ""),
    ("PUT", "/{id}"),
    ("PATCH", "/{id}"),
    ("PATCH", "/{id}/complete"),
]
each_write = pytest.mark.parametrize(("method", "path"), WRITES)


def padded(size: int) -> bytes:
    """Return a body of so many bytes that is fine for each of `WRITES` but creation."""
    body = b'{"completed": true}'
    return body + b" " * (size - len(body))


def in_pieces(body: bytes) -> Iterator[bytes]:
    """Return the body in pieces, which are sent chunked, without a Content-Length."""
    return (body[start : start + 10_000] for start in range(0, len(body), 10_000))


# ---- every status


@pytest.mark.parametrize(
    ("status", "method", "path", "call"),
    [
        (400, "POST", "{tasks}", {"content": b'{"title":', "headers": JSON}),
        (404, "GET", "{tasks}/{missing}", {}),
        (404, "PATCH", "{tasks}/{missing}", {"json": {"title": "x"}}),
        (404, "GET", "/nothing/here", {}),
        (405, "POST", "{tasks}/{id}", {"json": {"title": "x"}}),
        (405, "DELETE", "/health", {}),
        (412, "PATCH", "{tasks}/{id}", {"json": {}, "headers": {"If-Match": '"0-0"'}}),
        (413, "POST", "{tasks}", {"content": padded(LIMIT + 1), "headers": JSON}),
        (415, "POST", "{tasks}", {"content": b"title=x"}),
        (422, "POST", "{tasks}", {"json": {}}),
        (422, "GET", "{tasks}", {"params": {"limit": "0"}}),
        (422, "GET", "{tasks}/1.0", {}),
        (422, "PATCH", "{tasks}/{id}", {"json": {}, "headers": {"If-Match": "no tag"}}),
    ],
)
def test_a_failure_is_a_problem_that_a_page_can_read(
    client: httpx2.Client, tasks: str, status: int, method: str, path: str, call: dict[str, Any]
) -> None:
    path = path.format(tasks=tasks, id=create(client, tasks)["id"], missing=2**53 - 1)
    headers = {**CORS, **call.get("headers", {})}
    assert_problem(client.request(method, path, **call | {"headers": headers}), status)


def breaking(error: Exception) -> Callable[..., Any]:
    """Return what raises `error` in place of `Database.run`."""

    async def run(*_: Any) -> Any:
        raise error

    return run


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/tasks"),
        ("POST", "/api/tasks"),
        ("PATCH", "/api/tasks/1/complete"),
        ("DELETE", "/api/tasks"),
        ("GET", "/ready"),
    ],
)
def test_a_500_is_a_problem_that_tells_nothing_and_is_logged(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    method: str,
    path: str,
) -> None:
    with in_process(database_url=f"sqlite:///{tmp_path}/tasks.db") as client:
        monkeypatch.setattr(Database, "run", breaking(RuntimeError("the innermost reason")))
        body = {"title": "x"} if method == "POST" else None
        answer = client.request(method, path, headers=CORS, json=body)
        assert_problem(answer, 500)
        for inner in ("innermost", "RuntimeError", "Traceback", ".py", "sqlite", str(tmp_path)):
            assert inner not in answer.text
        monkeypatch.undo()
        assert client.get("/api/tasks").status_code == 200
    log = capfd.readouterr().err
    assert log.count("Traceback (most recent call last)") == 1
    assert "RuntimeError: the innermost reason" in log
    assert f"unexpected error, request {answer.headers['x-request-id']}" in log


def test_a_503_says_when_to_try_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with in_process(database_url=f"sqlite:///{tmp_path}/tasks.db") as client:
        monkeypatch.setattr(Database, "run", breaking(errors.Unavailable()))
        for path in ("/api/tasks", "/ready"):
            answer = client.get(path, headers=CORS)
            assert_problem(answer, 503)
            assert int(answer.headers["retry-after"]) >= 1


def test_401_and_403_are_problems_too(tmp_path: Path) -> None:
    with in_process(database_url=f"sqlite:///{tmp_path}/tasks.db", auth_secret=SECRET) as client:
        answer = client.get("/api/tasks", headers=CORS)
        assert_problem(answer, 401)
        assert answer.headers["www-authenticate"].startswith("Bearer")
        token = jwt.encode({"sub": "somebody", "exp": time.time() + 600}, SECRET, "HS256")
        headers = {**CORS, "Authorization": f"Bearer {token}"}
        assert_problem(client.get("/api/somebody-else/tasks", headers=headers), 403)
        assert client.get("/api/somebody/tasks", headers=headers).status_code == 200


# ---- request ids


@pytest.mark.parametrize("path", ["{tasks}", "{tasks}/abc", "/nothing", "/health", "{tasks}/"])
@pytest.mark.parametrize("request_id", ["a", "Root=1-67891233-abcdef/012.3:4_5+6", "x" * 128])
def test_a_sane_request_id_is_kept(
    client: httpx2.Client, service: Service, tasks: str, path: str, request_id: str
) -> None:
    for method in ("GET", "HEAD", "OPTIONS", "TRACE"):
        answer = client.request(
            method, path.format(tasks=tasks), headers={"X-Request-ID": request_id}
        )
        assert answer.headers.get_list("x-request-id") == [request_id]
        if answer.headers.get("content-type") == "application/problem+json" and answer.content:
            assert answer.json()["request_id"] == request_id
    wait_until(lambda: f" ms {request_id}\n" in service.log, "the line, which follows the answer")


@pytest.mark.parametrize("request_id", [None, "", "a b", "x" * 129, "<b>", "é".encode(), b"a\tb"])
def test_any_other_request_gets_an_id_of_its_own(
    client: httpx2.Client, request_id: str | bytes | None
) -> None:
    headers: Any = {} if request_id is None else {"X-Request-ID": request_id}
    made = [
        client.get(path, headers=headers).headers["x-request-id"]
        for path in ("/health", "/nothing", "/api/tasks", "/api/tasks/0") * 2
    ]
    assert all(re.fullmatch(r"[0-9a-f]{32}", request_id) for request_id in made)
    assert len(set(made)) == len(made)


# ---- hostile bodies

NESTED = b"[" * 50_000
HOSTILE: list[tuple[str, bytes, int, str]] = [  # name, body, status, field at fault
    ("cut off", b'{"title": "x"', 400, ""),
    ("no JSON", b"title", 400, ""),
    ("single quotes", b"{'title': 'x'}", 400, ""),
    ("two documents", b'{"title": "x"}{"title": "x"}', 400, ""),
    ("trailing comma", b'{"title": "x",}', 400, ""),
    ("control character in text", b'{"title": "x\ny"}', 400, ""),
    ("bytes that are no UTF-8", b'{"title": "\xff"}', 400, ""),
    ("UTF-8 of a surrogate", b'{"title": "\xed\xa0\x80"}', 400, ""),
    ("overlong UTF-8", b'{"title": "\xc0\x80"}', 400, ""),
    ("UTF-16", '{"title": "x"}'.encode("utf-16"), 400, ""),
    ("deep arrays, not closed", NESTED, 400, ""),
    ("deep arrays", b'{"title": ' + NESTED + b"]" * 50_000 + b"}", 400, ""),
    ("deep objects", b'{"title": ' + b'{"a":' * 30_000 + b"1" + b"}" * 30_001, 400, ""),
    ("nothing", b"", 422, "body"),
    ("null", b"null", 422, "body"),
    ("an array in an array", b'[[{"title": "x"}]]', 422, "0"),
    ("an array of nothing", b"[]", 422, "body"),
    ("an array with one bad title", b'[{"title": "x"}, {"title": ""}]', 422, "1.title"),
    ("a string", b'"title"', 422, "body"),
    ("a number", b"1", 422, "body"),
    ("NaN alone", b"NaN", 422, "body"),
    ("NaN", b'{"title": "x", "order": NaN}', 422, "order"),
    ("Infinity", b'{"title": "x", "order": Infinity}', 422, "order"),
    ("-Infinity", b'{"title": "x", "order": -Infinity}', 422, "order"),
    ("NaN for text", b'{"title": NaN}', 422, "title"),
    ("more than a double", b'{"title": "x", "order": 1e999}', 422, "order"),
    ("400 digits", b'{"title": "x", "order": ' + b"9" * 400 + b"}", 422, "order"),
    ("400 digits for text", b'{"title": ' + b"9" * 400 + b"}", 422, "title"),
    ("lone high surrogate", rb'{"title": "a\ud800b"}', 422, "title"),
    ("lone low surrogate", rb'{"title": "\udc00"}', 422, "title"),
    ("swapped surrogates", rb'{"title": "\udc00\ud800"}', 422, "title"),
    ("surrogate, description", rb'{"title": "x", "description": "\ud800"}', 422, "description"),
    ("surrogate, tag", rb'{"title": "x", "tags": ["\ud800"]}', 422, "tags.0"),
    ("surrogate, due date", rb'{"title": "x", "due_date": "\ud800"}', 422, "due_date"),
    ("surrogate, priority", rb'{"title": "x", "priority": "\ud800"}', 422, "priority"),
    ("surrogate, flag", rb'{"title": "x", "completed": "\ud800"}', 422, "completed"),
    ("surrogate, field name", rb'{"title": "x", "\ud800": 1}', 422, ""),
    ("NUL", rb'{"title": "a\u0000b"}', 422, "title"),
    ("NUL, description", rb'{"title": "x", "description": "\u0000"}', 422, "description"),
    ("NUL, tag", rb'{"title": "x", "tags": ["a\u0000"]}', 422, "tags.0"),
    ("NUL, field name", rb'{"title": "x", "a\u0000b": 1}', 422, "a\0b"),
]


@pytest.mark.parametrize(
    ("body", "status", "field"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE]
)
def test_a_hostile_body_is_refused_and_leaves_no_trace(
    client: httpx2.Client, tasks: str, body: bytes, status: int, field: str
) -> None:
    answer = client.post(tasks, content=body, headers={**CORS, **JSON})
    assert_problem(answer, status)
    if field:
        assert_refused(answer, field)
    assert client.get(tasks).json() == []


def test_a_hostile_change_is_refused_too(client: httpx2.Client, tasks: str) -> None:
    task = create(client, tasks)
    for path in (tasks, f"{tasks}/{task['id']}", f"{tasks}/{task['id']}/complete"):
        for name, body, status, _ in HOSTILE:
            if body not in (b"", b"null"):  # to toggle, that is
                answer = client.patch(path, content=body, headers={**CORS, **JSON})
                assert answer.status_code == status, name
                assert_problem(answer, status)
    assert client.get(tasks).json() == [task]


@pytest.mark.parametrize(
    "value", ["9" * 5000, "NaN", "[" * 150 + "]" * 150, r'"\ud800"', '"\\u0000"']
)
def test_nothing_in_an_ignored_field_breaks_the_service(
    client: httpx2.Client, tasks: str, value: str
) -> None:
    body = f'{{"title": "x", "url": {value}}}'
    answer = client.post(tasks, content=body, headers={**CORS, **JSON})
    if answer.status_code == 201:
        assert [answer.json()] == client.get(tasks).json()
    else:
        assert_problem(answer, 400 if answer.status_code == 400 else 422)


def test_an_answer_to_countless_mistakes_is_short(client: httpx2.Client, tasks: str) -> None:
    body = {f"field {number}": 0 for number in range(12_000)}
    answer = client.post(tasks, json=body, headers=CORS)
    assert_problem(answer, 422)
    assert len(answer.content) < 10_000 < len(json.dumps(body))
    answer = client.post(tasks, json={"x" * 100_000: 0, "title": "x"}, headers=CORS)
    assert_problem(answer, 422)
    assert len(answer.content) < 10_000


# ---- types

REFUSED: list[tuple[str, list[Any]]] = [
    ("title", [1, 1.5, True, ["x"], {"a": "b"}]),
    ("description", [1, False, ["x"], {}]),
    ("completed", ["yes", "true", "", 1, 0, 1.0, [], {}]),
    ("priority", [0, 3, True, ["high"]]),
    ("due_date", [20261121, 1_800_000_000.5, True, ["2026-11-21"], {}]),
    ("tags", ["home", 1, True, {"0": "home"}]),
    ("order", ["5", "1.5", "", True, False, [1], {}]),
]


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in REFUSED for value in values], ids=repr
)
def test_a_value_of_another_type_is_refused_not_converted(
    client: httpx2.Client, tasks: str, field: str, value: Any
) -> None:
    task = create(client, tasks)
    body = {"title": "x", field: value}
    for answer in (
        client.post(tasks, json=body, headers=CORS),
        client.put(f"{tasks}/{task['id']}", json=body, headers=CORS),
        client.patch(tasks, json=body, headers=CORS),
    ):
        assert_problem(answer, 422)
        assert_refused(answer, field)
    assert client.get(tasks).json() == [task]


def test_a_list_of_tags_holds_text_only(client: httpx2.Client, tasks: str) -> None:
    no_text: list[Any] = [1, None, True, ["a"], {}]
    for value in no_text:
        answer = client.post(tasks, json={"title": "x", "tags": ["a", value]}, headers=CORS)
        assert_problem(answer, 422)
        assert_refused(answer, "tags.1")


def test_completion_takes_a_boolean_only(client: httpx2.Client, tasks: str) -> None:
    for value in (1, 0, "true", None):
        path = f"{tasks}/{create(client, tasks)['id']}/complete"
        answer = client.patch(path, json={"completed": value}, headers=CORS)
        assert_problem(answer, 422)
        assert_refused(answer, "completed")


# ---- no echo


@pytest.mark.parametrize(
    "call",
    [
        *(
            {"json": {"title": "x", **body}}
            for body in (
                {"title": [MARKER]},
                {"title": MARKER * 40},
                {"title": f"{MARKER}\0"},
                {"description": MARKER * 1000},
                {"completed": MARKER},
                {"priority": MARKER},
                {"due_date": MARKER},
                {"tags": MARKER},
                {"tags": [{"name": MARKER}]},
                {"tags": [MARKER * 5]},
                {"tags": [MARKER, MARKER]},
                {"order": MARKER},
                {"unknown": MARKER},
            )
        ),
        {"content": f'{{"title": "{MARKER}'.encode(), "headers": JSON},
        {"content": f'{{"title": "{MARKER}\\ud800"}}'.encode(), "headers": JSON},
        {"content": MARKER.encode(), "headers": {"Content-Type": f"text/{MARKER}"}},
        {"json": {"title": "x"}, "headers": {"Idempotency-Key": MARKER * 30}},
        {"json": {"title": "x"}, "headers": {"Idempotency-Key": f"{MARKER} é".encode()}},
        {"json": {"title": "x"}, "path": f"/api/%00{MARKER}/tasks"},
        {"method": "GET", "path": f"/api/{MARKER}"},
        {"method": "GET", "path": f"/api/tasks/{MARKER}"},
        {"method": "GET", "params": {"limit": MARKER}},
        {"method": "GET", "params": {"sort": MARKER}},
        {"method": "GET", "params": {"status": MARKER}},
        {"method": "GET", "params": {"priority": MARKER}},
        {"method": "GET", "params": {"due_before": MARKER}},
        {"method": "GET", "headers": {"If-None-Match": MARKER}},
        {"method": "DELETE", "path": "/api/tasks/1", "headers": {"If-Match": MARKER}},
    ],
    ids=lambda call: str(call)[:80],
)
def test_a_refusal_does_not_repeat_what_was_sent(
    client: httpx2.Client, tasks: str, call: dict[str, Any]
) -> None:
    call = {"method": "POST", "path": tasks, **call}
    call["headers"] = {**CORS, **call.get("headers", {})}
    method, path = call.pop("method"), call.pop("path")
    answer = client.request(method, path, **call)
    assert_problem(answer, answer.status_code)
    assert answer.status_code in (400, 404, 415, 422)
    assert MARKER not in answer.text
    assert MARKER not in str(answer.headers)


# ---- size and kind of the body


@each_write
def test_a_body_of_256_kib_is_fine_and_a_byte_more_is_413(
    client: httpx2.Client, tasks: str, method: str, path: str
) -> None:
    task = create(client, tasks)
    url = tasks + path.format(id=task["id"])
    for largest in (padded(LIMIT), in_pieces(padded(LIMIT))):
        answer = client.request(method, url, content=largest, headers={**CORS, **JSON})
        if method == "POST":  # it has no title
            assert_refused(answer, "title")
        else:
            assert answer.status_code == 200
    before = client.get(tasks).json()
    for too_large in (
        padded(LIMIT + 1),
        in_pieces(padded(LIMIT + 1)),
        b"\xff" * (LIMIT * 4),
        in_pieces(b"[" * LIMIT * 4),
    ):
        answer = client.request(method, url, content=too_large, headers={**CORS, **JSON})
        assert_problem(answer, 413)
    assert client.get(tasks).json() == before


@each_write
@pytest.mark.parametrize(
    "content_type",
    [
        *(None, "", "text/plain", "text/json", "application/x-www-form-urlencoded"),
        *("multipart/form-data; boundary=x", "application/jsonp", "application/xml", "json"),
    ],
)
def test_a_body_of_another_content_type_is_415(
    client: httpx2.Client, tasks: str, method: str, path: str, content_type: str | None
) -> None:
    task = create(client, tasks)
    headers = {**CORS, **({} if content_type is None else {"Content-Type": content_type})}
    body = b'{"title": "x"}' if not path.endswith("complete") else b'{"completed": true}'
    answer = client.request(
        method, tasks + path.format(id=task["id"]), content=body, headers=headers
    )
    assert_problem(answer, 415)
    assert client.get(tasks).json() == [task]


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON",
        "application/x+json",
    ],
)
def test_json_by_any_of_its_names_is_fine(
    client: httpx2.Client, tasks: str, content_type: str
) -> None:
    headers = {"Content-Type": content_type, "Origin": ORIGIN}
    assert client.post(tasks, content=b'{"title": "x"}', headers=headers).status_code == 201


@each_write
@pytest.mark.parametrize("coding", ["gzip", "GZIP", "br", "deflate", "identity, gzip", "zstd", ""])
def test_a_compressed_body_is_415(
    client: httpx2.Client, tasks: str, method: str, path: str, coding: str
) -> None:
    task = create(client, tasks)
    headers = {**CORS, **JSON, "Content-Encoding": coding}
    body = gzip.compress(b'{"title": "x"}')
    answer = client.request(method, tasks + path.format(**task), content=body, headers=headers)
    assert_problem(answer, 415)
    assert client.get(tasks).json() == [task]


def test_a_body_may_say_that_it_is_not_compressed(client: httpx2.Client, tasks: str) -> None:
    headers = {**JSON, "Content-Encoding": "Identity"}
    assert client.post(tasks, content=b'{"title": "x"}', headers=headers).status_code == 201


def test_countless_fields_are_refused_as_one(client: httpx2.Client, tasks: str) -> None:
    body = {"title": "x", **{f"field{number}": 1 for number in range(15_000)}}
    detail = assert_problem(client.post(tasks, json=body, headers=CORS), 422)
    assert detail == "body: must not have more than 100 fields"


# ---- words of an address


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ([], "body: must have at least 1 item"),
        ([{"title": "x"}] * 1001, "body: must have at most 1000 items"),
        ({"title": "x", "tags": [str(n) for n in range(21)]}, "tags: must have at most 20 items"),
    ],
    ids=["none", "many", "tags"],
)
def test_a_wrong_number_of_items_is_told_to_people(
    client: httpx2.Client, tasks: str, body: Any, detail: str
) -> None:
    assert assert_problem(client.post(tasks, json=body, headers=CORS), 422) == detail


@pytest.mark.parametrize("word", ["auth", "users", "v1", "v2", "v10", "%76%31"])
@pytest.mark.parametrize("rest", ["", "/", "/1", "/1/complete", "/stats"])
def test_a_word_of_an_address_is_no_user(client: httpx2.Client, word: str, rest: str) -> None:
    for method in ("GET", "POST", "PATCH", "DELETE"):
        answer = client.request(method, f"/api/{word}/tasks{rest}", json={}, headers=CORS)
        detail = assert_problem(answer, 404)
        assert "/api/tasks" in detail
        assert "/api/USER_ID/tasks" in detail
    assert "/api/USER_ID/tasks" in client.get("/api/tasks/tasks/1").json()["detail"]


@pytest.mark.parametrize("user", ["v", "v1a", "1v", "user", "authx", "tasks2", "v1.0"])
def test_a_user_may_have_a_name_that_begins_like_one(client: httpx2.Client, user: str) -> None:
    assert client.get(f"/api/{user}/tasks").status_code == 200


def test_what_fails_after_its_answer_has_begun_begins_no_other() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message["type"])

    async def receive() -> Any:
        return {"type": "http.request"}

    async def fails(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError("in the middle of it")

    cors = Cors(Response())
    envelope = Envelope(fails, cors, Door(None), None, None)
    scope = {"type": "http", "method": "GET", "path": "/api/tasks", "headers": []}
    with pytest.raises(ValueError, match="in the middle of it"):
        asyncio.run(envelope(scope, receive, send))
    assert sent == ["http.response.start"]
