"""What nobody should send, byte by byte: an error of the contract or uvicorn's 400, never a 5xx.

Bodies that are wrong as JSON or as a task are in `test_errors.py`.
"""

import itertools
import random
import re
import select
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import httpx2
import pytest

from schemas import TaskQuery
from tests.support.api import create
from tests.support.problems import CORS, assert_problem
from tests.support.processes import wait_until
from tests.support.service import Service

NOT_HTTP = b"Invalid HTTP request received."  # uvicorn's words, with 400


@pytest.fixture(autouse=True)
def _nothing_broke(client: httpx2.Client, service: Service, tasks: str) -> Iterator[None]:
    """After each test the same processes serve the next request; nothing unexpected is logged."""
    pids, logged = service.pids, len(service.log)
    yield
    assert client.post(tasks, json={"title": "next"}).status_code == 201
    assert service.pids == pids
    assert not re.search("Traceback|ERROR|Exception", service.log[logged:])


def connect(service: Service) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), timeout=20)


def read_one(wire: socket.socket) -> bytes:
    """The next answer on a connection that may stay open."""
    received = b""
    while not (complete := re.search(rb"content-length: (\d+)\r\n(?s:.*?)\r\n\r\n", received)):
        received += wire.recv(1 << 16)
    while len(received) < complete.end() + int(complete[1]):
        received += wire.recv(1 << 16)
    return received


def read_all(wire: socket.socket) -> bytes:
    """All that the service sends until it closes the connection."""
    received = b""
    try:
        while data := wire.recv(1 << 16):
            received += data
    except ConnectionResetError:  # it closed before it had read all that we sent
        pass
    return received


def say(service: Service, data: bytes, *, patience: float | None = None) -> bytes:
    """Send these bytes; what the service answers, until it closes the connection.

    With `patience`, it is told that there is no more once it has answered, or after so many
    seconds if it does not.
    """
    with connect(service) as wire:
        with suppress(OSError):  # it may hang up before all is sent
            wire.sendall(data)
            if patience is not None:
                select.select([wire], [], [], patience)
                wire.shutdown(socket.SHUT_WR)
        return read_all(wire)


def request(line: str, *headers: str, body: bytes = b"") -> bytes:
    """One request on a connection that closes; header values may hold any byte, as Latin-1."""
    lines = [f"{line} HTTP/1.1", "Host: localhost", "Connection: close", *CORS_LINES, *headers]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


CORS_LINES = [f"{name}: {value}" for name, value in CORS.items()]


def parse(answer: bytes) -> httpx2.Response:
    """The one HTTP answer that these bytes are."""
    head, _, content = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.encode("latin-1").partition(b": ") for line in lines)
    headers = [(name, value) for name, _, value in pairs]
    return httpx2.Response(int(status.split()[1]), headers=headers, content=content)


def assert_refused(answer: bytes, *statuses: int) -> None:
    """Check that it is a problem with one of these statuses, or, for 400, what is not HTTP."""
    response = parse(answer)
    assert response.status_code in statuses, answer[:2000]
    if response.content != NOT_HTTP:
        assert_problem(response, response.status_code)
    else:
        assert response.status_code == 400


# ---- bodies that do not end well


def test_an_endless_chunked_body_is_413_before_its_end(service: Service, tasks: str) -> None:
    head = request(f"POST {tasks}", "Content-Type: application/json", "Transfer-Encoding: chunked")
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with connect(service) as wire:
        wire.sendall(head + chunk * 5)
        assert_refused(read_one(wire), 413)
        for _ in range(100):  # and whoever goes on sending does not trouble anybody else
            try:
                wire.sendall(chunk)
            except OSError:
                break


