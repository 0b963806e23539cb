"""What is turned away before anything else reads the request, byte by byte."""

import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from itertools import product
from typing import Any

import httpx2
import pytest

from tests.conftest import Database
from tests.support.api import create
from tests.support.problems import CORS, assert_problem
from tests.support.service import Service

# ---- headers


@pytest.mark.parametrize(
    "headers",
    [
        [("X", "x" * (64 * 1024))],
        [(f"X-{number}", "y" * 100) for number in range(700)],
        [("If-Match", '"1-1", ' * 1_000_000 + '"1-1"')],
        [
            ("Access-Control-Request-Headers", "a," * 40_000),
            ("Access-Control-Request-Method", "GET"),
        ],
    ],
    ids=["long", "many", "if-match", "preflight"],
)
@pytest.mark.parametrize("method", ["GET", "PATCH", "OPTIONS"])
def test_headers_of_more_than_64_kib_are_431(
    client: httpx2.Client, tasks: str, method: str, headers: list[tuple[str, str]]
) -> None:
    answer = client.request(method, f"{tasks}/1", headers=[*CORS.items(), *headers])
    assert_problem(answer, 431)
    assert len(answer.content) < 1000


# ---- requests that ask to upgrade

H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAAAA")
OTHER = ("Connection: keep-alive, upgrade", "Upgrade: TLS/1.0, foo")
ONLY_NAMED = ("Upgrade: h2c",)  # without `Connection: upgrade` it asks for nothing


def head(line: str, *headers: str) -> bytes:
    lines = [f"{line} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def answers(service: Service, *packets: bytes) -> tuple[list[int], bool]:
    """The statuses of all answers to what is sent packet by packet; whether it then hung up."""
    received, closed = b"", False
    with socket.create_connection(("127.0.0.1", service.port), timeout=1) as wire:
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for packet in packets:
                wire.sendall(packet)
            while data := wire.recv(1 << 16):
                received += data
            closed = True
        except (ConnectionResetError, BrokenPipeError):
            closed = True
        except TimeoutError:
            pass
    return [int(status) for status in re.findall(rb"HTTP/1.1 (\d+) ", received)], closed


LINES = ("POST {}", "GET {}", "DELETE {}/1", "PATCH {}/1/complete")


@pytest.mark.parametrize(
    ("upgrade", "line"),
    # The parser takes CONNECT for one that asks to upgrade, whatever its headers say.
    [*product([H2C, OTHER], LINES), ((), "CONNECT {}"), ((), "CONNECT http://localhost{}")],
)
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_no_byte_of_a_body_is_read_as_a_request(
    service: Service,
    client: httpx2.Client,
    tasks: str,
    upgrade: tuple[str, ...],
    line: str,
    chunked: bool,
) -> None:
    create(client, tasks)
    body = head(f"DELETE {tasks}")
    how = f"Content-Length: {len(body)}"
    if chunked:
        how, body = "Transfer-Encoding: chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    asked = head(line.format(tasks), *upgrade, how)
    before = head("GET /health")
    for packets in ([asked + body], [asked, body], [asked[:50], asked[50:] + body[:9], body[9:]]):
        statuses, closed = answers(service, *packets)
        assert statuses in ([400], [])  # none where it hung up before it had read all
        assert closed
    statuses, closed = answers(service, before + asked + body, body)
    assert statuses in ([200, 400], [200])
    assert closed
    assert client.get(tasks).headers["x-total-count"] == "1"


def test_a_lost_body_never_makes_a_toggle_of_what_sets(
    service: Service, client: httpx2.Client, tasks: str
) -> None:
    number = create(client, tasks, completed=True)["id"]
    body = b'{"completed": true}'
    asked = head(f"PATCH {tasks}/{number}/complete", *H2C, f"Content-Length: {len(body)}")
    for packets in ([asked + body], [asked, body]):
        answers(service, *packets)
        assert client.get(f"{tasks}/{number}").json()["completed"]


def test_without_a_body_or_a_wish_the_header_means_nothing(
    service: Service, client: httpx2.Client, tasks: str
) -> None:
    body = b'{"title": "x"}'
    length = f"Content-Length: {len(body)}"
    assert answers(service, head(f"GET {tasks}", *H2C)) == ([200], True)  # see below
    assert answers(service, head(f"GET {tasks}", *ONLY_NAMED)) == ([200], False)
    assert answers(service, head(f"POST {tasks}", *ONLY_NAMED, length), body) == ([201], False)
    assert answers(service, head(f"POST {tasks}", *ONLY_NAMED, length) + body) == ([201], False)
    assert {task["title"] for task in client.get(tasks).json()} == {"x"}


@pytest.mark.parametrize("path", ["/api/tasks", "/api/tasks%0a"])
def test_what_is_refused_for_another_reason_loses_no_body_either(
    service: Service, client: httpx2.Client, tasks: str, path: str
) -> None:
    create(client, tasks)
    body = head(f"DELETE {tasks}")
    asked = head(
        f"POST {path}", *H2C, "Origin: http://evil.example", f"Content-Length: {len(body)}"
    )
    statuses, closed = answers(service, asked, body)
    assert statuses in ([400], [])
    assert closed
    assert client.get(tasks).headers["x-total-count"] == "1"


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        *((head("GET /health", *each), 200) for each in (H2C, OTHER, (*H2C, "Connection: x"))),
        (head("CONNECT /health"), 405),
    ],
)
def test_the_body_of_a_request_after_one_to_upgrade_is_not_read_as_a_request(
    service: Service, client: httpx2.Client, tasks: str, asked: bytes, status: int
) -> None:
    create(client, tasks)
    body = head(f"DELETE {tasks}")
    following = head(f"POST {tasks}", f"Content-Length: {len(body)}")
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as wire:
        wire.sendall(asked + following)
        assert wire.recv(1 << 16).startswith(b"HTTP/1.1 %d " % status)
        with suppress(ConnectionResetError, BrokenPipeError):
            wire.sendall(body)
            while wire.recv(1 << 16):
                pass
    assert client.get(tasks).headers["x-total-count"] == "1"


