"""What is turned away at the door, before anything else reads the request, and who is shown out:
clients that have gone, or do not read their answers.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping, Set
from contextlib import suppress
from functools import lru_cache
from ipaddress import ip_address
from itertools import chain
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from errors import NOWHERE, ApiError

MAX_HEADERS: Final = 64 * 1024  # bytes, of names and values
_UNREAD: Final = {"Connection": "close"}  # what follows on the connection is not read
_AHEAD: Final = 200  # requests of a connection that may wait; uvicorn takes any number
_LONGEST: Final = 512  # bytes of an origin, or of a host: no name has more, and caches keep them
_NO_DATA: Final = ("/health", "/ready")
LARGE: Final = 64 * 1024  # bytes of an answer's body that are sent without a look at the reader
PATIENCE: Final = 10.0  # seconds that so many bytes may take, and that a reader may read nothing
_ON_THEIR_WAY: Final = 128 * 1024 * 1024  # bytes of large answers; while there are more of them,
_HASTE: Final = 1.0  # second is the patience
_SOON: Final = 0.2  # seconds between two looks at the clients

Headers = Mapping[bytes, bytes]


class Door:
    """Lets requests in. `origins` are those whose pages may come in; None lets every page."""

    def __init__(self, origins: Iterable[str] | None) -> None:
        self._guarded = origins is not None
        # That of some apps, `file://`, has no host.
        self._hosts = {urlsplit(origin).hostname or origin for origin in origins or ()}
        self._is_known = lru_cache(maxsize=1024)(self._check)

    def admit(self, scope: Scope, headers: Headers, transport: Any) -> None:
        """Let a request in, or raise the refusal; `headers` are the scope's."""
        if transport and len(getattr(transport.get_protocol(), "pipeline", ())) > _AHEAD:
            detail = "Too many requests were sent on this connection before their answers came."
            raise ApiError(503, detail, headers={"Retry-After": "1", **_UNREAD})
        if sum(map(len, chain.from_iterable(scope["headers"]))) > MAX_HEADERS:
            detail = f"The headers are larger than {MAX_HEADERS // 1024} KiB."
            raise ApiError(431, detail, headers=_UNREAD)
        if scope["path"].endswith(("\n", "\n/")):  # before which the `$` of a route matches, too
            raise ApiError(404, NOWHERE)
        if self._guarded and not self._may_come(scope, headers):
            raise ApiError(
                403,
                "Pages of this host may not call while auth is off: name their origin in "
                "CORS_ORIGINS, or turn auth on.",
            )

    def _may_come(self, scope: Scope, headers: Headers) -> bool:
        """Return whether this is no page, or one of a host that may call.

        `Host` proves nothing: a page can bind its own name to the address of this machine once it
        is loaded. A browser names the page's host as `Origin`, and in all else it is `Host`, since
        other pages may not read the answer; it tells of itself by its `User-Agent` where the page
        is not of https.
        """
        page = headers.get(b"origin")
        if not page:
            agent = headers.get(b"user-agent", b"")
            if b"sec-fetch-site" not in headers and not agent.startswith(b"Mozilla/"):
                return True
            page = b"//" + headers.get(b"host", b"")
        if len(page) <= _LONGEST and self._is_known(page):
            return True
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        return scope["method"] == "OPTIONS" or path in _NO_DATA

    def _check(self, url: bytes) -> bool:
        with suppress(ValueError):
            page = url.decode("latin-1")
            host = urlsplit(page).hostname or page
            known = host in self._hosts or f".{host}".endswith(".localhost")
            return known or bool(ip_address(host))  # nobody can bind an address anew
        return False


async def not_lost(
    scope: Scope, headers: Headers, receive: Receive
) -> tuple[Receive, list[tuple[bytes, bytes]]]:
    """Return where the body of a request to upgrade comes from, or raise 400 where it is lost; and
    what its answer has to say: without a body, that nothing more is read.

    httptools ends at such a request, and at CONNECT: it drops the rest of the packet, and would
    read the next packet as a request, though it may be the body of one that was dropped.
    """
    if not _has_body(headers):
        said = [value.lower() for name, value in scope["headers"] if name == b"connection"]
        ends = scope["method"] == "CONNECT" or any(b"upgrade" in each for each in said)
        return receive, [(b"connection", b"close")] if ends else []
    first = await receive()
    if not first.get("body") and not first.get("more_body"):
        detail = "The body was lost: nothing is read after a request to upgrade, or CONNECT."
        raise ApiError(400, detail, headers=_UNREAD)
    came = [first]

    async def again() -> Message:
        return came.pop() if came else await receive()

    return again, []


