"""The gatherer by itself: who shares a statement, and what each hears when it goes wrong."""

import asyncio
from collections.abc import Mapping
from typing import Any

import psycopg2
import pytest

from engines import Result, gather
from engines.gather import Gatherer
from engines.postgres import Statement, Undone
from errors import Unavailable


class StandIn:
    """A pool that keeps what it is sent, and answers when the test says so."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Mapping[str, Any], asyncio.Future[Result]]] = []

    def run(self, job: Statement) -> asyncio.Future[Result]:
        assert isinstance(job.sql, str)
        self.sent.append((job.sql, job.parameters, job.rows))
        return job.rows


async def _three_calls(pool: StandIn, *, repeatable: bool = False) -> list[asyncio.Task[Result]]:
    """Make three calls that share a statement."""
    gatherer = Gatherer(pool, "one", "many", {}, repeatable=repeatable)  # type: ignore[arg-type]
    calls = [asyncio.create_task(gatherer.run({"task_id": n})) for n in range(3)]
    await asyncio.sleep(0.01)
    assert [sql for sql, _, _ in pool.sent] == ["many"]
    return calls


@pytest.mark.parametrize("seconds", [0.0, 0.6], ids=["near", "far"])
def test_while_a_statement_is_under_way_calls_gather_unless_the_database_is_far(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather, "SOON", 0.5)

    async def scenario() -> None:
        pool = StandIn()
        gatherer = Gatherer(pool, "one", "many", {}, repeatable=True)  # type: ignore[arg-type]

        def call(number: int) -> asyncio.Task[Result]:
            return asyncio.create_task(gatherer.run({"task_id": number}))

        async def told() -> list[str]:
            for _ in range(5):
                await asyncio.sleep(0)
            return [sql for sql, _, _ in pool.sent]

        calls = [call(0)]
        assert await told() == ["one"]  # alone
        await asyncio.sleep(seconds)
        pool.sent[0][2].set_result(Result([(0,)], 1))
        calls += [call(1)]
        assert await told() == ["one", "one"]
        calls += [call(2)]
        await told()
        calls += [call(3)]
        apart = ["one"] * 4
        assert await told() == (apart if seconds else apart[:2])
        if not seconds:
            pool.sent[1][2].set_result(Result([(1,)], 1))
            assert await told() == ["one", "one", "many"]  # it is back
            calls += [call(4)]
            assert await told() == ["one", "one", "many"]
            await asyncio.sleep(0.6)
            assert await told() == ["one", "one", "many", "one"]  # it does not come back
        for each in calls:
            each.cancel()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("error", "repeatable"),
    [
        (psycopg2.DataError("one of them"), False),
        (Undone("one of them takes too long"), False),
        (Unavailable("one of them ends its server"), True),
        (ValueError("one of them cannot be read"), True),
    ],
)
def test_a_statement_that_fails_for_several_is_sent_for_each_where_that_is_harmless(
    error: Exception, repeatable: bool
) -> None:
    async def scenario() -> None:
        pool = StandIn()
        calls = await _three_calls(pool, repeatable=repeatable)
        pool.sent[0][2].set_exception(error)
        await asyncio.sleep(0.01)
        assert [sql for sql, _, _ in pool.sent] == ["many", "one", "one", "one"]
        for number, (_, parameters, rows) in enumerate(pool.sent[1:]):
            assert parameters == {"task_id": number}
            if number == 1:
                rows.set_exception(psycopg2.DataError("this one"))
            else:
                rows.set_result(Result([(number,)], 1))
        first, second, third = await asyncio.gather(*calls, return_exceptions=True)
        assert (first, third) == (([(0,)], 1), ([(2,)], 1))
        assert isinstance(second, psycopg2.DataError)

    asyncio.run(scenario())


def test_when_the_outcome_for_several_is_unknown_all_of_them_hear_so() -> None:
    async def scenario() -> None:
        pool = StandIn()
        calls = await _three_calls(pool)
        pool.sent[0][2].set_exception(Unavailable())
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Unavailable] * 3
        assert len(pool.sent) == 1

    asyncio.run(scenario())


def test_who_gives_up_harms_nobody_else() -> None:
    async def scenario() -> None:
        pool = StandIn()
        calls = await _three_calls(pool)
        calls[1].cancel()
        await asyncio.sleep(0)
        pool.sent[0][2].set_result(Result([(2, "c"), (0, "a"), (1, "b")], 3))
        first, _, third = await asyncio.gather(*calls, return_exceptions=True)
        assert (first, third) == (([("a",)], 1), ([("c",)], 1))

    asyncio.run(scenario())


def test_the_same_task_twice_goes_into_two_statements() -> None:
    async def scenario() -> None:
        pool = StandIn()
        gatherer = Gatherer(pool, "one", "many", {}, repeatable=False)  # type: ignore[arg-type]
        calls = [asyncio.create_task(gatherer.run({"task_id": n})) for n in (1, 2, 1)]
        await asyncio.sleep(0.01)
        assert [sql for sql, _, _ in pool.sent] == ["many", "one"]
        pool.sent[0][2].set_result(Result([(1, "two"), (0, "one")], 2))
        pool.sent[1][2].set_result(Result([("one again",)], 1))
        answers = await asyncio.gather(*calls)
        assert [rows[0][0] for rows, _ in answers] == ["one", "two", "one again"]

    asyncio.run(scenario())


def test_who_waits_in_vain_is_told_so_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "DEADLINE", 0.7)

    async def scenario() -> None:
        pool = StandIn()
        gatherer = Gatherer(pool, "one", "many", {}, repeatable=False)  # type: ignore[arg-type]
        calls = [asyncio.create_task(gatherer.run({"task_id": 1})) for _ in range(30)]
        done, answered_never = await asyncio.wait(calls, timeout=2)
        # What was sent is the pool's to answer, and the rest is never sent.
        assert (len(pool.sent), len(answered_never)) == (10, 10)
        assert {type(call.exception()) for call in done} == {Undone}
        late = asyncio.create_task(gatherer.run({"task_id": 1}))
        await asyncio.sleep(0)
        pool.sent[0][2].set_result(Result([("first",)], 1))
        await asyncio.sleep(0.01)
        pool.sent[10][2].set_result(Result([("late",)], 1))
        assert (await late)[0] == [("late",)]
        for call in answered_never:
            call.cancel()

    asyncio.run(scenario())


def test_changes_of_one_user_that_wait_hold_up_nobody_elses() -> None:
    async def scenario() -> None:
        pool = StandIn()
        gatherer = Gatherer(pool, "one", "many", {}, repeatable=False)  # type: ignore[arg-type]

        def call(owner: str, number: int) -> asyncio.Task[Result]:
            return asyncio.create_task(gatherer.run({"task_id": number, "owner": owner}))

        calls = [call("a", number) for number in range(400)]
        await asyncio.sleep(0.1)
        assert len(pool.sent) == 5  # the other half is for others
        for _, _, rows in pool.sent[:5]:
            rows.set_exception(Undone("all wait for one lock"))
        await asyncio.sleep(0.1)
        assert [sql for sql, _, _ in pool.sent[5:]] == ["one"] * 150  # each for itself
        calls += [call("b", 1000)]
        await asyncio.sleep(0.1)
        assert [given["owner"] for _, given, _ in pool.sent[155:]] == ["b"]
        for _, _, rows in pool.sent[5:]:
            rows.set_result(Result([("done",)], 1))
        await asyncio.sleep(0.1)
        assert len(pool.sent) > 156  # their turn comes
        for each in calls:
            each.cancel()

    asyncio.run(scenario())


def test_who_has_gone_before_the_statement_goes_out_is_left_out_of_it() -> None:
    async def scenario() -> None:
        pool = StandIn()
        gatherer = Gatherer(pool, "one", "many", {}, repeatable=False)  # type: ignore[arg-type]
        calls = [asyncio.create_task(gatherer.run({"task_id": n})) for n in range(2)]
        await asyncio.sleep(0)
        calls[0].cancel()
        for _ in range(10):  # turns, however long they take
            await asyncio.sleep(0)
        assert [(sql, parameters) for sql, parameters, _ in pool.sent] == [("one", {"task_id": 1})]
        calls[1].cancel()

    asyncio.run(scenario())
