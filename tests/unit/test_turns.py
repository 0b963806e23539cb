"""Who waits for whom where answers are long."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import Response

from errors import Unavailable
from routes.route import _LONG, _LONG_AT_ONCE, _Turns

LONG = Response(b"x" * (_LONG + 1))


@pytest.mark.parametrize(
    "before",
    [[], [LONG, Response(status_code=304)], [LONG, Response(b"[]")]],
    ids=["nothing", "not-modified", "short"],
)
def test_what_was_answered_before_lets_nobody_ask_for_long_ones_at_once(
    before: list[Response],
) -> None:
    request: Any = SimpleNamespace(scope={"path": "/api/tasks", "headers": []})
    turns = _Turns()
    running = most = 0

    async def answer(response: Response | None) -> Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        if response is None:
            raise Unavailable
        return response

    async def ask() -> None:
        for response in before:
            assert await turns.take(request, answer(response)) is response
        asked = [None] * 2 + [LONG] * 10  # what fails tells nothing of the next
        calls = (turns.take(request, answer(each)) for each in asked)
        await asyncio.gather(*calls, return_exceptions=True)

    asyncio.run(ask())
    assert most == _LONG_AT_ONCE
