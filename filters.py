"""How the text of a filter is read, which condition it stands for, and that condition as SQL.

json-server gives each field five filters; `FIELDS` says how the value of each is read.
"""

import re
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, NamedTuple

import sqlalchemy
from pydantic import AfterValidator, BeforeValidator, ConfigDict, WithJsonSchema, create_model
from sqlalchemy import ColumnElement, Text, and_, bindparam, false, func, not_, or_, true
from sqlalchemy.types import Boolean
from sqlmodel.sql.sqltypes import UTCDateTime

import fields
from engines.spelling import contains, has_tags, is_set, one_of, tag_lines, timestamp_text
from fields import DAY, DUE_BOUND, Description, DueDate, Order, Priority, RemindAt, TaskId, broken
from models import PRIORITIES, TASK, NumberList, TextList
from positions import OWNER


class Condition(NamedTuple):
    """`column operator value`; the operators are `eq ne lt gt gte lte like in`.

    The column may also be `text` (title or description) or `overdue`. With `in`, and for `tags`
    with `eq` (has all of them) and `ne`, the value is a list. A parameter is declared with the
    condition that it stands for, without a value.
    """

    column: str
    operator: str
    value: Any = None


def _due_from(value: str | None) -> str:
    """Return what sorts before nothing that is due then, be it an instant or a wall-clock time."""
    if value is None:
        raise broken("must be a day or a time")
    return value.removesuffix(".000000Z")


def _due_until(value: str | None) -> str:
    """Return what sorts after all that is due then, or on all of that day."""
    bound = _due_from(value)
    if DAY.fullmatch(bound):
        return bound + "~"
    return bound if bound.endswith("Z") else bound + ".000000Z"


def _at(day_from: str) -> AfterValidator:
    """Read an instant; a day stands for its time `day_from`, or for none if that is empty."""

    def read(value: str | None) -> datetime | None:
        if day_from and value is None:
            raise broken("must not be empty")
        if value and DAY.fullmatch(value):
            if not day_from:
                raise broken("must be a timestamp with a UTC offset")
            value += day_from
        return datetime.fromisoformat(value).replace(tzinfo=UTC) if value else None

    return AfterValidator(read)


def ranks(names: list[str]) -> list[int]:
    """Return the places of priorities."""
    return [PRIORITIES.index(name) for name in names]


def _number(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(
        r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", value
    ):
        raise broken("must be a number")
    return value


AsList = BeforeValidator(lambda value: value if isinstance(value, list) else [value])
Flag = Annotated[
    Literal["true", "false"],
    BeforeValidator(lambda value: str(value).lower() if isinstance(value, bool) else value),
    AfterValidator(lambda value: value == "true"),
    WithJsonSchema({"type": "boolean"}),
]
Folded = Annotated[Description, AfterValidator(str.casefold)]
_Rule = Annotated[Description, AfterValidator(lambda rule: rule or None)]
_OneTag = Annotated[fields.Tag, AfterValidator(lambda tag: [tag])]
_Number = Annotated[Order, BeforeValidator(_number)]
DueFrom = Annotated[DueDate, AfterValidator(_due_from), DUE_BOUND]
DueUntil = Annotated[DueDate, AfterValidator(_due_until), DUE_BOUND]
_PriorityLike = Annotated[
    Description,
    AfterValidator(lambda part: ranks([name for name in PRIORITIES if part.lower() in name])),
]
_Moment = (
    Annotated[DueDate, _at("")],
    Annotated[DueDate, _at("T00:00:00.000000Z")],
    Annotated[DueDate, _at("T23:59:59.999999Z")],
    Description,
)

# How the text of `FIELD` and `FIELD_ne`, `FIELD_gte`, `FIELD_lte` and `FIELD_like` is read.
FIELDS: Final[dict[str, tuple[Any, Any, Any, Any]]] = {
    "id": (TaskId, TaskId, TaskId, Description),
    "uid": (Description, Description, Description, Description),
    "user_id": (Description, Description, Description, Description),
    "title": (Description, Folded, Folded, Folded),
    "description": (Description, Folded, Folded, Folded),
    "completed": (Flag, Flag, Flag, None),
    "completed_at": _Moment,
    "priority": (Priority, Priority, Priority, _PriorityLike),
    "due_date": (DueDate, DueFrom, DueUntil, Description),
    "remind_at": (RemindAt, DueFrom, DueUntil, Description),
    "recurrence": (_Rule, _Rule, _Rule, Description),
    "repeat_from": (fields.RepeatFrom, fields.RepeatFrom, fields.RepeatFrom, Description),
    "tags": (_OneTag, None, None, Description),
    "order": (_Number, _Number, _Number, None),
    "created_at": _Moment,
    "updated_at": _Moment,
}
_MEANING_MORE: Final = ("id", "priority", "order")  # declared below
SORTABLE: Final = tuple(field for field in FIELDS if field != "tags")


def _field_filters() -> dict[str, Any]:
    """Return the parameters that json-server makes of every field: `title_like`, `order_gte` …"""
    parameters: dict[str, Any] = {}
    for field, (exact, least, most, like) in FIELDS.items():
        kinds = {"eq": exact, "ne": exact, "gte": least, "lte": most, "like": like}
        for operator, kind in kinds.items():
            name = field if operator == "eq" else f"{field}_{operator}"
            column = field + "_folded" if kind is Folded else field
            condition = Condition(column, "in" if kind is _PriorityLike else operator)
            if kind is not None and name not in _MEANING_MORE:
                parameters[name] = (Annotated[kind, condition], None)
    return parameters


ByField: Any = create_model("ByField", __config__=ConfigDict(extra="forbid"), **_field_filters())


# ---- as SQL

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
    return _COMPARISONS[operator](column, bindparam(name, type_=column.type))


def _as_text(column: Any) -> Any:
    """Return a column as the text that a client sees; of tags, one a line."""
    if column is task.tags:
        return tag_lines(column)
    if isinstance(column.type, UTCDateTime):
        return timestamp_text(column)
    return sqlalchemy.cast(column, Text())


_COMPARISONS: Final[Mapping[str, Callable[[Any, Any], ColumnElement[bool]]]] = {
    "eq": lambda column, value: column.is_not_distinct_from(value),
    "ne": lambda column, value: column.is_distinct_from(value),
    "lt": lambda column, value: column < value,
    "gt": lambda column, value: column > value,
    "lte": lambda column, value: column <= value,
    "gte": lambda column, value: column >= value,
}
