"""Whom the streams' look for changes wakes, when the database or the clock goes wrong."""

import asyncio
import json
import sys
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from auth import Owner
from errors import Unauthorized, Unavailable
from routes import live
from schemas import Since


class Away:
    """A database that does not answer; on several nodes, one is enough for that."""

    def __init__(self, *, distributed: bool) -> None:
        self.distributed = distributed
        self.asked = 0
        self.enough = asyncio.Event()

    async def run(self, _: object) -> None:
        self.asked += 1
        if self.asked == 3:
            self.enough.set()
        raise Unavailable


class Listener:
    """A stream that has seen position 7, and counts how often it is woken."""

    since = 7
    whose = SimpleNamespace(user_id="here")

    def __init__(self) -> None:
        self.woken = 0
        self.ended = asyncio.Event()

    def wake(self) -> None:
        self.woken += 1

    def end(self) -> None:
        self.ended.set()

    def look_at_the_clock(self, now: float) -> None:
        pass


@pytest.mark.parametrize("distributed", [False, True])
def test_each_stream_looks_for_itself_where_one_node_may_be_away(
    monkeypatch: pytest.MonkeyPatch, distributed: bool
) -> None:
    monkeypatch.setattr(live, "_LOOK", 0.01)
    database: Any = Away(distributed=distributed)
    listener: Any = Listener()

    async def scenario() -> None:
        streams = live.Live(database)
        streams.add(listener)
        await database.enough.wait()
        streams.remove(listener)

    asyncio.run(scenario())
    assert (listener.woken >= 2) == distributed


def test_when_the_look_for_changes_fails_no_stream_goes_on_deaf(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live, "_LOOK", 0.01)
    broken: Any = SimpleNamespace()  # has no `run`
    listener: Any = Listener()

    async def scenario() -> None:
        streams = live.Live(broken)
        streams.add(listener)
        async with asyncio.timeout(5):
            await listener.ended.wait()
        assert isinstance(streams._looking, asyncio.Task)
        assert isinstance(streams._looking.exception(), AttributeError)

    asyncio.run(scenario())


def _stream(page: Any, check: Any) -> live.Stream:
    around: Any = SimpleNamespace(page=page)
    stream = live.Stream(around, around, Since(), check)
    stream._transport = SimpleNamespace(is_closing=lambda: False)
    return stream


def test_a_clock_that_is_set_back_puts_off_no_comment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_BEAT", 0.01)

    async def nothing(*_: object) -> None:
        pass

    async def scenario() -> None:
        stream = _stream(nothing, nothing)
        assert await stream._next() == b""
        await asyncio.sleep(0.02)
        monkeypatch.setattr(time, "time", lambda: 0.0)
        stream.look_at_the_clock(time.time())
        async with asyncio.timeout(5):
            assert await stream._next() == KEEPALIVE_COMMENT

    asyncio.run(scenario())


def test_a_comment_looks_whether_the_token_still_counts_and_is_not_said_again_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers: list[Exception] = [Unavailable(), Unauthorized()]  # nobody can say, and it does not

    async def nothing(*_: object) -> None:
        pass

    async def check() -> None:
        raise answers.pop(0)

    async def scenario() -> None:
        monkeypatch.setattr(live, "_BEAT", 0.0)
        stream = _stream(nothing, check)
        await asyncio.sleep(0.01)
        monkeypatch.setattr(live, "_BEAT", 3600.0)
        assert await stream._next() == KEEPALIVE_COMMENT
        stream.look_at_the_clock(0.0)
        assert not stream._roused.is_set()
        stream._due = 0.0
        stream.look_at_the_clock(0.0)
        with pytest.raises(Unauthorized):
            await stream._next()

    asyncio.run(scenario())


def test_a_page_with_more_behind_it_is_followed_by_the_next_at_once() -> None:
    pages = [(5, True, b"first"), (6, False, b"last")]

    async def page(_: object) -> tuple[int, bool, bytes]:
        return pages.pop(0)

    async def scenario() -> None:
        stream = _stream(page, None)
        assert await stream._next() == b"first"
        assert stream._roused.is_set()
        assert await stream._next() == b"last"
        assert not stream._roused.is_set()

    asyncio.run(scenario())


def test_of_what_a_stream_has_said_it_keeps_nothing() -> None:
    """Its first page neither: to a thousand who listen to a long list it was half a gigabyte."""
    pages = [(5, False, bytes(1000)), (6, False, bytes(1000))]
    sent = [bytes(1000)]  # which nobody else has
    said = asyncio.Event()

    async def page(_: object) -> tuple[int, bool, bytes]:
        return pages.pop(0)

    async def send(message: Any) -> None:
        if len(message.get("body", b"")) >= 1000:
            sent.append(message["body"])
            said.set()

    async def scenario() -> None:
        stream = _stream(page, None)
        around: Any = SimpleNamespace(page=page, add=lambda _: None, remove=lambda _: None)
        stream._live, receive = around, around
        saying = asyncio.create_task(stream({"type": "http"}, receive, send))
        for _ in range(2):
            async with asyncio.timeout(5):
                await said.wait()
            said.clear()
            await asyncio.sleep(0)  # until it waits for the next
            assert len({sys.getrefcount(body) for body in sent}) == 1
            stream.wake()
        saying.cancel()
        assert {len(body) for body in sent} == {1000}  # the very page, which others say too

    asyncio.run(scenario())


def test_streams_of_one_user_leave_turns_to_those_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def changes_since(_: object, whose: Owner, known: Since) -> tuple[int, bool, bytes]:
        if whose.user_id == "greedy":
            await asyncio.sleep(3600)
        return known.since + 1, False, b"{}"

    monkeypatch.setattr(live, "changes_since", changes_since)

    async def scenario() -> None:
        streams = live.Live(cast("Any", Away(distributed=False)))

        def page(user: str, since: int) -> Any:
            stream: Any = SimpleNamespace(whose=Owner(user, ""), since=since, limit=1)
            return asyncio.create_task(streams.page(stream))

        greedy = [page("greedy", since) for since in range(2 * live._READS)]
        await asyncio.sleep(0.01)
        async with asyncio.timeout(1):
            assert await page("other", 5) == (6, False, b"event: changes\ndata: {}\nid: 6\n\n")
        for each in greedy:
            each.cancel()

    asyncio.run(scenario())


class _Large(bytes):
    """A page that nobody shall go through: the loop would stand still meanwhile."""

    def decode(self, *_: object) -> str:
        raise AssertionError


def test_a_page_becomes_an_event_without_a_look_at_what_is_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = json.dumps({"changes": [{"title": "one\nline\r\x85\u2028"}]}).encode()

    async def changes_since(*_: object) -> tuple[int, bool, bytes]:
        return 7, False, _Large(page)

    monkeypatch.setattr(live, "changes_since", changes_since)

    async def scenario() -> Any:
        database: Any = Away(distributed=False)
        return await live.Live(database)._read(Owner("here", ""), 0, 1)

    told = format_sse_event(data_str=page.decode(), event="changes", id="7")
    assert asyncio.run(scenario()) == (7, False, told)
