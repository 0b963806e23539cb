"""SQLite under statements that would take hours: who is answered what, and how soon."""

import asyncio
import random
import sqlite3
import time
from collections.abc import Coroutine, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

from engines import DEADLINE, sqlite
from engines.sqlite import Pool
from tests.integration.test_sqlite import (
    BUSY,
    HEAVY,
    INSERT,
    insert_all,
    path,
    pool_on,
    texts_in,
    told,
)
from tests.support.load import Request, at_once, locked
from tests.support.service import Service

__all__ = ["path"]

SOON = 3  # seconds past a deadline, generously: a commit that waits for a busy disk goes on
HOURS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1e12)"
SLOW_READ = f"SELECT count(*) FROM ({HOURS} SELECT i FROM n)"
SLOW_WRITE = f"INSERT INTO notes (text) {HOURS} SELECT 'slow ' || i FROM n"
QUICK_READ = "SELECT 1"


def run(pool: Pool, sql: str, owner: str, deadline: float = DEADLINE) -> Any:
    return asyncio.ensure_future(pool.run(sql, {"owner": owner}, deadline=deadline))


async def outcome(call: Any) -> tuple[Any, float]:
    """What became of a call, and after how many seconds."""
    started = time.monotonic()
    results: list[Any] = list(await asyncio.gather(call, return_exceptions=True))
    return results[0], time.monotonic() - started


def on(path: str, scenario: Any) -> None:
    async def main() -> None:
        async with pool_on(path) as pool:
            await scenario(pool)

    asyncio.run(main())


def test_a_read_past_its_deadline_is_stopped_and_says_what_helps(path: str) -> None:
    async def scenario(pool: Pool) -> None:
        calls = [run(pool, SLOW_READ, f"owner {number}", 0.5) for number in range(4)]
        for result, seconds in await asyncio.gather(*map(outcome, calls)):
            assert told(result) == HEAVY
            assert seconds < 0.5 + SOON
        result, seconds = await outcome(run(pool, QUICK_READ, "owner 5"))  # no thread is lost
        assert result == ([(1,)], 1)
        assert seconds < SOON

    on(path, scenario)


def test_a_bulk_write_past_its_deadline_is_undone_and_those_behind_it_hear_the_truth(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "DEADLINE", 0.5)  # what has more is a bulk call

    async def scenario(pool: Pool) -> None:
        bulk = asyncio.create_task(outcome(run(pool, SLOW_WRITE, "bulk", 2)))
        await asyncio.sleep(0.1)
        started = time.monotonic()
        small = await insert_all(pool, "a", "b", deadline=0.5)
        assert time.monotonic() - started < 0.5 + SOON
        assert {told(result) for result in small} == {BUSY}
        assert await texts_in(pool) == []  # readers go on
        late = asyncio.create_task(outcome(run(pool, "DELETE FROM notes", "late", 0.5)))
        result, seconds = await bulk
        assert told(result) == HEAVY
        assert seconds < 2 + SOON
        await late
        await insert_all(pool, "c")
        assert await texts_in(pool) == ["c"]

    on(path, scenario)


def test_one_slow_write_in_a_shared_transaction_fails_alone(path: str) -> None:
    async def scenario(pool: Pool) -> None:
        slow = run(pool, SLOW_WRITE, "slow", 3)
        before, (result, seconds), after = await asyncio.gather(
            insert_all(pool, "a", "b"), outcome(slow), insert_all(pool, "c", "d")
        )
        assert [rows for rows, _ in (*before, *after)] == [[(1,)], [(2,)], [(3,)], [(4,)]]
        assert told(result) == HEAVY
        assert seconds < 3 + SOON
        assert await texts_in(pool) == list("abcd")

    on(path, scenario)


def test_a_read_whose_caller_is_gone_is_stopped_and_one_that_waits_is_not_begun(path: str) -> None:
    async def scenario(pool: Pool) -> None:
        calls = [run(pool, SLOW_READ, f"owner {number}", 30) for number in range(12)]
        await asyncio.sleep(0.2)
        for call in calls:
            call.cancel()
        result, seconds = await outcome(run(pool, QUICK_READ, "owner 1"))
        assert result == ([(1,)], 1)
        assert seconds < SOON

    on(path, scenario)


def test_a_write_whose_caller_is_gone_is_not_begun(path: str) -> None:
    async def scenario(pool: Pool) -> None:
        with locked(f"sqlite:///{path}"):
            first = asyncio.create_task(insert_all(pool, "first"))
            await asyncio.sleep(0.1)
            gone = asyncio.create_task(insert_all(pool, "gone"))
            last = asyncio.create_task(insert_all(pool, "last"))
            await asyncio.sleep(0.1)
            gone.cancel()
        await asyncio.gather(first, last)
        assert sorted(await texts_in(pool)) == ["first", "last"]

    on(path, scenario)


