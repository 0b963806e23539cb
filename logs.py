"""The log: lines on standard error, a line a request."""

import asyncio
import logging
import sys
import time
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final

# Classes of SQLSTATE whose messages may quote data: of data, of constraints, of triggers.
_QUOTING: Final = ("22", "23", "P0")
_GATHER: Final = 0.05  # seconds that the lines of requests wait to be written together


class _Formatter(logging.Formatter):
    def formatException(self, ei: Any) -> str:  # noqa: N802
        """Return a traceback in which PostgreSQL's errors quote neither rows nor statements."""
        text = super().formatException(ei)
        error = ei[1]
        while error:
            if code := getattr(error, "pgcode", None):
                said = "" if code.startswith(_QUOTING) else error.diag.message_primary
                text = text.replace(str(error).strip(), f"{said} (SQLSTATE {code})".strip())
            error = error.__cause__ or error.__context__
        return text


@lru_cache(maxsize=1)
def _clock(second: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))


class Log(logging.StreamHandler):  # type: ignore[type-arg]
    """The handler of every line of this service.

    A write for every request would cost more than all else about its line, so those gather for a
    moment; whatever else is logged goes out at once, after them.
    """

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._lines: list[str] = []

    def request(self, method: str, path: bytes, status: int, spent: float, request_id: str) -> None:
        """Log a request that took `spent` seconds."""
        now = time.time()
        if not self._lines:
            asyncio.get_running_loop().call_later(_GATHER, self.flush)
        at = f"{_clock(int(now))},{int(now % 1 * 1000):03}"
        where = path.decode("ascii", "backslashreplace")
        self._lines.append(
            f"{at} INFO {method} {where} {status} {spent * 1000:.1f} ms {request_id}\n"
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, after the requests before it."""
        self.flush()
        super().emit(record)

    def flush(self) -> None:
        """Write what has gathered. What cannot be written, on a full disk or into a pipe that is
        closed, is lost, but not whoever has logged it.
        """
        lines, self._lines = self._lines, []
        with suppress(OSError, ValueError):
            if lines:
                self.stream.write("".join(lines))
            super().flush()
