"""The live stream of changes, as server-sent events (WHATWG HTML, section 9.2)."""

import asyncio
import math
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from fastapi import Request, Response
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

import queries
from auth import Owner
from database import Database
from engines import DEADLINE
from errors import ApiError, Unavailable
from routes.route import TaskRoute
from schemas import Since

_BEGIN: Final = format_sse_event(comment="changes follow", retry=2000)
_BEAT: Final = 15.0  # seconds from a comment to the next
_LOOK: Final = 1.0  # seconds between two looks for changes that were made elsewhere
_READS: Final = 4  # pages for streams that the database may be asked for at once
_PART: Final = 64 * 1024  # bytes of an event
_PATIENCE: Final = 10.0  # seconds in which a client takes so many
_MEDIA_TYPE: Final = "text/event-stream"
_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx's word for: now

Page = tuple[int, bool, bytes]  # its position, whether there is more, and the event that tells it


@dataclass(eq=False)
class _Audience:
    """The streams of one user's changes, and the reads for them that are under way."""

    streams: set["Stream"] = field(default_factory=set)
    reads: dict[tuple[str, int, int], asyncio.Task[Page]] = field(default_factory=dict)


class Live:
    """Wakes the streams of this worker: by its own writes at once, by others' within a second.

    One statement a second asks for the positions of all users who are listened to. `LISTEN` would
    not pass a pooler, and has writers wait for each other.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._audiences: dict[str, _Audience] = {}
        self._turns = asyncio.Semaphore(_READS)
        self._looking: asyncio.Task[None] | None = None
        self._closed = False
        database.on_write = self._wake

    @contextmanager
    def heard_by(self, stream: "Stream") -> Iterator[None]:
        """Wake a stream for as long as this lasts."""
        if self._looking is None:
            _on_the_way_out(self._close)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        audience = self._audiences.setdefault(stream.whose.user_id, _Audience())
        audience.streams.add(stream)
        try:
            if self._closed:
                raise Unavailable
            yield
        finally:
            audience.streams.discard(stream)
            if not audience.streams:
                del self._audiences[stream.whose.user_id]

    async def read(self, stream: "Stream") -> Page:
        """Return the next page for a stream; those who want the same one share the read."""
        reads = self._audiences[stream.whose.user_id].reads
        key = stream.whose.url, stream.since, stream.limit
        if key not in reads:
            reads[key] = asyncio.create_task(self._read(stream, reads, key))
        async with asyncio.timeout(DEADLINE):
            return await asyncio.shield(reads[key])

    async def _read(self, stream: "Stream", reads: dict[Any, Any], key: Any) -> Page:
        try:
            async with self._turns:
                page = await stream.read(Since(since=stream.since, limit=stream.limit))
        finally:
            reads.pop(key, None)
        position = page["position"]
        data = to_json(page).decode()
        event = format_sse_event(data_str=data, event="changes", id=str(position))
        return position, page["more"], event

    def _wake(self, user_id: str) -> None:
        if audience := self._audiences.get(user_id):
            audience.reads.clear()  # they may have begun before the change
            for stream in audience.streams:
                stream.news.set()

    async def _look(self) -> None:
        """Wake the streams whose user is no longer where they are, for as long as there are any."""
        try:
            while self._audiences:
                await asyncio.sleep(_LOOK)
                with suppress(Unavailable):
                    known = queries.read_positions(list(self._audiences))
                    positions = dict((await self._database.run(known)).rows)
                    for user_id, audience in self._audiences.items():
                        for stream in audience.streams:
                            if stream.since != positions.get(user_id, 1):
                                audience.reads.clear()
                                stream.news.set()
        finally:  # whatever ended this: no stream shall go on deaf
            self._end()

    def _close(self) -> None:
        self._closed = True
        self._end()

    def _end(self) -> None:
        for audience in self._audiences.values():
            for stream in audience.streams:
                stream.end()


class Stream(Response):
    """Every change after `since`, a page at a time, until the client or the service goes.

    `read` gives a page. `check` raises 401 when the client's token no longer counts. Raises 410
    before the answer begins; whoever is too late after that is told so when it comes back.
    """

    media_type = _MEDIA_TYPE

    def __init__(
        self,
        live: Live,
        whose: Owner,
        known: Since,
        read: Callable[[Since], Awaitable[dict[str, Any]]],
        check: Callable[[], Awaitable[object]],
    ) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self.whose = whose
        self.since, self.limit, self.read = known.since, known.limit, read
        self.news = asyncio.Event()
        self._live = live
        self._check = check
        self._task: asyncio.Task[Any] | None = None
        self._over = False

    def end(self) -> None:
        """Stop, whatever it is waiting for."""
        if self._task and not self._over:
            self._over = True
            self._task.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer (ASGI)."""
        if scope.get("head"):
            return await super().__call__(scope, receive, send)
        self._task = asyncio.current_task()
        watching = asyncio.create_task(self._watch(receive))
        started = False
        try:
            with self._live.heard_by(self):
                said = _BEGIN + await self._next_page()
                started = True
                start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                await send(start)
                while True:
                    await _say(send, said)
                    said = await self._next(scope.get("token_end", math.inf))
        except TimeoutError:
            return  # nobody reads it: what is not complete, the server closes
        except ApiError:
            if not started:
                raise
        except asyncio.CancelledError:
            if not self._over or not self._task or self._task.uncancel():
                raise
            if not started:
                raise Unavailable from None
        finally:
            watching.cancel()
        with suppress(TimeoutError):
            await _say(send, b"", more=False)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.end()

    async def _next(self, token_end: float) -> bytes:
        """Wait for what there is to say: an event, or after a while a comment."""
        try:
            async with asyncio.timeout(min(_BEAT, token_end - time.time())):
                await self.news.wait()
        except TimeoutError:
            with suppress(Unavailable):  # nobody can say now
                await self._check()
            return KEEPALIVE_COMMENT
        return await self._next_page()

    async def _next_page(self) -> bytes:
        """Return the event of the next page; nothing where there is none, or no database."""
        self.news.clear()
        try:
            position, more, event = await self._live.read(self)
        except (Unavailable, TimeoutError):
            return b""  # once the positions can be read again, that wakes it
        if more:
            self.news.set()
        known, self.since = self.since, position
        return event if position != known else b""


