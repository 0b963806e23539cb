"""The live stream of changes, as server-sent events (WHATWG HTML, section 9.2)."""

import asyncio
import math
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
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
_BEAT: Final = 15.0  # seconds from one comment to the next
_LOOK: Final = 1.0  # seconds between two looks for changes that were made elsewhere
_READS: Final = 4  # pages that all streams may wait for at once
_PART: Final = 64 * 1024  # bytes of an event
_PATIENCE: Final = 10.0  # seconds in which a client takes so many
_MEDIA_TYPE: Final = "text/event-stream"
_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx's word for: now

_Page = tuple[int, bool, bytes]  # its position, whether there is more, and its event


class Live:
    """Wakes the streams of this worker: by its own writes at once, by others' within a second.

    One statement a second asks for the positions of all users who are listened to. `LISTEN` would
    not pass a pooler, and has writers wait for each other.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._streams: dict[str, set[Stream]] = {}  # by user
        self._reads: dict[Any, asyncio.Task[_Page]] = {}  # begun after the last change known of
        self._turns = asyncio.Semaphore(_READS)
        self._looking: asyncio.Task[None] | None = None
        self._closed = False
        database.on_write = self._wake

    @contextmanager
    def heard_by(self, stream: "Stream") -> Iterator[None]:
        """Wake a stream for as long as this lasts."""
        if self._looking is None:
            _before_the_end(self._close)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        streams = self._streams.setdefault(stream.whose.user_id, set())
        streams.add(stream)
        if self._closed:
            stream.end()
        try:
            yield
        finally:
            streams.discard(stream)
            if not streams:
                del self._streams[stream.whose.user_id]

    async def page(self, stream: "Stream") -> _Page:
        """Return the next page for a stream; those who want the same one share the read."""
        key = stream.whose, stream.since, stream.limit
        if key not in self._reads:
            self._reads[key] = asyncio.create_task(self._read(stream, key))
        async with asyncio.timeout(DEADLINE):
            return await asyncio.shield(self._reads[key])

    async def _read(self, stream: "Stream", key: Any) -> _Page:
        try:
            async with self._turns:
                page = await stream.read(Since(since=stream.since, limit=stream.limit))
        finally:
            self._reads.pop(key, None)
        data, position = to_json(page).decode(), page["position"]
        event = format_sse_event(data_str=data, event="changes", id=str(position))
        return position, page["more"], event

    def _wake(self, user_id: str, position: int = 0) -> None:
        """Wake who listens to a user, but for those who are at that position already."""
        for stream in self._streams.get(user_id, ()):
            if stream.since != position:
                self._reads.clear()
                stream.wake()

    async def _look(self) -> None:
        try:
            while self._streams:
                await asyncio.sleep(_LOOK)
                with suppress(Unavailable):
                    known = queries.read_positions(list(self._streams))
                    positions = dict((await self._database.run(known)).rows)
                    for user_id in self._streams:
                        self._wake(user_id, positions.get(user_id, 1))
        finally:  # whatever ended this: no stream shall go on deaf
            self._end()

    def _close(self) -> None:
        self._closed = True
        self._end()

    def _end(self) -> None:
        for streams in self._streams.values():
            for stream in streams:
                stream.end()


class Stream(Response):
    """Every change of a user after a position, a page at a time, until client or service go.

    `read` gives a page; `check` raises 401 once the client's token no longer counts. Raises 410
    before the answer begins; later a stream just ends, and the client, back again, is told why.
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
        self.whose, self.since, self.limit, self.read = whose, known.since, known.limit, read
        self._live, self._check = live, check
        self._loop = asyncio.get_running_loop()
        self._roused: asyncio.Future[None] = self._loop.create_future()  # an Event takes 0.7 kB
        self._over = False
        self.wake()

    def wake(self) -> None:
        """Look for changes."""
        self._behind = True
        self._rouse()

    def end(self) -> None:
        """Say no more."""
        self._over = True
        self._rouse()

    def _rouse(self) -> None:
        if not self._roused.done():
            self._roused.set_result(None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer (ASGI)."""
        if scope.get("head"):
            return await super().__call__(scope, receive, send)
        started = False
        watching = asyncio.create_task(self._watch(receive))
        try:
            with self._live.heard_by(self):
                first = await self._next(scope)
                started = True
                start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                await send(start)
                await _say(send, _BEGIN + first)
                del first  # what has been said takes no room while it waits
                while not self._over:
                    await _say(send, await self._next(scope))
        except TimeoutError:
            return  # nobody reads: the server closes what is not complete
        except ApiError:
            if not started:
                raise
        finally:
            watching.cancel()
        with suppress(TimeoutError):
            await _say(send, b"", more=False)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.end()

    async def _next(self, scope: Scope) -> bytes:
        """Wait for what there is to say: an event, or after a while a comment."""
        token_end: float = scope.get("token_end", math.inf)
        beat = self._loop.call_later(min(_BEAT, token_end - time.time()), self._rouse)
        await self._roused
        beat.cancel()
        self._roused = self._loop.create_future()
        if self._over:
            return b""
        if not self._behind:
            with suppress(Unavailable):  # nobody can say now
                await self._check()
            return KEEPALIVE_COMMENT
        self._behind = False
        try:
            position, more, event = await self._live.page(self)
        except (Unavailable, TimeoutError):
            return b""  # it is woken when the database is back
        if more:
            self.wake()
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


def _before_the_end(call: Callable[[], None]) -> None:
    """Have the signals that end the process call this first.

    uvicorn waits for open connections, and tells the app that it ends only after that.
    """
    loop = asyncio.get_running_loop()

    def pass_on(handler: Callable[..., object], *received: Any) -> None:
        loop.call_soon_threadsafe(call)
        handler(*received)

    for number in (signal.SIGTERM, signal.SIGINT):
        if callable(handler := signal.getsignal(number)):
            with suppress(ValueError):  # only the main thread has signals
                signal.signal(number, partial(pass_on, handler))
