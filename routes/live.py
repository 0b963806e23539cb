"""The live stream of changes, as server-sent events (WHATWG HTML, section 9.2)."""

import asyncio
import math
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from fastapi import Request, Response
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.types import Message, Receive, Scope, Send

from auth import Owner
from database import Database
from door import transport_of
from engines import DEADLINE
from errors import ApiError, Unavailable
from queries import changes
from routes.answers import changes_since
from routes.route import TaskRoute
from schemas import Since

_BEGIN: Final = format_sse_event(comment="changes follow", retry=2000)
_BEAT: Final = 15.0  # seconds from one comment to the next
_LATE: Final = 5.0  # seconds by which that may come late, or the end of a stream before its time
_LOOK: Final = 1.0  # seconds between two looks for changes that were made elsewhere
_READS: Final = 4  # pages that all streams may wait for at once, those of one user for half
_MEDIA_TYPE: Final = "text/event-stream"
# The words for: now, of what compresses (Express, and so Next.js and webpack), and of nginx.
_HEADERS: Final = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}

_Page = tuple[int, bool, bytes]  # its position, whether there is more, and its event


class Live:
    """Wakes the streams of this worker: by its own writes at once, by others' within a second.

    One statement a second asks for the positions of all users who are listened to. `LISTEN` would
    not pass a pooler, and has writers wait for each other.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._streams: dict[str, set[Stream]] = {}  # by user
        # Begun after the last change known of.
        self._reads: dict[Any, asyncio.Task[_Page | None]] = {}
        self._turns = asyncio.Semaphore(_READS)
        self._turns_of = lru_cache(maxsize=1024)(lambda user: asyncio.Semaphore(_READS // 2))
        self._looking: asyncio.Task[None] | None = None
        self._closed = False
        database.on_write = self._wake

    def open(self) -> None:
        """Have the signals that end the process end the streams, also those that begin only then.

        uvicorn waits for open connections, and tells the app that it ends only after that.
        """
        loop = asyncio.get_running_loop()

        def pass_on(handler: Callable[..., object], *received: Any) -> None:
            loop.call_soon_threadsafe(self._close)
            handler(*received)

        for number in (signal.SIGTERM, signal.SIGINT):
            if callable(handler := signal.getsignal(number)):
                with suppress(ValueError):  # only the main thread has signals
                    signal.signal(number, partial(pass_on, handler))

    def add(self, stream: "Stream") -> None:
        """Wake a stream from now on."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        self._streams.setdefault(stream.whose.user_id, set()).add(stream)
        if self._closed:
            stream.end()

    def remove(self, stream: "Stream") -> None:
        """Let a stream be."""
        streams = self._streams[stream.whose.user_id]
        streams.discard(stream)
        if not streams:
            del self._streams[stream.whose.user_id]

    async def page(self, stream: "Stream") -> _Page | None:
        """Return the next page, read once for all who want it; None while there is no database."""
        key = stream.whose, stream.since, stream.limit
        if key not in self._reads:
            self._reads[key] = asyncio.create_task(self._read(*key))
        return await asyncio.shield(self._reads[key])

    async def _read(self, whose: Owner, since: int, limit: int) -> _Page | None:
        try:
            async with asyncio.timeout(DEADLINE), self._turns_of(whose.user_id), self._turns:
                known = Since(since=since, limit=limit)
                position, more, page = await changes_since(self._database, whose, known)
        except (Unavailable, TimeoutError):
            return None
        finally:
            self._reads.pop((whose, since, limit), None)
        await asyncio.sleep(0)  # each copy of a large page is a turn
        # JSON is one line: to look for others in so many bytes held up everybody.
        return position, more, b"event: changes\ndata: %b\nid: %d\n\n" % (page, position)

    def _wake(self, user_id: str) -> None:
        """Wake who listens to a user who has changed something."""
        self._reads.clear()
        for stream in self._streams.get(user_id, ()):
            stream.wake()

    async def _look(self) -> None:
        try:
            while self._streams:
                await asyncio.sleep(_LOOK)
                now = time.time()
                for stream in [each for streams in self._streams.values() for each in streams]:
                    stream.look_at_the_clock(now)
                known, positions = changes.read_positions(list(self._streams)), dict[str, int]()
                try:
                    positions = dict((await self._database.run(known)).rows)
                except Unavailable:
                    if not self._database.distributed:  # else one node may be away
                        continue
                self._reads.clear()
                for user_id, streams in self._streams.items():
                    for stream in streams:
                        if stream.since != positions.get(user_id, 1):
                            stream.wake()
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

    `check` raises 401 once the client's token no longer counts. Raises 410 before the answer
    begins; later a stream just ends, and the client, back again, is told why.
    """

    media_type = _MEDIA_TYPE

    def __init__(
        self, live: Live, whose: Owner, known: Since, check: Callable[[], Awaitable[object]]
    ) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self.whose, self.since, self.limit = whose, known.since, known.limit
        self._live, self._check = live, check
        self._due = time.monotonic() + _BEAT  # when to say at least a comment
        self._until = math.inf  # when the token no longer counts, by the clock
        self._roused = asyncio.Event()
        self._over = False
        self.wake()

    def wake(self) -> None:
        """Look for changes."""
        self._behind = True
        self._roused.set()

    def end(self) -> None:
        """Say no more."""
        self._over = True
        self._roused.set()

    def look_at_the_clock(self, now: float) -> None:
        """Stop when it is time to or the client has gone; do not be silent for too long."""
        # Without a transport nobody could tell when the client has gone: it comes back.
        gone = not self._transport or self._transport.is_closing()
        if gone or now + _LATE > self._until:
            self.end()
        elif time.monotonic() > self._due:  # which no clock that is set back puts off
            self._roused.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer (ASGI)."""
        if scope.get("head"):
            return await super().__call__(scope, receive, send)
        self._until = scope.get("token_end", math.inf)
        self._transport = transport_of(receive)
        self._live.add(self)  # before the first page is read: what is written then wakes it again
        try:
            await self._begin(send)
            with suppress(ApiError):
                while not self._over:
                    await send(_body(await self._next()))
        finally:
            self._live.remove(self)
        await send({"type": "http.response.body"})

    async def _begin(self, send: Send) -> None:
        """Say the first page, which all who want it share, and keep nothing of what was said."""
        first = await self._next()
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        self.raw_headers = []
        await send(_body(_BEGIN))
        await send(_body(first))

    async def _next(self) -> bytes:
        """Wait for what there is to say: an event, and every now and then a comment."""
        await self._roused.wait()
        self._roused.clear()
        said = b""
        if time.monotonic() > self._due and not self._over:
            self._due = time.monotonic() + _BEAT
            with suppress(Unavailable):  # nobody can say now
                await self._check()
            said = KEEPALIVE_COMMENT
        if self._behind and not self._over:
            self._behind = False
            if page := await self._live.page(self):  # else it is woken when the database is back
                position, more, event = page
                if more:
                    self.wake()
                if position != self.since:
                    self.since = position
                    said += event
        return said


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


def _body(part: bytes) -> Message:
    return {"type": "http.response.body", "body": part, "more_body": True}
