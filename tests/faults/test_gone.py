"""A client that hangs up: what it asked for is not begun, and what is under way is given up."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.conftest import Database
from tests.support.load import locked
from tests.support.processes import wait_until
from tests.support.service import Service, changed_service


@pytest.fixture
def own(new_database: Database) -> Iterator[Service]:
    with Service(DATABASE_URL=new_database.url) as service:
        httpx2.post(f"{service.url}/api/tasks", json={"title": "first"}).raise_for_status()
        yield service


def hang_up_after_sending(service: Service, request: bytes) -> None:
    with contextlib.closing(socket.create_connection(("127.0.0.1", service.port))) as connection:
        connection.sendall(request)


def test_a_create_whose_client_hung_up_before_its_turn_makes_nothing(
    own: Service, new_database: Database
) -> None:
    body = b'{"title": "never"}'
    head = b"POST /api/tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    rest = b"Content-Length: %d\r\n\r\n" % len(body) + body
    with locked(new_database.url):
        for number in range(40):  # more than there are connections to run them on
            # With a key of its own, a create shares no statement with others.
            hang_up_after_sending(own, head + b"Idempotency-Key: %d\r\n" % number + rest)
        wait_until(lambda: own.log.count("POST /api/tasks 499") == 40, "all are given up")
    titles = [task["title"] for task in httpx2.get(f"{own.url}/api/tasks").json()]
    assert "first" in titles
    assert titles.count("never") <= 10  # those that the database had been given already


def test_a_client_that_hung_up_after_a_large_body_is_seen_to_have_gone(
    own: Service, new_database: Database
) -> None:
    body = json.dumps([{"title": "never", "description": "d" * 9000}] * 8).encode()
    head = b"POST /api/tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: %d\r\n\r\n" % len(body)
    with locked(new_database.url):
        with contextlib.closing(socket.create_connection(("127.0.0.1", own.port))) as connection:
            connection.sendall(head + body[:1])
            time.sleep(0.1)  # so that what is left comes in one piece, after which uvicorn pauses
            connection.sendall(body[1:])
        wait_until(lambda: "POST /api/tasks 499" in own.log, "it is given up")


def test_what_looks_whether_an_agent_still_waits_does_not_take_its_body(
    new_database: Database, tmp_path: Path
) -> None:
    slow = (
        "import asyncio\nfrom fastapi import Request\nfrom auth import Owners\n"
        "current = Owners.current\n"
        "async def slowly(self, request: Request):\n"
        "    await asyncio.sleep(0.5)\n"  # as where the database is asked about the account
        "    return await current(self, request)\n"
        "Owners.current = slowly\n"
        "from main import app\n"
    )
    with changed_service(tmp_path, slow, DATABASE_URL=new_database.url) as service:
        ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        answer = httpx2.post(f"{service.url}/mcp", json=ping, timeout=10)
    assert answer.json() == {"jsonrpc": "2.0", "id": 1, "result": {}}


def test_an_agent_that_hung_up_is_no_error_of_the_service(
    own: Service, new_database: Database
) -> None:
    use = {"name": "add_task", "arguments": {"title": "never"}}
    adding = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": use})
    head = "POST /mcp HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
    with locked(new_database.url):
        for _ in range(40):
            hang_up_after_sending(own, f"{head}{len(adding)}\r\n\r\n{adding}".encode())
        wait_until(lambda: own.log.count("POST /mcp 499") == 40, "all are given up")
    httpx2.get(f"{own.url}/api/tasks").raise_for_status()
    assert "unexpected error" not in own.log


def test_a_refusal_that_pipelined_requests_meet_after_their_client_has_gone_is_no_error(
    own: Service, new_database: Database
) -> None:
    head = "PATCH /api/tasks/9 HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    asked = f'{head}Content-Length: 15\r\n\r\n{{"title": "no"}}'.encode()
    with locked(new_database.url):
        hang_up_after_sending(own, asked * 2)  # uvicorn sees the client of the last one go
        time.sleep(0.3)
    wait_until(lambda: "PATCH /api/tasks/9 499" in own.log, "the first is given up")
    httpx2.get(f"{own.url}/api/tasks").raise_for_status()
    assert "Traceback" not in own.log


def test_large_bodies_whose_client_has_gone_leave_no_task_that_waits(
    new_database: Database, tmp_path: Path
) -> None:
    collecting = (
        "import gc\nfrom main import app\napp.add_api_route('/collect', lambda: gc.collect())\n"
    )
    head = b"POST /api/tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    body = b'{"title": "never"%b}' % (b" " * 100_000)
    asked = b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body)
    with changed_service(tmp_path, collecting, DATABASE_URL=new_database.url) as service:
        with locked(new_database.url):
            for _ in range(10):
                hang_up_after_sending(service, asked + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            wait_until(lambda: "POST /api/tasks 499" in service.log, "some are given up")
        httpx2.get(f"{service.url}/collect").raise_for_status()
        assert "Task was destroyed" not in service.log
