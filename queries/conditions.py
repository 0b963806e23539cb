"""The conditions of statements on tasks: what a filter finds, whose it is, and in which order."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from sqlalchemy import ColumnElement, Text, and_, bindparam, cast, false, func, not_, or_, true
from sqlalchemy.types import Boolean
from sqlmodel.sql.sqltypes import UTCDateTime

from engines.spelling import contains, has_tags, is_set, one_of, tag_lines, timestamp_text
from models import TASK, NumberList, TextList
from queries.positions import OWNER

task = TASK.c
OWNED: Final = task.user_id == OWNER
LIVE: Final = task.deleted_at.is_(None)
# Of a filter, all but its values: (column, operator).
Shape = tuple[tuple[str, str], ...]


def by_key(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    """Return what else must hold of a task that its key finds, said so that no planner goes by it.

    Without statistics, as of a new table, PostgreSQL takes IS NULL for rare, and would begin with
    all tasks of which that holds.
    """
    return func.coalesce(condition, false())


def settled(fields: Collection[str]) -> ColumnElement[bool]:
    """Return whether these fields of a task may be set without a look at its rule."""
    unruled = task.recurrence.is_(None)
    if "due_date" in fields:  # a rule needs one that fits
        return by_key(unruled)
    if "completed" in fields:  # that makes the next task, once
        return by_key(or_(unruled, task.repeated_at.is_not(None)))
    return true()


def order_by(sort: tuple[str, ...], columns: Any) -> list[ColumnElement[Any]]:
    """Return the ORDER BY clause for the keys of a list; without any the newest are first."""
    keys = []
    for key in sort:
        field = key.removeprefix("-")
        column = columns.get(field + "_folded", columns[field])
        if field in ("due_date", "remind_at"):  # a wall-clock time is as late as that time in UTC
            column = func.replace(column, ".000000Z", "")
        ordered = column.desc() if key.startswith("-") else column.asc()
        keys.append(ordered.nulls_last() if task[field].nullable else ordered)
    # Ids grow in the order of creation. Among equals the newest are first where the last key goes
    # down: then the order by priority is an index's.
    return [*keys, columns.id.desc() if not sort or sort[-1].startswith("-") else columns.id.asc()]


def matching(shape: Shape) -> ColumnElement[bool]:
    """Return the condition for all that a filter finds; the trash is left out here, for all."""
    in_trash = ("deleted", "eq") in shape
    clauses = (_clause(f"p{place}", *part) for place, part in enumerate(shape))
    return and_(OWNED, *([] if in_trash else [LIVE]), *clauses)


def overdue() -> ColumnElement[bool]:
    """Return whether a task is due before now and not completed; days are over when UTC says so.

    As text, a day sorts before the instants of that day, so of all that sorts before the present
    only today itself is not over.
    """
    due, present = task.due_date, bindparam("present", type_=Text())
    late = and_(not_(task.completed), due < present, due != func.substr(present, 1, 10))
    return func.coalesce(late, false(), type_=Boolean())


def _clause(name: str, field: str, operator: str) -> ColumnElement[bool]:
    if field == "text":
        return or_(
            *(_clause(name, f"{part}_folded", operator) for part in ("title", "description"))
        )
    if field == "tags" and operator != "like":
        holds = has_tags(task.tags, bindparam(name, type_=TextList))
        return holds if operator == "eq" else not_(holds)
    if field == "deleted":
        return is_set(task.deleted_at)
    column: Any = overdue() if field == "overdue" else task[field]
    if operator == "like":
        return contains(_as_text(column), bindparam(name, type_=Text()))
    if operator == "in":
        return one_of(column, bindparam(name, type_=NumberList))
    if column is task.uid and operator == "eq":  # PostgreSQL has no index for that of nulls
        return and_(task.uid == bindparam(name))
    return _COMPARISONS[operator](column, bindparam(name, type_=column.type))


def _as_text(column: Any) -> Any:
    """Return a column as the text that a client sees; of tags, one a line."""
    if column is task.tags:
        return tag_lines(column)
    if isinstance(column.type, UTCDateTime):
        return timestamp_text(column)
    return cast(column, Text())


_COMPARISONS: Final[Mapping[str, Callable[[Any, Any], ColumnElement[bool]]]] = {
    "eq": lambda column, value: column.is_not_distinct_from(value),
    "ne": lambda column, value: column.is_distinct_from(value),
    "lt": lambda column, value: column < value,
    "gt": lambda column, value: column > value,
    "lte": lambda column, value: column <= value,
    "gte": lambda column, value: column >= value,
}
