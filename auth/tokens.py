"""Bearer tokens: from a request to the user that its token names (contract section 7).

One switch decides how tokens are checked, and the algorithm follows from the switch, never from the
token (RFC 8725 section 3.1): `AUTH_SECRET` means HS256, `AUTH_JWKS_URL` means the keys of that set
(RFC 7517), each bound to the one algorithm that its type is for.
"""

import asyncio
import json
import logging
import threading
import time
import warnings
from concurrent.futures import Future
from functools import lru_cache
from typing import Any, Final
from urllib.error import URLError
from urllib.request import HTTPRedirectHandler, build_opener
from urllib.request import Request as Fetch

import jwt
from fastapi import Request
from jwt.utils import base64url_encode
from jwt.warnings import InsecureKeyLengthWarning
from pydantic import TypeAdapter, ValidationError

from database import Database
from errors import Unauthorized, Unavailable
from fields import UserId
from models import Account
from settings import Settings

log = logging.getLogger("tasks")

_LEEWAY: Final = 30  # seconds that two clocks may differ
_LONGEST: Final = 8192  # characters of a token
_KEYS_LIFE: Final = 300.0  # seconds until the set is fetched again, to forget what was withdrawn
_COOL_DOWN: Final = 10.0  # seconds between two fetches for a key that is not in the set
_RETRY: Final = 1.0  # seconds between two tries while there is no set at all
_PATIENCE: Final = 5.0  # seconds that a fetch may take, all in all
_LARGEST: Final = 1_000_000  # bytes of a set
_HEAD_START: Final = 1.0  # seconds that the start waits for the first set
_ALGORITHMS: Final = {"OKP": "EdDSA", "EC": "ES256", "RSA": "RS256"}  # by the type of the key
_user_id: Final[TypeAdapter[str]] = TypeAdapter(UserId)

# Said once at the start instead, see `Tokens.open`; weak keys of a set are not taken at all.
warnings.simplefilter("ignore", InsecureKeyLengthWarning)


class Tokens:
    """Checks the tokens of requests, by the switch that the settings have on."""

    def __init__(self, settings: Settings, database: Database) -> None:
        secret = settings.auth_secret.get_secret_value().encode() if settings.auth_secret else b""
        jwk = {"kty": "oct", "k": base64url_encode(secret)}
        self._secret = jwt.PyJWK(jwk, "HS256") if secret else None
        self._keys = KeySet(str(settings.auth_jwks_url)) if settings.auth_jwks_url else None
        self._checks: dict[str, Any] = {
            "leeway": _LEEWAY,
            "issuer": settings.auth_issuer,
            "audience": settings.auth_audience or None,
            "options": {"require": ["exp", "sub"], "verify_aud": bool(settings.auth_audience)},
        }
        claims = {"iss": settings.auth_issuer, "aud": settings.auth_audience}
        self._claims = {name: value for name, value in claims.items() if value}
        self._lifetime = settings.auth_token_days * 86_400  # seconds
        self.accounts = None
        if settings.auth_accounts:
            from auth.accounts import Accounts

            self.accounts = Accounts(database, secret)
        # A token comes with many requests. Only those that passed are kept, each under the very key
        # that it passed with, so a key that is withdrawn takes its tokens along.
        self._read = lru_cache(maxsize=16_384)(self._verify)

    async def open(self) -> None:
        """Start to fetch the keys, if there is a set of them."""
        if self._secret and self._secret.Algorithm.check_key_length(self._secret.key):
            log.warning("AUTH_SECRET is shorter than the 32 bytes that HS256 needs to be safe")
        if self._keys:
            await self._keys.open()

    async def user_of(self, request: Request) -> str:
        """Return the user that the token of a request is for, or raise 401."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if not scheme and request.scope["path"].endswith("/tasks/changes"):
            # `EventSource` cannot send headers (RFC 6750 section 2.3).
            scheme, token = "bearer", request.query_params.get("access_token", "")
        if scheme.lower() == "bearer" and len(token := token.strip(" \t")) <= _LONGEST:
            try:
                key = await self._keys.for_token(token) if self._keys else self._secret
                if key:
                    user_id, end, generation = self._read(token, key)
                    if time.time() < end and (
                        not self.accounts or await self.accounts.are_current(user_id, generation)
                    ):
                        request.scope["token_end"] = end  # seconds since 1970
                        return user_id
            except (jwt.PyJWTError, ValidationError):
                pass
        raise Unauthorized

    def issue(self, account: Account) -> dict[str, Any]:
        """Return a new token for an account, as OAuth 2 answers it (RFC 6749 section 5.1)."""
        assert self._secret  # which accounts need
        issued = int(time.time())
        claims = {"sub": account.id, "email": account.email, "gen": account.generation}
        claims |= {"iat": issued, "exp": issued + self._lifetime, **self._claims}
        token = jwt.encode(claims, self._secret, "HS256")
        return {"access_token": token, "token_type": "bearer", "expires_in": self._lifetime}

    def _verify(self, token: str, key: jwt.PyJWK) -> tuple[str, int, int]:
        """Return whom a token is for, until when (seconds since 1970), and of which generation."""
        claims = jwt.decode(token, key, [key.algorithm_name], **self._checks)
        user_id, generation = _user_id.validate_python(claims["sub"]), claims.get("gen")
        generation = generation if type(generation) is int else 0  # which is none
        return user_id, int(claims["exp"]) + _LEEWAY, generation


class KeySet:
    """The public keys at a JWKS URL, kept while the URL does not answer."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: list[jwt.PyJWK] | None = None
        self._state = ""
        self._one_by_one = asyncio.Lock()  # so that a late answer never replaces a newer one
        self._looked_again_at = float("-inf")

    async def open(self) -> None:
        """Fetch the keys now and until the loop ends; returns soon, with or without them."""
        self._looking = asyncio.create_task(self._fetch())
        self._refreshing = asyncio.create_task(self._keep_fresh(self._looking))
        await asyncio.wait([self._looking], timeout=_HEAD_START)

    async def for_token(self, token: str) -> jwt.PyJWK | None:
        """Return the key that a token says it is signed with, if the set has it.

        Raises `Unavailable` while no set has been fetched yet, and `jwt.PyJWTError` for what is no
        token.
        """
        header = jwt.get_unverified_header(token)
        if header.get("alg") not in _ALGORITHMS.values():
            return None
        if self._keys is None:
            raise Unavailable("The keys that tokens are checked with are not available yet.")
        if key := _fitting(self._keys, header):
            return key
        # It may be new: the set is fetched again, unless that was done just now.
        if self._looking.done() and time.monotonic() - self._looked_again_at >= _COOL_DOWN:
            self._looked_again_at = time.monotonic()
            self._looking = asyncio.create_task(self._fetch())
        await asyncio.wait([self._looking], timeout=2 * _PATIENCE)  # all wait for the same one
        return _fitting(self._keys, header)

    async def _keep_fresh(self, first: asyncio.Task[None]) -> None:
        await first
        while True:
            await asyncio.sleep(_RETRY if self._keys is None else _KEYS_LIFE)
            await self._fetch()

    async def _fetch(self) -> None:
        async with self._one_by_one:
            try:
                async with asyncio.timeout(_PATIENCE):
                    keys, found = await asyncio.wrap_future(_fetched(self._url))
                self._keys = keys
                level, state = logging.INFO, f"{len(keys)} of {found} can check tokens"
            except Exception as error:  # whatever the other side sends: the old keys stay
                # Only the kind: a message may quote the URL, with a password in it.
                cause = error.reason if isinstance(error, URLError) else error
                kind = getattr(error, "code", 0) or type(cause).__name__
                level, state = logging.WARNING, f"cannot be had ({kind})"
            if state != self._state:
                self._state = state
                log.log(level, "the keys at AUTH_JWKS_URL: %s", state)


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """Follow nothing: the answer is then the error that its status is."""


