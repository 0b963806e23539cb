"""One round trip for everyone who is waiting: calls of one operation share a statement.

Calls go out once a turn of the event loop brings no more of them. While a statement of theirs is
under way, those that come gather until it is back: the busier the service, the more share one. Only
for `SOON`, for it may be stuck; and not at all where none comes back that soon, as from afar.
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import psycopg2
from pydantic_core import to_json

from engines import DEADLINE, TICK, Result
from engines.postgres import GRACE, NOT_IN_TIME, Pool, Sql, Statement, Undone

MOST: Final = 30  # calls that one statement serves: with 100, p95 of 1000 clients was a third more
IN_FLIGHT: Final = 10  # statements of one operation
SOON: Final = 0.005  # seconds


@dataclass(eq=False, slots=True)
class _Call:
    """The parameters of one call, since when it waits, and the future of its rows."""

    parameters: Mapping[str, Any]
    since: float
    rows: asyncio.Future[Result]

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
        self._under_way: list[list[_Call]] = []  # these, and those that go again alone
        self._flushing = False
        self._later: asyncio.TimerHandle | None = None
        self._quickest = SOON  # seconds that a statement has taken at the least, of late
        self._expiry: asyncio.TimerHandle | None = None

    async def run(self, parameters: Mapping[str, Any]) -> Result:
        """Return the rows of one call, as the statement for one would."""
        call = _Call(parameters, self._loop.time(), self._loop.create_future())
        self._waiting.append(call)
        if self._expiry is None:
            self._expire()
        self._flush_soon()
        return await call.rows

    def _expire(self) -> None:
        """Answer who has waited in vain, and look again as long as there are others."""
        latest = self._loop.time() - DEADLINE + GRACE
        while self._waiting and self._waiting[0].since <= latest:
            self._waiting.popleft().fail(Undone(NOT_IN_TIME))
        self._expiry = self._loop.call_later(TICK, self._expire) if self._waiting else None

    def _flush_soon(self) -> None:
        if self._flushing or not self._waiting or self._in_flight >= IN_FLIGHT:
            return
        near = self._quickest < SOON
        if self._in_flight and near and len(self._waiting) < MOST:
            self._later = self._later or self._loop.call_later(SOON, self._flush, MOST)
        else:
            self._flushing = True
            self._loop.call_soon(self._flush, len(self._waiting) if near else MOST)

    def _flush(self, seen: int) -> None:
        if seen < len(self._waiting) < MOST:  # this turn has brought more
            self._loop.call_soon(self._flush, len(self._waiting))
            return
        self._flushing = False
        if self._later:
            self._later.cancel()
            self._later = None
        if calls := self._take():  # else all wait for one that is under way
            self._send(calls)
            self._flush_soon()

    def _take(self) -> list[_Call]:
        """Take those who wait longest; who would change a task that is taken already stays.

        Half of the statements are for users without a change under way: one lock may hold up all of
        a user's changes, and what shares a statement with them.
        """
        taken: list[_Call] = []
        left: list[_Call] = []
        changed, busy = set(), set()
        if not self._repeatable and len(self._under_way) >= IN_FLIGHT // 2:
            busy = {call.parameters.get("owner") for calls in self._under_way for call in calls}
        while self._waiting and len(taken) < MOST:
            call = self._waiting.popleft()
            task_id = call.parameters.get("task_id", call)  # a new one has none yet
            owner = call.parameters.get("owner", call)
            if call.rows.done():
                continue
            if not self._repeatable and (task_id in changed or owner in busy):
                left.append(call)
            else:
                changed.add(task_id)
                taken.append(call)
        self._waiting.extendleft(reversed(left))
        return taken

    def _send(self, calls: list[_Call], *, again: bool = False) -> None:
        self._in_flight += not again  # else users that are held up would hold up all
        self._under_way.append(calls)
        sql: Sql = self._one
        parameters = calls[0].parameters
        if len(calls) > 1:
            numbered = [{"n": n, **call.parameters} for n, call in enumerate(calls)]
            sql = self._many
            parameters = {**self._constants, "calls": to_json(numbered).decode()}
        since, shared = calls[0].since, len(calls) > 1
        job = Statement(sql, parameters, self._repeatable, since=since, shared=shared)
        self._pool.run(job).add_done_callback(lambda _: self._served(calls, job, again))

    def _served(self, calls: list[_Call], job: Statement, again: bool) -> None:
        self._in_flight -= not again
        self._under_way.remove(calls)
        error = job.rows.exception()
        if error is None:
            # Forgotten bit by bit, since a database may move.
            self._quickest = min(self._loop.time() - job.started, self._quickest + 1e-5)
            rows = job.rows.result().rows
            answers = [rows] if len(calls) == 1 else [[] for _ in calls]
            if len(calls) > 1:
                for row in rows:
                    answers[row[0]].append(row[1:])
            for call, answer in zip(calls, answers, strict=True):
                if not call.rows.done():  # else whoever asked is gone
                    call.rows.set_result(Result(answer, len(answer)))
        elif len(calls) > 1 and (self._repeatable or isinstance(error, (psycopg2.Error, Undone))):
            # Nothing was done, or doing it again is harmless: let each answer for itself.
            for call in calls:
                self._send([call], again=True)
        else:
            for call in calls:
                call.fail(error)
        self._flush_soon()
