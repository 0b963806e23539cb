"""Accounts: their statements, their passwords, and how often one may guess (contract section 7).

Loaded only where `AUTH_ACCOUNTS` is on: Argon2 costs memory.
"""

import asyncio
import hmac
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import lru_cache
from ipaddress import IPv6Address
from math import ceil, inf
from secrets import token_hex
from typing import Any, Final
from unicodedata import normalize
from uuid import uuid4

import sqlalchemy as sa
from argon2 import PasswordHasher
from argon2.exceptions import VerificationError
from pydantic import validate_email
from sqlalchemy.dialects.postgresql import insert  # compiles for SQLite as well
from starlette.datastructures import Address

from database import Database
from engines import BULK_DEADLINE
from errors import ApiError, Unauthorized, Unavailable, invalid
from models import ACCOUNT, FAILED_LOGIN, Account
from queries import Query, now

_MOST_WAITING: Final = 100  # who sign up or log in, in this process
_PATIENCE: Final = 20.0  # seconds that each of them waits
_KNOWN_FOR: Final = 50.0  # seconds; with the way to the database that stays within a minute
_MOST_KNOWN: Final = 16_384  # accounts

account, failed = ACCOUNT.c, FAILED_LOGIN.c
_this = account.id == sa.bindparam("user_id")
_unchanged = sa.and_(_this, account.generation == sa.bindparam("known"))

_create = insert(ACCOUNT).on_conflict_do_nothing(index_elements=[account.email_folded])
_read = sa.select(*account).where(_this)
_find = sa.select(*account).where(account.email_folded == sa.bindparam("folded"))
_update = (
    sa.update(ACCOUNT)
    .where(_unchanged)
    .values(password_hash=sa.bindparam("password_hash"), generation=sa.bindparam("generation"))
)
_rename = _update.values(name=sa.bindparam("name"))
_delete = sa.delete(ACCOUNT).where(_unchanged)  # a trigger deletes the tasks, and ends their feed

_email = failed.email == sa.bindparam("email")
_failures = sa.select(failed.address, failed.failures, failed.failed_at).where(_email)
_count = insert(FAILED_LOGIN).on_conflict_do_update(
    index_elements=[failed.email, failed.address],
    set_={
        "failures": sa.bindparam("more"),
        "failed_at": sa.literal_column("excluded.failed_at"),
    },
    where=failed.failed_at == sa.bindparam("seen"),
)
_forget = sa.delete(FAILED_LOGIN).where(_email, failed.address == sa.bindparam("address"))
_is_ahead = failed.failed_at > sa.bindparam("at")
_count_from_now = (
    sa.update(FAILED_LOGIN).where(_email, _is_ahead).values(failed_at=sa.bindparam("at"))
)
_forget_old = sa.delete(FAILED_LOGIN).where(failed.failed_at < sa.bindparam("before"))