class LiveRoute(TaskRoute):
    """A route that also streams: a page's `EventSource` would never come back after a 503."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI); where that cannot be now, answer a stream that is over."""
        try:
            await super().handle(scope, receive, send)
        except Unavailable:
            if not wants_stream(Request(scope)):
                raise
            over = Response(_BEGIN, headers=_HEADERS, media_type=_MEDIA_TYPE)
            await over(scope, receive, send)


def wants_stream(request: Request) -> bool:
    """Return whether this asks for a stream, as `EventSource` does."""
    return _MEDIA_TYPE in request.headers.get("accept", "").lower()


def has_token(scope: Mapping[str, Any]) -> bool:
    """Return whether the query string holds a token, which no trace may show."""
    return b"access_token" in unquote_to_bytes(scope.get("query_string", b""))


async def _say(send: Send, text: bytes, *, more: bool = True) -> None:
    """Send a piece of the answer as it is read, or raise `TimeoutError` when nobody reads it."""
    for start in range(0, len(text) or 1, _PART):
        part = {"body": text[start : start + _PART], "more_body": more}
        async with asyncio.timeout(_PATIENCE):
            await send({"type": "http.response.body", **part})


def _on_the_way_out(call: Callable[[], None]) -> None:
    """Have the signals that end the process call this first.

    uvicorn waits for open connections, and tells the app that it ends only after that.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone has signals
        return
    loop = asyncio.get_running_loop()

    def pass_on(handler: Callable[..., object], *received: Any) -> None:
        loop.call_soon_threadsafe(call)
        handler(*received)

    for number in (signal.SIGTERM, signal.SIGINT):
        if callable(handler := signal.getsignal(number)):
            signal.signal(number, partial(pass_on, handler))