def test_one_owner_leaves_threads_to_others(path: str) -> None:
    async def scenario(pool: Pool) -> None:
        heavy = [run(pool, SLOW_READ, "heavy", 3) for _ in range(24)]
        heavy.append(run(pool, SLOW_READ, "second", 3))
        await asyncio.sleep(0.1)
        result, seconds = await outcome(run(pool, QUICK_READ, "light"))
        assert result == ([(1,)], 1)
        assert seconds < SOON
        result, seconds = await outcome(run(pool, INSERT.replace(":text", "'light'"), "light"))
        assert result[0] == [(1,)]
        assert seconds < SOON
        refused = {told(result) for result, _ in await asyncio.gather(*map(outcome, heavy))}
        assert refused == {HEAVY, BUSY}  # some were stopped, the others never begun

    on(path, scenario)


def test_bulk_writes_of_one_owner_are_done_in_turn_with_others(path: str) -> None:
    quarter = SLOW_WRITE.replace("1e12", "2e5")  # of a second or so

    async def scenario(pool: Pool) -> None:
        order: list[str] = []

        async def bulk(number: int) -> None:
            sql = quarter.replace("'slow '", f"'{number} '")
            await pool.run(sql, {"owner": "heavy"}, deadline=30)
            order.append("bulk")

        async def small() -> None:
            await insert_all(pool, "small")
            order.append("small")

        await asyncio.gather(*(bulk(number) for number in range(5)), small())
        assert order.index("small") <= 2

    on(path, scenario)


def test_a_disk_that_hangs_holds_up_no_answer_and_the_answer_promises_nothing(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hanging(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            if sql == "COMMIT":
                time.sleep(3)
            return super().execute(sql, *parameters)

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Hanging))

    async def scenario(pool: Pool) -> None:
        hung = asyncio.create_task(outcome(insert_all(pool, "a", deadline=0.5)))
        await asyncio.sleep(0.1)
        rows, seconds = await outcome(run(pool, QUICK_READ, "owner 1"))
        assert rows == ([(1,)], 1)
        assert seconds < 2  # the loop does not hang, as the disk does for 3
        (result,), seconds = await hung
        assert told(result) == "The disk does not answer; whether this was done is not known."
        assert seconds < 0.5 + SOON
        (result,) = await insert_all(pool, "b", deadline=0.5)
        assert told(result) == BUSY  # it was not begun

    on(path, scenario)


def test_the_loop_waits_for_no_write_that_is_slow(path: str) -> None:
    slow = SLOW_WRITE.replace("1e12", "1e6")  # of a second or so

    async def scenario(pool: Pool) -> None:
        began = looked_at = time.monotonic()
        longest = 0.0
        call = run(pool, slow, "slow", DEADLINE)
        while not call.done():
            await asyncio.sleep(0.001)
            longest = max(longest, time.monotonic() - looked_at)
            looked_at = time.monotonic()
        assert longest < (looked_at - began) / 2

    on(path, scenario)


