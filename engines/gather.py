"""One round trip for everyone who is waiting: calls of one operation share a statement.

A call that finds no other under way goes at once, as the statement for one that it is. Those that
come in the same turn of the event loop after it go out as one statement, and while there are
`IN_FLIGHT` statements of an operation under way, further calls gather for the next. No timer.
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import psycopg2
from pydantic_core import to_json

from engines import DEADLINE
from engines.postgres import GRACE, Pool, Rows, Undone
from engines.prepared import Sql

MOST: Final = 30  # calls that one statement serves: with 100, p95 of 1000 clients was a third more
IN_FLIGHT: Final = 10  # statements of one operation


@dataclass(slots=True)
class _Call:
    """The parameters of one call, since when it waits, and the future of its rows."""

    parameters: Mapping[str, Any]
    since: float
    rows: asyncio.Future[Rows]

    def fail(self, error: BaseException) -> None:
        if not self.rows.done():  # else whoever asked is gone
            self.rows.set_exception(error)


class Gatherer:
    """The calls of one operation: `one` is its statement for one call, `many` that for several.

    `many` takes a JSON array of the calls' parameters as `calls`; each row that it returns begins
    with the number of its call. Where `repeatable` is not set, it changes every task once.
    """

    def __init__(
        self, pool: Pool, one: Sql, many: Sql, constants: Mapping[str, Any], *, repeatable: bool
    ) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._one = one
        self._many = many
        self._constants = constants
        self._repeatable = repeatable
        self._waiting: deque[_Call] = deque()
        self._in_flight = 0
        self._flushing = False
        self._expiry: asyncio.TimerHandle | None = None

    async def run(self, parameters: Mapping[str, Any]) -> Rows:
        """Return the rows of one call, as the statement for one would."""
        if not self._in_flight and not self._waiting:
            self._in_flight += 1
            try:
                return await self._pool.run(self._one, parameters, repeatable=self._repeatable)
            finally:
                self._in_flight -= 1
                self._flush_soon()
        call = _Call(parameters, self._loop.time(), self._loop.create_future())
        self._waiting.append(call)
        if self._expiry is None:
            self._expire()
        self._flush_soon()
        return await call.rows

    def _expire(self) -> None:
        """Answer who has waited in vain, and look again when the next one will have."""
        latest = self._loop.time() - DEADLINE + GRACE
        while self._waiting and self._waiting[0].since <= latest:
            self._waiting.popleft().fail(Undone())
        self._expiry = None
        if self._waiting:
            due = self._waiting[0].since + DEADLINE - GRACE
            self._expiry = self._loop.call_at(due, self._expire)

    def _flush_soon(self) -> None:
        if not self._flushing and self._waiting and self._in_flight < IN_FLIGHT:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        while self._in_flight < IN_FLIGHT and (calls := self._take()):
            self._in_flight += 1
            self._send(calls)

    def _take(self) -> list[_Call]:
        """Take those who wait longest; who would change a task that is taken already stays."""
        taken: list[_Call] = []
        left: list[_Call] = []
        changed = set()
        while self._waiting and len(taken) < MOST:
            call = self._waiting.popleft()
            task_id = call.parameters.get("task_id")
            if call.rows.done():
                continue
            if not self._repeatable and task_id is not None and task_id in changed:
                left.append(call)
            else:
                changed.add(task_id)
                taken.append(call)
        self._waiting.extendleft(reversed(left))
        return taken

    def _send(self, calls: list[_Call]) -> None:
        sql: Sql = self._one
        parameters = calls[0].parameters
        if len(calls) > 1:
            numbered = [{"n": n, **call.parameters} for n, call in enumerate(calls)]
            sql = self._many
            parameters = {**self._constants, "calls": to_json(numbered).decode()}
        waited = self._loop.time() - calls[0].since
        rows = self._pool.run(
            sql, parameters, repeatable=self._repeatable, waited=waited, shared=len(calls) > 1
        )
        rows.add_done_callback(lambda done: self._served(calls, done))

    def _served(self, calls: list[_Call], done: "asyncio.Future[Rows]") -> None:
        self._in_flight -= 1
        error = done.exception()
        if error is None:
            rows = done.result()[0]
            answers = [rows] if len(calls) == 1 else _by_call(rows, len(calls))
            for call, answer in zip(calls, answers, strict=True):
                if not call.rows.done():  # else whoever asked is gone
                    call.rows.set_result((answer, len(answer)))
        elif len(calls) > 1 and (self._repeatable or isinstance(error, (psycopg2.Error, Undone))):
            # Nothing was done, or doing it again is harmless: let each answer for itself.
            for call in calls:
                self._in_flight += 1
                self._send([call])
        else:
            for call in calls:
                call.fail(error)
        self._flush_soon()


def _by_call(rows: list[tuple[Any, ...]], count: int) -> list[list[tuple[Any, ...]]]:
    """Return the rows of each call, by the number that they begin with."""
    answers: list[list[tuple[Any, ...]]] = [[] for _ in range(count)]
    for row in rows:
        answers[row[0]].append(row[1:])
    return answers