def test_h11_serves_what_asks_to_upgrade(new_database: Database) -> None:
    body = b'{"title": "x"}'
    asked = head("POST /api/tasks", *H2C, f"Content-Length: {len(body)}")
    with Service(DATABASE_URL=new_database.url, args=["--http", "h11"]) as service:
        assert answers(service, asked, body) == ([201], False)
        assert answers(service, asked + body) == ([201], False)


# ---- pages of other hosts, while auth is off

FIREFOX = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"}


@pytest.fixture(scope="module")
def listed(database: Database) -> Iterator[httpx2.Client]:
    """A client of a service with the one origin https://app.example."""
    with (
        Service(DATABASE_URL=database.url, CORS_ORIGINS="https://app.example") as service,
        httpx2.Client(base_url=service.url, trust_env=False) as client,
    ):
        yield client


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example:8000", "Origin": "http://evil.example:8000"},
        {"Host": "evil.example", "Sec-Fetch-Site": "same-origin"},
        {"Host": "evil.example", "Sec-Fetch-Site": "cross-site"},  # a tab that it opened elsewhere
        {"Host": "evil.example", **FIREFOX},  # Sec-Fetch-Site is for https and localhost only
        {"Host": "app.example.evil.example", "Sec-Fetch-Site": "same-origin"},
        {"Host": "localhost.evil.example", "Sec-Fetch-Site": "same-origin"},
        {"Host": "127.0.0.1.evil.example", "Sec-Fetch-Site": "same-origin"},
        {"Host": "[::1", "Sec-Fetch-Site": "same-origin"},
        {"Host": "127.0.0.1:8000", "Origin": "http://evil.example"},
        {"Host": "localhost", "Origin": "null"},
    ],
    ids=lambda headers: " ".join(headers.values())[:60],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_a_page_of_another_host_is_refused_even_under_its_own_name(
    listed: httpx2.Client, tasks: str, method: str, headers: dict[str, str]
) -> None:
    kept = create(listed, tasks)
    answer = listed.request(method, tasks, headers=headers)
    assert answer.status_code == 403
    assert "CORS_ORIGINS" in answer.json()["detail"]
    assert [task["id"] for task in listed.get(tasks).json()] == [kept["id"]]


@pytest.mark.parametrize(
    "headers",
    [
        *(
            {"Host": f"{host}:80", "Sec-Fetch-Site": "same-origin"}
            for host in ("localhost", "[::1]")
        ),
        {"Host": "127.0.0.1:8000", "Origin": "http://127.0.0.1:8000"},
        {"Host": "192.168.1.7", "Origin": "http://192.168.1.7"},
        {"Host": "app.example", "Sec-Fetch-Site": "same-origin", **FIREFOX},
        {"Host": "app.example", "Origin": "https://app.example"},
        {"Host": "tasks.example", "Origin": "https://app.example", **FIREFOX},
        {"Host": "tasks.example"},  # no page: a server, curl
    ],
    ids=lambda headers: " ".join(headers.values())[:60],
)
def test_pages_of_addresses_and_of_listed_hosts_may_come_and_what_is_no_page(
    listed: httpx2.Client, tasks: str, headers: dict[str, str]
) -> None:
    assert listed.get(tasks, headers=headers).status_code == 200
    assert listed.get("/docs", headers=headers).status_code == 200


def test_with_auth_on_or_a_star_every_page_may_come(new_database: Database) -> None:
    rebound = {"Host": "evil.example", "Origin": "http://evil.example"}
    secret = "0123456789abcdef0123456789abcdef"
    cases: list[tuple[dict[str, Any], int]] = [
        ({"CORS_ORIGINS": "*"}, 200),
        ({"AUTH_SECRET": secret}, 401),
    ]
    for settings, status in cases:
        with Service(DATABASE_URL=new_database.url, **settings) as service:
            url = f"{service.url}/api/tasks"
            assert httpx2.get(url, headers=rebound, trust_env=False).status_code == status
