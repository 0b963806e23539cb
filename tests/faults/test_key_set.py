"""A server of keys that answers without end costs one fetch, never the next ones (section 7)."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress

import pytest
from jwt import PyJWK

from auth import tokens
from auth.tokens import KeySet
from errors import Unavailable
from tests.support.tokens import Key, claims

KEY = Key("EdDSA", "one")
SET = json.dumps({"keys": [KEY.jwk]}).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
GOOD = HEAD + b"Content-Length: %d\r\n\r\n" % len(SET) + SET
Answer = Callable[[socket.socket], None]


def drip(text: bytes) -> Answer:
    """Return an answer that comes a byte at a time."""

    def answer(connection: socket.socket) -> None:
        for place in range(len(text)):
            connection.sendall(text[place : place + 1])
            time.sleep(0.05)

    return answer


def endless(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"\r\n")
    while True:
        connection.sendall(b" " * 65536)


def too_large(connection: socket.socket) -> None:
    padded = b" " * 1_000_001 + SET
    connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(padded) + padded)


def silent(connection: socket.socket) -> None:
    time.sleep(30)


@contextmanager
def server(first: Answer, *, times: int = 1) -> Iterator[str]:
    """Answer so many connections with `first`, and those after them with the set."""
    listener = socket.create_server(("127.0.0.1", 0))
    bad = [first] * times

    def serve(connection: socket.socket, answer: Answer) -> None:
        with connection, suppress(OSError):
            connection.recv(65536)
            answer(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                answer = bad.pop() if bad else lambda connection: connection.sendall(GOOD)
                threading.Thread(target=serve, args=(connection, answer), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/jwks"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.mark.parametrize(
    "first",
    [drip(HEAD + b"\r\n" + SET), drip(b"HTTP/1.1 200 " + b"x" * 9999), endless, too_large, silent],
    ids=["dripping", "dripping head", "endless", "too large", "silent"],
)
def test_a_bad_answer_does_not_hold_up_the_next_fetch(
    first: Answer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tokens, "_PATIENCE", 0.5)
    monkeypatch.setattr(tokens, "_RETRY", 0.1)
    monkeypatch.setattr(tokens.log, "handlers", [caplog.handler])
    token = KEY.token(claims("zoe"))

    async def fetch(url: str) -> bool:
        keys = KeySet(url)
        await keys.open()
        async with asyncio.timeout(20):
            while True:
                with suppress(Unavailable):
                    return await keys.for_token(token) is not None
                await asyncio.sleep(0.05)

    with server(first, times=3) as url:
        assert asyncio.run(fetch(url))
    assert "AUTH_JWKS_URL: cannot be had" in caplog.text


def test_a_set_of_just_under_a_megabyte_is_taken() -> None:
    padded = SET + b" " * (999_000 - len(SET))

    def large(connection: socket.socket) -> None:
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(padded) + padded)

    with server(large) as url:
        keys, found = tokens._fetched(url).result(10)
    assert (len(keys), found) == (1, 1)


def test_a_late_answer_never_replaces_a_newer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asyncio.Queue[Future[tuple[list[PyJWK], int]]]()

    def fetched(_: str) -> Future[tuple[list[PyJWK], int]]:
        answer = Future[tuple[list[PyJWK], int]]()
        asked.put_nowait(answer)
        return answer

    monkeypatch.setattr(tokens, "_fetched", fetched)

    async def scenario() -> None:
        keys = KeySet("http://nobody.invalid")
        fetches = [asyncio.create_task(keys._fetch()) for _ in range(2)]
        for number in (1, 2):
            answer = await asyncio.wait_for(asked.get(), 10)
            await asyncio.sleep(0.01)  # in which one that does not wait would ask
            assert asked.empty()
            answer.set_result(([], number))
        await asyncio.gather(*fetches)

    asyncio.run(scenario())
