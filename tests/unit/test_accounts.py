"""What accounts keep in memory, with a database that answers when the test says so."""

import asyncio
import time
from functools import partial
from typing import Any, cast

import pytest
from argon2 import PasswordHasher

from auth import accounts
from auth.accounts import Accounts
from database import Database
from engines import Result
from errors import ApiError, Unavailable
from models import Account
from queries import Query, now

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hash at next to no cost."""
    cheap = partial(PasswordHasher, time_cost=1, memory_cost=8)
    monkeypatch.setattr(accounts, "PasswordHasher", cheap)


class Held:
    """A database whose every answer waits for the test; `asked` has the statements that wait."""

    def __init__(self) -> None:
        self.asked: list[asyncio.Future[Result]] = []

    async def run(self, query: Query) -> Result:
        self.asked.append(asyncio.get_running_loop().create_future())
        return await self.asked[-1]

    async def answer(self, place: int, generation: int | None) -> None:
        """Answer with an account of this generation; with None, as after its deletion."""
        there = [] if generation is None else [tuple(ann(generation).model_dump().values())]
        self.asked[place].set_result(Result(there, 1))
        await asyncio.sleep(0)


def ann(generation: int) -> Account:
    return Account(
        id="ann", email="ann@example.com", email_folded="ann@example.com", name=None,
        password_hash="", generation=generation, created_at=now(),
    )  # fmt: skip


def kept(database: Any) -> Accounts:
    return Accounts(cast(Database, database), b"secret")


async def begin(call: Any) -> asyncio.Task[Any]:
    task = asyncio.create_task(call)
    await asyncio.sleep(0)
    return task


@pytest.mark.parametrize("late", [1, 2])
async def test_a_late_answer_brings_no_ended_token_back(late: int) -> None:
    held = Held()
    known = kept(held)
    asking = await begin(known.are_current("ann", 1))
    changing = await begin(known.update(ann(2), 1))
    await held.answer(1, None)
    await changing
    await held.answer(0, late)  # what was read before, or just after, the change
    assert not await asking
    assert not await known.are_current("ann", 1)
    assert await known.are_current("ann", 2)
    assert len(held.asked) == 2


async def test_a_late_answer_brings_no_deleted_account_back() -> None:
    held = Held()
    known = kept(held)
    asking = await begin(known.are_current("ann", 1))
    deleting = await begin(known.delete(ann(1)))
    await held.answer(1, None)
    await deleting
    await held.answer(0, 1)
    assert not await asking
    assert not await known.are_current("ann", 1)
    assert not await known.are_current("ann", 2**31)


async def test_what_is_known_of_tokens_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "_MOST_KNOWN", 3)
    held = Held()
    known = kept(held)
    for user in ("ann", "bob", "cid", "dan", "dan", "bob", "ann"):
        asking = await begin(known.are_current(user, 1))
        if not asking.done():
            await held.answer(-1, 1)
        assert await asking
    assert len(held.asked) == 5  # of the last three, nobody is asked for again


async def test_who_waits_too_long_or_behind_too_many_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accounts, "_MOST_WAITING", 2)
    monkeypatch.setattr(accounts, "_PATIENCE", 0.2)
    known = kept(Held())
    waiting = [await begin(known.verify("ann@example.com", "x", None)) for _ in range(2)]
    with pytest.raises(Unavailable):
        await known.hash("password")
    assert not any(task.done() for task in waiting)
    for task in waiting:
        with pytest.raises(Unavailable):
            await task
    assert await known.hash("password")  # and all is as before


class Failed:
    """A database with these failures of an e-mail, `(address, failures, failed_at)`.

    `between` tries of other workers come in between.
    """

    def __init__(self, *failures: tuple[str, int, float], between: int = 0) -> None:
        self.failures = list(failures)
        self.between = between
        self.counted = 0

    async def run(self, query: Query) -> Result:
        statement = str(query.statement)
        if statement.startswith("INSERT"):
            self.counted += 1
        asked = statement.startswith("SELECT task_failed_login")
        return Result(self.failures if asked else [], int(self.counted > self.between))


async def test_a_try_that_another_worker_came_before_is_counted_after_it() -> None:
    failed = Failed(between=3)
    assert await kept(failed).verify("ann@example.com", "x", None) is None
    assert failed.counted == 4


@pytest.mark.parametrize("many", [110, 10_000, 10**9])
async def test_the_longest_wait_is_a_quarter_of_an_hour(many: int) -> None:
    failed = Failed(("elsewhere", many, time.time()))
    with pytest.raises(ApiError) as refused:
        await kept(failed).verify("ann@example.com", "x", None)
    assert refused.value.status_code == 429
    assert refused.value.headers == {"Retry-After": "900"}
    assert not failed.counted


async def test_nobody_waits_for_few_failures_because_another_machine_has_another_time() -> None:
    failed = Failed(("elsewhere", 99, time.time() + 3600))
    assert await kept(failed).verify("ann@example.com", "x", None) is None