class Accounts:
    """The accounts of one database; `secret` hides whose failures the table has."""

    def __init__(self, database: Database, secret: bytes) -> None:
        self._run = database.run
        self._secret = secret
        self._hasher = PasswordHasher(parallelism=1)  # cores are for everybody's tasks
        # What is checked where there is no account, so that it takes the same time.
        self._no_password = self._hasher.hash(token_hex())
        niceness = 10 if sys.platform == "linux" else 0  # elsewhere it is the whole process's
        self._thread = ThreadPoolExecutor(1, "argon2", os.nice, (niceness,))
        self._room, self._alone = asyncio.Semaphore(_MOST_WAITING), asyncio.Lock()
        # Of each user the generation, and until when that is good: it is written anew in its place.
        self._known = lru_cache(maxsize=_MOST_KNOWN)(lambda user_id: [0.0, 0.0])

    async def create(self, email: str, password: str, name: str | None) -> Account:
        """Return the new account; raise 409 if its e-mail has one already."""
        new = Account(
            id=str(uuid4()),
            email=email,
            email_folded=_folded(email),
            name=name,
            password_hash=await self.hash(password),
            created_at=now(),
        )
        if (await self._run(Query(_create, new.model_dump()))).touched:
            return new
        raise invalid("body", "email", "has an account already", 409)

    async def read(self, user_id: str) -> Account:
        """Return the account, or raise 401: whoever it was has none any more."""
        if found := await self._one(_read, user_id=user_id):
            return found
        raise Unauthorized

    async def update(self, changed: Account, known: int, *, renamed: bool = False) -> None:
        """Store the account, or raise 401 if its generation is no longer `known`."""
        # A name that is not given stays, also one that came while a new password was hashed.
        values = {"user_id": changed.id, "known": known, **changed.model_dump()}
        await self._change(Query(_rename if renamed else _update, values), changed.generation)

    async def delete(self, known: Account) -> None:
        """Delete the account and its tasks, or raise 401 if it has another generation now."""
        values = {"user_id": known.id, "known": known.generation}
        await self._change(Query(_delete, values, deadline=BULK_DEADLINE), inf)

    async def verify(self, email: str, password: str, caller: Address | None) -> Account | None:
        """Return the account with this e-mail and password, None if wrong; raise 429, or 503."""
        folded = _folded(email)
        keys = {"email": self._key(folded), "address": self._key(_network(caller))}
        async with self._turn():
            await self._count_try(**keys)
            found = await self._one(_find, folded=folded)
            known = found.password_hash if found else self._no_password
            with suppress(VerificationError):
                await self._in_thread(self._hasher.verify, known, password)
                await self._run(Query(_forget, keys))
                return found
        return None

    async def hash(self, password: str) -> str:
        """Return what to store of a password; raise 503 when too many wait."""
        async with self._turn():
            return str(await self._in_thread(self._hasher.hash, password))

    async def are_current(self, user_id: str, generation: int) -> bool:
        """Return whether tokens of this generation count, as of less than a minute ago."""
        current, until = self._known(user_id)
        if generation > current or until < time.monotonic():
            found = await self._one(_read, user_id=user_id)
            current = self._learn(user_id, found.generation if found else inf)
        return generation == current

    def _learn(self, user_id: str, generation: float) -> float:
        """Take down and return the highest generation known, for answers may come late."""
        known = self._known(user_id)
        known[:] = max(generation, known[0]), time.monotonic() + _KNOWN_FOR
        return known[0]

    async def _one(self, statement: sa.Select[Any], **key: str) -> Account | None:
        rows, _ = await self._run(Query(statement, key, repeatable=True))
        if not rows:
            return None
        return Account.model_validate(dict(zip(account.keys(), rows[0], strict=True)))

    async def _change(self, query: Query, generation: float) -> None:
        if not (await self._run(query)).touched:
            raise Unauthorized
        self._learn(query.parameters["user_id"], generation)

    async def _count_try(self, email: str, address: str) -> None:
        """Count a try as a failure before it is one; raise 429 instead while none may be made."""
        # So of many at once, on whatever worker, each sees those before it. Past 15 an address
        # counts no more: nobody makes up the 100 alone.
        counted = 0
        while not counted:  # else another worker has counted meanwhile
            at = round(time.time(), 5)  # 15 digits: so many a database gives back, however set
            await self._run(Query(_forget_old, {"before": at - 3600}))
            rows, _ = await self._run(Query(_failures, {"email": email}, repeatable=True))
            failures, seen = next((row[1:] for row in rows if row[0] == address), (0, 0.0))
            anywhere, latest = sum(row[1] for row in rows), max((row[2] for row in rows), default=0)
            wait = max(_until(failures, seen), _until(anywhere - 95, latest)) - at
            if wait > 1000:  # longer than there is one: the clock has been set back meanwhile
                await self._run(Query(_count_from_now, {"email": email, "at": at}))
                continue
            if wait > 0:
                detail = "Too many tries failed for this e-mail; wait before the next."
                raise ApiError(429, detail, headers={"Retry-After": str(ceil(wait))})
            # Where a right password has ended the row meanwhile, this is again the first.
            new = {"email": email, "address": address, "failures": 1, "failed_at": at}
            new |= {"seen": seen, "more": min(failures + 1, 15)}
            counted = (await self._run(Query(_count, new))).touched

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Let one after the other in, or raise 503."""
        # A hash takes a core and 64 MiB; and of many right log-ins at once, none is then counted
        # as the sixth failure.
        try:
            if self._room.locked():
                raise TimeoutError
            async with self._room, asyncio.timeout(_PATIENCE), self._alone:
                yield
        except TimeoutError:
            raise Unavailable("Too many people are logging in right now.") from None

    def _in_thread(self, work: Callable[..., Any], *values: str) -> Awaitable[Any]:
        return asyncio.get_running_loop().run_in_executor(self._thread, work, *values)

    def _key(self, text: str) -> str:
        return hmac.digest(self._secret, text.encode(), "sha256").hex()


def _until(failures: int, latest: float) -> float:
    """Return when the next try may be: from the fifth on 1 s, 2 s, 4 s … 15 minutes later."""
    return latest + min(2 ** min(failures - 5, 10), 900) if failures >= 5 else 0


def _folded(email: str) -> str:
    """Return what an e-mail address is in any case, Unicode form and spelling of its domain."""
    with suppress(ValueError):  # what is none has no account
        email = validate_email(email)[1]
    return normalize("NFKC", normalize("NFKC", email).casefold())


def _network(caller: Address | None) -> str:
    """Return what one customer of a provider has: an IPv4 address, or a /64 of IPv6."""
    host = caller.host if caller else ""  # of a Unix socket
    with suppress(ValueError):  # it may be whatever a trusted proxy says
        address = IPv6Address(host)
        return str(address.ipv4_mapped or int(address) >> 64)
    return host
