"""The way to the SQLite file by itself: writes that share a transaction, a full disk, a lock."""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from engines import DEADLINE, sqlite
from engines.sqlite import Pool
from errors import Unavailable
from tests.support.app import in_process
from tests.support.load import locked

BUSY = "The database is busy, and nothing was done; try again soon."
HEAVY = "This took too long and was stopped, nothing was done; narrow it with a filter."
MOVED = "The database's file is not where it was, and nothing was done."
INSERT = "INSERT INTO notes (text) VALUES (:text) RETURNING id"


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A database file with an empty table `notes(id, text)`; no text comes twice."""
    path = str(tmp_path / "notes.db")
    with closing(sqlite.connect(path)) as connection:
        connection.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT UNIQUE)")
    return path


@asynccontextmanager
async def pool_on(path: str) -> AsyncIterator[Pool]:
    pool = Pool(path)
    try:
        yield pool
    finally:
        await pool.close()


async def insert_all(pool: Pool, *texts: str, deadline: float = DEADLINE) -> list[Any]:
    """What became of inserting each text, all asked for at once: rows or an exception."""
    calls = (pool.run(INSERT, {"text": text}, deadline=deadline) for text in texts)
    outcomes: list[Any] = await asyncio.gather(*calls, return_exceptions=True)
    return outcomes


def told(outcome: object) -> str:
    """The sentence of a 503."""
    assert isinstance(outcome, Unavailable), repr(outcome)
    return outcome.detail


async def texts_in(pool: Pool) -> list[str]:
    rows = await pool.run("SELECT text FROM notes ORDER BY id", {})
    return [text for (text,) in rows[0]]


def test_a_write_that_fails_leaves_those_that_share_its_transaction(path: str) -> None:
    async def scenario() -> None:
        async with pool_on(path) as pool:
            outcomes = await insert_all(pool, "a", "b", "a", "c", "b", "d")
            failed = [isinstance(outcome, sqlite3.IntegrityError) for outcome in outcomes]
            assert failed == [False, False, True, False, True, False]
            assert await texts_in(pool) == ["a", "b", "c", "d"]

    asyncio.run(scenario())


def test_a_write_whose_second_statement_fails_is_undone_and_others_are_not(path: str) -> None:
    async def scenario() -> None:
        async with pool_on(path) as pool:
            again = pool.run(INSERT, {"text": "b"}, then=[(INSERT, {"text": "b"})])
            first, failed, last = await asyncio.gather(
                insert_all(pool, "a"), again, insert_all(pool, "c"), return_exceptions=True
            )
            assert isinstance(failed, sqlite3.IntegrityError)
            assert isinstance(first, list)
            assert isinstance(last, list)
            assert await texts_in(pool) == ["a", "c"]

    asyncio.run(scenario())


def test_a_write_that_fails_half_way_leaves_none_of_itself(path: str) -> None:
    async def scenario() -> None:
        async with pool_on(path) as pool:
            await insert_all(pool, "a", "b", "c")
            rename = "UPDATE notes SET text = 'x' || (id > 1)"  # the third is as the second
            outcomes = await asyncio.gather(
                pool.run(INSERT, {"text": "d"}),
                pool.run(rename, {}),
                pool.run(INSERT, {"text": "e"}),
                return_exceptions=True,
            )
            failed = [isinstance(outcome, sqlite3.IntegrityError) for outcome in outcomes]
            assert failed == [False, True, False]
            assert await texts_in(pool) == list("abcde")

    asyncio.run(scenario())


def test_a_transaction_that_sqlite_gives_up_fails_for_all_in_it_and_for_the_true_reason(
    path: str,
) -> None:
    with closing(sqlite.connect(path)) as connection:
        connection.execute(
            "CREATE TRIGGER fatal BEFORE INSERT ON notes WHEN new.text = 'fatal'"
            " BEGIN SELECT RAISE(ROLLBACK, 'the true reason'); END"
        )

    async def scenario() -> None:
        async with pool_on(path) as pool:
            await insert_all(pool, "first")
            *together, behind = await insert_all(pool, "a", "fatal", "b")
            assert {str(outcome) for outcome in together} == {"the true reason"}
            assert isinstance(behind, tuple)
            await insert_all(pool, "c", "d")
            assert await texts_in(pool) == ["first", "b", "c", "d"]

    asyncio.run(scenario())


def test_a_transaction_that_could_not_be_undone_is_undone_by_the_next(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect
    failing = ["COMMIT", "ROLLBACK"]

    class Stopped(sqlite3.Connection):
        """Once each, COMMIT and ROLLBACK are interrupted."""

        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            if sql in failing:
                failing.remove(sql)
                raise sqlite3.OperationalError("interrupted")
            return super().execute(sql, *parameters)

        def rollback(self) -> None:
            if self.in_transaction:
                self.execute("ROLLBACK")

    monkeypatch.setattr(sqlite3, "connect", partial(connect, factory=Stopped))

    async def scenario() -> None:
        async with pool_on(path) as pool:
            outcomes = [*await insert_all(pool, "a"), *await insert_all(pool, "b")]
            assert all(isinstance(outcome, sqlite3.Error) for outcome in outcomes)
            assert not failing
            await insert_all(pool, "c")
            assert await texts_in(pool) == ["c"]

    asyncio.run(scenario())


def test_a_full_disk_is_a_503_and_keeps_what_was_acknowledged(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite.connect

    def connect_to_little_room(file: str) -> sqlite3.Connection:
        connection = connect(file)
        connection.execute("PRAGMA max_page_count = 50")
        return connection

    monkeypatch.setattr(sqlite, "connect", connect_to_little_room)
    said: list[str] = []
    monkeypatch.setattr(sqlite.log, "warning", lambda text, *values: said.append(text % values))

    async def scenario() -> None:
        async with pool_on(path) as pool:
            acknowledged = []
            for batch in range(40):
                texts = [f"{batch} {number} " + "x" * 2000 for number in range(5)]
                outcomes = await insert_all(pool, *texts)
                for text, outcome in zip(texts, outcomes, strict=True):
                    if isinstance(outcome, tuple):
                        acknowledged.append(text)
                    else:
                        assert isinstance(outcome, Unavailable), repr(outcome)
            assert 0 < len(acknowledged) < 200
            assert await texts_in(pool) == acknowledged
            await pool.run("DELETE FROM notes", {})
            assert all(isinstance(outcome, tuple) for outcome in await insert_all(pool, "1", "2"))

    asyncio.run(scenario())
    assert set(said) == {"the database is away: database or disk is full"}


def test_a_file_that_stays_locked_is_a_503_and_then_works_again(path: str) -> None:
    async def scenario() -> None:
        async with pool_on(path) as pool:
            with locked(f"sqlite:///{path}"):
                outcomes = await insert_all(pool, "a", "b", "c", deadline=0.5)
                assert {told(outcome) for outcome in outcomes} == {BUSY}
                assert await texts_in(pool) == []  # reading goes on
            await insert_all(pool, "d")
            assert await texts_in(pool) == ["d"]

    asyncio.run(scenario())


def test_nobody_looks_for_the_lock_once_nobody_waits_for_it(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    class Counted(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            nonlocal looks
            looks += sql == "BEGIN IMMEDIATE"
            return super().execute(sql, *parameters)

    connect = sqlite3.connect
    with locked(f"sqlite:///{path}"):
        monkeypatch.setattr(sqlite3, "connect", partial(connect, factory=Counted))

        async def scenario() -> None:
            async with pool_on(path) as pool:
                await insert_all(pool, "a", deadline=0.1)
                await asyncio.sleep(0.05)
                seen = looks
                assert seen > 1
                await asyncio.sleep(0.05)
                assert looks == seen

        asyncio.run(scenario())


def test_a_cancelled_write_holds_up_nobody(path: str) -> None:
    async def scenario() -> None:
        async with pool_on(path) as pool:
            cancelled = asyncio.create_task(pool.run(INSERT, {"text": "a"}))
            await asyncio.sleep(0)
            cancelled.cancel()
            await insert_all(pool, "b", "c")
            assert {"b", "c"} <= set(await texts_in(pool))
            assert cancelled.cancelled()

    asyncio.run(scenario())


@pytest.mark.parametrize("with_another", [False, True])
def test_a_file_that_is_moved_is_neither_read_nor_written_and_loses_nothing(
    path: str, tmp_path: Path, with_another: bool
) -> None:
    away, other = tmp_path / "away.db", tmp_path / "other.db"
    other.touch()

    async def read(pool: Pool) -> Any:
        """Read in a thread, which has not opened the file yet."""
        return await pool.run("SELECT 1", {}, deadline=2 * DEADLINE)

    async def scenario() -> None:
        async with pool_on(path) as pool:
            await insert_all(pool, "before")
            os.rename(path, away)
            if with_another:
                other.rename(path)
            await asyncio.sleep(0.5)  # what is read on the loop does not look each time
            outcomes = [
                *await insert_all(pool, "meanwhile"),
                *await asyncio.gather(texts_in(pool), read(pool), return_exceptions=True),
            ]
            assert {told(outcome) for outcome in outcomes} == {MOVED}
            assert with_another or "notes.db" not in os.listdir(tmp_path)
            away.rename(path)
            await asyncio.sleep(0.5)
            await insert_all(pool, "after")
            assert await texts_in(pool) == ["before", "after"]
            assert await read(pool) == ([(1,)], 1)
        with closing(sqlite3.connect(path)) as connection:  # with the log where it belongs
            texts = connection.execute("SELECT text FROM notes ORDER BY id").fetchall()
        assert texts == [("before",), ("after",)]

    asyncio.run(scenario())


def test_with_a_file_that_is_no_database_any_more_the_service_is_not_ready(tmp_path: Path) -> None:
    path = tmp_path / "tasks.db"
    with in_process(database_url=f"sqlite:///{path}") as client:
        assert client.get("/ready").status_code == 200
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        path.write_bytes(b"x" * path.stat().st_size)
        assert client.get("/ready").status_code == 503
