"""Accounts: their statements, their passwords, and how often one may guess (contract section 7).

Beside `queries.py` and loaded only where `AUTH_ACCOUNTS` is on, for what hashes passwords costs
memory.
"""

import asyncio
import hmac
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import IPv6Address, ip_address
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

_HASHES: Final = 2  # at the same time, of 64 MiB each
_MOST_WAITING: Final = 100  # requests that hash or wait to
_KNOWN_FOR: Final = 50.0  # seconds; with the way to the database that stays within a minute
_MOST_KNOWN: Final = 16_384  # accounts
_NO_GENERATION: Final = 2**31  # above all that tokens are of
_HOUR: Final = 3600.0
_FREE: Final = 5  # failures in a row, after which each costs a wait
_FREE_FROM_ANYWHERE: Final = 100
_LONGEST: Final = 900  # seconds of waiting

# ---- statements on accounts

account = ACCOUNT.c
_this = account.id == sa.bindparam("user_id")
_unchanged = sa.and_(_this, account.generation == sa.bindparam("known"))

_create = (
    insert(ACCOUNT)
    .on_conflict_do_nothing(index_elements=[account.email_folded])
    .returning(*account)
)
_read = sa.select(*account).where(_this)
_find = sa.select(*account).where(account.email_folded == sa.bindparam("folded"))
_generation = sa.select(account.generation).where(_this)
_named = sa.update(ACCOUNT).where(_unchanged).values(name=sa.bindparam("new_name"))
_rename = _named.returning(*account)
_rehash = sa.update(ACCOUNT).where(_unchanged).values(password_hash=sa.bindparam("new_hash"))
_renew = _named.values(
    password_hash=sa.bindparam("new_hash"), generation=account.generation + 1
).returning(*account)
_delete = sa.delete(ACCOUNT).where(_unchanged)  # a trigger deletes the tasks

# ---- statements on failures

failed = FAILED_LOGIN.c
_now: sa.BindParameter[float] = sa.bindparam("now", type_=sa.Double())
_email = sa.bindparam("email_key", type_=sa.Text())
_address = sa.bindparam("address_key", type_=sa.Text())
_old = failed.failed_at <= _now - _HOUR
_mine = sa.and_(failed.email == _email, failed.address == _address)
_of_email = sa.and_(failed.email == _email, sa.not_(_old))


def _cost(failures: Any) -> Any:
    """Return how many seconds after the last of so many failures the next try may come."""
    doubled = sa.literal_column("1", sa.Integer()).bitwise_lshift(failures - _FREE)
    # 2^9 is the last below the longest; by more than an integer has, nothing is shifted.
    return sa.case((failures > _FREE + 9, _LONGEST), (failures >= _FREE, doubled), else_=0)


_from_anywhere = sa.cast(sa.func.sum(failed.failures), sa.Integer())
_all_wait_until = sa.func.max(failed.failed_at) + _cost(
    _from_anywhere - (_FREE_FROM_ANYWHERE - _FREE)
)
_may_try = (
    sa.func.coalesce(sa.select(_all_wait_until).where(_of_email).scalar_subquery(), 0) <= _now
)
_try = (
    insert(FAILED_LOGIN)
    .from_select(failed, sa.select(_email, _address, sa.literal_column("1"), _now).where(_may_try))
    .on_conflict_do_update(
        index_elements=[failed.email, failed.address],
        set_={
            # No more than cost the longest wait: nobody makes up the hundred alone.
            "failures": sa.case(
                (_old, 1), (failed.failures > _FREE + 9, _FREE + 10), else_=failed.failures + 1
            ),
            "failed_at": _now,
        },
        where=failed.failed_at + _cost(failed.failures) <= _now,
    )
    .returning(failed.failures)
)
_wait_until = sa.select(
    sa.func.max(failed.failed_at + _cost(failed.failures)).filter(failed.address == _address),
    _all_wait_until,
).where(_of_email)
# The wait begins with the answer, not with the question.
_fail = sa.update(FAILED_LOGIN).where(_mine).values(failed_at=_now)
_forgive = sa.delete(FAILED_LOGIN).where(_mine)
_sweep = sa.delete(FAILED_LOGIN).where(_old)


def _one(rows: list[tuple[Any, ...]]) -> Account | None:
    return Account(**dict(zip(account.keys(), rows[0], strict=True))) if rows else None