@pytest.mark.parametrize("sent", [0, 1, 256 * 1024 + 1])
@pytest.mark.parametrize("length", [256 * 1024 + 1, 10**12])
def test_a_body_that_announces_too_much_is_413(
    service: Service, tasks: str, length: int, sent: int
) -> None:
    head = request(
        f"POST {tasks}",
        f"Content-Length: {length}",
        "Content-Type: application/json",
        "Expect: 100-continue",  # as curl asks before it sends much
    )
    with connect(service) as wire:
        wire.sendall(head + b" " * sent)
        assert_refused(read_one(wire), 413)


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("path", ["{tasks}", "/nowhere"])
def test_who_still_sends_when_the_answer_comes_does_not_lose_it(
    service: Service, tasks: str, path: str, version: str
) -> None:
    piece = b" " * 0x10000
    head = request(
        f"POST {path.format(tasks=tasks)}",
        "Content-Type: application/json",
        f"Content-Length: {100 * len(piece)}",
    ).replace(b"HTTP/1.1", f"HTTP/{version}".encode())
    if version == "1.0":  # which closes without a word
        head = head.replace(b"Connection: close\r\n", b"")
    with connect(service) as wire:
        wire.sendall(head)
        assert select.select([wire], [], [], 20)[0]  # it has answered
        for _ in range(100):  # as nginx does, and Node's proxies: to the end
            wire.sendall(piece)
        answer = read_one(wire)
        assert wire.recv(1) == b""  # neither reset nor left open
    assert_refused(answer, 413 if "tasks" in path else 404)


def test_a_slow_body_is_waited_for_and_holds_up_nobody(
    service: Service, client: httpx2.Client, tasks: str
) -> None:
    body = b'{"title": "slow"}'
    with connect(service) as wire:
        whole = request(f"POST {tasks}", body=body)
        wire.sendall(whole[: -len(body)])
        for byte in body:
            assert client.get(tasks).json() == []
            wire.sendall(bytes([byte]))
        assert parse(read_all(wire)).json()["title"] == "slow"


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_a_body_that_is_cut_off_creates_nothing(
    service: Service, client: httpx2.Client, tasks: str, chunked: bool
) -> None:
    body = b'{"title": "half"}'
    how = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body) + 1}"
    head = request(f"POST {tasks}", "Content-Type: application/json", how)
    for sent in (head, head + (b"11\r\n" + body + b"\r\n" if chunked else body)):
        with connect(service) as wire:
            wire.sendall(sent)
            wire.shutdown(socket.SHUT_RDWR)
    assert client.get(tasks).json() == []


def test_half_open_requests_keep_nobody_out(
    service: Service, client: httpx2.Client, tasks: str
) -> None:
    with ExitStack() as stack:
        for number in range(200):
            wire = stack.enter_context(connect(service))
            wire.sendall(request(f"POST {tasks}", body=b'{"title": "x"}')[: 1 + number % 150])
        create(client, tasks)
        assert client.get(tasks).headers["x-total-count"] == "1"


def test_of_a_repeated_key_the_last_one_counts_as_in_javascript(
    client: httpx2.Client, tasks: str
) -> None:
    headers = {"Content-Type": "application/json"}
    body = b'{"title": "a", "title": "b", "tags": ["a"], "tags": []}'
    task = client.post(tasks, content=body, headers=headers).json()
    assert (task["title"], task["tags"]) == ("b", [])


def test_bodies_of_calls_without_one_are_ignored(client: httpx2.Client, tasks: str) -> None:
    for body in (b"{", b"\xff" * 100_000):
        for path in (tasks, f"{tasks}/stats"):
            assert client.request("GET", path, content=body).status_code == 200
        # But that of a DELETE of many, which may say of how many.
        assert client.request("DELETE", tasks, content=body).status_code == 422


# ---- headers


