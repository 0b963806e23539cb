"""Chromium without a window, driven over its DevTools protocol."""

import http.client
import json
import time
from base64 import b64decode
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Self

from websockets.sync.client import connect

from tests.support.needs import need
from tests.support.processes import Daemon


class Chromium(Daemon):
    """A browser that reaches 127.0.0.1 and localhost, and no other host.

    with Chromium() as browser, browser.open("http://127.0.0.1:8000/docs") as page:
        assert page.evaluate("document.title") == "Tasks"
    """

    def __init__(self) -> None:
        self._program = need("chromium", "Debian's chromium")
        super().__init__("chromium")

    def open(self, url: str) -> "Page":
        """Open `url` in a new tab."""
        return Page(self.port, url)

    def _command(self) -> list[str]:
        return [
            self._program,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            "--log-level=3",
            "--window-size=1200,1600",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
            f"--user-data-dir={self.directory / 'profile'}",
            f"--remote-debugging-port={self.port}",
            "about:blank",
        ]

    def _is_ready(self) -> bool:
        try:
            return bool(_ask(self.port, "GET", "/json/version"))
        except (OSError, http.client.HTTPException):
            return False


def _ask(port: int, method: str, path: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


class Page:
    """One tab. `requests` has the URL of everything that it asked for, `errors` what it threw."""

    def __init__(self, port: int, url: str) -> None:
        target = _ask(port, "PUT", "/json/new?about:blank")
        self._open = ExitStack()
        address = target["webSocketDebuggerUrl"]
        self._socket = self._open.enter_context(connect(address, max_size=None, compression=None))
        self._sent = 0
        self.requests: list[str] = []
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Network"):
            self._command(f"{domain}.enable")
        self._command("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def evaluate(self, script: str) -> Any:
        """Run `script` as the console does, `await` included, and return its value."""
        answer = self._command(
            "Runtime.evaluate",
            expression=script,
            replMode=True,
            awaitPromise=True,
            returnByValue=True,
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(_text(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def wait(self, condition: str, timeout: float = 20) -> None:
        """Return once `condition` is true; TimeoutError after `timeout` s."""
        deadline = time.monotonic() + timeout
        while not self.evaluate(f"Boolean({condition})"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {timeout:g} s: {condition}; {self.errors}")
            time.sleep(0.05)

    def type(self, selector: str, text: str) -> None:
        """Put `text` into the input that `selector` finds, and leave it."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.wait(element)
        self.evaluate(f"{element}.focus(); {element}.select()")
        self._command("Input.insertText", text=text)
        self.evaluate(f"{element}.blur()")

    def click(self, selector: str) -> None:
        """Click on what `selector` finds."""
        self.wait(f"document.querySelector({json.dumps(selector)})")
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    def screenshot(self, path: Path) -> None:
        """Save the visible part as a PNG."""
        path.write_bytes(b64decode(self._command("Page.captureScreenshot")["data"]))

    def _command(self, method: str, **parameters: Any) -> Any:
        self._sent += 1
        command = {"id": self._sent, "method": method, "params": parameters}
        self._socket.send(json.dumps(command))
        while True:
            message = json.loads(self._socket.recv(timeout=30))
            if message.get("id") == self._sent:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return message["result"]
            self._note(message)

    def _note(self, event: Mapping[str, Any]) -> None:
        parameters = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(_text(parameters["exceptionDetails"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()


def _text(details: Mapping[str, Any]) -> str:
    return str(details.get("exception", {}).get("description") or details["text"])


class Site:
    """The files of a directory on an origin of their own, as a frontend's development server."""

    def __init__(self, directory: Path) -> None:
        handler = partial(_Quiet, directory=str(directory))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://localhost:{self._server.server_port}"

    def __enter__(self) -> Self:
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""
