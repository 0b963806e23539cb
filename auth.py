"""Who is asking: from a request to the user whose tasks it is about (contract section 7).

One switch decides how tokens are checked, and the algorithm follows from the switch, never from the
token (RFC 8725 section 3.1): `AUTH_SECRET` means HS256, `AUTH_JWKS_URL` means the keys of that set
(RFC 7517).
"""

import asyncio
import json
import logging
import time
import urllib.request
from functools import lru_cache
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import jwt
from fastapi import Request
from pydantic import TypeAdapter, ValidationError

from errors import ApiError, Unavailable
from schemas import UserId
from settings import Settings

log = logging.getLogger("tasks")

_LEEWAY: Final = 30  # seconds that two clocks may differ
_LONGEST: Final = 8192  # characters of a token
_KEYS_LIFE: Final = (
    300.0  # seconds after which the set is fetched again, to forget what was withdrawn
)
_COOL_DOWN: Final = 10.0  # seconds between two fetches for a key that is not in the set
_RETRY: Final = 1.0  # seconds between two tries of a fetch that failed
_ALGORITHMS: Final = {("OKP", "Ed25519"): "EdDSA", ("EC", "P-256"): "ES256", ("RSA", None): "RS256"}
_user_id: Final[TypeAdapter[str]] = TypeAdapter(UserId)


class Owner(NamedTuple):
    """A user, and the absolute URL of the user's tasks under the mount that was asked."""

    user_id: str
    url: str


class Owners:
    """The dependencies that say whose tasks a request is about, one for each mount."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        secret = settings.auth_secret
        self._secret = secret.get_secret_value() if secret else ""
        self._keys = KeySet(str(settings.auth_jwks_url)) if settings.auth_jwks_url else None
        self._options: dict[str, Any] = {
            "leeway": _LEEWAY,
            "issuer": settings.auth_issuer,
            "audience": settings.auth_audience,
            "options": {"require": ["exp", "sub"], "verify_aud": bool(settings.auth_audience)},
        }

    async def current(self, request: Request) -> Owner:
        """Return the current user: the token's, or with auth off the default one."""
        user_id = (
            await self._user_of(request)
            if self._settings.auth_on
            else self._settings.default_user_id
        )
        return Owner(user_id, _collection(request, "/api/tasks"))

    async def named(self, request: Request, user_id: UserId) -> Owner:
        """Return the user that the path names; with auth on that is the token's, or 403."""
        if self._settings.auth_on and await self._user_of(request) != user_id:
            raise ApiError(403, "The token is for another user.")
        return Owner(user_id, _collection(request, _path_of(user_id)))

    async def open(self) -> None:
        """Start to fetch the keys, if there is a set of them."""
        if self._keys:
            self._keys.open()

    async def close(self) -> None:
        """Stop fetching keys."""
        if self._keys:
            self._keys.close()

    async def _user_of(self, request: Request) -> str:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not 0 < len(token) <= _LONGEST:
            raise _unauthorized()
        try:
            keys = (
                [(self._secret, "HS256")]
                if self._keys is None
                else await self._keys.for_token(token)
            )
            for key, algorithm in keys:
                claims = jwt.decode(token, key, [algorithm], **self._options)
                return _user_id.validate_python(claims["sub"])
        except (jwt.PyJWTError, ValidationError):
            pass
        raise _unauthorized()


def _unauthorized() -> ApiError:
    # The same words for every reason: what is wrong with a forged token is nobody's business.
    detail = "A valid bearer token is required."
    return ApiError(401, detail, headers={"WWW-Authenticate": "Bearer"})


class KeySet:
    """The public keys at a JWKS URL, kept while the URL does not answer."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: dict[str | None, tuple[Any, str]] | None = None
        self._looked_for_unknown = float("-inf")
        self._fetching: asyncio.Task[None] | None = None
        self._refreshing: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Fetch the keys now and from time to time."""
        self._refreshing = asyncio.create_task(self._keep_fresh())

    def close(self) -> None:
        """Stop fetching."""
        if self._refreshing:
            self._refreshing.cancel()

    async def for_token(self, token: str) -> list[tuple[Any, str]]:
        """Return the key that a token says it is signed with, and its algorithm; none if there is
        none.

        Raises `Unavailable` while no set has been fetched yet, `jwt.DecodeError` for what is no
        token.
        """
        kid = jwt.get_unverified_header(token).get("kid")
        if self._keys is None:
            raise Unavailable("The keys that tokens are checked with are not available yet.")
        if kid not in self._keys and time.monotonic() - self._looked_for_unknown >= _COOL_DOWN:
            self._looked_for_unknown = time.monotonic()
            self._fetching = asyncio.create_task(self._fetch())
        if kid not in self._keys and self._fetching:
            await asyncio.shield(self._fetching)  # everyone who waits shares the one fetch
        return [self._keys[kid]] if kid in self._keys else []

    async def _keep_fresh(self) -> None:
        while True:
            await self._fetch()
            await asyncio.sleep(_RETRY if self._keys is None else _KEYS_LIFE)

    async def _fetch(self) -> None:
        try:
            document = await asyncio.to_thread(self._download)
            self._keys = dict(filter(None, map(_key, document["keys"])))
        except Exception as error:  # whatever the other side sends: the old keys stay
            log.warning("the keys at AUTH_JWKS_URL cannot be had: %s", type(error).__name__)

    def _download(self) -> Any:
        with urllib.request.urlopen(self._url, timeout=5) as response:
            return json.loads(response.read(1 << 20))


def _key(jwk: Any) -> tuple[str | None, tuple[Any, str]] | None:
    """Return one key by its id, with the one algorithm it is for; none if it is not for signatures we take."""
    algorithm = _ALGORITHMS.get((jwk.get("kty"), jwk.get("crv")))
    if (
        algorithm is None
        or jwk.get("use", "sig") != "sig"
        or jwk.get("alg", algorithm) != algorithm
    ):
        return None
    return jwk.get("kid"), (jwt.PyJWK(jwk, algorithm).key, algorithm)


def _collection(request: Request, path: str) -> str:
    scope = request.scope
    host = request.headers.get("host") or ":".join(map(str, scope["server"] or ("localhost",)))
    return f"{scope['scheme']}://{host}{scope.get('root_path', '')}{path}"


@lru_cache(maxsize=4096)
def _path_of(user_id: str) -> str:
    return f"/api/{quote(user_id, safe='!$&()*+,:;=@')}/tasks"
