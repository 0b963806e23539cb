"""Every SQL statement, as pure functions that return one and its parameters; no I/O.

Each is one statement in autocommit, so each is atomic: nothing is read to be written back. Every
one names the owner first, so somebody else's task is a task that does not exist. A statement of a
given shape is built once; only its parameters change.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from secrets import token_hex
from time import time_ns
from typing import Any, NamedTuple

from sqlalchemy import ClauseElement

from engines import DEADLINE


class Query(NamedTuple):
    """A statement, its parameters, and whether sending it twice does no harm."""

    statement: ClauseElement  # SQLite runs its execution option `on_sqlite` if there is one
    parameters: Mapping[str, Any]
    repeatable: bool = False
    many: ClauseElement | None = None  # the same for many callers at once, see `gathered.py`
    planned_once: bool = False  # since one plan is good for everybody, however much they have
    deadline: float = DEADLINE  # seconds
    raises: ClauseElement | None = None  # what SQLite runs before it, in one transaction
    then: ClauseElement | None = None  # and after it
    alone: bool = False  # in a transaction that no other call's statement shares (SQLite)
    each: Sequence[Mapping[str, Any]] = ()  # the parameters of several calls, all or none


def now() -> datetime:
    """Return the instant in UTC; never a whole second, which would print without its fraction."""
    moment = datetime.now(UTC)
    return moment.replace(microsecond=moment.microsecond or 1)


def new_uid() -> str:
    """Return a UUID of version 7 (RFC 9562 section 5.7).

    It begins with the time, so those made at one time are side by side in SQLite's index: as
    random ones, each had a page of its own to write, and creates were up to a tenth slower.
    """
    digits = f"{time_ns() // 1_000_000:012x}{token_hex(9)}"
    return f"{digits[:8]}-{digits[8:12]}-7{digits[12:15]}-8{digits[15:18]}-{digits[18:]}"
