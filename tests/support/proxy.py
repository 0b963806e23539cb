"""A TCP proxy that breaks the wire in the ways that wires break, and counts what goes over it."""

import asyncio
import copy
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self, TypeVar
from urllib.parse import urlsplit

from tests.support.processes import Port

T = TypeVar("T")

_ENCRYPTION_REQUESTS = 80877103, 80877104  # SSLRequest, GSSENCRequest


@dataclass
class Counts:
    """What went over the wire since the start or the last `reset()`.

    client, server: PostgreSQL messages by their type byte, the start-up packets apart
                    (`client["P"]` Parse, `client["B"]` Bind, `server["E"]` errors …)
    sql:            the text of every Query and Parse message, in order
    round_trips:    how often the server answered after the client had spoken
    unreadable:     connections that are not (or no longer) plain PostgreSQL: only bytes counted
    """

    connections: int = 0
    unreadable: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    round_trips: int = 0
    client: Counter[str] = field(default_factory=Counter)
    server: Counter[str] = field(default_factory=Counter)
    sql: list[str] = field(default_factory=list)

    @property
    def queries(self) -> int:
        """How often the client asked for something to run: Query and Execute messages."""
        return self.client["Q"] + self.client["E"]

    @property
    def completed(self) -> int:
        """Statements that the server ran to their end; several in one Query count apart."""
        return self.server["C"]

    @property
    def ready(self) -> int:
        """How often the server said ReadyForQuery."""
        return self.server["Z"]


class _Link:
    """One client connection, its connection to the target, and how far both are read."""

    def __init__(self, proxy: "Proxy") -> None:
        self.proxy = proxy
        self.client, self.server = _End(self), _End(self)
        self.client.peer, self.server.peer = self.server, self.client
        self.asked = False
        self.readable = self.starting = True
        self.encryption_asked = False

    def abort(self) -> None:
        self.proxy.links.discard(self)
        self.client.abort()
        self.server.abort()

    def count(self, end: "_End", data: bytes) -> None:
        counts = self.proxy.live
        if end is self.client:
            counts.bytes_up += len(data)
        else:
            counts.bytes_down += len(data)
            counts.round_trips += self.asked
        self.asked = end is self.client
        if self.readable:
            end.unread += data
            self.readable = self._read_client() if end is self.client else self._read_server()
            counts.unreadable += not self.readable

    def _read_client(self) -> bool:
        unread, counts = self.client.unread, self.proxy.live
        while self.starting and unread:
            if unread[0]:  # no start-up packet is that long
                return False
            if len(unread) < 8 or len(unread) < (length := int.from_bytes(unread[:4])):
                return True
            self.encryption_asked = int.from_bytes(unread[4:8]) in _ENCRYPTION_REQUESTS
            self.starting = self.encryption_asked
            del unread[:length]
        while message := _next_message(unread):
            kind, body = message
            counts.client[kind] += 1
            if kind in "QP":  # a Parse has the name of the statement first
                counts.sql.append(body.split(b"\0")[kind == "P"].decode())
        return True

    def _read_server(self) -> bool:
        unread = self.server.unread
        if self.encryption_asked:
            self.encryption_asked = False
            if unread.pop(0) != ord("N"):
                return False
        while message := _next_message(unread):
            self.proxy.live.server[message[0]] += 1
        return True


def _next_message(unread: bytearray) -> tuple[str, bytes] | None:
    length = 1 + int.from_bytes(unread[1:5])
    if len(unread) < 5 or len(unread) < length:
        return None
    message = chr(unread[0]), bytes(unread[5:length])
    del unread[:length]
    return message