def to_the_end(
    scope: Scope, headers: Headers, receive: Receive, send: Send
) -> tuple[Receive, Send]:
    """Have all of a body read before a connection closes that is for this request alone: else who
    still sends it, such as nginx, would lose the answer (RFC 9112 section 9.6).
    """
    more = _has_body(headers) and b"expect" not in headers  # who waits for a word sends none yet
    closes = b"close" in headers.get(b"connection", b"").lower()
    if not more or not (closes or scope["http_version"] == "1.0"):
        return receive, send

    async def reading() -> Message:
        nonlocal more
        message = await receive()
        more = message.get("more_body", False)
        return message

    async def sending(message: Message) -> None:
        if more and message["type"] == "http.response.body" and not message.get("more_body"):
            await send({**message, "more_body": True})
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    while more:
                        await reading()
            message = {"type": "http.response.body"}
        await send(message)

    return reading, sending


class Cors(CORSMiddleware):
    """Starlette's CORS: it answers preflights; what it adds to other answers is ready-made."""

    def allow(self, origin: bytes | None) -> list[tuple[bytes, bytes]]:
        """Return what lets pages of this origin read an answer (WHATWG Fetch, section 3.2.3)."""
        return self._allow(b"" if origin and len(origin) > _LONGEST else origin)

    @lru_cache(maxsize=128)  # noqa: B019  # one object a process
    def _allow(self, origin: bytes | None) -> list[tuple[bytes, bytes]]:
        headers = MutableHeaders(None if origin is None else self.simple_headers)
        page = str(origin or b"", "latin-1")
        if page and not self.allow_all_origins and self.is_allowed_origin(page):
            self.allow_explicit_origin(headers, page)
        else:
            headers["Vary"] = "Origin"
        return headers.raw

    def preflight_response(self, request_headers: Any) -> Response:
        """Return the answer to a preflight; one that is refused is a problem like any other."""
        response = super().preflight_response(request_headers)
        if response.status_code == 400:
            what = bytes(response.body).decode()
            raise ApiError(400, f"{what}; CORS_ORIGINS names the origins whose pages may call.")
        return response


class Clients:
    """Gives up answers whose client has gone, and hangs up on clients that do not read theirs.

    uvicorn has an answer made that nobody waits for, waits for a reader for ever, and closes a
    connection only once all of it is sent.
    """

    def __init__(self) -> None:
        self._looking: asyncio.Task[None] | None = None
        # Who makes the answer that is waited for, by its connection's transport.
        self._waiting: dict[Any, Any] = {}
        self._large: dict[Any, int] = {}  # bytes of the large answers that are on their way
        self._written: set[Any] = set()  # transports that were written to since the last look
        # Those with more to send: how many bytes, and since when (by the clock) nothing was read.
        self._behind: dict[Any, tuple[int, float]] = {}

    def begin(self, transport: Any) -> None:
        """Remember that a client waits for the answer that the current task makes."""
        self._waiting[transport] = asyncio.current_task()
        if not self._looking or self._looking.done():
            self._looking = asyncio.create_task(self._look())

    def note(self, transport: Any) -> None:
        """Remember that something is written to a connection: its answer has begun."""
        self._waiting.pop(transport, None)
        self._written.add(transport)

    async def send(self, message: Message, send: Send, transport: Any) -> bool:
        """Send a large body as it is read; return False when its reader was hung up on."""
        body, more = message["body"], message.get("more_body", False)
        self._large[transport] = len(body)
        try:
            for start in range(0, len(body), LARGE):
                end = start + LARGE
                part = {"body": body[start:end], "more_body": more or end < len(body)}
                await send({**message, **part})  # what uvicorn has not sent, it waits for
                self._written.add(transport)
        finally:
            patient = self._large.pop(transport, None)
        return patient is not None

    async def _look(self) -> None:
        late: Set[tuple[Any, Any]] = set()  # those that were there at the last look, too
        while True:
            await asyncio.sleep(_SOON)
            for transport, task in late & self._waiting.items():
                if transport.is_closing():
                    del self._waiting[transport]
                    task.cancel()
            late = set(self._waiting.items())
            self._look_at_readers(time.monotonic())

    def _look_at_readers(self, now: float) -> None:
        written, self._written = self._written, set()
        behind, self._behind = self._behind, {}
        haste = sum(self._large.values()) > _ON_THEIR_WAY
        for transport in written | behind.keys():
            unsent = 0
            with suppress(AttributeError):  # asyncio's TLS does not know where the client has gone
                unsent = transport.get_write_buffer_size()
            before, since = behind.get(transport, (0, now))
            large = transport in self._large  # and so read when the next part of it is sent
            if transport in written or (unsent < before and not large):
                since = now
            if now - since > (_HASTE if haste and large else PATIENCE):
                self._large.pop(transport, None)
                transport.abort()
            elif unsent or large:
                self._behind[transport] = unsent, since


def _has_body(headers: Headers) -> bool:
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"").strip(b"0") != b""


def transport_of(receive: Receive) -> Any:
    """Return the connection's transport, which uvicorn shows though it says so nowhere; or None."""
    return getattr(getattr(receive, "__self__", None), "transport", None)
