"""Clients that keep the service busy, on connections of their own, and note every answer."""

import asyncio
import json
import resource
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Self
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg2

from tests.support.processes import wait_until

PATIENCE: Final = 60.0  # seconds after which a request counts as never answered


class Request(NamedTuple):
    method: str
    path: str
    body: Any = None
    headers: Mapping[str, str] = {}


class Answer(NamedTuple):
    """What came of a request; status 0: the connection was refused or ended without an answer."""

    request: Request
    status: int
    headers: Mapping[str, str]
    body: bytes
    started: float  # time.monotonic()
    seconds: float
    sent: bool  # or there was nobody to connect to

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Client:
    """One HTTP/1.1 connection, opened again when it ends; `answers` may be shared."""

    url: str
    answers: list[Answer] = field(default_factory=list)
    _wire: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def connect(self) -> None:
        """Open the connection without sending anything."""
        if self._wire is None:
            parts = urlsplit(self.url)
            self._wire = await asyncio.open_connection(parts.hostname, parts.port)

    async def send(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request and wait for its answer."""
        request = Request(method, path, body, headers or {})
        started = time.monotonic()
        sent = False
        try:
            async with asyncio.timeout(PATIENCE):
                await self.connect()
                sent = True
                status, received, content = await self._exchange(request)
        except (OSError, EOFError):  # a time-out is an OSError too
            self.close()
            status, received, content = 0, {}, b""
        if received.get("connection") == "close":
            self.close()
        seconds = time.monotonic() - started
        answer = Answer(request, status, received, content, started, seconds, sent)
        self.answers.append(answer)
        return answer

    async def _exchange(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        assert self._wire
        reader, writer = self._wire
        body = b"" if request.body is None else json.dumps(request.body).encode()
        headers = {
            "Host": urlsplit(self.url).netloc,
            "Content-Length": str(len(body)),
            "Content-Type": "application/json",
            **request.headers,
        }
        lines = [f"{request.method} {request.path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        pairs = (line.split(": ", 1) for line in head[1:])
        received = {name.lower(): value for name, value in pairs}
        content = await reader.readexactly(int(received.get("content-length", 0)))
        return int(head[0].split()[1]), received, content

    def close(self) -> None:
        if self._wire:
            self._wire[1].close()
            self._wire = None


class Load:
    """Runs `behaviour(client)` over and over in each of `clients` clients, in a thread of its own.

    with Load(service.url, create, clients=8) as load: load.wait_for(201, 100)
    """

    def __init__(
        self, url: str, behaviour: Callable[[Client], Awaitable[object]], clients: int = 8
    ) -> None:
        self.answers: list[Answer] = []
        self._url = url
        self._behaviour = behaviour
        self._clients = clients
        self._ending = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="load")

    def count(self, status: int) -> int:
        """How many answers had that status so far."""
        return sum(answer.status == status for answer in list(self.answers))

    def wait_for(self, status: int, more: int, timeout: float = 30) -> None:
        """Return when so many more answers with that status have come."""
        goal = self.count(status) + more
        what = f"{more} more answers {status}"
        wait_until(lambda: self._error or self.count(status) >= goal, what, timeout)

    def since(self, moment: float) -> list[Answer]:
        """The answers to what was asked after a moment of `time.monotonic()`."""
        return [answer for answer in list(self.answers) if answer.started > moment]

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            self._error = error

    async def _main(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self._clients):
                group.create_task(self._keep_on(Client(self._url, self.answers)))

    async def _keep_on(self, client: Client) -> None:
        while not self._ending:
            done = len(client.answers)
            await self._behaviour(client)
            if any(answer.status in (0, 503) for answer in client.answers[done:]):
                await asyncio.sleep(0.05)
        client.close()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending = True
        self._thread.join()
        if self._error:
            raise self._error


def at_once(url: str, requests: Sequence[Request]) -> list[Answer]:
    """The answers to all requests, each on a connection of its own, sent once all are open."""

    async def send_all() -> list[Answer]:
        clients = [Client(url) for _ in requests]
        for start in range(0, len(clients), 100):  # within what the kernel keeps for accept()
            await asyncio.gather(*(client.connect() for client in clients[start : start + 100]))
        answers = await asyncio.gather(
            *(client.send(*request) for client, request in zip(clients, requests, strict=True))
        )
        for client in clients:
            client.close()
        return answers

    return asyncio.run(send_all())


def allow_many_connections(count: int) -> None:
    """Let this process, and the servers that it starts from now on, have so many sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count + 200:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count + 200, hard))


def creation(tasks: str) -> Request:
    """A request that creates a task like no other under the path `tasks`."""
    return Request("POST", tasks, {"title": uuid4().hex})


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Keep everybody else from writing to the tasks of the database at `url`."""
    if url.startswith("sqlite:"):
        opened: Any = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
        statement = "BEGIN IMMEDIATE"
    else:
        opened = psycopg2.connect(url)
        statement = "LOCK TABLE task IN EXCLUSIVE MODE"
    with closing(opened) as connection:
        connection.cursor().execute(statement)
        yield
        connection.rollback()


def use_of_a_task(user: str) -> Callable[[Client], Awaitable[None]]:
    """A behaviour: create, list, toggle, read, change, count and delete one task, step by step.

    Each step that gets no 2xx ends it.
    """
    tasks = f"/api/{user}/tasks"

    async def use(client: Client) -> None:
        created = await client.send("POST", tasks, {"title": uuid4().hex, "tags": ["load"]})
        if created.status != 201:
            return
        task = f"{tasks}/{created.json()['id']}"
        for method, path, body in (
            ("GET", f"{tasks}?limit=5&status=pending", None),
            ("PATCH", f"{task}/complete", None),
            ("GET", task, None),
            ("PUT", task, {"description": "changed", "priority": "high"}),
            ("GET", f"{tasks}/stats", None),
            ("DELETE", task, None),
        ):
            if (await client.send(method, path, body)).status != 200:
                return

    return use


def all_tasks(client: Any, tasks: str) -> list[dict[str, Any]]:
    """Every task at the path `tasks`, page by page."""
    found: list[dict[str, Any]] = []
    while True:
        page = client.get(tasks, params={"sort": "id", "limit": 1000, "offset": len(found)})
        assert page.status_code == 200, page.text
        found += page.json()
        if len(page.json()) < 1000:
            return found
