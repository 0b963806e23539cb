"""Clients that read slowly, or never: what they asked for is not kept for them for ever."""

import json
import re
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx2
import psutil
import pytest

import door
from tests.conftest import Database
from tests.support.certificate import self_signed
from tests.support.load import Request, at_once
from tests.support.processes import wait_until
from tests.support.service import Service, changed_service

HASTY = "import door\ndoor.PATIENCE = 2\nfrom main import app as app\n"
TITLES = [str(number) for number in range(1000)]


@pytest.fixture(scope="module")
def large(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service of little patience whose current user has a list of 10 MB: no socket takes that."""
    assert door.PATIENCE == 10  # seconds, as documented
    directory = tmp_path_factory.mktemp("hasty")
    with changed_service(
        directory, HASTY, DATABASE_URL=database.url, DEFAULT_USER_ID="large"
    ) as service:
        with httpx2.Client(base_url=service.url, trust_env=False) as client:
            for title in TITLES:
                body = {"title": title, "description": title[-1] * 10_000}
                assert client.post("/api/tasks", json=body).status_code == 201
        yield service


LIST = b"GET /api/tasks?sort=id HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def ask(service: Service, request: bytes = LIST) -> socket.socket:
    wire = socket.socket()
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    wire.settimeout(30)
    wire.connect(("127.0.0.1", service.port))
    wire.sendall(request)
    return wire


def connections(service: Service) -> int:
    """How many the service holds."""
    held = psutil.Process(service.pids[0]).net_connections("tcp")
    return sum(each.laddr.port == service.port and bool(each.raddr) for each in held)


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
        wait_until(lambda: connections(large) == 0, "all are let go", 60)
        for wire in wires:  # what was on its way still comes, then the end
            assert wire.recv(1000)
            with suppress(ConnectionResetError):
                assert sum(map(len, iter(lambda: wire.recv(1 << 16), b""))) < 10_000_000  # noqa: B023

    def ends() -> list[str]:  # 503: it was not their turn in time
        return re.findall(r"GET /api/tasks (499|503)", large.log)

    wait_until(lambda: len(ends()) == len(wires), "the lines, which follow the ends")
    assert "499" in ends()
    assert "Traceback" not in large.log


def test_who_never_reads_over_tls_is_let_go_while_others_hang_up(
    large: Service, database: Database, tmp_path: Path
) -> None:
    """On asyncio's own loop, whose TLS does not know what is unsent where a client has gone."""
    key, certificate = map(str, self_signed())
    tls = ssl._create_unverified_context()
    service = changed_service(
        tmp_path,
        HASTY,
        DATABASE_URL=database.url,
        DEFAULT_USER_ID="large",
        args=["--loop", "asyncio", "--ssl-keyfile", key, "--ssl-certfile", certificate],
    ).start(wait=False)  # which would ask without TLS

    def hang_up() -> bool:
        with suppress(OSError), tls.wrap_socket(ask(service, b"")) as wire:
            wire.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return bool(wire.recv(1000))
        return False

    with service:
        wait_until(hang_up, "it answers")
        with tls.wrap_socket(ask(service, b"")) as wire:
            wire.sendall(LIST)
            wait_until(lambda: hang_up() and "GET /api/tasks 499" in service.log, "it is let go")
        assert "Traceback" not in service.log


@pytest.mark.parametrize("path", ["/api/tasks?limit=5", "/docs", "/openapi.json", "/api/tasks/x"])
def test_who_asks_and_asks_and_never_reads_is_let_go(large: Service, path: str) -> None:
    """However small each answer is, and however many are asked for at once."""
    asked = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    with ExitStack() as stack:
        for _ in range(5):
            wire = stack.enter_context(ask(large, asked))
            wire.setblocking(False)
            with suppress(BlockingIOError, ConnectionError):  # full, or let go already
                while True:
                    wire.send(asked * 100)
        assert httpx2.get(f"{large.url}/api/tasks?limit=1", trust_env=False).status_code == 200
        wait_until(lambda: connections(large) == 0, "all are let go", 60)


def test_who_wants_long_lists_waits_for_others_like_him_and_nobody_else_does(
    large: Service,
) -> None:
    large.restart()
    before = large.memory()
    most = 0

    def let_go() -> int:
        return large.log.count("GET /api/tasks 499")

    known = let_go()
    with (
        ThreadPoolExecutor() as pool,
        httpx2.Client(base_url=large.url, trust_env=False, verify=False) as client,
    ):
        lists = [Request("GET", "/api/tasks")] * 40
        answers = pool.submit(at_once, large.url, lists)
        small = 0
        while not answers.done():
            assert client.get("/api/small/tasks").json() == []
            small += 1
            most = max(most, large.memory())
        statuses = [answer.status for answer in answers.result()]
    # 0: on a busy machine this process may read too slowly for that little patience.
    wait_until(lambda: let_go() - known == statuses.count(0), "who reads too slowly is let go")
    assert set(statuses) <= {0, 200, 503}
    assert statuses.count(200) > 5
    assert small > 2
    # 40 lists, each as rows and as text, were a gigabyte.
    assert most < before + 500_000_000


def test_who_was_answered_and_sends_no_more_is_hung_up_on(large: Service) -> None:
    head = "POST /nowhere HTTP/1.1\r\nConnection: close\r\nContent-Length: 9\r\n\r\n"
    with ask(large, head.encode()) as wire:
        said = b""
        while part := wire.recv(4096):  # until it closes
            said += part
    assert said.startswith(b"HTTP/1.1 404 ")
