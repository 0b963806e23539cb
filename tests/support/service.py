"""The service as its users run it: uvicorn in a process of its own."""

import http.client
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.processes import Daemon

REPOSITORY = Path(__file__).parents[2]


class Service(Daemon):
    """`uvicorn main:app` with a clean environment: PATH, HOME and the settings given as keywords.

    with Service(DATABASE_URL=url, workers=2, args=["--timeout-keep-alive", "1"]) as service:
        httpx2.get(f"{service.url}/health")

    It is ready when /health answers 200. `stop()` returns uvicorn's exit code: -15 for one worker,
    which ends itself with the signal that it got once it is done, else 0.
    """

    def __init__(
        self,
        *,
        workers: int = 1,
        args: Sequence[str] = (),
        cwd: Path = REPOSITORY,
        app: str = "main:app",
        **settings: str,
    ) -> None:
        super().__init__("service")
        self.url = f"http://127.0.0.1:{self.port}"
        self._arguments = [app, "--host", "127.0.0.1", "--port", str(self.port), *args]
        if workers > 1:
            self._arguments += ["--workers", str(workers)]
        self._cwd = cwd
        self._settings = settings

    def memory(self) -> int:
        """Resident bytes of all its processes together (pages that they share count in each)."""
        return sum(process.memory_info().rss for process in self._tree())

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "uvicorn", *self._arguments]

    def _working_directory(self) -> Path:
        return self._cwd

    def _environment(self) -> Mapping[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return {**kept, "PYTHONUNBUFFERED": "1", **self._settings}

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def changed_service(directory: Path, source: str, **settings: Any) -> Service:
    """A service whose `app` is that of a module with this source, which is written to `directory`.

    The module imports ours and changes something of it first.
    """
    (directory / "changed.py").write_text(source)
    return Service(app="changed:app", cwd=directory, PYTHONPATH=str(REPOSITORY), **settings)
