"""Clients of the changes: one that listens to the stream, one that keeps a copy of the tasks."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Mapping
from email.message import Message
from http.client import HTTPConnection, HTTPException
from typing import Any, Self
from urllib.parse import urlsplit

from tests.support.processes import wait_until

EVENTS = {"Accept": "text/event-stream"}


class Listener:
    """Listens in a thread of its own, as `EventSource` does.

    with Listener(f"{service.url}{tasks}/changes?since=3") as listener: listener.wait_for(5)

    It comes back with `Last-Event-ID` after a stream that ended or broke, unless `once`; a status
    other than 200 ends it for good.
    """

    def __init__(
        self, url: str, headers: Mapping[str, str] | None = None, *, once: bool = False
    ) -> None:
        self.pages: list[dict[str, Any]] = []
        self.ids: list[str] = []
        self.comments = 0
        self.statuses: list[int] = []
        self.headers = Message()
        self.tasks: dict[int, dict[str, Any]] = {}  # what is left of all changes
        self._url = url
        self._given = {**EVENTS, **(headers or {})}
        self._once = once
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="listener", daemon=True)

    @property
    def position(self) -> int:
        return int(self.ids[-1]) if self.ids else 0

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def wait_for(self, position: int) -> None:
        """Return when all up to that position has come."""
        come = f"the stream comes to {position}"
        wait_until(lambda: self.ended or self.position >= position, come, 60)
        assert self.position >= position, f"ended at {self.position} with {self.statuses}"

    def wait_until_ended(self) -> None:
        """Return when no stream is to be had any more."""
        wait_until(lambda: self.ended, "the stream has ended for good", 60)

    def titles(self) -> list[str]:
        return [task["title"] for task in self.tasks.values() if not task["deleted"]]

    def _run(self) -> None:
        while not self._closing:
            with contextlib.suppress(OSError, HTTPException):
                self._listen()
            if self._once or self.statuses[-1:] not in ([], [200]):
                return
            time.sleep(0.1)

    def _listen(self) -> None:
        parts = urlsplit(self._url)
        self._connection = HTTPConnection(parts.netloc, timeout=60)
        with contextlib.closing(self._connection):
            last = {"Last-Event-ID": self.ids[-1]} if self.ids else {}
            self._connection.request(
                "GET", f"{parts.path}?{parts.query}", headers=self._given | last
            )
            answer = self._connection.getresponse()
            self.headers = answer.headers
            self.statuses.append(answer.status)
            event: dict[str, str] = {}
            while answer.status == 200 and (line := answer.readline().decode()):
                field, _, value = line.rstrip("\n").partition(": ")
                if field == "":
                    self.comments += line != "\n"
                    if "data" in event:
                        assert event["event"] == "changes"
                        self._take(json.loads(event["data"]), event["id"])
                    event = {}
                else:
                    event[field] = value

    def _take(self, page: dict[str, Any], position: str) -> None:
        assert position == str(page["position"])
        for change in page["changes"]:
            if change.get("gone"):
                self.tasks.pop(change["id"], None)
            else:
                self.tasks[change["id"]] = change
        self.pages.append(page)
        self.ids.append(position)

    def __enter__(self) -> Self:
        self._thread.start()
        what = "the stream is answered"
        wait_until(lambda: self.statuses and (self.comments or self.statuses != [200]), what, 60)
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        with contextlib.suppress(AttributeError, OSError):
            self._connection.sock.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._thread.join()
