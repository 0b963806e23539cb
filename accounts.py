"""Accounts: their statements, their passwords, and how often one may guess (contract section 7).

Beside `queries.py`, and loaded only where `AUTH_ACCOUNTS` is on: Argon2 costs memory.
"""

import asyncio
import hmac
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from math import ceil
from secrets import token_hex
from typing import Any, Final
from unicodedata import normalize
from uuid import uuid4
from weakref import WeakValueDictionary

import sqlalchemy as sa
from argon2 import PasswordHasher
from argon2.exceptions import VerificationError
from sqlalchemy.dialects.postgresql import insert  # compiles for SQLite as well

from database import Database
from errors import ApiError, Unavailable, field_error
from models import ACCOUNT, FAILED_LOGIN, Account
from queries import Query, now

_MOST_WAITING: Final = 100  # who sign up or log in, in this process
_PATIENCE: Final = 20.0  # seconds that somebody waits for their turn to be hashed
_KNOWN_FOR: Final = 50.0  # seconds; with the way to the database that stays within a minute
_MOST_KNOWN: Final = 16_384  # accounts
_CROWDED: Final = "Too many people are logging in right now."
_GONE: Final = 2**31  # a generation above all that tokens have

account, failed = ACCOUNT.c, FAILED_LOGIN.c
_this = account.id == sa.bindparam("user_id")
_unchanged = sa.and_(_this, account.generation == sa.bindparam("known"))
_changeable = ("name", "password_hash", "generation")

_create = insert(ACCOUNT).on_conflict_do_nothing(index_elements=[account.email_folded])
_read = sa.select(*account).where(_this)
_find = sa.select(*account).where(account.email_folded == sa.bindparam("folded"))
_update = sa.update(ACCOUNT).where(_unchanged)
_update = _update.values({name: sa.bindparam("new_" + name) for name in _changeable})
_delete = sa.delete(ACCOUNT).where(_unchanged)  # a trigger deletes the tasks

_now: sa.BindParameter[float] = sa.bindparam("now", type_=sa.Double())
_email = sa.bindparam("email_key", type_=sa.Text())
_address = sa.bindparam("address_key", type_=sa.Text())
_mine = sa.and_(failed.email == _email, failed.address == _address)


def _wait(failures: Any) -> Any:
    """Return for how long one waits after so many: from the fifth on 1 s, 2 s, 4 s … 15 minutes."""
    doubled = sa.literal_column("1", sa.Integer()).bitwise_lshift(failures - 5)
    return sa.case((failures < 5, 0), (failures < 15, doubled), else_=900)


_from_anywhere = sa.cast(sa.func.sum(failed.failures), sa.Integer())
_all_until = sa.func.max(failed.failed_at) + _wait(_from_anywhere - (100 - 5))
_here_until = failed.failed_at + _wait(failed.failures)
_allowed = sa.select(_all_until).where(failed.email == _email).scalar_subquery()
# A try counts as a failure before it is one, in the statement that lets it pass: of many at once
# each sees those before it. Past 15 an address counts no more: nobody makes up the 100 alone.
_try = (
    insert(FAILED_LOGIN)
    .from_select(
        failed,
        sa.select(_email, _address, sa.literal_column("1"), _now).where(
            sa.func.coalesce(_allowed, 0) <= _now
        ),
    )
    .on_conflict_do_update(
        index_elements=[failed.email, failed.address],
        set_={
            "failures": sa.case((failed.failures < 15, failed.failures + 1), else_=15),
            "failed_at": _now,
        },
        where=_here_until <= _now,
    )
)
_until = sa.select(_all_until, sa.func.max(_here_until).filter(_mine)).where(failed.email == _email)
_right = sa.delete(FAILED_LOGIN).where(_mine)
_wrong = sa.update(FAILED_LOGIN).where(_mine).values(failed_at=_now)
_old = sa.delete(FAILED_LOGIN).where(failed.failed_at < _now - 3600)


