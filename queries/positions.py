"""Positions: every write raises its user's by one before it touches a task (see `models.Feed`).

On PostgreSQL that is the first step, `moved`, of the write's own statement. SQLite has no steps
that write: there it is a statement of its own, just before in the same transaction. Where tables
are on several nodes (Citus) an insert has no steps: there a create calls a function that does it.
"""

from typing import Any

from sqlalchemy import BigInteger, Text, Update, bindparam, func, select

# Its ON CONFLICT compiles for SQLite as well.
from sqlalchemy.dialects.postgresql import Insert
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from engines.spelling import Citus, one_of, or_nothing
from models import FEED, NumberList

feed = FEED.c
OWNER = bindparam("owner", type_=Text())


class _Raise(Update):
    """Raises a position as a step of another statement."""

    inherit_cache = True


@compiles(_Raise, "sqlite")
def _raised(_: Any, compiler: Any, **options: Any) -> str:
    """SQLite has no steps that write: it has raised the position just before, and reads it."""
    position = select(feed.user_id, feed.position).where(feed.user_id == OWNER)
    return str(compiler.process(position, **options))


class _Made(FunctionElement[int]):
    """The new position of a user who makes a task."""

    type = BigInteger()
    inherit_cache = True


@compiles(_Made)
def _made(_: Any, compiler: Any, **options: Any) -> str:
    moved = MOVED if compiler.dialect.name == "sqlite" else _MOVED_OR_MADE
    step = select(moved.c.position).scalar_subquery()
    position = func.task_moved(OWNER) if isinstance(compiler.dialect, Citus) else step
    return str(compiler.process(position, **options))


def _raising(kind: type[Update], by: Any = 1) -> Any:
    return kind(FEED).where(feed.user_id == OWNER).values(position=feed.position + by)


def raising_or_making(made: Insert) -> Insert:
    """Return what makes positions, and raises those that are there."""
    raised = {"position": feed.position + 1}
    return made.on_conflict_do_update(index_elements=[feed.user_id], set_=raised)


def step(raising: Any) -> Any:
    """Return a step that raises positions, for the statement that it is of."""
    return raising.returning(feed.user_id, feed.position).cte("moved")


# Only from a position that the caller knows, else nothing is done at all.
_by_known = or_nothing(one_of(feed.position, bindparam("positions", type_=NumberList)))
RAISE, RAISE_KNOWN = _raising(Update), _raising(Update, _by_known)
RAISE_OR_MAKE = raising_or_making(Insert(FEED).values(user_id=OWNER, position=2, forgotten=0))
MOVED, MOVED_KNOWN = step(_raising(_Raise)), step(_raising(_Raise, _by_known))
_MOVED_OR_MADE, MADE = step(RAISE_OR_MAKE), _Made()
