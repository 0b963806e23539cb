"""What is turned away at the door, before anything else reads the request."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from ipaddress import ip_address
from itertools import chain
from typing import Final
from urllib.parse import urlsplit

from starlette.types import Message, Receive, Scope

from errors import ApiError

MAX_HEADERS: Final = 64 * 1024  # bytes, of names and values
_UNREAD: Final = {"Connection": "close"}  # what follows on the connection is not read
_NO_DATA: Final = ("/health", "/ready")

Headers = Mapping[bytes, bytes]


class Door:
    """Lets requests in. `origins` are those whose pages may come in; None lets every page."""

    def __init__(self, origins: Iterable[str] | None) -> None:
        self._guarded = origins is not None
        self._hosts = {urlsplit(origin).hostname for origin in origins or ()}
        self._is_own = lru_cache(maxsize=1024)(self._check)

    async def admit(self, scope: Scope, headers: Headers, receive: Receive) -> Receive:
        """Return where the body comes from, or raise the refusal; `headers` are the scope's."""
        if sum(map(len, chain.from_iterable(scope["headers"]))) > MAX_HEADERS:
            detail = f"The headers are larger than {MAX_HEADERS // 1024} KiB."
            raise ApiError(431, detail, headers=_UNREAD)
        if self._guarded and not self._may_come(scope, headers):
            raise ApiError(
                403,
                "Pages of this host may not call while auth is off: name their origin in "
                "CORS_ORIGINS, or turn auth on.",
            )
        if b"upgrade" in headers and _announces_body(headers):
            return await _not_lost(receive)
        return receive

    def _may_come(self, scope: Scope, headers: Headers) -> bool:
        """Return whether this is no page, or one of a host that may call.

        `Host` proves nothing: a page can bind its own name to the address of this machine once it
        is loaded. A browser names the page's host as `Origin`, and in all else it is `Host`, since
        other pages may not read the answer; it tells of itself by its `User-Agent` where the page
        is not of https.
        """
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if scope["method"] == "OPTIONS" or path in _NO_DATA:
            return True
        if origin := headers.get(b"origin"):
            return self._is_own(origin)
        if b"sec-fetch-site" in headers or headers.get(b"user-agent", b"").startswith(b"Mozilla/"):
            return self._is_own(b"//" + headers.get(b"host", b""))
        return True

    def _check(self, url: bytes) -> bool:
        try:
            host = urlsplit(url.decode("latin-1")).hostname or ""
            if host in self._hosts or host == "localhost" or host.endswith(".localhost"):
                return True
            ip_address(host)  # nobody can bind an address anew
        except ValueError:
            return False
        return True


def _announces_body(headers: Headers) -> bool:
    return (
        b"transfer-encoding" in headers or headers.get(b"content-length", b"0").strip(b"0") != b""
    )


async def _not_lost(receive: Receive) -> Receive:
    """Return where the body of a request with `Upgrade` comes from, or raise 400.

    httptools ends at such a header: the body does not come, and what is sent next would be read as
    another request.
    """
    first = await receive()
    if not first.get("body") and not first.get("more_body"):
        detail = "The body was lost, since the request asks to upgrade the connection."
        raise ApiError(400, detail, headers=_UNREAD)
    came = [first]

    async def again() -> Message:
        return came.pop() if came else await receive()

    return again
