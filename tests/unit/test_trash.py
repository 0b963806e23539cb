"""The trash is emptied again and again."""

import asyncio
import sqlite3
from typing import Any, cast

import pytest

import trash
from database import Database
from errors import Unauthorized, Unavailable


def test_it_goes_on_whatever_a_try_has_met(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[Exception | None] = [Unavailable(), Unauthorized(), sqlite3.IntegrityError(), None]

    async def empty(_: Database) -> None:
        if not tries:
            raise asyncio.CancelledError
        if met := tries.pop(0):
            raise met

    async def no_time(_: float) -> None:
        pass

    monkeypatch.setattr(trash, "empty", empty)
    monkeypatch.setattr(asyncio, "sleep", no_time)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(trash.keep_emptying(cast("Any", None)))
    assert tries == []