class Accounts:
    """The accounts of one database; `secret` keeps what the table of failures is about."""

    def __init__(self, database: Database, secret: bytes) -> None:
        self._run = database.run
        self._secret = secret
        self._hasher = PasswordHasher()
        # What a guess at nobody's password is checked against, so that it takes the same time.
        self._nobody = self._hasher.hash(token_hex())
        self._threads = ThreadPoolExecutor(_HASHES, "argon2", initializer=_step_back)
        self._waiting = 0
        self._known: dict[str, tuple[int, float]] = {}  # generations, and until when
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def create(self, email: str, password: str, name: str | None) -> Account:
        """Return the new account; raise 409 if its e-mail has one already."""
        new = Account(
            id=str(uuid4()),
            email=email,
            email_folded=_folded(email),
            name=name,
            password_hash=await self._hash(password),
            created_at=now(),
        )
        if created := _one((await self._run(Query(_create, new.model_dump()))).rows):
            return created
        taken = field_error("body", "email", "has an account already")
        raise ApiError(409, "There is an account with this e-mail already.", errors=[taken])

    async def read(self, user_id: str) -> Account | None:
        """Return the account."""
        return _one((await self._run(Query(_read, {"user_id": user_id}, repeatable=True))).rows)

    async def update(
        self, known: Account, name: str | None, password: str | None
    ) -> Account | None:
        """Return the account with that name and, if one is given, another password.

        None if the account has changed since. Another password ends the tokens that there are.
        """
        values = {"user_id": known.id, "known": known.generation, "new_name": name}
        if password is None:
            return _one((await self._run(Query(_rename, values))).rows)
        values["new_hash"] = await self._hash(password)
        if changed := _one((await self._run(Query(_renew, values))).rows):
            self._learn(changed.id, changed.generation)
        return changed

    async def delete(self, known: Account) -> bool:
        """Delete the account and its tasks; return False if it has changed since."""
        values = {"user_id": known.id, "known": known.generation}
        deleted = bool((await self._run(Query(_delete, values))).touched)
        if deleted:
            self._learn(known.id, _NO_GENERATION)
        return deleted

    async def authenticate(self, email: str, password: str, host: str) -> Account | None:
        """Return the account with this e-mail and password; None after a wrong guess.

        `host` is the address that the guess comes from. Raises 429 when it comes too soon after
        others, and 503 when too many wait to be checked.
        """
        keys = {
            "email_key": self._key(_folded(email)),
            "address_key": self._key(_network(host)),
        }
        with self._place():
            # One by one, so that of many right guesses at once none is taken for a sixth failure.
            async with self._turns.setdefault("".join(keys.values()), asyncio.Lock()):
                await self._count(keys)
                query = Query(_find, {"folded": _folded(email)}, repeatable=True)
                found = _one((await self._run(query)).rows)
                known = found.password_hash if found else self._nobody
                right = bool(await self._in_thread(self._is_right, known, password) and found)
                values = {**keys, "now": time.time()}
                await self._run(Query(_forgive if right else _fail, values, repeatable=True))
                # Old ones go with every try, so there are never more than come in an hour.
                await self._run(Query(_sweep, values, repeatable=True))
        if found and right and self._hasher.check_needs_rehash(found.password_hash):
            values = {"user_id": found.id, "known": found.generation}
            values["new_hash"] = await self._hash(password)
            await self._run(Query(_rehash, values))
        return found if right else None

    async def are_current(self, user_id: str, generation: int) -> bool:
        """Return whether tokens of this generation count, as of less than a minute ago."""
        current, until = self._known.get(user_id, (0, 0.0))
        if generation > current or until < time.monotonic():
            query = Query(_generation, {"user_id": user_id}, repeatable=True)
            rows, _ = await self._run(query)
            current = self._learn(user_id, rows[0][0] if rows else 0)
        return 0 < generation == current

    def _learn(self, user_id: str, generation: int) -> int:
        """Take down a generation; return the highest one known, since answers may come late."""
        known, until = self._known.pop(user_id, (0, 0.0))
        moment = time.monotonic()
        if moment < until:
            generation = max(known, generation)
        self._known[user_id] = generation, moment + _KNOWN_FOR
        if len(self._known) > _MOST_KNOWN:
            del self._known[next(iter(self._known))]
        return generation

    async def _count(self, keys: dict[str, str]) -> None:
        """Count a failure before there is one, so that of many tries at once each is counted.

        Raises 429 instead while no try may be made.
        """
        values: dict[str, Any] = {**keys, "now": time.time()}
        if not (await self._run(Query(_try, values))).rows:
            rows, _ = await self._run(Query(_wait_until, values, repeatable=True))
            wait = math.ceil(max(until or 0 for until in rows[0]) - values["now"])
            detail = "There were too many failed attempts for this e-mail; wait before the next."
            raise ApiError(429, detail, headers={"Retry-After": str(max(1, wait))})

    async def _hash(self, password: str) -> str:
        with self._place():
            hashed: str = await self._in_thread(self._hasher.hash, _normal(password))
            return hashed

    def _is_right(self, known: str, password: str) -> bool:
        try:
            return self._hasher.verify(known, _normal(password))
        except VerificationError:
            return False

    async def _in_thread(self, work: Any, *values: Any) -> Any:
        """Return what `work` does of it in a thread; a caller that is gone by then is left out."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *values)

    @contextmanager
    def _place(self) -> Iterator[None]:
        """Be one of those who hash or wait to, or raise 503."""
        if self._waiting >= _MOST_WAITING:
            raise Unavailable("Too many people are logging in right now.")
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    def _key(self, text: str) -> str:
        return hmac.digest(self._secret, text.encode(), "sha256").hex()


def _folded(email: str) -> str:
    """Return what is the same however an e-mail address is written in case and Unicode."""
    return normalize("NFKC", normalize("NFKC", email).casefold())


def _normal(password: str) -> bytes:
    """Return a password as every keyboard gives it (RFC 8265 section 4.2: in Unicode's NFC)."""
    return normalize("NFC", password).encode()


def _network(host: str) -> str:
    """Return what one customer of a provider has: an IPv4 address, or a /64 of IPv6."""
    try:
        address = ip_address(host)
    except ValueError:  # as a proxy called it, or a socket that has none
        return host
    if not isinstance(address, IPv6Address):
        return host
    return str(address.ipv4_mapped or int(address) >> 64)


def _step_back() -> None:
    """Give the event loop, and so everybody's tasks, the processor before this thread."""
    if sys.platform == "linux":  # elsewhere threads have no niceness of their own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
