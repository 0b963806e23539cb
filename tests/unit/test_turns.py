"""Who waits for whom where answers are long."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import Response

from routes.route import _LONG, _LONG_AT_ONCE, _Turns

LONG = Response(b"x" * (_LONG + 1))


@pytest.mark.parametrize(
    "between", [Response(status_code=304), Response(b"[]")], ids=["not-modified", "short"]
)
def test_a_short_answer_to_somebody_lets_nobody_ask_for_long_ones_at_once(
    between: Response,
) -> None:
    request: Any = SimpleNamespace(scope={"path": "/api/tasks", "headers": []})
    turns = _Turns()
    running = most = 0

    async def answer(response: Response) -> Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return response

    async def ask() -> None:
        for response in (LONG, between):
            assert await turns.take(request, answer(response)) is response
        await asyncio.gather(*(turns.take(request, answer(LONG)) for _ in range(10)))

    asyncio.run(ask())
    assert most == _LONG_AT_ONCE
