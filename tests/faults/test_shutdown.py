"""Stopping and restarting under load: what is in flight finishes, and nothing is lost."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from http.client import HTTPResponse
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.conftest import Database
from tests.support.load import Load, all_tasks, locked
from tests.support.processes import wait_until
from tests.support.service import Service
from tests.support.writers import Writers

IN_FLIGHT = 20
GRACE = 20  # seconds, as documented for uvicorn's --timeout-graceful-shutdown
WRITERS = 8


def client_of(service: Service) -> httpx2.Client:
    return httpx2.Client(base_url=service.url, trust_env=False, verify=False)


def refuses(service: Service) -> bool:
    """Whether the service takes no new connections."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", service.port), timeout=5):
        return False
    return True


def test_sigterm_finishes_what_is_in_flight_and_refuses_what_is_new(
    new_database: Database, tasks: str
) -> None:
    grace = ["--timeout-graceful-shutdown", str(GRACE)]
    body = b'{"title": "in flight"}'
    head = f"POST {tasks} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    request = f"{head}Content-Type: application/json\r\n\r\n".encode() + body
    with Service(DATABASE_URL=new_database.url, args=grace) as service, ExitStack() as stack:
        with locked(new_database.url):
            wires = [
                stack.enter_context(socket.create_connection(("127.0.0.1", service.port), 30))
                for _ in range(IN_FLIGHT)
            ]
            for wire in wires:
                wire.sendall(request)
            with client_of(service) as client:  # which it reads after all of those
                assert client.get("/health").status_code == 200
            os.kill(service.pids[0], signal.SIGTERM)
            wait_until(lambda: refuses(service), "new connections are refused")
            assert service.running
        for wire in wires:
            answer = HTTPResponse(wire)
            answer.begin()
            assert (answer.status, answer.getheader("connection")) == (201, "close")
        assert service.wait_exit(GRACE) == -signal.SIGTERM
        service.start()
        with client_of(service) as client:
            assert len(all_tasks(client, tasks)) == IN_FLIGHT


def test_what_is_in_flight_when_the_time_to_end_is_up_is_told_so(
    new_database: Database, tasks: str
) -> None:
    body = b'{"priority": "high"}'
    head = f"PATCH {tasks} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    request = f"{head}Content-Type: application/json\r\n\r\n".encode() + body
    grace = ["--timeout-graceful-shutdown", "1"]
    with Service(DATABASE_URL=new_database.url, args=grace) as service:
        with client_of(service) as client:
            client.post(tasks, json={"title": "to be changed"}).raise_for_status()
        with (
            locked(new_database.url),
            socket.create_connection(("127.0.0.1", service.port)) as wire,
        ):
            wire.sendall(request)
            time.sleep(0.5)
            os.kill(service.pids[0], signal.SIGTERM)
            answer = HTTPResponse(wire)
            answer.begin()
            problem = json.loads(answer.read())
            assert service.wait_exit(GRACE) == -signal.SIGTERM
        assert (answer.status, answer.getheader("retry-after")) == (503, "1")
        assert "not known" in problem["detail"]
        assert "Traceback" not in service.log


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_under_load_loses_nothing(new_database: Database, tasks: str, workers: int) -> None:
    writers = Writers(tasks)
    with Service(DATABASE_URL=new_database.url, workers=workers) as service:
        with Load(service.url, writers.write, WRITERS) as load:
            load.wait_for(201, 50)
            os.kill(service.pids[0], signal.SIGTERM)
            assert service.wait_exit(GRACE) in (0, -signal.SIGTERM)
        assert load.count(503) == 0
        assert "Traceback" not in service.log
        service.start()
        with client_of(service) as client:
            writers.check(client)


def hang_up(service: Service, watched: Path) -> None:
    os.kill(service.pids[0], signal.SIGHUP)


def change_a_file(service: Service, watched: Path) -> None:
    (watched / "changed.py").write_text("changed = True\n")


@pytest.mark.parametrize(
    ("workers", "restart"), [(2, hang_up), (1, change_a_file)], ids=["SIGHUP", "--reload"]
)
def test_a_restart_of_the_workers_under_load_loses_nothing(
    new_database: Database,
    tasks: str,
    tmp_path: Path,
    workers: int,
    restart: Callable[[Service, Path], None],
) -> None:
    args = ["--workers", "2", "--timeout-worker-healthcheck", "60"]  # which a start may take
    if workers == 1:
        args = ["--reload", "--reload-dir", str(tmp_path)]
    writers = Writers(tasks)
    with Service(DATABASE_URL=new_database.url, args=args) as service:
        with Load(service.url, writers.write, WRITERS) as load:
            load.wait_for(201, 50)
            supervisor, old = service.pids[0], workers_of(service)
            assert len(old) == workers
            restart(service, tmp_path)
            wait_until(
                lambda: len(workers_of(service) - old) == workers == len(workers_of(service)),
                "the workers are new",
                90,
            )
            load.wait_for(201, 100)
        assert service.pids[0] == supervisor
        # uvicorn closes connections that wait for their next request: one each, for each worker.
        assert load.count(0) <= workers * WRITERS
        assert load.count(503) == 0
        assert "Traceback" not in service.log
        with client_of(service) as client:
            writers.check(client)


def workers_of(service: Service) -> set[int]:
    """The processes that serve, under a supervisor that starts them."""
    workers = set()
    for pid in service.pids[1:]:
        with suppress(psutil.NoSuchProcess):
            if "spawn_main" in " ".join(psutil.Process(pid).cmdline()):
                workers.add(pid)
    return workers