@pytest.mark.parametrize(
    "header",
    [
        'If-Match: "1-1", 1-1',
        "If-Match:",
        "If-Match: \xff",
        'If-Match: *, "1-1"',
        "If-None-Match: W/",
        'If-None-Match: "\x01"',
        "If-None-Match: " + "," * 5000,
        "Idempotency-Key:",
        "Idempotency-Key: \xff\xfe",
        "Idempotency-Key: " + "k" * 256,
        "Content-Length: -1",
        "Content-Length: 0x10",
        "Content-Length: " + "9" * 30,
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked, gzip",
        "Na me: x",
        "Name\x00: x",
        ": x",
        "no colon",
        "X: a\x00b",
    ],
    ids=lambda header: repr(header[:40]),
)
def test_a_header_that_makes_no_sense_is_refused(service: Service, tasks: str, header: str) -> None:
    line = {"If-Ma": f"DELETE {tasks}/1", "If-No": f"GET {tasks}"}.get(header[:5], f"POST {tasks}")
    body = b'{"title": "x"}' if header.startswith("Idem") else b""
    assert_refused(say(service, request(line, header, body=body)), 400, 422)


def test_blanks_around_a_header_are_no_part_of_it(service: Service, tasks: str) -> None:
    """RFC 9112, section 5.1."""
    keys = ("key", "key ", "key\t ", "  key")
    asked = [
        request(f"POST {tasks}", f"Idempotency-Key: {key}", body=b'{"title": "x"}') for key in keys
    ]
    answers = [parse(say(service, each)) for each in asked]
    assert [answer.status_code for answer in answers] == [201] * 4
    assert len({answer.json()["id"] for answer in answers}) == 1


@pytest.mark.parametrize(
    "header",
    [
        "Accept: \xff/*;q=x",
        "Accept-Encoding: gzip;q=-1, \xff",
        "Authorization: Bearer \xff",
        "Authorization: " + "x" * 60_000,
        "Cookie: " + "a=b;" * 15_000,
        "Expect: 200-ok",
        "If-Modified-Since: never",
        'If-None-Match: "a", W/"b", ,',
        "If-None-Match: " + '"a", ' * 13_000 + '"b"',
        "Range: bytes=9-1",
        "X-Forwarded-For: \xff, ;;, 1.2.3.4.5",
        "X-Forwarded-Proto: javascript",
        "X-Request-ID: \xff" + "x" * 10_000,
        "\r\n".join(f"X-{number}: y" for number in range(8_000)),
    ],
    ids=lambda header: repr(header[:40]),
)
def test_a_header_that_means_nothing_here_is_ignored(
    service: Service, tasks: str, header: str
) -> None:
    assert parse(say(service, request(f"GET {tasks}", header))).status_code == 200


def test_an_if_match_of_countless_versions_is_compared_with_each(
    client: httpx2.Client, tasks: str
) -> None:
    path = f"{tasks}/{create(client, tasks)['id']}"
    mine = client.get(path).headers["etag"]
    others = ", ".join(f'"{path.rpartition("/")[2]}-{n}"' for n in range(2, 4_000))
    assert client.patch(path, json={}, headers={"If-Match": others}).status_code == 412
    assert client.patch(path, json={}, headers={"If-Match": f"{others}, {mine}"}).status_code == 200


@pytest.mark.parametrize("host", ["", "\xff", '"><script>', "a b", "[::1", "a" * 10_000])
def test_whatever_host_is_asked_for_the_answer_is_json(
    service: Service, tasks: str, host: str
) -> None:
    asked = request(f"POST {tasks}", body=b'{"title": "x"}')
    asked = asked.replace(b"localhost\r\n", host.encode("latin-1") + b"\r\n", 1)
    answer = parse(say(service, asked))
    if answer.content != NOT_HTTP:
        assert answer.status_code == 201
        assert answer.json()["url"].endswith(f"{tasks}/{answer.json()['id']}")


# ---- paths


