"""Clients that read slowly, or never: what they asked for is not kept for them for ever."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx2
import pytest

from tests.conftest import Database
from tests.support.processes import wait_until
from tests.support.service import Service

TITLES = [str(number) for number in range(1000)]


@pytest.fixture(scope="module")
def large(database: Database) -> Iterator[Service]:
    """A service of its own whose current user has a list of 10 MB, more than sockets take."""
    with Service(DATABASE_URL=database.url, DEFAULT_USER_ID="large") as service:
        with httpx2.Client(base_url=service.url, trust_env=False) as client:
            for title in TITLES:
                body = {"title": title, "description": title[-1] * 10_000}
                assert client.post("/api/tasks", json=body).status_code == 201
        yield service


def ask(service: Service) -> socket.socket:
    wire = socket.socket()
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    wire.settimeout(30)
    wire.connect(("127.0.0.1", service.port))
    wire.sendall(b"GET /api/tasks?sort=id HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    return wire


def test_who_reads_slowly_gets_all_of_it(large: Service) -> None:
    received = bytearray()
    with ask(large) as wire:
        while data := wire.recv(1 << 16):
            received += data
            if len(received) < 200_000:
                time.sleep(0.02)
    tasks = json.loads(received.partition(b"\r\n\r\n")[2])
    assert [task["title"] for task in tasks] == TITLES
    assert all(task["description"] == task["title"][-1] * 10_000 for task in tasks)


def test_who_never_reads_is_let_go_and_holds_up_nobody(large: Service) -> None:
    with ExitStack() as stack:
        wires = [stack.enter_context(ask(large)) for _ in range(20)]
        assert httpx2.get(f"{large.url}/api/tasks?limit=1", trust_env=False).status_code == 200
        let_go = "returned without completing response"  # uvicorn's words
        wait_until(lambda: large.log.count(let_go) == len(wires), "all are let go", 60)
        for wire in wires:  # what was on its way still comes, then the end
            assert 0 < sum(map(len, iter(lambda: wire.recv(1 << 16), b""))) < 10_000_000  # noqa: B023
    assert "Traceback" not in large.log
