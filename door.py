"""What is turned away at the door, before anything else reads the request, and who is shown out:
clients that do not read their answers.
"""

import asyncio
from collections.abc import Iterable, Mapping
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

Headers = Mapping[bytes, bytes]


class Door:
    """Lets requests in. `origins` are those whose pages may come in; None lets every page."""

    def __init__(self, origins: Iterable[str] | None) -> None:
        self._guarded = origins is not None
        self._hosts = {urlsplit(origin).hostname for origin in origins or ()}
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
        try:
            host = urlsplit(url.decode("latin-1")).hostname or ""
            if host in self._hosts or host == "localhost" or host.endswith(".localhost"):
                return True
            ip_address(host)  # nobody can bind an address anew
        except ValueError:
            return False
        return True


async def not_lost(
    scope: Scope, headers: Headers, receive: Receive
) -> tuple[Receive, list[tuple[bytes, bytes]]]:
    """Return where the body of a request to upgrade comes from, or raise 400 where it is lost; and
    what its answer has to say: without a body, that nothing more is read.

    httptools ends at such a request, and at CONNECT: it drops the rest of the packet, and would
    read the next packet as a request, though it may be the body of one that was dropped.
    """
    if b"transfer-encoding" not in headers and not headers.get(b"content-length", b"").strip(b"0"):
        said = [value.lower() for name, value in scope["headers"] if name == b"connection"]
        ends = scope["method"] == "CONNECT" or any(b"upgrade" in each for each in said)
        return receive, [(b"connection", b"close")] if ends else []
    first = await receive()
    if not first.get("body") and not first.get("more_body"):
        detail = "The body was lost, since the request asks to upgrade the connection."
        raise ApiError(400, detail, headers=_UNREAD)
    came = [first]

    async def again() -> Message:
        return came.pop() if came else await receive()

    return again, []


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


class Readers:
    """Sends answers as they are read, and hangs up on who does not read them.

    uvicorn waits for a reader for ever, and closes a connection only once all of it is sent.
    """

    def __init__(self) -> None:
        # Bytes of the large answers that are on their way, and what ends the wait for the reader.
        self._large: dict[Any, tuple[int, asyncio.Timeout]] = {}
        self._written: set[Any] = set()  # transports that were written to since the last look
        self._behind: dict[Any, int] = {}  # those that then had bytes unsent, and how many

    def note(self, transport: Any) -> None:
        """Remember that something is written to a connection."""
        if not self._written and not self._behind:  # so no look is to come
            asyncio.get_running_loop().call_later(PATIENCE, self._look)
        self._written.add(transport)

    async def send(self, message: Message, send: Send, transport: Any) -> bool:
        """Send a large body as it is read; return False when it was given up."""
        body, more = message["body"], message.get("more_body", False)
        self._make_room()
        try:
            for start in range(0, len(body), LARGE):
                end = start + LARGE
                part = {"body": body[start:end], "more_body": more or end < len(body)}
                async with asyncio.timeout(PATIENCE) as patience:
                    self._large[transport] = len(body), patience
                    await send({**message, **part})  # what uvicorn has not sent, it waits for
            return True
        except TimeoutError:
            if transport:
                transport.abort()
            return False
        finally:
            self._large.pop(transport, None)

    def _make_room(self) -> None:
        """While much is on its way, give up those who have read nothing for a while."""
        if sum(size for size, _ in self._large.values()) > _ON_THEIR_WAY:
            now = asyncio.get_running_loop().time()
            for _, patience in self._large.values():
                left = (patience.when() or now) - now
                if left < PATIENCE - _HASTE and not patience.expired():  # nor about to be
                    patience.reschedule(now)

    def _look(self) -> None:
        """Hang up on those who have read nothing since the last look, and have more to read."""
        written, self._written = self._written, set()
        behind, self._behind = self._behind, {}
        for transport in (written | behind.keys()) - self._large.keys():
            unsent = transport.get_write_buffer_size()
            if transport not in written and unsent >= behind[transport] > 0:
                transport.abort()
            elif unsent:
                self._behind[transport] = unsent
        if self._behind:
            asyncio.get_running_loop().call_later(PATIENCE, self._look)


def transport_of(receive: Receive) -> Any:
    """Return the connection's transport, which uvicorn shows though it says so nowhere; or None."""
    return getattr(getattr(receive, "__self__", None), "transport", None)