@pytest.mark.parametrize(
    ("path", "status"),
    [
        *((f"/api/{user}/tasks", 422) for user in ("%00", "%0a", "%7f", "%c2%80")),
        *((f"/api/{user}/tasks", 422) for user in ("%ff", "%ed%a0%80", "%c0%af", "a%ffb")),
        ("/api/" + "a" * 129 + "/tasks", 422),
        ("/api/a%2fb/tasks", 404),
        ("/api//tasks", 404),
        ("//api/tasks", 404),
        ("/api/tasks//", 404),
        *((f"{path}%0a", 404) for path in ("/api/tasks", "/api/a/tasks/stats", "/health", "/docs")),
        ("/api/tasks%0a/", 404),
        ("/api/../api/tasks/1", 404),
        ("/api/tasks/..%2f..%2fetc%2fpasswd", 404),
        ("/../../../../etc/passwd", 404),
        ("/.env", 404),
        ("/tasks.db", 404),
        ("/" + "a/" * 5000, 404),
        ("/" + "a" * 60_000, 404),
        *((f"/api/tasks/{number}", 422) for number in ("0", "+1", str(2**53), "9" * 5000)),
        *((f"/api/tasks/{number}", 422) for number in ("1.0", "007", "a" * 65, "%00")),
        *((f"/api/tasks/{uid}", 404) for uid in ("-1", "1e0", "0x1", "true", "null")),
        *((f"/api/tasks/{number}", 422) for number in ("%ff", "%EF%BC%91", "%d9%a1", "1%00")),
        ("/api/tasks/1;drop%20table%20task", 422),
        ("/api/tasks/1'--", 422),
        ("/api/tasks/stats/x", 404),
        ("/api/tasks/1/complete/x", 404),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_path_that_leads_nowhere_is_refused(service: Service, path: str, status: int) -> None:
    assert_refused(say(service, request(f"GET {path}")), status)


@pytest.mark.parametrize("end", ["%0a", "%0A/", "/%0a", "%0a%0a", "%0d%0a"])
@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
def test_a_line_feed_at_the_end_of_a_path_makes_no_call_for_all_tasks(
    service: Service, client: httpx2.Client, tasks: str, method: str, end: str
) -> None:
    task = create(client, tasks)
    asked = request(f"{method} {tasks}{end}", body=b'{"completed": true}')
    assert_refused(say(service, asked), 404)
    assert client.get(tasks).json() == [task]


@pytest.mark.parametrize(
    "target", ["/" + "a" * 70_000, "/\xff", "/\xc3\xa4", "/a b", "api/tasks", "", "*", "http://"]
)
def test_a_target_that_is_none_is_refused(service: Service, target: str) -> None:
    assert_refused(say(service, request(f"GET {target}")), 400, 404)


# ---- queries


@pytest.mark.parametrize(
    "query",
    [
        *("%00=1", "%ff=1", "%ed%a0%80=1", "=", "=1", "q=a&=1", "__proto__=1", "limit.=1", "a=b"),
        *("limit=0", "limit=1e3", "limit=-1", "limit=%EF%BC%91", "limit=", "limit=1&limit=1"),
        *("offset=-1", "offset=99999999999999999999", "_page=9999999999999999", "limit=1_0"),
        *(
            "q=%00",
            "title_like=%00",
            "user_id=%00",
            "tag=%00",
            "q=" + "a" * 10_001,
            "id=",
            "id=1.5",
        ),
        *("order_gte=nan", "order_gte=inf", "order_gte=1e999", "order=1;drop", "order_gte=1_0"),
        *("due_before=0000-00-00", "due_after=9999-12-31T23:59:59-23:59", "due_before="),
        *("created_at_gte=2026-02-30", "created_at=2026-11-21", "updated_at_lte=now()"),
        *("created_at_gte=", "completed=1"),
        *("sort=title;drop%20table%20task", "sort=-", "sort=,", "sort=tags", "sort=(select%201)"),
        "&".join(f"field{number}=1" for number in range(5_000)),
        "&".join(["status=all"] * 5_000),
        "a" * 60_000,
        *(f"order_gte={digits}x" for digits in ("1" * 60_000, "1." + "1" * 60_000)),
    ],
    ids=lambda query: query[:40],
)
def test_a_query_that_makes_no_sense_is_refused(service: Service, tasks: str, query: str) -> None:
    for method in ("GET", "DELETE"):
        answer = say(service, request(f"{method} {tasks}?{query}"))
        assert_refused(answer, 422)
        assert len(answer) < 20_000


@pytest.mark.parametrize(
    "query",
    [
        *("", "&", "&&&", "q=", "q=%25_%5c'", "q=%F0%9F%92%A9", "sort=", "sort=id,id,-id"),
        "&".join(f"id={number}" for number in range(1, 8_000)),
        "&".join(f"tag=tag{number}" for number in range(5_000)),
        "&".join(["priority=low"] * 4_000),
        "sort=" + ",".join(["title", "-title", "due_date"] * 2_000),
        "_sort=" + ",".join(["title"] * 3_000) + "&_order=" + ",".join(["DESC"] * 3_000),
        "q=" + "a" * 10_000,
        "offset=9007199254740991",
        "&".join(
            f"{field}{operator}=1"
            for field, operator in itertools.product(
                ("id", "user_id", "title", "description", "order"), ("_gte", "_lte", "_ne")
            )
        ),
    ],
    ids=lambda query: query[:40],
)
def test_a_query_may_be_long_and_strange(service: Service, tasks: str, query: str) -> None:
    assert parse(say(service, request(f"GET {tasks}?{query}"))).status_code == 200


def test_a_parameter_that_comes_twice_is_refused_or_taken_as_a_list(
    client: httpx2.Client, tasks: str
) -> None:
    for name in TaskQuery.model_fields:
        for value in ("1", "a", "", "true", "2026-01-01", "2026-01-01T10:00:00Z"):
            for path in (tasks, f"{tasks}/stats"):
                answer = client.get(f"{path}?{name}={value}&{name}={value}")
                assert answer.status_code in (200, 422), f"{name}={value}"


@pytest.mark.parametrize("query", ["q=%ff", "title_ne=%c3", "tag=%ed%a0%80", "%ff=1"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_text_that_is_not_utf_8_is_refused_not_guessed_at(
    service: Service, tasks: str, method: str, query: str
) -> None:
    line = f"{method} {tasks}?{query} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert parse(say(service, line.encode("latin-1"))).status_code == 422


def test_countless_shapes_of_queries_leave_no_mark(
    client: httpx2.Client, service: Service, tasks: str
) -> None:
    def ask(first: int, last: int) -> None:
        for count in range(first, last):
            ids = "&".join(f"id={number}" for number in range(1, 20 * count))
            assert client.get(f"{tasks}?{ids}").status_code == 200

    ask(1, 20)
    before = service.memory()
    ask(20, 120)
    assert service.memory() < before + 30_000_000


def test_ever_new_combinations_of_filters_leave_no_mark(
    client: httpx2.Client, service: Service, tasks: str
) -> None:
    """Each is a statement of its own, which SQLAlchemy makes of thousands of objects in cycles."""
    chance = random.Random(7)
    fields = ("id", "title", "description", "due_date", "priority", "created_at", "updated_at")
    filters = [field + operator for field in fields for operator in ("_gte", "_lte", "_ne")]
    values = {"id": "1", "title": "a", "description": "a", "priority": "low"}

    def ask(count: int) -> None:
        for _ in range(count):
            chosen = chance.sample(filters, chance.randint(3, 15))
            value = {name: values.get(name.rpartition("_")[0], "2026-11-25") for name in chosen}
            value |= {"created_at_ne": "2026-11-25T10:00:00Z", "updated_at_ne": ""}
            query = "&".join(f"{name}={value[name]}" for name in chosen)
            sort = ",".join(chance.sample(fields, chance.randint(0, 6)))
            assert client.get(f"{tasks}?{query}&sort={sort}").status_code == 200, query

    ask(600)
    before = service.memory()
    ask(600)  # which are more than 50 MB when none is collected, or their cache has no bound
    assert service.memory() < before + 30_000_000


def test_ever_new_long_hosts_and_origins_leave_no_mark(service: Service, tasks: str) -> None:
    def ask(count: int) -> None:
        with connect(service) as wire:
            for number in range(count):
                long = f"{number}.{'x' * 60_000}"
                for named in (f"Host: {long}\r\nSec-Fetch-Site: none", f"Origin: http://{long}"):
                    wire.sendall(f"GET {tasks} HTTP/1.1\r\n{named}\r\n\r\n".encode())
                    assert read_one(wire)[9:12] == b"403"

    ask(20)
    before = service.memory()
    ask(600)
    assert service.memory() < before + 25_000_000


# ---- what is not HTTP


@pytest.mark.parametrize(
    "nonsense",
    [
        *(b"\r\n\r\n\r\nx", b"\0" * 5000, b"\xff" * 5000, b"a" * 100_000, b"GET", b"GET /\r\n\r\n"),
        *(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            bytes.fromhex("16030100c8010000c40303") + b"\0" * 190,
        ),
        *(
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET / HTTQ/1.1\r\n\r\n",
            b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n",
        ),
        *(b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"SSH-2.0-x\r\n"),
        b"POST /api/tasks HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n\r\n",
    ],
    ids=lambda nonsense: repr(nonsense[:25]),
)
def test_what_is_not_http_is_turned_away(service: Service, nonsense: bytes) -> None:
    answer = say(service, nonsense, patience=0.1)
    assert answer == b"" or parse(answer).status_code in (307, 400)


def test_random_bytes_are_turned_away(service: Service) -> None:
    chance = random.Random(6)
    valid = request("POST /api/tasks?limit=1", "If-Match: *", body=b'{"title": 1}')
    for _ in range(300):
        broken = bytearray(valid)
        for _ in range(chance.randint(1, 8)):
            place = chance.randrange(len(broken))
            broken[place : place + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3))
        answer = say(service, bytes(broken), patience=0.02)
        for status in re.findall(rb"^HTTP/1.1 (\d)", answer):
            assert status == b"4", (broken, answer)


def test_pipelined_requests_are_answered_in_order(service: Service, tasks: str) -> None:
    first = request(f"GET {tasks}/9007199254740991").replace(b"Connection: close\r\n", b"")
    asked = [first.replace(b"0991 ", b"%04d " % number) for number in range(50)]
    answer = say(service, b"".join(asked) + request(f"GET {tasks}/stats"))
    found = re.findall(rb'"detail":"There is no task 900719925474(\d{4})', answer)
    assert found == [b"%04d" % number for number in range(50)]
    assert answer.endswith(b'{"total":0,"completed":0,"pending":0,"overdue":0}')


def test_who_sends_countless_requests_ahead_of_their_answers_is_turned_away(
    service: Service,
) -> None:
    asked = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000
    before = service.memory()
    with connect(service) as wire, ThreadPoolExecutor() as pool:
        received = pool.submit(read_all, wire)
        with suppress(ConnectionError):
            for _ in range(500):  # a gigabyte where all are taken in
                wire.sendall(asked)
        last = received.result().rpartition(b"HTTP/1.1 ")[2]
    assert last[:3] in (b"503", b"")  # lost where the connection was reset first
    assert service.memory() < before + 100_000_000


def test_a_websocket_is_turned_away_and_no_token_of_it_logged(service: Service, tasks: str) -> None:
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    headers = ("Upgrade: websocket", "Sec-WebSocket-Version: 13", key)
    line = f"GET {tasks}/changes?access_token=seekrit"
    asked = request(line, *headers).replace(b"Connection: close", b"Connection: Upgrade")
    assert parse(say(service, asked)).status_code == 403
    wait_until(lambda: "connection rejected" in service.log, "uvicorn has logged it")
    assert "seekrit" not in service.log