class Accounts:
    """The accounts of one database; `secret` hides whose failures the table has."""

    def __init__(self, database: Database, secret: bytes) -> None:
        self._run = database.run
        self._secret = secret
        self._hasher = PasswordHasher()
        # What is checked where there is no account, so that it takes the same time.
        self._no_password = self._hasher.hash(token_hex())
        # One at a time: a hash keeps 4 cores and 64 MiB busy as it is.
        self._thread = ThreadPoolExecutor(1, "argon2", initializer=_step_back)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._generations: dict[str, tuple[int, float]] = {}  # and until when they are good

    async def create(self, email: str, password: str, name: str | None) -> Account:
        """Return the new account; raise 409 if its e-mail has one already."""
        folded = _folded(email)
        async with self._turn(folded):
            hashed = await self.hash(password)
        new = Account(
            id=str(uuid4()),
            email=email,
            email_folded=folded,
            name=name,
            password_hash=hashed,
            created_at=now(),
        )
        if (await self._run(Query(_create, new.model_dump()))).touched:
            return new
        taken = field_error("body", "email", "has an account already")
        raise ApiError(409, "email: has an account already", errors=[taken])

    async def read(self, user_id: str) -> Account | None:
        """Return the account."""
        return await self._one(_read, user_id=user_id)

    async def update(self, changed: Account, known: int) -> bool:
        """Store its name, password and generation, unless the generation is no longer `known`."""
        values = {"new_" + name: getattr(changed, name) for name in _changeable}
        return await self._change(_update, changed.id, known, changed.generation, **values)

    async def delete(self, known: Account) -> bool:
        """Delete the account and its tasks, unless it has another generation now."""
        return await self._change(_delete, known.id, known.generation, _GONE)

    async def authenticate(self, email: str, password: str, host: str) -> Account | None:
        """Return the account with this e-mail and password; None after a wrong guess.

        `host` is the address that the guess comes from. Raises 429 when it comes too soon after
        others, and 503 when too many wait to be checked.
        """
        folded = _folded(email)
        keys = {"email_key": self._key(folded), "address_key": self._key(_network(host))}
        # One by one, so that of many right ones at once none is taken for a sixth failure.
        async with self._turn("".join(keys.values())):
            await self._count(keys)
            found = await self._one(_find, folded=folded)
            known = found.password_hash if found else self._no_password
            right = await self._in_thread(self._is_right, known, password) and found is not None
            settled = Query(_right if right else _wrong, keys | {"now": time.time()})
            await self._run(settled)
        return found if right else None

    async def hash(self, password: str) -> str:
        """Return what to store of a password."""
        return str(await self._in_thread(self._hasher.hash, _normal(password)))

    async def are_current(self, user_id: str, generation: int) -> bool:
        """Return whether tokens of this generation count, as of less than a minute ago."""
        current, until = self._generations.get(user_id, (0, 0.0))
        if generation > current or until < time.monotonic():
            found = await self.read(user_id)
            current = self._learn(user_id, found.generation if found else _GONE)
        return generation == current

    def _learn(self, user_id: str, generation: int) -> int:
        """Take down and return the highest generation known, for answers may come late."""
        generation = max(generation, self._generations.pop(user_id, (0, 0.0))[0])
        self._generations[user_id] = generation, time.monotonic() + _KNOWN_FOR
        if len(self._generations) > _MOST_KNOWN:
            del self._generations[next(iter(self._generations))]
        return generation

    async def _one(self, statement: sa.Select[Any], **key: str) -> Account | None:
        rows, _ = await self._run(Query(statement, key, repeatable=True))
        return Account(**dict(zip(account.keys(), rows[0], strict=True))) if rows else None

    async def _change(
        self, statement: sa.ClauseElement, user_id: str, known: int, generation: int, **values: Any
    ) -> bool:
        query = Query(statement, {"user_id": user_id, "known": known, **values})
        done = bool((await self._run(query)).touched)
        if done:
            self._learn(user_id, generation)
        return done

    async def _count(self, keys: dict[str, str]) -> None:
        """Count a try; raise 429 instead while none may be made."""
        values: dict[str, Any] = {**keys, "now": time.time()}
        await self._run(Query(_old, values))  # so there are never more than come in an hour
        if not (await self._run(Query(_try, values))).touched:
            rows, _ = await self._run(Query(_until, values, repeatable=True))
            wait = ceil(max(until or 0 for until in rows[0]) - values["now"])
            detail = "There were too many failed attempts for this e-mail; wait before the next."
            raise ApiError(429, detail, headers={"Retry-After": str(max(1, wait))})

    def _turn(self, key: str) -> asyncio.Lock:
        """Return the lock of those who wait with the same key, or raise 503."""
        if len(self._turns) >= _MOST_WAITING:
            raise Unavailable(_CROWDED)
        return self._turns.setdefault(key, asyncio.Lock())

    async def _in_thread(self, work: Any, *values: Any) -> Any:
        """Return what `work` returns; who is gone before their turn is not worked for."""
        try:
            async with asyncio.timeout(_PATIENCE):
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._thread, work, *values)
        except TimeoutError:
            raise Unavailable(_CROWDED) from None

    def _is_right(self, known: str, password: str) -> bool:
        try:
            return self._hasher.verify(known, _normal(password))
        except VerificationError:
            return False

    def _key(self, text: str) -> str:
        return hmac.digest(self._secret, text.encode(), "sha256").hex()


def _folded(email: str) -> str:
    """Return what an e-mail address is whatever its case and Unicode form."""
    return normalize("NFKC", normalize("NFKC", email).casefold()).strip()


def _normal(password: str) -> bytes:
    """Return a password as any keyboard would give it (RFC 8265 section 4.2: NFC)."""
    return normalize("NFC", password).encode()


def _network(host: str) -> str:
    """Return what one customer of a provider has: an IPv4 address, or a /64 of IPv6."""
    try:
        address = ip_address(host)
    except ValueError:  # a socket without address, or whatever a trusted proxy says
        return host
    whole = address.version == 4 or address.ipv4_mapped
    return host if whole else str(int(address) >> 64)


def _step_back() -> None:
    """Give everybody's tasks the processor before this thread."""
    if sys.platform == "linux":  # elsewhere a thread has no niceness of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
