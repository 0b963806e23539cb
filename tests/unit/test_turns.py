"""Who waits for whom where answers are long."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import Response

from errors import Unavailable
from routes.route import _LONG, _LONG_AT_ONCE, _LONG_TOGETHER, _Turns

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


def test_of_many_callers_a_few_are_answered_at_length_at_once() -> None:
    turns = _Turns()
    running = most = 0

    async def answer() -> Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return LONG

    def ask(user: int) -> Any:
        request: Any = SimpleNamespace(scope={"path": f"/api/{user}/tasks", "headers": []})
        return turns.take(request, answer())

    async def scenario() -> None:
        nonlocal most
        await asyncio.gather(*map(ask, range(10)))  # nobody knows yet
        most = 0
        await asyncio.gather(*map(ask, range(10)))

    asyncio.run(scenario())
    assert most == _LONG_TOGETHER