def _fetched(url: str) -> "Future[tuple[list[jwt.PyJWK], int]]":
    """Start to fetch a set; the future has the keys that can be used, and how many there are.

    In a thread of its own, which nobody need wait for: a name that does not resolve, or a server
    that sends a byte a second, cannot be interrupted.
    """
    future: Future[tuple[list[jwt.PyJWK], int]] = Future()

    def fetch() -> None:
        future.set_running_or_notify_cancel()
        try:
            found = json.loads(_read(url))["keys"]
            if not isinstance(found, list):
                raise TypeError("not a JWK set")
            future.set_result(([key for jwk in found if (key := _usable(jwk))], len(found)))
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=fetch, name="jwks", daemon=True).start()
    return future


def _read(url: str) -> bytes:
    """Return what is at a URL, if it is there within `_PATIENCE` and not too large."""
    end = time.monotonic() + _PATIENCE
    # urllib's own User-Agent is one that Cloudflare turns away.
    fetch = Fetch(url, headers={"User-Agent": "tasks"})  # noqa: S310, the settings' type checks it
    body = bytearray()
    with build_opener(_NoRedirect).open(fetch, timeout=_PATIENCE) as response:
        while piece := response.read1(_LARGEST):
            body += piece
            if len(body) > _LARGEST or time.monotonic() > end:
                raise OverflowError if len(body) > _LARGEST else TimeoutError
    return bytes(body)


def _usable(jwk: Any) -> jwt.PyJWK | None:
    """Return a key with the one algorithm it is for; none if it is not for signatures we take."""
    try:
        algorithm = _ALGORITHMS[jwk["kty"]]
        if jwk.get("use") not in (None, "sig") or jwk.get("alg") not in (None, algorithm):
            return None
        if "d" in jwk:  # its private half: whoever reads the set could sign
            return None
        key = jwt.PyJWK(jwk, algorithm)
        prepared = key.Algorithm.prepare_key(key.key)  # refuses another curve
        return None if key.Algorithm.check_key_length(prepared) else key
    except Exception:  # one broken key, however broken, must not lose the others
        return None


def _fitting(keys: list[jwt.PyJWK], header: dict[str, Any]) -> jwt.PyJWK | None:
    """Return the key that a token's header names; without a name, the only one of its algorithm."""
    name = header.get("kid")
    fit = [
        key for key in keys if key.algorithm_name == header["alg"] and name in (None, key.key_id)
    ]
    return fit[0] if fit and (name or len(fit) == 1) else None