class _End(asyncio.Protocol):
    """One end of a link; its outbox holds what it has yet to send, with the time it is due."""

    peer: "_End"
    transport: asyncio.Transport | None = None

    def __init__(self, link: _Link) -> None:
        self.link, self.proxy = link, link.proxy
        self.unread = bytearray()
        self.outbox: deque[tuple[float, bytes]] = deque()
        self.ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if self is self.link.client:
            self.proxy.dial(self.link)
        else:
            self.flush()

    def data_received(self, data: bytes) -> None:
        self.link.count(self, data)
        self.peer.post(data)

    def eof_received(self) -> bool:
        self.peer.post(b"")
        return True  # the other direction stays open

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if not (self.ended and self.peer.ended):
            self.link.abort()
        self.proxy.links.discard(self.link)

    def post(self, data: bytes) -> None:
        """Send `data`, or the end of the stream when it is empty, once its time has come."""
        due = self.proxy.loop.time() + self.proxy.seconds
        self.outbox.append((max(due, self.outbox[-1][0] if self.outbox else 0), data))
        if len(self.outbox) == 1:
            self.flush()

    def flush(self) -> None:
        while self.outbox and self.transport and not self.proxy.frozen:
            due, data = self.outbox[0]
            if due > self.proxy.loop.time():
                self.proxy.loop.call_at(due, self.flush)
                return
            self.outbox.popleft()
            if data:
                self.transport.write(data)
                continue
            self.ended = True
            self.transport.write_eof()
            if self.peer.ended:
                for end in (self, self.peer):
                    if end.transport:
                        end.transport.close()

    def abort(self) -> None:
        if self.transport:
            connection: socket.socket = self.transport.get_extra_info("socket")
            linger = struct.pack("ii", 1, 0)  # closing then sends RST, not FIN
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.transport.abort()


class Proxy:
    """Forwards a port of 127.0.0.1 to another one, well or badly, from a thread of its own.

    with Proxy(postgres.port) as proxy, Service(DATABASE_URL=proxy.through(url)):
        proxy.freeze()

    With the target down, a connection is accepted and reset at once; see `refuse()`.
    """

    def __init__(self, target_port: int, target_host: str = "127.0.0.1") -> None:
        self._target = target_host, target_port
        self._port = Port()
        self.port = self._port.number
        self.loop = asyncio.new_event_loop()
        self.links: set[_Link] = set()
        self.live = Counts()
        self.seconds = 0.0
        self.frozen = False
        self._listener: asyncio.Server | None = None
        self._dialling: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self.loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self.accept()

    def through(self, url: str) -> str:
        """The same URL, with this proxy for host and port."""
        netloc = urlsplit(url).netloc
        credentials, at, _ = netloc.rpartition("@")
        return url.replace(netloc, f"{credentials}{at}127.0.0.1:{self.port}", 1)

    @property
    def counts(self) -> Counts:
        """What went over the wire so far: a copy."""
        return self._in_loop(lambda: copy.deepcopy(self.live))

    def reset(self) -> None:
        """Count from zero again."""
        self._in_loop(lambda: setattr(self, "live", Counts()))

    def delay(self, seconds_each_way: float) -> None:
        """Hold everything back for so long, in each direction, at any throughput."""
        self._in_loop(lambda: setattr(self, "seconds", seconds_each_way))

    def freeze(self) -> None:
        """Forward nothing any more, and keep every connection: a network that lost its route."""
        self._in_loop(lambda: setattr(self, "frozen", True))

    def thaw(self) -> None:
        """Forward again, beginning with what was held back."""

        def thaw() -> None:
            self.frozen = False
            for link in list(self.links):
                link.client.flush()
                link.server.flush()

        self._in_loop(thaw)

    def cut(self) -> int:
        """Reset (RST) every connection on both sides; returns how many there were."""

        def cut() -> int:
            links = list(self.links)
            for link in links:
                link.abort()
            return len(links)

        return self._in_loop(cut)

    def refuse(self) -> None:
        """Refuse new connections (ECONNREFUSED); those that exist go on, see `cut()`."""

        def refuse() -> None:
            if self._listener is not None:
                self._listener.close()
                self._listener = None

        self._in_loop(refuse)

    def accept(self) -> None:
        """Listen again, after `refuse()`."""

        async def listen() -> None:
            if self._listener is None:
                self._listener = await self.loop.create_server(
                    lambda: _Link(self).client, "127.0.0.1", self.port, backlog=1024
                )

        asyncio.run_coroutine_threadsafe(listen(), self.loop).result(10)

    def close(self) -> None:
        """Cut everything and stop."""
        if not self.loop.is_closed():
            self.refuse()
            self.cut()
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(10)
            self.loop.close()
            self._port.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def dial(self, link: _Link) -> None:
        """Connect the link of a new client to the target."""

        async def dial() -> None:
            try:
                await self.loop.create_connection(lambda: link.server, *self._target)
            except OSError:
                link.abort()
            if link not in self.links:  # the client is gone, or was cut meanwhile
                link.abort()

        self.live.connections += 1
        self.links.add(link)
        task = self.loop.create_task(dial())
        self._dialling.add(task)
        task.add_done_callback(self._dialling.discard)

    def _in_loop(self, function: Callable[[], T]) -> T:
        async def call() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(10)