def test_the_loop_goes_on_between_writes_that_turn_out_slow(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_SLOW", 0)
    slow = SLOW_WRITE.replace("1e12", "1000").replace("'slow '", ":owner")
    run_together, begun = Pool._run_together, []
    turns = 0

    def noted(*arguments: Any) -> None:
        begun.append(turns)
        run_together(*arguments)

    monkeypatch.setattr(Pool, "_run_together", noted)

    async def scenario(pool: Pool) -> None:
        nonlocal turns
        calls = [run(pool, slow, f"owner {number} ") for number in range(5)]
        while not all(call.done() for call in calls):
            await asyncio.sleep(0)
            turns += 1
        assert len(begun) == len(set(begun)) == 5  # each was tried there, in a turn of its own
        assert len(await texts_in(pool)) == 5000

    on(path, scenario)


def test_the_loop_waits_for_no_read_whose_steps_are_slow(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite.connect

    def connect_to_what_is_slow(file: str) -> sqlite3.Connection:
        connection = connect(file)
        connection.create_function("slow", 1, lambda i: time.sleep(0.003))
        return connection

    monkeypatch.setattr(sqlite, "connect", connect_to_what_is_slow)
    slow = f"SELECT count(slow(i)) FROM ({HOURS} SELECT i FROM n)"

    async def scenario(pool: Pool) -> None:
        call = pool.run(slow, {"owner": "a"}, deadline=DEADLINE)
        started = time.monotonic()
        task = asyncio.ensure_future(call)
        await asyncio.sleep(0)  # it has begun now
        assert time.monotonic() - started < 0.5
        task.cancel()
        await asyncio.wait([task])

    on(path, scenario)


def test_whatever_comes_each_is_answered_in_time_and_with_the_truth(path: str) -> None:
    chance = random.Random(13)  # the same calls each time

    async def scenario(pool: Pool) -> None:
        stored: set[str] = set()
        refused: set[str] = set()

        async def write(text: str, sql: str, deadline: float) -> None:
            values = {"text": text, "owner": text[0]}
            call = pool.run(sql, values, deadline=deadline)
            result, seconds = await outcome(asyncio.ensure_future(call))
            assert seconds < deadline + SOON
            (stored if isinstance(result, tuple) else refused).add(text)
            assert isinstance(result, tuple) or told(result)

        async def read(owner: str, deadline: float) -> None:
            call = run(pool, SLOW_READ if chance.random() < 0.2 else QUICK_READ, owner, deadline)
            if chance.random() < 0.2:
                await asyncio.sleep(0.01)
                call.cancel()
            result, seconds = await outcome(call)
            assert seconds < deadline + SOON
            assert isinstance(result, tuple | asyncio.CancelledError) or told(result)

        calls: list[Coroutine[Any, Any, None]] = []
        for number in range(200):
            owner = chance.choice("abc")
            sql = INSERT if number % 50 else SLOW_WRITE
            calls.append(write(f"{owner}{number}", sql, chance.uniform(0.3, 2.5)))
            calls.append(read(owner, chance.uniform(0.3, 2.5)))

        async def begin(call: Coroutine[Any, Any, None]) -> None:
            await asyncio.sleep(chance.uniform(0, 1.5))
            await call

        await asyncio.gather(*map(begin, calls))
        assert stored
        assert refused
        assert set(await texts_in(pool)) == stored

    on(path, scenario)


# ---- the same, seen by clients

# Each of the tags is looked for in each of the tasks, which have them all: some 10 s.
TAGS = [str(number) for number in range(20)]
SEARCH = "/api/heavy/tasks?tags_ne=x&tags_like=1&" + "&".join(f"tag={tag}" for tag in TAGS)


@pytest.fixture(scope="module")
def heavy_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of `heavy`."""
    return tmp_path_factory.mktemp("heavy") / "tasks.db"


@pytest.fixture(scope="module")
def heavy(heavy_path: Path) -> Iterator[Service]:
    """A service whose user `heavy` has 500,000 tasks."""
    with Service(DATABASE_URL=f"sqlite:///{heavy_path}") as service:
        first = {"title": "a", "tags": TAGS}
        assert httpx2.post(f"{service.url}/api/heavy/tasks", json=first).status_code == 201
        with closing(sqlite3.connect(heavy_path)) as connection, connection:
            names = [row[1] for row in connection.execute("PRAGMA table_info(task)")]
            values = {name: f'task."{name}"' for name in names} | {
                "id": "NULL",
                "uid": "hex(randomblob(16))",
            }
            copied = ", ".join(values[name] for name in names)
            numbers = HOURS.replace("1e12", "500000")
            connection.execute(f"INSERT INTO task {numbers} SELECT {copied} FROM task, n")
        yield service


def test_a_search_that_takes_too_long_is_a_503_that_says_so(heavy: Service) -> None:
    (answer,) = at_once(heavy.url, [Request("GET", SEARCH)])
    assert (answer.status, answer.json()["detail"]) == (503, HEAVY)
    assert answer.seconds < 6


def test_heavy_searches_of_one_user_hold_up_nobody_else(heavy: Service, tasks: str) -> None:
    light = [
        Request("GET", tasks),
        Request("POST", tasks, {"title": "light"}),
        Request("GET", f"{tasks}/stats"),
    ]
    answers = at_once(heavy.url, [Request("GET", SEARCH)] * 24 + light)
    assert [answer.status for answer in answers] == [503] * 24 + [200, 201, 200]
    assert max(answer.seconds for answer in answers) < 6
    assert max(answer.seconds for answer in answers[24:]) < 3


def test_with_the_file_locked_writes_are_refused_in_time_and_reads_are_served(
    heavy: Service, heavy_path: Path, tasks: str
) -> None:
    with locked(f"sqlite:///{heavy_path}"):
        requests = [Request("POST", tasks, {"title": "late"})] * 75 + [Request("GET", tasks)]
        answers = at_once(heavy.url, requests)
    assert [answer.status for answer in answers] == [503] * 75 + [200]
    assert {answer.json()["detail"] for answer in answers[:75]} == {BUSY}
    assert max(answer.seconds for answer in answers) < 6
    assert httpx2.get(heavy.url + tasks).json() == []  # refused is refused
    assert httpx2.post(heavy.url + tasks, json={"title": "in time"}).status_code == 201
